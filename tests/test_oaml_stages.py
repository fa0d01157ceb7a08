"""The whole OAML recipe: what stages leave, reuse, and that a kill anywhere changes nothing."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import oaml_run
import pytest

from ood_jax import loop, made, outliers, stages
from ood_jax.checkpoint import restore_for_scoring
from ood_jax.config import staged, stages_of
from ood_jax.main import main
from ood_jax.npz import opened

pytestmark = pytest.mark.usefixtures("compiled_once")

RECIPE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import oaml_run

def get_config(folder):
    return oaml_run.recipe(Path(folder))
"""
STAGES = ("teacher", "mine", "generate", "student")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The workdir of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    stages.train(stages.prepared(oaml_run.recipe(data)), str(folder))
    return folder


def held(path):
    with opened(path) as file:
        return {name: file[name] for name in file.names}


def assert_same(one, other):
    for stage in ("mine", "generate"):
        first, second = (held(folder / stage / "outliers.npz") for folder in (one, other))
        for name in first.keys() - {"meta"}:
            np.testing.assert_array_equal(first[name], second[name])
    first, second = (restore_for_scoring(str(folder)) for folder in (one, other))
    assert first.step == second.step
    arrays = [(found.params, found.stats) for found in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *arrays)


def test_each_stage_leaves_what_the_next_reads(data, whole):
    near = outliers.read(whole / "mine/outliers.npz", kind="near")
    far = outliers.read(whole / "generate/outliers.npz", kind="far")
    teacher = restore_for_scoring(str(whole / "teacher"))
    embeddings = held(whole / "features/embeddings@teacher.npz")
    assert embeddings["features"].shape == (24, 48) and embeddings["logits"].shape == (24, 3)
    assert near.features.shape == (36, 48) and far.features.shape == (20, 48)
    assert near.provenance["checkpoint"]["step"] == teacher.step == 4
    assert near.provenance["settings"]["neighbour"] == 4 and near.provenance["seed"] == 0
    assert far.provenance["checkpoint"] == near.provenance["checkpoint"]
    assert far.provenance["network"]["step"] == 4 and "network" not in near.provenance
    assert far.provenance["near"]["from"] == "stage:mine"
    student = restore_for_scoring(str(whole))
    assert {"trunk", "head", "feature_map", "near_q", "far_q"} == set(student.params)
    assert student.params["near_q"]["mean_1"]["kernel"].shape[1] == 48


def test_outliers_are_checked_before_the_student_is_trained(whole):
    for stage, kind in (("mine", "near"), ("generate", "far")):
        facts = json.loads((whole / stage / "outliers.json").read_text())
        assert facts["schema"] == 1 and facts["kind"] == kind and facts["width"] == 48
        assert 0.5 <= facts["separability"] <= 1.0 and facts["gaussian_kl"] > 0
        assert facts["distances"]["outliers"]["0.5"] > facts["distances"]["train"]["0.5"]


class Crash(Exception):
    """What kill -9 does: nothing is saved."""


def _crash(*_, **__):
    raise Crash


def _stop_in(patch, stage, where):
    """Crashes in `stage`: after two of its steps, or as it makes or writes its outliers."""
    if where == "making":
        before = made.make_outliers

        def making(run, params, workdir, *, label):
            if label == stage:
                patch.setattr(outliers, "replaced", _crash)
            before(run, params, workdir, label=label)

        patch.setattr(made, "make_outliers", making)
        return
    before_batches = loop.with_vectors

    def some(batches, vectors, **options):
        reads = {"teacher": None, "generate": "embeddings", "student": "near"}[stage]
        wanted = (
            vectors.embeddings is None if reads is None else getattr(vectors, reads) is not None
        )
        for i, batch in enumerate(before_batches(batches, vectors, **options)):
            if i == 2 and wanted:
                raise Crash
            yield batch

    patch.setattr(loop, "with_vectors", some)


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        pytest.param("teacher", "training", marks=pytest.mark.slow),
        ("mine", "making"),
        ("generate", "training"),
        pytest.param("generate", "making", marks=pytest.mark.slow),
        ("student", "training"),
    ],
)
def test_killed_at_any_stage_it_goes_on_there(data, whole, tmp_path, monkeypatch, stage, where):
    recipe = oaml_run.recipe(data)
    with monkeypatch.context() as patch:
        _stop_in(patch, stage, where)
        with pytest.raises(Crash):
            stages.train(stages.prepared(recipe), str(tmp_path))
    done = STAGES[: STAGES.index(stage)]
    stamps = {name: sorted((tmp_path / name / "checkpoints").iterdir()) for name in done}
    assert not (tmp_path / stage / "outliers.npz").exists()
    stages.train(stages.prepared(recipe), str(tmp_path))
    assert stamps == {name: sorted((tmp_path / name / "checkpoints").iterdir()) for name in done}
    assert_same(whole, tmp_path)


def test_a_rerun_makes_nothing_again_and_a_broken_file_alone(data, whole, monkeypatch):
    files = {stage: whole / stage / "outliers.npz" for stage in ("mine", "generate")}
    before = {stage: (path.stat().st_mtime_ns, path.read_bytes()) for stage, path in files.items()}
    runs = stages.prepared(oaml_run.recipe(data))
    with monkeypatch.context() as patch:
        patch.setattr(outliers, "write", _crash)
        stages.train(runs, str(whole))
    assert before["mine"][0] == files["mine"].stat().st_mtime_ns
    whole_one = held(files["mine"])
    files["mine"].write_bytes(before["mine"][1][:-50])
    stages.train(stages.prepared(oaml_run.recipe(data)), str(whole))
    again = held(files["mine"])
    assert again.keys() == whole_one.keys()
    for name, array in whole_one.items():
        np.testing.assert_array_equal(again[name], array)
    assert before["generate"][0] == files["generate"].stat().st_mtime_ns


def test_another_student_learns_from_the_same_workdir(data, whole, tmp_path):
    config = oaml_run.student(data)
    config.data.embeddings = str(whole / "teacher")
    config.data.near = str(whole / "mine")
    config.data.far = str(whole / "generate/outliers.npz")
    stages.train(stages.prepared(config), str(tmp_path))
    first, second = (restore_for_scoring(str(folder)) for folder in (whole, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert (tmp_path / "features/embeddings@teacher.npz").exists()


def test_a_workdir_without_a_network_of_images_is_no_teacher(data, whole):
    config = oaml_run.student(data)
    config.data.embeddings = str(whole / "mine")
    config.data.near, config.data.far = str(whole / "mine"), str(whole / "generate")
    with pytest.raises(ValueError, match=r"data.embeddings: .*mine holds a checkpoint of another"):
        stages.prepared(config)


def test_a_source_that_changed_since_is_refused(data, whole, tmp_path):
    shutil.copy(whole / "mine/outliers.npz", tmp_path / "near.npz")
    config = oaml_run.student(data)
    config.data.embeddings = str(whole / "teacher")
    config.data.near, config.data.far = str(tmp_path / "near.npz"), str(whole / "generate")
    stages.train(stages.prepared(config), str(tmp_path / "run"))
    other = outliers.read(tmp_path / "near.npz")
    outliers.write(tmp_path / "near.npz", other._replace(features=other.features + 1))
    with pytest.raises(ValueError, match=r"began with other vectors: data.near changed since"):
        stages.train(stages.prepared(config), str(tmp_path / "run"))


def _with(data, **changes):
    """The recipe with keys changed: STAGE={"data.near": value, ...}; None leaves a stage out."""
    config = oaml_run.recipe(data)
    kept = {
        name: own for name, own in stages_of(config).items() if changes.get(name, 0) is not None
    }
    for stage, own in changes.items():
        for key, value in (own or {}).items():
            part, leaf = key.split(".")
            with config.unlocked():
                config[stage][part][leaf] = value
    return staged("oaml", **kept)


WITHOUT_OUTLIERS = {f"data.{kind}": "" for kind in ("near", "far")}
WITHOUT_OUTLIERS |= {f"method.{kind}_weight": 0.0 for kind in ("near", "far")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student": {"data.near": "stage:generate", "data.far": "stage:generate"}},
            "stage student: data.near = 'stage:generate': that stage makes far outliers",
        ),
        (
            {"student": {"data.near": "stage:teacher"}},
            "stage student: data.near = 'stage:teacher': that stage makes no outliers",
        ),
        (
            {"student": {"data.embeddings": "stage:mine"}},
            "stage student: data.embeddings = 'stage:mine': that stage makes outliers",
        ),
        (
            {"student": {"model.weights": "stage:mine"}},
            "stage student: model.weights = 'stage:mine': that stage makes near outliers",
        ),
        (
            {"mine": {"data.embeddings": "stage:student"}},
            "stage mine: data.embeddings = 'stage:student': no such earlier stage; .* teacher",
        ),
        ({"mine": None}, "stage generate: data.near = 'stage:mine': no such earlier stage"),
        (
            {"student": WITHOUT_OUTLIERS, "generate": None},
            "stage mine: no later stage begins with it or reads it; set data.near of one",
        ),
        (
            {"teacher": {"head.name": "none"}},
            "stage teacher: supervised needs classes",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_the_first_step(data, changes, message):
    with pytest.raises(ValueError, match=message):
        stages.prepared(_with(data, **changes))


def test_one_command_trains_makes_and_scores(data, tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(Path(oaml_run.__file__).parent)))
    workdir = tmp_path / "run"
    argv = [f"--config={recipe}:{data}", f"--workdir={workdir}"]
    only_outliers = [*argv, "--config.stages=teacher,mine"]
    assert main(only_outliers) == 0
    assert (workdir / "mine/outliers.npz").exists() and not (workdir / "results.json").exists()
    shown = capsys.readouterr()
    assert "mine: 36 outliers" in shown.err and "AUROC" not in shown.out
    assert main(argv) == 2  # that workdir holds a run of two stages
    assert "holds a run of the stages teacher, mine" in capsys.readouterr().err
    assert main([argv[0], f"--workdir={tmp_path}/whole"]) == 0
    shown = capsys.readouterr()
    assert "accuracy" in shown.out and (tmp_path / "whole/results.json").exists()
