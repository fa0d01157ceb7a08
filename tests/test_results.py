"""What is written and shown: JSON, Parquet and its CSV mirror, the table, the plots."""

import json

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from ood_jax import metrics, plots, results

SCORERS = ("exp_cosine", "exp_cosine@pixels", "exp_cosine@untrained")


def scores(count, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(shift + i, 1.0, count) for i, name in enumerate(SCORERS)}


def example(near=("cifar100",), far=("svhn", "textures")):
    test = scores(40)
    sets = {
        name: {s: metrics.all_metrics(test[s], v[s]) for s in SCORERS}
        for i, name in enumerate((*near, *far, "extra"))
        for v in [scores(30, 1.0 + i, seed=i)]
    }
    return {
        "schema": 2,
        "name": "dino",
        "step": 1200,
        "config": {
            "score": {"near": [f"{n}=npz:{n}.npz" for n in near], "far": [f"{n}=x:y" for n in far]}
        },
        "in_distribution": {
            "knn_accuracy": 0.9321,
            "knn_neighbours": 20,
            "sensitivity_auroc": 0.52,
            "sensitivity_auroc_literal": 0.9,
            "occupied_classes": None,
            "n_train": 5000,
            "n_test": 40,
            "n_calibration": 100,
            "accuracy": None,
            "skipped": 2,
        },
        "scorers": {s: {"threshold": 1.5, "kept_test": 0.94, "facts": {}} for s in SCORERS},
        "sets": sets,
        "groups": {"near": list(near), "far": list(far)},
        "not_scored": {"odin": "needs logits"},
        "near": results.group_means(sets, near),
        "far": results.group_means(sets, far),
        "skipped": {"train": 2, "test": 0, "svhn": 1},
    }


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "deep" / "results.json"
    results.write_results(example(), path)
    assert results.read_results(path) == example()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_nan_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "results.json"
    results.write_results(example(), path)
    with pytest.raises(ValueError, match="JSON"):
        results.write_results(example() | {"near": {"exp_cosine": {"auroc": value}}}, path)
    assert results.read_results(path) == example()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        ("[]", "schema None; this version reads 2"),
        ('{"schema": 1}', "schema 1; this version reads 2"),
    ],
)
def test_results_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        results.read_results(path)


def test_group_means_weigh_sets_not_images():
    sets = {
        "a": {"s": {"auroc": 0.5, "n_in": 10, "n_out": 1}},
        "b": {"s": {"auroc": 0.7, "n_in": 10, "n_out": 1000}},
        "c": {"s": {"auroc": 0.0, "n_in": 10, "n_out": 5}},
    }
    assert results.group_means(sets, ("a", "b")) == {"s": {"auroc": pytest.approx(0.6)}}
    assert results.group_means(sets, ()) == {}


def test_per_image_scores_and_their_mirror(tmp_path):
    files = results.places(tmp_path / "results.json")
    inside, outside = np.array([0.0, 1.0, 2.0]), np.array([1.5])
    sets = {
        "test": results.SetScores(
            ["a.png", 'b,"c".png', "ü.png"],
            np.int32([0, 2, 3]),
            np.int32([7, -1, 0]),
            {"s": inside, "t": inside + 1},
            {"s": metrics.ood_rank(inside, inside), "t": metrics.ood_rank(inside, inside)},
        ),
        "far": results.SetScores(
            ["12"], np.int32([12]), None, {"s": outside}, {"s": metrics.ood_rank(inside, outside)}
        ),
    }
    results.write_scores(sets, files["parquet"], files["csv"])
    table = pyarrow.parquet.read_table(files["parquet"])
    assert table.column_names == ["image", "index", "label", "set", "scorer", "score", "ood_rank"]
    rows = table.to_pylist()
    assert len(rows) == 3 * 2 + 1
    assert rows[1] == {
        "image": 'b,"c".png',
        "index": 2,
        "label": None,
        "set": "test",
        "scorer": "s",
        "score": 1.0,
        "ood_rank": pytest.approx(100 / 3),
    }
    assert rows[-1]["set"] == "far" and rows[-1]["ood_rank"] == pytest.approx(200 / 3)
    mirror = pyarrow.csv.read_csv(
        files["csv"],
        convert_options=pyarrow.csv.ConvertOptions(column_types=table.schema),
    )
    assert mirror.to_pylist() == rows


def test_places(tmp_path):
    assert results.places(tmp_path / "results.json")["csv"] == tmp_path / "scores.csv"
    beside = results.places(tmp_path / "ood.json")
    assert beside["parquet"] == tmp_path / "ood.scores.parquet"
    assert beside["plots"] == tmp_path / "ood.plots"


def test_the_table_fits_100_plain_columns_and_says_what_is_what(capsys):
    found = example()
    results.show(found)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    for title in ("AUROC, %", "ID positive", "OOD positive"):
        assert title in text
    rows = [line.split() for line in text.splitlines()]
    auroc = [f"{100 * found['sets']['cifar100'][s]['auroc']:.2f}" for s in SCORERS]
    assert ["cifar100", "(near)", *auroc] in rows
    mean = [f"{100 * found['far'][s]['fpr95_ood_positive']:.2f}" for s in SCORERS]
    assert ["mean", "of", "far", *mean] in rows
    assert [row[0] for row in rows if row and row[0] in found["sets"]] == [
        "cifar100",
        "svhn",
        "textures",
        "extra",
    ] * 3
    assert "kNN accuracy 93.21 % (20 neighbours)" in text
    assert "occupied" not in text
    assert "images that could not be read: train 2, svhn 1" in text


def test_many_scorers_are_shown_as_rows(capsys):
    found = example()
    mine = [f"my_package.my_scores_{i}:function" for i in range(9)]
    for by_scorer in (*found["sets"].values(), found["near"], found["far"]):
        by_scorer |= dict.fromkeys(mine, by_scorer["exp_cosine"])
    results.show(found)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("AUROC, %") == 2  # six sets and means: five columns, then one
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(mine[3])]
    columns = [name for name, _, _ in results.table_rows(found)]
    assert [len(row) - 1 for row in rows] == [5, len(columns) - 5] * 3


def test_no_ood_set_is_no_table(capsys):
    results.show(example(near=(), far=()) | {"sets": {}})
    text = capsys.readouterr().out
    assert "AUROC, %" not in text and "kNN accuracy" in text


def test_plots_are_images(tmp_path):
    outside = scores(30, 2.0)
    constant = {name: np.full(20, 3.0) for name in SCORERS}
    infinite = {name: np.append(values, np.inf) for name, values in outside.items()}
    single = {name: values[:1] for name, values in outside.items()}
    sets = {"far": outside, "constant": constant, "infinite": infinite, "single": single}
    plots.write_plots(scores(40), sets, tmp_path / "plots")
    names = {f"{name}_{kind}.png" for name in sets for kind in ("scores", "roc")}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == names
    for name in names:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.format == "PNG" and min(image.size) > 200


def test_histograms_hold_every_score_and_curves_the_auroc():
    inside, outside = scores(40), scores(30, 2.0)
    figure = plots.histograms(inside, outside, "far")
    assert len(figure.axes) == len(SCORERS)
    for panel in figure.axes:
        assert len(panel.patches) == 2
        for steps in panel.patches:
            heights, edges, _ = steps.get_data()
            assert np.dot(heights, np.diff(edges)) == pytest.approx(1.0)
    lines = plots.roc_curves(inside, outside, "far").axes[0].get_lines()
    for line, scorer in zip(lines, SCORERS, strict=False):
        x, y = line.get_data()
        assert np.trapezoid(y, x) == pytest.approx(metrics.auroc(inside[scorer], outside[scorer]))


def test_constant_scores_everywhere_have_a_histogram():
    constant = {"s": np.zeros(5)}
    assert plots.histograms(constant, constant, "far").axes


def test_results_are_plain_json(tmp_path):
    path = tmp_path / "r.json"
    results.write_results(example(), path)
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
