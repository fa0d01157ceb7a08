"""The table of a benchmark: means over classes and seeds, what is missing, its picture."""

import statistics

import pytest
from labelled_sets import finish, write_sets

from ood_jax import benchmark_figure, benchmark_table
from ood_jax.cases import Case
from ood_jax.gather import DEVIATION, gather, markdown, show
from ood_jax.runs import expand

TINY, OTHER = "tiny-simclr", "tiny-oecl-outliers"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def expanded(recipe, tmp_path):
    """expanded(cases of a config, seeds) -> runs of SimCLR, then of OECL."""

    def of(cases, seeds):
        recipes = [f"{recipe}:simclr", f"{recipe}:oecl,outliers"]
        return expand(recipes, [], seeds, {}, tmp_path / "w", cases)

    return of


def by_class(_):
    names = ("cat", "dog", "great white")
    near = {"score.near": ("rest=npz:near.npz",), "score.far": ()}
    return [Case(name, near, folder=f"one_vs_rest={name}") for name in names]


def by_number(config):
    """few_shot as `cases` makes it: SimCLR has k = 0 alone."""
    numbers = (0, 1, 10) if config.data.auxiliary else (0,)
    return [Case(f"{other} {k}", {}, other, k, f"{other}={k}") for other in "ab" for k in numbers]


def filled(runs, aurocs):
    """The table of runs of which those with an AUROC in (variant, case, seed) -> x are finished."""
    for run in runs:
        value = aurocs(run.variant, run.case.name, run.seed)
        if value is not None:
            finish(run, value, ("norm_mean", "norm"))
    return gather(runs)


def test_the_mean_is_over_the_classes_of_each_seed_that_has_them_all(expanded):
    numbers = {"cat": 0.5, "dog": 0.7, "great white": 0.9}

    def auroc(variant, case, seed):
        gone = variant == OTHER and (case, seed) == ("dog", 1)
        return None if gone else numbers[case] + 0.01 * seed**2

    runs = expanded(by_class, [0, 1, 3])
    gathered = filled(runs, auroc)
    table = benchmark_table.tabulate("one_vs_rest", runs, gathered)
    assert [row["case"] for row in table["rows"]] == list(numbers)
    assert (table["runs"], table["missing"], table["seeds"]) == (18, 1, [0, 1, 3])
    whole, part = (table["mean"][variant]["rest"] for variant in (TINY, OTHER))
    assert whole["values"] == pytest.approx({"0": 0.7, "1": 0.71, "3": 0.79})
    assert whole["std"] == pytest.approx(statistics.stdev([0.7, 0.71, 0.79]))
    assert part["values"] == pytest.approx({"0": 0.7, "3": 0.79})  # seed 1 lacks a class
    assert part["std"] == pytest.approx(statistics.stdev([0.7, 0.79]))

    text = markdown([benchmark_table.in_words(table, DEVIATION)])
    assert "## one_vs_rest: AUROC in % of norm_mean" in text
    assert f"| case | {TINY} | {OTHER} |\n| --- | ---: | ---: |\n" in text
    assert "| dog | 73.33 ± 4.93 | 74.50 ± 6.36 (n = 2) |" in text
    assert "| mean | 73.33 ± 4.93 | 74.50 ± 6.36 (n = 2) |" in text
    assert "n - 1); 3 seeds." in text and "–: 1 of 18 runs are missing." in text


def test_accuracy_stands_beside_auroc_where_a_recipe_has_one(expanded):
    """OECL's is lower for the dog; of the great white SimCLR's run is missing."""
    accuracies = {"cat": (0.8, 0.9), "dog": (0.9, 0.85), "great white": (0.99, 0.1)}
    runs = expanded(by_class, [0, 1])
    for run in runs:
        if (run.variant, run.case.name) != (TINY, "great white"):
            accuracy = accuracies[run.case.name][run.variant == OTHER] + run.seed / 100
            finish(run, 0.5, accuracy=accuracy)
    table = benchmark_table.tabulate("leave_one_class_out", runs, gather(runs))
    words = benchmark_table.in_words(table, DEVIATION)
    assert words.header == (
        "case",
        *(TINY, f"{TINY}, ID accuracy, %"),
        *(OTHER, f"{OTHER}, ID accuracy, %"),
    )
    auroc = "50.00 ± 0.00"
    assert words.rows == [
        ("cat", auroc, "80.50 ± 0.71", auroc, "90.50 ± 0.71"),
        ("dog", auroc, "90.50 ± 0.71", auroc, "85.50 ± 0.71 ↓"),
        ("great white", "–", "–", auroc, "10.50 ± 0.71"),
        ("mean", "–", "–", auroc, "62.17 ± 0.71"),
    ]
    assert f"↓: lower ID accuracy than {TINY}." in words.notes
    for run in runs:
        finish(run, 0.5, accuracy=0.9 if run.variant == TINY else None)
    table = benchmark_table.tabulate("leave_one_class_out", runs, gather(runs))
    words = benchmark_table.in_words(table, DEVIATION)
    assert words.header == ("case", TINY, f"{TINY}, ID accuracy, %", OTHER)
    assert words.rows[-1] == ("mean", auroc, "90.00 ± 0.00", auroc)
    assert "↓" not in markdown([words])


def test_a_missing_run_is_a_dash(expanded, tmp_path, capsys):
    runs = expanded(by_class, [0])
    kept = ("cat", "great white")
    gathered = filled(runs, lambda name, case, _: 0.25 if name == TINY and case in kept else None)
    table = benchmark_table.tabulate("leave_one_class_out", runs, gathered, "norm")
    words = benchmark_table.in_words(table, DEVIATION)
    assert words.rows == [
        ("cat", "25.00", "–"),
        ("dog", "–", "–"),
        ("great white", "25.00", "–"),
        ("mean", "–", "–"),
    ]
    assert words.title.endswith("of norm") and "1 seed." in words.notes[0]
    show([words])
    printed = capsys.readouterr().out
    assert "leave_one_class_out" in printed and "4 of 6 runs are missing" in printed
    assert benchmark_figure.write(table, tmp_path / "a.png")


def test_nothing_is_finished(expanded, tmp_path):
    runs = expanded(by_class, [0, 1])
    table = benchmark_table.tabulate("one_vs_rest", runs, gather(runs))
    words = benchmark_table.in_words(table, DEVIATION)
    assert {cell for row in words.rows for cell in row[1:]} == {"–"}
    assert "of norm_mean" in words.title and "12 of 12 runs" in words.notes[-1]
    assert not benchmark_figure.write(table, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_rows_are_line_by_line_and_what_a_recipe_has_not_is_empty(expanded):
    runs = expanded(by_number, [0, 1])
    gathered = filled(runs, lambda variant, case, seed: {"near": 0.5, "far": 0.75})
    table = benchmark_table.tabulate("few_shot", runs, gathered)
    words = benchmark_table.in_words(table, DEVIATION)
    assert words.header == (
        "case",
        *(f"{variant}, {name}" for variant in (TINY, OTHER) for name in ("near", "far")),
    )
    both = ("50.00 ± 0.00", "75.00 ± 0.00")
    assert words.rows == [
        (f"{other} {k}", *(both if k == 0 else ("", "")), *both)
        for other in "ab"
        for k in (0, 1, 10)
    ]
    assert table["mean"] == {} and len(words.notes) == 1


def test_scorers_that_differ_stand_in_the_columns(recipe, tmp_path):
    runs = expand([recipe], [], [0], {"score.scorers": ["norm", "norm_mean"]}, tmp_path, by_class)
    for run in runs:
        finish(run, 0.5, tuple(run.config["score.scorers"]))
    table = benchmark_table.tabulate("one_vs_rest", runs, gather(runs))
    words = benchmark_table.in_words(table, DEVIATION)
    assert words.title == "one_vs_rest: AUROC in % of norm, norm_mean"
    assert words.header[1:] == (
        "tiny score.scorers=norm, norm",
        "tiny score.scorers=norm_mean, norm_mean",
    )


def test_of_all_scorers_the_first_that_ran_counts(recipe, tmp_path):
    (run,) = expand([recipe], ["--config.score.scorers=all"], [0], {}, tmp_path)
    assert benchmark_table.tabulate("unlabelled", [run], gather([run]))["scorers"] == {
        "tiny": "all"
    }
    finish(run, 0.5, ("knn", "norm"))
    table = benchmark_table.tabulate("unlabelled", [run], gather([run]))
    assert table["scorers"] == {"tiny": "knn"}
    assert table["rows"][0]["auroc"]["tiny"]["near"]["mean"] == 0.5


def test_pictures(expanded, tmp_path):
    from matplotlib.figure import Figure

    runs = expanded(by_number, [0, 1])
    gathered = filled(runs, lambda _, case, seed: 0.5 + 0.01 * len(case) + 0.1 * seed)
    table = benchmark_table.tabulate("few_shot", runs, gathered)
    panel = Figure().subplots()
    benchmark_figure.draw_curves(panel, table, "near")
    labels = panel.get_legend_handles_labels()[1]
    assert labels == [f"{variant}, {curve}" for variant in (TINY, OTHER) for curve in "ab"]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "1", "10"]
    assert panel.get_xscale() == "symlog"
    line = panel.containers[2].lines[0]  # OECL, a
    assert line.get_xdata().tolist() == [0, 1, 10]
    assert line.get_ydata().tolist() == pytest.approx([58, 58, 59])

    runs = expanded(by_class, [0, 1])
    gathered = filled(runs, lambda variant, case, seed: 0.5 + 0.1 * (variant == OTHER))
    table = benchmark_table.tabulate("one_vs_rest", runs, gathered)
    panel = Figure().subplots()
    benchmark_figure.draw_cases(panel, table, "rest")
    names = [text.get_text() for text in panel.get_xticklabels()]
    assert names == ["cat", "dog", "great white", "mean"]
    first, second = (container.lines[0] for container in panel.containers)
    assert first.get_ydata().tolist() == pytest.approx([50] * 4)
    assert second.get_ydata().tolist() == pytest.approx([60] * 4)
    assert all(0 < b - a < 1 for a, b in zip(first.get_xdata(), second.get_xdata(), strict=True))
