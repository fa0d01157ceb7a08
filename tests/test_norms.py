"""The command that measures norms: every checkpoint, once; its sets, its table, its mistakes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import tiny_config, write_images

from ood_jax import features, models, norm_results, norms, plots
from ood_jax.checkpoint import Checkpoints
from ood_jax.score import score_run
from ood_jax.types import TrainState

pytestmark = pytest.mark.usefixtures("compiled_once")

STEPS = (2, 4, 6)
FLAGS = ("--images=20", "--augmentations=3")
SETS = ["train", "test", "near", "far", "train outliers"]


def config_of(folder, **settings):
    c = tiny_config(folder, "oecl")
    c.head.name, c.head.hidden, c.head.bottleneck, c.head.outputs = "projection", 0, 8, 0
    c.score.scorers, c.score.augmentations, c.score.bootstrap = ("norm", "norm_mean"), 3, 0
    c.method.norm_warmup_epochs = 0.0
    c.train.devices = 1
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
    return c


def save(workdir, config, steps=STEPS, seed=0):
    """Checkpoints as a run leaves them, of a network that drifts."""
    params, stats = models.init_params(models.build(config), config)
    rng = np.random.default_rng(seed)
    checkpoints = Checkpoints(str(workdir), keep_last=10)
    for step in steps:
        params = jax.tree.map(
            lambda p: p + rng.normal(0, 0.1, p.shape).astype(np.asarray(p).dtype), params
        )
        checkpoints.save(TrainState(jnp.int32(step), params, stats, None, {}, ()), config)
    checkpoints.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, its norms.json)."""
    folder = tmp_path_factory.mktemp("run")
    save(folder / "w", config_of(folder / "data"))
    return folder / "w", norms.measure(str(folder / "w"), images=20, augmentations=3)


@pytest.fixture
def again(run, tmp_path):
    """A copy of the workdir that a test may spoil."""
    return shutil.copytree(run[0], tmp_path / "w")


def test_the_json(run):
    workdir, found = run
    assert json.loads((workdir / "norms.json").read_text()) == found
    assert found["schema"] == 1 and list(found["steps"]) == [str(step) for step in STEPS]
    assert {name: one["role"] for name, one in found["sets"].items()} == {
        **{"train": "train", "test": "test", "near": "near", "far": "far"},
        "train outliers": "outliers",
    }
    counts = {name: one["images"] for name, one in found["sets"].items()}
    assert counts == {"train": 20, "test": 12, "near": 10, "far": 10, "train outliers": 20}
    for one in found["steps"].values():
        assert list(one["sets"]) == SETS
        for name, of in one["sets"].items():
            assert of["norm"]["q05"] <= of["norm"]["q50"] <= of["norm"]["q95"]
            assert min(of["mu"], of["sigma"], of["sigma_v"], of["alignment"]) > 0
            assert of["uniformity"] < 0
            assert ("auroc" in of) == (name not in ("train", "test"))
    means = [one["sets"]["test"]["norm"]["mean"] for one in found["steps"].values()]
    assert len(set(means)) == 3


def test_aurocs_are_those_that_scoring_finds(run, again, monkeypatch):
    monkeypatch.setattr(plots, "write_plots", lambda *ignored: None)
    scored = score_run(str(again))
    own = run[1]["steps"]["6"]["sets"]
    for name in ("near", "far"):
        for scorer in ("norm", "norm_mean"):
            right = scored["sets"][name][scorer]["auroc"]
            assert own[name]["auroc"][scorer] == pytest.approx(right)


def test_a_rerun_measures_what_is_new_alone(run, again, monkeypatch):
    seen = []
    real = features.extract

    def extract(net, params, stats, source, **more):
        seen.append(source.spec)
        return real(net, params, stats, source, **more)

    monkeypatch.setattr(features, "extract", extract)
    before = (again / "norms.json").stat().st_mtime_ns
    assert norms.main([f"--workdir={again}", *FLAGS]) == 0
    assert seen == [] and (again / "norms.json").stat().st_mtime_ns == before
    shutil.rmtree(again / "checkpoints" / "2")
    shutil.copytree(again / "checkpoints" / "4", again / "checkpoints" / "8")
    found = norms.measure(str(again), images=20, augmentations=3)
    assert len(seen) == len(SETS)
    assert list(found["steps"]) == ["2", "4", "6", "8"]
    assert {step: found["steps"][step] for step in run[1]["steps"]} == run[1]["steps"]
    assert found["steps"]["8"] == found["steps"]["4"]


def test_with_other_settings_all_is_measured_again(run, again):
    only(again, 6)
    found = norms.measure(str(again), images=11, augmentations=3)
    assert found["sets"]["train"]["images"] == 11 and list(found["steps"]) == ["6"]
    assert found["steps"]["6"]["sets"]["train"] != run[1]["steps"]["6"]["sets"]["train"]


def test_of_a_run_that_was_trained_anew_nothing_is_kept(run, again):
    only(again, 6)
    (again / "checkpoints" / "6").rename(again / "checkpoints" / "4")
    found = norms.measure(str(again), images=20, augmentations=3)
    assert found["steps"] == {"4": run[1]["steps"]["6"]}


def test_a_damaged_file_counts_as_none(run, tmp_path):
    for text in ("", "[]", '{"steps": []}', json.dumps(run[1] | {"steps": [3]})):
        (tmp_path / "norms.json").write_text(text)
        assert norm_results.earlier(tmp_path / "norms.json", run[1], str(tmp_path), []) == {}


def only(workdir, *steps):
    """Deletes the other checkpoints."""
    for step in set(STEPS) - set(steps):
        shutil.rmtree(workdir / "checkpoints" / str(step))


def test_the_table_and_more_sets(again, tmp_path, capsys):
    more = write_images(tmp_path, "more", 7, 9)
    only(again, 6)
    (again / "norms.json").unlink()
    flags = (f"--workdir={again}", *FLAGS, f"--ood=more={more}", "--config.score.batch=4")
    assert norms.main(flags) == 0
    shown, said = capsys.readouterr()
    found = json.loads((again / "norms.json").read_text())
    assert found["sets"]["more"]["role"] == "other"
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 100
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] == ["6"]]
    own = found["steps"]["6"]["sets"]
    assert rows[0] == ["6", *(f"{of['norm']['mean']:.4g}" for of in own.values())]
    assert rows[1][1:4] == [
        f"{100 * own['near']['auroc']['norm']:.1f}",
        "|",
        f"{100 * own['near']['auroc']['norm_mean']:.1f}",
    ]
    assert "norms: 79/79 images" in said and "step 6\n" in said
    assert "train.keep_every" in said and str(again / "norms.json") in said


def test_self_made_outliers_are_turned_train_images(tmp_path):
    settings = {"method__outliers": "self", "head__second_outputs": 2, "data__auxiliary": ""}
    save(tmp_path / "w", config_of(tmp_path / "data", **settings), (2,))
    found = norms.measure(str(tmp_path / "w"), images=20, augmentations=3)
    outliers, train = (found["sets"][name] for name in ("train outliers", "train"))
    assert outliers["quarter_turns"] == [2, 3] and train["quarter_turns"] == [0]
    assert outliers["source"] == train["source"]
    own = found["steps"]["2"]["sets"]
    assert own["train outliers"]["norm"] != own["train"]["norm"]


def test_a_run_in_stages_is_its_last_one(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "w" / "joint")
    (tmp_path / "w" / "joint" / "norms.json").unlink()
    stages = {"stages": ["pretrain", "joint"], "pretrain": {}, "joint": {}}
    (tmp_path / "w" / "config.json").write_text(json.dumps(stages))
    only(tmp_path / "w" / "joint", 6)
    found = norms.measure(str(tmp_path / "w"), images=20, augmentations=3)
    assert found["steps"] == {step: run[1]["steps"][step] for step in ("6",)}
    assert (tmp_path / "w" / "norms.json").is_file()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--augmentations=1"], "--augmentations=1: alignment is of two random views"),
        (["--images=1"], "--images=1: uniformity is of pairs of images; use 2 or more"),
        (["--ood=near=noise:uniform/5"], "--ood=near=...: the run has a set of that name"),
        (["--ood=test=noise:uniform/5"], "cannot be called 'test'"),
        (["--ood=one=noise:uniform/1"], "one = 'noise:uniform/1' has 1 image"),
        (["--config.score.far=gone=npz:gone.npz"], "gone.npz"),
        (["--config.method.name=dino"], "the checkpoint's"),
        (["--ood=x"], "'x'"),
    ],
)
def test_mistakes(run, capsys, flags, says):
    assert says in refused(capsys, run[0], *flags)


def refused(capsys, workdir, *flags):
    assert norms.main([f"--workdir={workdir}", *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_no_checkpoint_and_a_head_of_norm_one(tmp_path, capsys):
    assert "no checkpoint in" in refused(capsys, tmp_path)
    config = tiny_config(tmp_path / "data")
    save(tmp_path / "w", config, (1,))
    assert "head.name = dino makes all norms 1" in refused(capsys, tmp_path / "w")


def test_a_place_that_cannot_be_written(again, capsys):
    only(again, 6)
    (again / "norms.json").unlink()
    (again / "norms.json").mkdir()
    assert norms.main([f"--workdir={again}", *FLAGS]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "norms.json cannot be written" in last
