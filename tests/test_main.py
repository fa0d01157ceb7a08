"""The main job from the command line: every mistake is one line, before any training."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import environment, write_recipe

from ood_jax import loop
from ood_jax.logs import read_metrics
from ood_jax.main import main
from ood_jax.recipe import load
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("data"), "tiny_config")


@pytest.fixture
def refused(recipe, tmp_path, capsys, monkeypatch):
    """refused(*flags) -> the one line on stderr; training must not begin."""

    def run(*flags, workdir=tmp_path / "w"):
        monkeypatch.setattr(loop, "_steps", lambda *a: pytest.fail("training began"))
        code = main([f"--config={recipe}", f"--workdir={workdir}", *flags])
        said = capsys.readouterr().err
        line = said.splitlines()[-1]
        assert code == 2 and line.startswith("error: ") and "Traceback" not in said, said
        # What comes before the mistake is found: at most the line that says what will run.
        assert len(said.splitlines()) <= 2, said
        assert not list(Path(tmp_path / "w").glob("checkpoints/*"))
        return line

    return run


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


MISTAKES = {
    "unknown key": (["--config.optim.lrr=1"], "Did you mean --config.optim.lr?"),
    "value of another type": (["--config.train.steps=many"], "whole number"),
    "missing file": (["--config.data.train=npz:gone.npz"], "gone.npz is not a file"),
    "missing folder": (["--config.data.test=folder:gone"], "gone is not a folder"),
    "empty folder": (["--config.data.train=folder:{empty}"], "no image in"),
    "no such kind of source": (["--config.data.train=cifar10"], "is not a source"),
    "TFDS that is not prepared": (
        ["--config.data.train=tfds:cifar10:train", "--config.data.root={empty}"],
        "tfds build cifar10",
    ),
    "TFDS that does not exist": (
        ["--config.data.train=tfds:no_such_set", "--config.data.root={empty}"],
        "no prepared set",
    ),
    "batch and micro-batches": (["--config.train.accumulate=3"], "use 6 or 12"),
    "batch and devices": (["--config.train.batch=9", "--config.train.devices=2"], "use 8 or 10"),
    "more devices than there are": (["--config.train.devices=99"], "2 devices"),
    "K = 1": (["--config.head.outputs=1"], "2 outputs or more"),
    "K = 0": (["--config.head.outputs=0"], "use 1 or more"),
    "negative views": (["--config.method.positive_local=-1"], "none below 0"),
    "3 global negatives": (["--config.method.negative_global=3"], "at most 2"),
    "no view of negatives": (
        ["--config.method.negative_global=0", "--config.method.negative_local=0"],
        "use 1 view or more",
    ),
    "local views of 0 px": (
        ["--config.method.local_size=0", "--config.method.positive_local=1"],
        "size = 0",
    ),
    "no auxiliary source": (["--config.data.auxiliary="], "name a source in data.auxiliary"),
    "warm-up longer than the run": (["--config.optim.warmup_epochs=9"], "warm up for less"),
    "an OOD set that is not there": (["--config.score.near=x=npz:gone.npz"], "gone.npz"),
    "an OOD set without a name": (["--config.score.near=npz:gone.npz"], "write NAME=SOURCE"),
    "unknown scorer": (["--config.score.scorers=exp_cosin"], "exp_cosin"),
    "unknown method": (["--config.method.name=dyno"], "dino_negatives"),
    "unknown method on PYTHONPATH": (["--config.method.name=my_pkg.gone"], "PYTHONPATH"),
    "unknown model": (["--config.model.name=vgg"], "vit"),
    "preset as a key": (["--config.method.preset=official"], "the recipe's argument"),
    "unknown argument": (["--steps=3"], "unknown argument '--steps=3'"),
    "batch of 0": (["--config.train.batch=0"], "batch"),
}


@pytest.mark.parametrize(("flags", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(flags, says, refused, tmp_path):
    empty = _empty(tmp_path)
    assert says in refused(*(flag.format(empty=empty) for flag in flags))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("configs/quickstrat.py", "did you mean configs/quickstart.py?"),
        ("configs/dino_negatives.py:rot_imgn,cifar10,offical", "official"),
        ("configs/dino_negatives.py:rot_imgm,cifar10", "rot_imgn"),
    ],
)
def test_a_recipe_or_preset_that_is_not_there(config, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([f"--config={config}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


@pytest.mark.parametrize(
    ("workdir", "says"),
    [
        ("ftp://host/w", "write gs://BUCKET"),
        ("~no-such-user/w", "~no-such-user is nobody's home here"),
    ],
)
def test_what_is_no_place_is_not_taken_for_a_folder(workdir, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(workdir=workdir)
    assert not list(tmp_path.glob("[f~]*"))


@pytest.mark.parametrize("place", ["file/below", "/proc/w"])
def test_a_workdir_that_cannot_be_written(place, refused, tmp_path):
    (tmp_path / "file").touch()
    line = refused(workdir=tmp_path / place)
    assert "cannot be written" in line and "name a folder that can" in line


def test_exit_code_and_one_line_in_a_process_of_its_own(recipe, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ood_jax.main", f"--config={recipe}", "--config.train.epoch=3"],
        env=environment(tmp_path / "cache"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown config key 'train.epoch'. Did you mean --config.train.epochs?\n"
    )
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_model(recipe, tmp_path, capsys):
    """Refused before the first step, with the key that differs."""
    run = prepare(load([f"--config={recipe}"]))
    checkpoints = loop.open_workdir(run, str(tmp_path))
    checkpoints.save(init_state(run), run.config)
    checkpoints.close()
    flags = [f"--config={recipe}", f"--workdir={tmp_path}"]
    assert main([*flags, "--config.model.depth=2", "--config.score.knn=2"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "holds another run: model.depth = 1 there, 2 here. Use another --workdir" in line


def _images(folder, count=12):
    """A folder of two classes: RGB, grey and RGBA files of several sizes, and a broken one."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"class_{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shape = [(20, 16, 3), (16, 24), (16, 16, 4)][i % 3]
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i:02}.png")
    (folder / "class_0" / "04.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return f"folder:{folder}"


def test_grey_rgba_and_corrupt_images(recipe, tmp_path, capsys):
    """All are trained on and scored, but for the broken one, which is counted."""
    images = _images(tmp_path / "images")
    flags = ["--config.train.batch=12", "--config.train.steps=2", "--config.train.devices=1"]
    flags += ["--config.optim.warmup_epochs=0", "--config.train.log_every=1"]
    flags += [f"--config.data.train={images}", f"--config.data.auxiliary={images}"]
    workdir = tmp_path / "w"
    assert main([f"--config={recipe}", f"--workdir={workdir}", *flags]) == 0
    # One of 12 in each stream; a batch holds each image once.
    assert [row["skipped"] for row in read_metrics(workdir)] == [2, 2]
    assert all(np.isfinite(row["loss"]) for row in read_metrics(workdir))
    results = json.loads((workdir / "results.json").read_text())
    counts = results["in_distribution"]
    assert counts["n_train"] + counts["n_calibration"] == 11
    assert results["skipped"]["train"] + results["skipped"]["calibration"] == 1


def test_a_file_lost_on_the_way(recipe, tmp_path, capsys, monkeypatch):
    """An OSError after all checks is one line too, with exit code 1."""
    images = _images(tmp_path / "images")
    opened = loop.open_workdir

    def lose(run, workdir):
        shutil.rmtree(tmp_path / "images")
        return opened(run, workdir)

    monkeypatch.setattr(loop, "open_workdir", lose)
    flags = [f"--config.data.train={images}", "--config.data.memory=0"]
    assert main([f"--config={recipe}", f"--workdir={tmp_path / 'w'}", *flags]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "No such file" in line and "the same command" in line


@pytest.mark.slow
def test_a_full_disk(recipe, tmp_path):
    """A save that fails stops the run: exit code 1, and the last line says which place is full."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from ood_jax.main import leave, main; leave(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"--config={recipe}", f"--workdir={tmp_path}"],
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path}/checkpoints cannot be written") and "large" in line


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "SIGINT: stopped"),
        (loop.Diverged("loss nan at step 3"), 1, "error: loss nan at step 3"),
        (loop.Interrupted(signal.SIGTERM, 3), 143, "SIGTERM: stopped after step 3"),
        (loop.Interrupted(signal.SIGINT, 3), 130, "SIGINT: stopped after step 3"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
    ],
)
def test_how_a_run_ends(error, code, says, recipe, tmp_path, capsys, monkeypatch):
    def end(*_, **__):
        raise error

    monkeypatch.setattr(loop, "train", end)
    assert main([f"--config={recipe}", f"--workdir={tmp_path}"]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(says)
