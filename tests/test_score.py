"""Scoring end to end on a real checkpoint of a tiny untrained network, and its mistakes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from ood_jax import config as configs
from ood_jax import evaluate, features, metrics, models, plan, plots, results, score, sharding
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.data.sources import open_source
from ood_jax.scorers import knn
from ood_jax.types import TrainState

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ("train", "loop", "methods", "losses", "main", "optim")
K = 12
TRAIN = "train.npz[:-4]"  # the last tenth sets thresholds

USER_SCORER = """
import numpy as np
from ood_jax.types import Scorer

def build(config, mesh):
    return Scorer(lambda train: {}, lambda state, x: -x.logits.max(1), needs=("logits",))

def broken(config, mesh):
    return Scorer(lambda train: {}, lambda state, x: x.features[:, 0] * np.nan)
"""


def tiny(folder, **settings):
    c = configs.base("dino_negatives")
    c.unlock()
    c.data.update({"train": "npz:train.npz", "test": "npz:test.npz", "root": str(folder)})
    c.data.size = 8
    c.model.update({"width": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 16})
    c.head.update({"layers": 2, "hidden": 16, "bottleneck": 8, "outputs": K})
    c.score.near = ("bright=npz:bright.npz",)
    c.score.far = ("noise=noise:uniform[:30]", "dark=npz:dark.npz")
    c.score.update({"batch": 16, "block": 10, "knn": 5, "baselines": ("pixels", "untrained")})
    c.score.update({"bootstrap": 20, "augmentations": 2})
    for key, value in settings.items():
        part, _, leaf = key.partition("_")
        c[part][leaf] = value
    c.lock()
    return c


def write_sets(folder):
    rng = np.random.default_rng(0)
    for name, count, low, high in (
        ("train", 40, 0, 200),
        ("test", 20, 0, 200),
        ("bright", 15, 100, 256),
        ("dark", 1, 0, 30),
    ):
        images = rng.integers(low, high, (count, 8, 8, 3), np.uint8)
        labels = {"labels": rng.integers(0, 3, count)} if name in ("train", "test") else {}
        np.savez(folder / f"{name}.npz", images=images, **labels)


def save(workdir, config, step=7, **memory):
    """A checkpoint as training leaves it; teacher and student differ."""
    params, stats = models.init_params(models.build(config), config)
    teacher = jax.tree.map(lambda p: p + 0.1 * jnp.ones_like(p), params)
    state = TrainState(
        jnp.int32(step), params, stats, {"params": teacher, "stats": stats}, memory, ()
    )
    checkpoints = Checkpoints(str(workdir), keep_last=3)
    checkpoints.save(state, config)
    checkpoints.close()
    return teacher, stats


SOFT = {"centre": jnp.linspace(-0.1, 0.1, K), "teacher_temperature": jnp.float32(0.05)}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(workdir, config, teacher's params and stats, results of the whole run)."""
    folder = tmp_path_factory.mktemp("run")
    write_sets(folder)
    config = tiny(folder)
    teacher = save(folder / "w", config, **SOFT)
    return folder / "w", config, teacher, score.score_run(str(folder / "w"))


@pytest.fixture(autouse=True)
def no_more_plots(scored, monkeypatch):
    """`scored` has drawn them; drawing them each time is most of the tests' time."""
    monkeypatch.setattr(
        plots, "write_plots", lambda test, sets, folder: folder.mkdir(exist_ok=True)
    )


def test_results_have_the_documented_shape(scored):
    workdir, config, _, found = scored
    assert results.read_results(workdir / "results.json") == found
    assert found["schema"] == 2 and found["step"] == 7 and found["name"] == "dino_negatives"
    assert configs.flat(configs.from_json(json.dumps(found["config"]))) == configs.flat(config)
    assert list(found["sets"]) == ["bright", "noise", "dark"]
    scorers = ["exp_cosine", "exp_cosine@pixels", "exp_cosine@untrained"]
    for name, count in (("bright", 15), ("noise", 30), ("dark", 1)):
        assert list(found["sets"][name]) == scorers
        for by_metric in found["sets"][name].values():
            more = {"rejected", "auroc_low", "auroc_high"}
            assert set(by_metric) == {*metrics.all_metrics([0], [1]), *more}
            assert by_metric["auroc_low"] <= by_metric["auroc"] <= by_metric["auroc_high"]
            assert (by_metric["n_in"], by_metric["n_out"]) == (20, count)
    for group, names in (("near", ["bright"]), ("far", ["noise", "dark"])):
        for scorer in scorers:
            mean = np.mean([found["sets"][name][scorer]["auroc"] for name in names])
            assert found[group][scorer]["auroc"] == pytest.approx(mean)
    assert found["skipped"] == dict.fromkeys(
        ["train", "calibration", "test", "bright", "noise", "dark"], 0
    )


def test_numbers_are_those_of_the_parts(scored):
    """The teacher, its features, the score and the metrics, put together by hand."""
    _, config, (params, stats), found = scored
    net, mesh = models.build(config), sharding.make_mesh(1)
    got = {
        name: features.extract(
            net,
            params,
            stats,
            open_source(f"npz:{name}", root=config.data.root),
            config=config,
            mesh=mesh,
            fields=("features", "logits"),
        ).features
        for name in (TRAIN, "test.npz", "bright.npz")
    }
    bank, inside = got[TRAIN].features, found["in_distribution"]

    assert inside["n_calibration"] == 4

    def ood(values):
        return -knn.log_mean_exp_cosine(bank, values, temperature=0.04, block=7)

    test = ood(got["test.npz"].features)
    expected = metrics.all_metrics(test, ood(got["bright.npz"].features))
    assert found["sets"]["bright"]["exp_cosine"]["auroc"] == pytest.approx(expected["auroc"])
    own = -knn.log_mean_exp_cosine_leave_one_out(bank, temperature=0.04, block=7)
    assert inside["sensitivity_auroc"] == pytest.approx(metrics.auroc(own, test))
    assert inside["sensitivity_auroc_literal"] == pytest.approx(metrics.auroc(ood(bank), test))
    assert inside["sensitivity_auroc_literal"] > inside["sensitivity_auroc"]
    assert inside["knn_accuracy"] == knn.knn_accuracy(
        bank,
        got[TRAIN].labels,
        got["test.npz"].features,
        got["test.npz"].labels,
        neighbours=5,
        temperature=0.07,
    )
    probs = jax.nn.softmax((got["test.npz"].logits - SOFT["centre"]) / 0.05, axis=-1)
    assert inside["occupied_classes"] == pytest.approx(np.mean(probs.mean(0) > 1 / K))
    assert (inside["n_train"], inside["n_test"], inside["skipped"]) == (36, 20, 0)


def test_baselines_are_pixels_and_the_initial_network(scored):
    _, config, _, found = scored

    def pixels(name):
        source = open_source(f"npz:{name}", root=config.data.root)
        images = source.images(np.arange(len(source))) / 255.0
        shown = (images - np.array(config.data.mean)) / np.array(config.data.std)
        return np.float32(shown.reshape(len(shown), -1))

    test, bright = (
        -knn.log_mean_exp_cosine(pixels(TRAIN), pixels(name), temperature=0.04, block=7)
        for name in ("test.npz", "bright.npz")
    )
    at = found["sets"]["bright"]
    assert at["exp_cosine@pixels"]["auroc"] == pytest.approx(metrics.auroc(test, bright))
    net, mesh = models.build(config), sharding.make_mesh(1)
    params, stats = models.init_params(net, config)
    bank, test, bright = (
        features.extract(
            net,
            params,
            stats,
            open_source(f"npz:{name}", root=config.data.root),
            config=config,
            mesh=mesh,
        ).features.features
        for name in (TRAIN, "test.npz", "bright.npz")
    )
    scores = [-knn.log_mean_exp_cosine(bank, x, temperature=0.04, block=7) for x in (test, bright)]
    assert at["exp_cosine@untrained"]["auroc"] == pytest.approx(metrics.auroc(*scores))


def test_every_image_has_its_scores(scored):
    workdir, _, _, found = scored
    rows = pyarrow.parquet.read_table(workdir / "scores.parquet").to_pylist()
    assert len(rows) == 3 * (20 + 15 + 30 + 1)
    with open(workdir / "scores.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for name in ("bright", "noise"):
        test, out = (
            [r["score"] for r in rows if r["set"] == s and r["scorer"] == "exp_cosine"]
            for s in ("test", name)
        )
        auroc = found["sets"][name]["exp_cosine"]["auroc"]
        assert metrics.auroc(test, out) == pytest.approx(auroc)
    assert {r["label"] for r in rows if r["set"] == "test"} <= {0, 1, 2}
    assert {r["label"] for r in rows if r["set"] == "bright"} == {None}
    assert {p.name for p in (workdir / "plots").iterdir()} >= {"bright_roc.png", "dark_scores.png"}


def test_features_are_kept_and_used_again(scored, monkeypatch):
    workdir, config, _, found = scored
    kept = {p.name for p in (workdir / "features").iterdir()}
    assert kept == {
        *(f"{s}{v}.npz" for s in found["skipped"] for v in ("", "@untrained")),
        "soft_classes.npz",
    }
    extracted = []
    original = features.extract

    def spy(*args, **kwargs):
        extracted.append(kwargs["label"])
        return original(*args, **kwargs)

    monkeypatch.setattr(features, "extract", spy)
    assert score.score_run(str(workdir)) == found
    assert [label for label in extracted if "pixels" not in label] == []
    extracted.clear()
    other = tiny(config.data.root, data_mean=(0.1, 0.1, 0.1), score_baselines=())
    score.score_run(str(workdir), config=other, out=str(workdir / "other.json"))
    assert len(extracted) == len(found["skipped"])
    assert (workdir / "other.scores.csv").is_file() and (workdir / "other.plots").is_dir()


def test_further_sets_leave_the_runs_own_results_alone(scored, capsys):
    workdir, _, _, found = scored
    before = (workdir / "results.json").read_bytes()
    argv = [f"--workdir={workdir}", "--ood=white=noise:uniform[:9]", "--ood=bright=npz:bright.npz"]
    assert score.main(argv) == 0
    out = results.read_results(workdir / "scores" / "white+bright.json")
    assert list(out["sets"]) == ["white", "bright"]
    assert out["near"] == out["far"] == {}
    assert out["sets"]["bright"] == found["sets"]["bright"]
    assert (workdir / "scores" / "white+bright.scores.parquet").is_file()
    assert (workdir / "results.json").read_bytes() == before
    assert "white" in capsys.readouterr().out


def test_scoring_imports_no_training_code(scored):
    workdir = scored[0]
    script = (
        "import sys\n"
        "from ood_jax import score\n"
        f"code = score.main(['--workdir={workdir}', '--ood=dark=npz:dark.npz'])\n"
        f"training = tuple('ood_jax.' + name for name in {TRAINING})\n"
        "bad = [n for n in sys.modules if n.startswith(training)\n"
        "       or n.split('.')[0] in ('optax', 'grain', 'tensorflow_datasets')]\n"
        "sys.exit(f'imported {bad}' if bad else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_users_scorer_beside_ours(scored, tmp_path, monkeypatch):
    workdir, config, _, found = scored
    (tmp_path / "my_score_package").mkdir()
    (tmp_path / "my_score_package/energy.py").write_text(USER_SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("exp_cosine", "my_score_package.energy")
    c = tiny(config.data.root, score_scorers=names)
    out = score.score_run(str(workdir), config=c, out=str(tmp_path / "both.json"))
    mine = out["sets"]["bright"]
    assert list(mine) == [*names, "exp_cosine@pixels", "exp_cosine@untrained"]
    assert mine["exp_cosine"] == found["sets"]["bright"]["exp_cosine"]
    first = score.score_run(
        str(workdir),
        config=tiny(config.data.root, score_scorers=names[1:]),
        out=str(tmp_path / "one.json"),
    )["in_distribution"]
    assert first["sensitivity_auroc"] == first["sensitivity_auroc_literal"]
    broken = tiny(config.data.root, score_scorers=("my_score_package.energy:broken",))
    with pytest.raises(ValueError, match=r"energy:broken: set calibration: 4 of .* NaN"):
        score.score_run(str(workdir), config=broken, out=str(tmp_path / "x.json"))


@pytest.mark.parametrize("feature", ["logits", "projections"])
def test_another_feature(scored, tmp_path, feature):
    workdir, config, _, found = scored
    c = tiny(config.data.root, score_feature=feature)
    out = score.score_run(str(workdir), config=c, out=str(tmp_path / "other.json"))
    ours, theirs = out["sets"]["bright"], found["sets"]["bright"]
    assert ours.keys() == theirs.keys()
    assert ours["exp_cosine@pixels"] == theirs["exp_cosine@pixels"]
    assert out["in_distribution"]["n_test"] == found["in_distribution"]["n_test"]


def test_no_labels_no_soft_classes_no_ood_sets(tmp_path, capsys):
    write_sets(tmp_path)
    settings = {"score_near": (), "score_far": (), "score_baselines": (), "head_name": "none"}
    config = tiny(tmp_path, data_test="noise:uniform[:20]", **settings)
    save(tmp_path / "w", config)
    found = score.score_run(str(tmp_path / "w"))
    assert found["in_distribution"]["knn_accuracy"] is None
    assert found["in_distribution"]["occupied_classes"] is None
    assert found["sets"] == found["near"] == found["far"] == {}
    assert "sensitivity" in capsys.readouterr().out


def test_an_older_checkpoint(scored, tmp_path):
    config = tiny(scored[1].data.root, score_baselines=())
    save(tmp_path, config, step=1)
    save(tmp_path, config, step=2)
    out = tmp_path / "first.json"
    assert score.main([f"--workdir={tmp_path}", "--step=1", f"--out={out}"]) == 0
    assert results.read_results(out)["step"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ood=svhn"], "write NAME=SOURCE"),
        (["--ood=a=noise:uniform[:3]", "--ood=a=noise:gaussian[:3]"], "called 'a'"),
        (["--ood=a=npz:absent.npz"], "absent.npz"),
        (["--ood=a/b=noise:uniform[:3]"], "cannot be called 'a/b'"),
        (["--ood=train=noise:uniform[:3]"], "cannot be called 'train'"),
        (["--ood=a=noise:uniform[:0]"], "leaves none"),
        (["--step=3"], "no checkpoint of step 3"),
        (["--out=table.csv"], "ends in .json"),
        (["--workdir=/nowhere/at/all"], "no checkpoint in /nowhere"),
    ],
)
def test_mistakes_are_one_line_before_compute(scored, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *a, **k: pytest.fail("computed"))
    assert score.main([f"--workdir={scored[0]}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_scorers": ("exp_cosin",)}, "no scorer 'exp_cosin'; did you mean exp_cosine"),
        ({"score_scorers": ()}, "name one or more"),
        ({"score_scorers": ("exp_cosine",) * 2}, "each once"),
        ({"score_baselines": ("pixel",)}, "no 'pixel'; there are pixels, untrained"),
        ({"score_knn": 37}, "the bank has 36 images; use 1 to 36"),
        ({"score_keep": 1.0}, "score.keep = 1.0"),
        ({"score_bootstrap": -1}, "score.bootstrap = -1"),
        ({"score_scorers": ("l1_discrepancy",)}, "scorer l1_discrepancy needs a second classifier"),
        ({"score_scorers": ("norm",)}, "norm needs projections that are not normalised"),
        ({"score_scorers": ("mahalanobis",), "data_train": "noise:uniform[:20]"}, "needs labels"),
        ({"data_train": "noise:uniform[:1]"}, "has one image"),
        ({"score_benchmark": "cifar_10", "score_near": (), "score_far": ()}, "cifar10"),
        ({"score_benchmark": "cifar10"}, "brings its own near and far"),
        (
            {"score_benchmark": "cifar10", "score_near": (), "score_far": ()},
            "benchmark_imglist: set data.root, now '.*', to OpenOOD's `data` folder",
        ),
        ({"score_feature": "tokens"}, "'tokens': this network has features, projections, logits"),
        ({"score_feature": "logits", "head_name": "none"}, "'logits': this network has features"),
        ({"score_batch": 0}, "score.batch = 0"),
        ({"score_temperature": 0.0}, "score.temperature = 0"),
        ({"score_far": ("bright=npz:dark.npz",)}, "'bright' is in score.near and in score.far"),
        ({"data_test": "npz:gone.npz"}, "gone.npz"),
    ],
)
def test_configs_that_make_no_sense(scored, settings, message):
    with pytest.raises(ValueError, match=message):
        score.check_sources(tiny(scored[1].data.root, **settings))


def test_a_checkpoint_of_another_model(scored):
    other = tiny(scored[1].data.root, model_width=32)
    with pytest.raises(ValueError, match=r"another model: .*\(16|another model: .*, 16\)"):
        score.score_run(str(scored[0]), config=other, out=str(scored[0] / "never.json"))
    assert not (scored[0] / "never.json").exists()
    checked = plan.check(scored[1])
    plan.check_model(checked.shapes, restore_for_scoring(str(scored[0])), "w")


def test_places_that_cannot_be_written(scored, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        score.score_run(str(scored[0]), out=str(tmp_path / "file" / "out.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        score.score_run(str(scored[0]), out=str(tmp_path / "folder.json"))


def test_a_run_that_cannot_be_written_is_scored_without_keeping_features(
    scored, tmp_path, capsys, monkeypatch
):
    copy = tmp_path / "w"
    copy.mkdir()
    os.symlink(scored[0] / "checkpoints", copy / "checkpoints")
    (copy / "features").write_text("in the way")
    found = score.score_run(str(copy), out=str(tmp_path / "out.json"))
    assert found["sets"] == scored[3]["sets"]
    assert "features are not kept" in capsys.readouterr().err
