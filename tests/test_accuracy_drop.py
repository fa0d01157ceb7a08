"""ID accuracy beside OOD numbers: whose is lower, where it is shown, what marks it."""

import json

import pytest
from scored_workdir import make

from ood_jax import accuracy_drop, gather, results
from ood_jax.reporting import facts, tables
from ood_jax.reporting.variants import variants
from ood_jax.reporting.workdirs import read


def stat(*values):
    return gather.statistic({str(seed): value for seed, value in enumerate(values)})


def test_lower_is_what_is_printed_lower():
    assert accuracy_drop.dropped(0.9, 0.91) and not accuracy_drop.dropped(0.91, 0.9)
    assert not accuracy_drop.dropped(0.90001, 0.90004)  # both 90.00
    assert not accuracy_drop.dropped(0.5, None)


def test_the_first_that_has_an_accuracy_is_the_measure():
    stats = {"rest": None, "a": stat(0.9, 0.8), "b": stat(0.84), "c": stat(0.85), "d": None}
    assert accuracy_drop.reference(stats) == "a"
    assert accuracy_drop.reference({"rest": None}) is None
    assert accuracy_drop.lower(stats, "a") == {"b"} and accuracy_drop.lower(stats, "c") == {"b"}
    assert accuracy_drop.lower(stats, "rest") == accuracy_drop.lower(stats, None) == set()
    assert accuracy_drop.notes({"b"}, "a") == ["↓: lower ID accuracy than a."]
    assert accuracy_drop.notes(set(), "a") == []


def whole(**accuracies):
    """What `gather.gather` returns of variants with these accuracies, None = without any."""
    scores = {name: {"auroc": stat(0.9, 0.8)} for name in ("msp", "msp@pixels")}
    inside = {name: {} if held is None else {"accuracy": held} for name, held in accuracies.items()}
    return {
        "deviation": "x",
        "variants": {
            name: {"in_distribution": inside[name], "sets": {"svhn": scores}, "far": scores}
            for name in accuracies
        },
    }


def test_a_sweep_shows_accuracy_beside_auroc():
    table = gather.tables(whole(plain=stat(0.9, 0.92), oaml=stat(0.89, 0.9), ssl=None))[0]
    assert table.header == ("variant", "OOD set", "scorer", "AUROC, %", "ID accuracy, %", "n")
    shown = {(row[0], row[2]): row[4] for row in table.rows}
    assert shown == {
        ("plain", "msp"): "91.00 ± 1.41",
        ("oaml", "msp"): "89.50 ± 0.71 ↓",
        ("ssl", "msp"): "",
        **{(name, "msp@pixels"): "" for name in ("plain", "oaml", "ssl")},
    }
    assert "↓: lower ID accuracy than plain." in table.notes
    same = gather.tables(whole(plain=stat(0.9), oaml=stat(0.9)))[0]
    assert "↓" not in gather.markdown([same])


def test_a_sweep_without_accuracies_has_no_such_column():
    table = gather.tables(whole(plain=None, oaml={"mean": {}}))[0]
    assert table.header == ("variant", "OOD set", "scorer", "AUROC, %", "n")
    assert {len(row) for row in table.rows} == {5} and len(table.notes) == 1
    assert gather.tables({"deviation": "x", "variants": {}})[0].header == table.header


def example(**inside):
    """A results.json of one run, as far as the lines on its classes go."""
    inside = {"n_train": 9, "n_test": 9, "n_calibration": 200} | inside
    names = ("knn_accuracy", "sensitivity_auroc", "occupied_classes")
    return {
        "name": "mcd",
        "step": 3,
        "in_distribution": dict.fromkeys(names) | inside,
        "scorers": {"msp": {"threshold": 1.0, "kept_test": 0.95}},
        "not_scored": {},
        "skipped": {},
    }


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ({"accuracy": None}, []),
        ({"accuracy": 0.8}, ["accuracy 80.00 %"]),
        (
            {"accuracy": 0.8, "accuracy_before": 0.8},
            ["accuracy 80.00 %", "accuracy before the last stage 80.00 %"],
        ),
        (
            {"accuracy": 0.8, "accuracy_before": 0.81},
            [
                "accuracy 80.00 % ↓; ↓: lower than before the last stage",
                "accuracy before the last stage 81.00 %",
            ],
        ),
        (
            {"accuracy": 0.8, "second_accuracy": 0.7}
            | {"accuracy_before": 0.8, "second_accuracy_before": 0.75},
            [
                "accuracy 80.00 %, of the second classifier 70.00 % ↓;"
                " ↓: lower than before the last stage",
                "accuracy before the last stage 80.00 %, of the second classifier 75.00 %",
            ],
        ),
    ],
)
def test_the_screen_marks_a_run_that_was_better_before_its_last_stage(inside, said):
    lines = results.in_distribution_lines(example(**inside))
    assert [line for line in lines if "accuracy" in line] == said


def scored(folder, name, **inside):
    """The report's view of a run with these accuracies."""
    found = make(folder, name=name, images=8, steps=3, baselines=("pixels",))
    found["in_distribution"] |= inside
    (folder / "results.json").write_text(json.dumps(found))
    return read(str(folder))


def rows(blocks, title):
    (table,) = (block for block in blocks if getattr(block, "title", "") == title)
    return table, {row[0].text: row for body in table.bodies for row in body.rows}


def test_the_report_has_accuracy_beside_auroc_and_marks_drops(tmp_path):
    runs = [
        scored(tmp_path / "a", "plain", accuracy=0.9),
        scored(tmp_path / "b", "tuned", accuracy=0.88, accuracy_before=0.91),
        scored(tmp_path / "c", "dino"),
    ]
    detection = tables.detection(variants(runs))
    for title in ("AUROC, %", "AUPR, ID positive, %"):
        table, _ = rows(detection, title)
        assert table.columns[-1].text == "ID accuracy, %"
        found = {b.title: [row[-1].text for row in b.rows] for b in table.bodies}
        assert found == {
            "plain": ["90.00"] * 2,
            "tuned": ["88.00 ↓"] * 2,
            "dino": ["–"] * 2,
            "Baselines": ["–"] * 3,
        }
    assert "↓: lower ID accuracy than plain." in detection[0].text
    inside, shown = rows(facts.in_distribution(variants(runs)), "In distribution")
    assert [shown[name][1].text for name in ("plain", "tuned", "dino")] == ["90.00", "88.00 ↓", "–"]
    assert inside.caption.endswith(f"{accuracy_drop.BEFORE}.")


def test_a_report_without_accuracies_has_no_such_column(tmp_path):
    found = variants([scored(tmp_path / "a", "dino")])
    detection = tables.detection(found)
    assert rows(detection, "AUROC, %")[0].columns[-1].text == "mean"
    assert "↓" not in str([*detection, *facts.in_distribution(found)])
