"""MCD from both stages to the tables: resumed bit for bit, transductive or not, accuracy before."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_run import final_state, tiny_config, write_recipe

from ood_jax import loop, stages, transductive
from ood_jax.config import staged
from ood_jax.gather import gather, tables
from ood_jax.logs import read_metrics
from ood_jax.main import main
from ood_jax.predict import main as predict
from ood_jax.runs import expand, finished
from ood_jax.score import score_run

pytestmark = pytest.mark.usefixtures("compiled_once")


def one_stage(folder, method: str):
    c = tiny_config(folder, method)
    c.data.train = f"npz:{folder}/train.npz[:18]"
    c.data.auxiliary = ""
    c.head.name, c.head.outputs, c.head.second_outputs = "linear", 3, 3
    c.optim.freeze_epochs, c.optim.warmup_epochs = 0.0, 0.0
    c.train.devices, c.train.steps, c.train.epochs = 1, 4, 4.0
    c.train.checkpoint_every = c.train.log_every = 1
    c.score.scorers, c.score.bootstrap = ("l1_discrepancy", "msp"), 0
    c.score.calibration = f"npz:{folder}/train.npz[18:]"
    return c


def mcd_stages(folder):
    """4 steps of each; the mixture: 8 of 12 test images, and 6 of 10 of the near set."""
    pretrain, finetune = one_stage(folder, "supervised"), one_stage(folder, "mcd")
    finetune.model.weights = "stage:pretrain"
    finetune.method.margin = 1.0
    finetune.data.auxiliary = f"npz:{folder}/test.npz[4:] + npz:{folder}/near.npz[:6]"
    return staged("mcd", pretrain=pretrain, finetune=finetune)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def recipe(data):
    path = write_recipe(data, "mcd_stages")
    file = data / "recipe.py"
    file.write_text(file.read_text().replace("from small_run", "from test_mcd_run"))
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The workdir of the uninterrupted run, scored, as the main command leaves it."""
    folder = tmp_path_factory.mktemp("root") / "whole"
    assert main([f"--config={recipe}", f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def results(whole):
    return json.loads((whole / "results.json").read_text())


def test_a_resumed_run_keeps_the_order_of_both_steps(data, whole, tmp_path, monkeypatch):
    runs = stages.prepared(mcd_stages(data))
    batches = loop.train_batches

    class Crash(Exception):
        """Nothing is saved: what kill -9 does."""

    def some(*sources, **options):
        for i, batch in enumerate(batches(*sources, **options)):
            if i == 2 and len(sources) > 1 and sources[1] is not None:
                raise Crash
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", some)
        with pytest.raises(Crash):
            stages.train(runs, str(tmp_path))
    assert len(read_metrics(tmp_path / "finetune")) == 2
    stages.train(runs, str(tmp_path))
    config = runs["finetune"].config
    found, expected = (final_state(config, f / "finetune") for f in (tmp_path, whole))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert len(found.opt) == 1  # both steps share it, so it counts two a step
    counts = {int(x) for x in jax.tree.leaves(found.opt) if np.ndim(x) == 0 and x == int(x)}
    assert 8 in counts
    dropped = ("time", "images_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in dropped} for row in read_metrics(f / "finetune")]
        for f in (tmp_path, whole)
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [1, 2, 3, 4]
    for row in rows[0]:  # step A has no name of its own, step B's end in _1
        assert row["loss_1"] == pytest.approx(
            row["loss_supervised_1"] + row["loss_unsupervised_1"], rel=1e-6
        )
        assert row["loss"] != row["loss_supervised_1"] and "loss_unsupervised" not in row


def test_transductive_sets_are_counted_and_marked(recipe, whole, results, capsys):
    assert results["transductive"] == {"test": 8, "near": 6} and results["unopened"] == {}
    assert results["schema"] == 2
    run = expand([recipe], [], [0], {}, str(whole.parent))[0]._replace(workdir=whole)
    assert finished(run) is not None
    table = tables(gather([run]))[0]
    assert [row[1] for row in table.rows if row[2] == "msp"] == [
        "near†",
        "far",
        "mean of near†",
        "mean of far",
    ]
    score_run(str(whole), out=str(whole / "again.json"))
    said = " ".join(capsys.readouterr().out.split())
    assert "near† (near)" in said and "far (far)" in said
    assert f"{transductive.MEANING}: test 8, near 6" in said


def test_other_sets_of_the_same_run_are_not_marked(data, whole):
    rest = {"rest": f"npz:{data}/near.npz[6:]", "near": f"npz:{data}/near.npz"}
    found = score_run(str(whole), ood=rest, out=str(whole / "rest.json"))
    assert found["transductive"] == {"test": 8, "near": 6}  # not rest


def test_a_mixture_that_is_gone_counts_as_shared_and_says_so(data, whole, capsys):
    config = json.loads((whole / "finetune" / "config.json").read_text())
    (data / "near.npz").rename(data / "moved.npz")
    try:
        overrides = [f"--config.score.near=other=npz:{data}/moved.npz"]
        found = score_run(str(whole), overrides=overrides, out=str(whole / "gone.json"))
    finally:
        (data / "moved.npz").rename(data / "near.npz")
    assert found["transductive"] == {"test": 12}
    assert list(found["unopened"]) == [config["data"]["auxiliary"]]
    said = " ".join(capsys.readouterr().out.split())
    assert "counted without opening" in said and "near.npz is not a file" in said


def test_predict_says_how_many_images_training_had(data, whole, tmp_path, capsys):
    flags = [f"--workdir={whole}", f"--out={tmp_path}/p.csv", "--neighbours=0"]
    assert predict([*flags, f"--images=npz:{data}/near.npz[4:]"]) == 0
    assert "2 of these images were among those of training" in capsys.readouterr().out
    assert predict([*flags, f"--images=npz:{data}/far.npz"]) == 0
    assert "training" not in capsys.readouterr().out


def test_accuracy_before_and_after(data, whole, results, capsys):
    """Of both classifiers; before: the pre-trained network's, as a run of that stage alone has."""
    inside = results["in_distribution"]
    alone = score_run(str(whole / "pretrain"), out=str(whole / "pretrain.json"))["in_distribution"]
    for name in ("accuracy", "second_accuracy"):
        assert inside[f"{name}_before"] == alone[name]
        assert 0 <= inside[name] <= 1
    assert "accuracy_before" not in alone
    capsys.readouterr()
    score_run(str(whole), out=str(whole / "third.json"))
    said = " ".join(capsys.readouterr().out.split())
    before, second = 100 * alone["accuracy"], 100 * alone["second_accuracy"]
    assert f"accuracy before the last stage {before:.2f} %, of the second classifier" in said
    assert f"{second:.2f} % sensitivity" in said


def test_accuracy_before_is_left_out_where_that_stage_is_gone(whole, tmp_path):
    shutil.copytree(whole / "finetune", tmp_path / "finetune")
    found = score_run(str(tmp_path / "finetune"), out=str(tmp_path / "some.json"))
    assert "accuracy_before" not in found["in_distribution"]
    assert found["in_distribution"]["accuracy"] is not None


def test_confidences_of_both_classifiers_are_kept_for_the_report(whole, results):
    with np.load(whole / "examples.npz", allow_pickle=False) as held:
        found = {name: held[f"{name}/confidences"] for name in ("test", "near", "far")}
    assert {name: array.shape for name, array in found.items()} == {
        "test": (12, 3),
        "near": (10, 3),
        "far": (10, 3),
    }
    threshold = results["scorers"]["l1_discrepancy"]["threshold"]
    rejected = results["sets"]["near"]["l1_discrepancy"]["rejected"]
    assert np.mean(found["near"][:, 2] > threshold) == pytest.approx(rejected)
