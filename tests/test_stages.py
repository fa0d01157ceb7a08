"""Runs of several stages: in order, from one another, and as if never stopped."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import tiny_config

from ood_jax import loop, stages
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.config import staged
from ood_jax.detector import load as load_detector
from ood_jax.recipe import load, override
from ood_jax.runs import expand, finished
from ood_jax.score import score_run
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")

RECIPE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_stages import two_stages

def get_config(folder):
    return two_stages(Path(folder))
"""


def one_stage(folder: Path, classes: int):
    """A contrastive stage of 3 steps, with or without a classifier of `classes`."""
    c = tiny_config(folder, "simclr_joint")
    c.head.name, c.head.outputs, c.head.bottleneck = "projection", classes, 4
    c.method.class_weight = 1.0 if classes else 0.0
    c.data.auxiliary = ""
    # Adam makes steps of rounding where a gradient is 0, as of a bias before BatchNorm.
    c.optim.name, c.optim.lr, c.optim.lr_batch, c.optim.freeze_epochs = "sgd", 0.01, 0, 0.0
    c.train.epochs, c.train.checkpoint_every, c.train.log_every = 1.0, 1, 1
    c.score.scorers = ("mahalanobis",)
    return c


def two_stages(folder: Path):
    joint = one_stage(folder, 3)
    joint.model.weights = "stage:pretrain"
    return staged("two", pretrain=one_stage(folder, 0), joint=joint)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The workdir of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    stages.train(stages.prepared(two_stages(data)), str(folder))
    return folder


def arrays(folder):
    restored = restore_for_scoring(str(folder))
    return {"params": restored.params, "stats": restored.stats}


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_second_begins_with_what_the_first_learnt(data, whole):
    first = arrays(whole / "pretrain")
    run = stages.prepared(two_stages(data))["joint"]
    began = jax.device_get(init_state(stages.started(run, str(whole / "pretrain"))))
    equal(began.params["trunk"], first["params"]["trunk"])
    equal(began.stats, first["stats"])
    head = first["params"]["head"]
    equal({name: began.params["head"][name] for name in head}, head)
    new = init_state(prepare(one_stage(data, 3))).params["head"]["linear"]
    equal(began.params["head"]["linear"], jax.device_get(new))
    assert not np.array_equal(
        jax.tree.leaves(arrays(whole)["params"]["trunk"])[0],
        jax.tree.leaves(first["params"]["trunk"])[0],
    )


class Crash(Exception):
    """What kill -9 does: nothing is saved."""


def _crash():
    raise Crash


def _interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(
    ("stop", "error"),
    [(_crash, Crash), pytest.param(_interrupt, loop.Interrupted, marks=pytest.mark.slow)],
)
def test_stopped_in_either_stage_ends_as_uninterrupted(
    data, whole, tmp_path, monkeypatch, stage, stop, error
):
    batches, calls = loop.train_batches, []

    def some(*sources, **options):
        calls.append(options)
        for i, batch in enumerate(batches(*sources, **options)):
            if i == 2 and len(calls) == stage + 1:
                stop()
            yield batch

    runs = stages.prepared(two_stages(data))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", some)
        with pytest.raises(error):
            stages.train(runs, str(tmp_path))
    assert len(calls) == stage + 1
    stages.train(runs, str(tmp_path))
    for name in runs:
        equal(arrays(tmp_path / name), arrays(whole / name))


def test_finished_stages_are_skipped(data, whole, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(loop, "train_batches", never)
    stages.train(stages.prepared(two_stages(data)), str(whole))


def test_the_last_stage_is_scored_and_the_sweep_knows(data, whole, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    spec = f"{recipe}:{data}"
    runs = expand([spec], [], [0], {"joint.method.class_weight": ["1.0", "2.0"]}, tmp_path / "s")
    ran = [run._replace(workdir=whole) for run in runs]
    assert finished(ran[0]) is None
    written = score_run(str(whole))
    assert written["config"]["head"]["outputs"] == 3
    assert written["earlier_stages"]["pretrain"]["head"]["outputs"] == 0
    assert (whole / "results.json").is_file() and written["in_distribution"]["accuracy"] is not None
    assert finished(ran[0]) is not None and finished(ran[1]) is None
    other = expand([spec], ["--config.pretrain.train.batch=4"], [0], {}, tmp_path / "s")[0]
    assert finished(other._replace(workdir=whole)) is None
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert load_detector(str(whole)).score(images).shape == (2,)
    assert score_run(str(whole / "pretrain"))["config"]["head"]["outputs"] == 0


def test_keys_of_one_stage_and_of_all(data):
    config = override(two_stages(data), ["--config.seed=3", "--config.joint.optim.lr=0.5"], ("",))
    assert config.pretrain.seed == config.joint.seed == 3
    assert config.joint.optim.lr == 0.5 != config.pretrain.optim.lr
    with pytest.raises(ValueError, match=r"Did you mean --config\.(joint|pretrain)\.optim\.lr"):
        override(two_stages(data), ["--config.joint.optim.rl=1"], ("",))


def test_a_stage_takes_another_method(data, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    asked = [f"--config={recipe}:{data}"]
    config = load([*asked, "--config.pretrain.method.name=simclr"])
    assert config.pretrain.method.name == "simclr" and config.joint.method.name == "simclr_joint"
    with pytest.raises(ValueError, match=r"use --config\.pretrain\.method\.name, --config\.joint"):
        load([*asked, "--config.method.name=simclr"])


def _wrong_trunk(config):
    config.joint.model.width = 16


def _no_such_stage(config):
    config.joint.model.weights = "stage:pretrian"


def _not_earlier(config):
    config.pretrain.model.weights = "stage:joint"


def _unknown(config):
    config.stages = ("pretrain", "finetune")


def _no_stages(config):
    config.stages = ()


def _unused(config):
    config.joint.model.weights = ""


def _batch_of_one(config):
    config.joint.train.batch = 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_wrong_trunk, r"stage joint: model.weights = 'stage:pretrain' is of another network"),
        (_no_such_stage, r"stage joint: model.weights = 'stage:pretrian': the stages before it"),
        (_not_earlier, r"stage pretrain: model.weights = 'stage:joint': no stage comes before"),
        (_unknown, r"no stage 'finetune'; there are .*pretrain"),
        (_no_stages, r"stages is empty: name one or more"),
        (
            _unused,
            r"stage pretrain: no later stage begins with it or reads it; set model.weights",
        ),
        (_batch_of_one, r"stage joint: batch 1 does not divide|stage joint: train.batch = 1"),
    ],
)
def test_mistakes_come_before_the_first_step(data, change, says):
    config = two_stages(data)
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=says):
        stages.prepared(config)


def test_a_workdir_keeps_its_stages(data, whole, tmp_path):
    with pytest.raises(ValueError, match="a run of the stages pretrain, joint, this run has one"):
        stages.train(stages.prepared(one_stage(data, 0)), str(whole))
    stages.train(stages.prepared(one_stage(data, 0)), str(tmp_path / "w"))
    with pytest.raises(ValueError, match="a run of one stage, this run has the stages pretrain"):
        stages.train(stages.prepared(two_stages(data)), str(tmp_path / "w"))
    config = two_stages(data)
    with config.unlocked():
        config.joint.optim.lr = 0.1
    before = (whole / "config.json").read_text()
    with pytest.raises(ValueError, match=r"holds another run: optim\.lr"):
        stages.train(stages.prepared(config), str(whole))
    assert (whole / "config.json").read_text() == before


def test_a_run_may_begin_with_another_runs_workdir(data, whole):
    config = one_stage(data, 3)
    config.model.weights = str(whole / "pretrain")
    began = init_state(prepare(config))
    equal(jax.device_get(began.params["trunk"]), arrays(whole / "pretrain")["params"]["trunk"])
    config.model.width = 16
    with pytest.raises(ValueError, match="is of another network: it lacks trunk/"):
        prepare(config)


@pytest.mark.parametrize(
    ("weights", "says"),
    [("absent", "no such file or folder; give the workdir"), ("", "no checkpoint in it; train")],
)
def test_weights_that_are_not_there(data, tmp_path, weights, says):
    config = one_stage(data, 3)
    config.model.weights = str(tmp_path / weights)
    with pytest.raises(ValueError, match=f"model.weights = .*: {says}"):
        prepare(config)


def test_what_starts_anew_is_said(data, whole, capsys):
    config = one_stage(data, 3)
    config.model.weights, config.head.bottleneck = str(whole / "pretrain"), 5
    prepare(config)
    said = capsys.readouterr().err
    assert "but for head/" in said and "head/linear/kernel" in said and "head/mlp_1/kernel" in said
    assert "trunk" not in said.partition("but for")[2]


def test_the_name_is_of_the_whole_run(data, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    config = load([f"--config={recipe}:{data}", "--config.name=mine"])
    assert config.name == config.pretrain.name == config.joint.name == "mine"


def test_an_older_config_without_new_keys_is_the_same_run(data, whole):
    checkpoints = Checkpoints(str(whole / "joint"), keep_last=2)
    saved = checkpoints.config()
    checkpoints.close()
    with saved.unlocked():
        del saved["stages"], saved.data["balanced"]
    now = stages.prepared(two_stages(data))["joint"].config
    loop.check_same_run(saved, now, "w")
    with now.unlocked():
        now.data.balanced = True
    with pytest.raises(ValueError, match=r"data\.balanced = False there, True here"):
        loop.check_same_run(saved, now, "w")


def test_a_config_json_of_something_else_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no config that ood_jax has written"):
        restore_for_scoring(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"stages": ["a"]}))
    with pytest.raises(ValueError, match="is no config that ood_jax has written"):
        restore_for_scoring(str(tmp_path))
