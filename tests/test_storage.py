"""Runs in gs://: what they leave is what they leave on a disk, whatever stops them."""

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_gcs import served
from PIL import Image
from small_run import environment, signalled, write_recipe
from stored import objects

from ood_jax import cache, intact, loop, predict, report, stages
from ood_jax.checkpoint import restore_for_scoring
from ood_jax.data.sources import open_source
from ood_jax.logs import FILE, MetricLog, read_metrics
from ood_jax.main import main
from ood_jax.place import place

pytestmark = pytest.mark.usefixtures("compiled_once")
RUN = "gs://bucket/runs/one"
RECIPE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_stages import one_stage, two_stages

def get_config(text):
    stages, folder = text.split(",", 1)
    return two_stages(Path(folder)) if stages == "two" else one_stage(Path(folder), 3)
"""


@pytest.fixture(scope="module")
def store():
    with objects("bucket") as found:  # tensorstore asks one server in a process
        yield found


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Runs of one stage and of two, 3 steps each."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "small.py").write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    return {stages: f"{folder / 'small.py'}:{stages},{folder}" for stages in ("one", "two")}


@pytest.fixture(scope="module")
def recipe(recipes):
    return recipes["one"]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The workdir of the run of one stage, on a disk."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([f"--config={recipe}", f"--workdir={folder}"]) == 0
    return folder


def _losses(workdir):
    return [(row["step"], row["loss"]) for row in read_metrics(workdir)]


@pytest.fixture(scope="module")
def stored(recipe, whole, store):
    """RUN, stopped after its second step, where storage then failed, and gone on with."""
    _interrupted(recipe, RUN, store, "train")
    assert _losses(RUN) == _losses(whole)
    return RUN


def _interrupted(recipe, workdir, store, label):
    """Trains and scores in `workdir`, with a SIGTERM where the bar is called `label`."""
    flags = [f"--config={recipe}", f"--workdir={workdir}"]
    with pytest.MonkeyPatch.context() as patch:
        _stop_in(patch, label, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(flags) == 143
    store.refuse = lambda method, path: 503 * (method == "POST" and path.endswith(FILE))
    assert main(flags) == 1
    store.refuse = lambda method, path: 0
    assert main(flags) == 0


def _stop_in(patch, label, stop):
    """`stop()` is called as the second batch of the stage `label` is asked for."""
    batches, train, current = loop.train_batches, loop.train, []

    def named(run, workdir, label="train"):
        current.append(label)
        return train(run, workdir, label)

    def some(*sources, **options):
        for i, batch in enumerate(batches(*sources, **options)):
            if i == 1 and current[-1] == label:
                stop()
            yield batch

    patch.setattr(loop, "train", named)
    patch.setattr(loop, "train_batches", some)


def _equal(workdir, whole):
    found = json.loads(place(f"{workdir}/results.json").read_text())
    assert found == json.loads((whole / "results.json").read_text())
    ours, theirs = restore_for_scoring(workdir), restore_for_scoring(str(whole))
    np.testing.assert_equal(ours.params, theirs.params)


def test_a_stopped_run_in_storage_is_an_uninterrupted_one_on_a_disk(stored, whole, store):
    _equal(stored, whole)
    prefix = stored.removeprefix("gs://bucket/")
    names = {n.removeprefix(f"{prefix}/") for n in store.buckets["bucket"] if n.startswith(prefix)}
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    ours, theirs = (
        {name for name in found if not name.startswith(("checkpoints/", "tensorboard/", ".lock"))}
        for found in (names, files)
    )
    assert ours == theirs and "config.json" in ours
    events = [name for name in names if name.startswith("tensorboard/events")]
    assert len(events) == 2  # one of each time that it trained


@pytest.mark.slow
def test_a_run_of_two_stages_stopped_in_the_second(recipes, store, tmp_path):
    workdir = "gs://bucket/runs/two"
    assert main([f"--config={recipes['two']}", f"--workdir={tmp_path}"]) == 0
    _interrupted(recipes["two"], workdir, store, "train joint")
    _equal(workdir, tmp_path)
    for stage in ("pretrain", "joint"):
        assert _losses(f"{workdir}/{stage}") == _losses(tmp_path / stage)


def test_commands_read_and_write_there(stored, whole, tmp_path, store):
    for root, out in ((stored, "gs://bucket/out"), (str(whole), str(tmp_path))):
        images = json.loads((whole / "results.json").read_text())["config"]["data"]["test"]
        flags = [f"--workdir={root}", f"--images={images}", f"--out={out}/p.csv"]
        assert predict.main(flags) == 0
        assert report.main([f"--workdirs={root}", f"--out={out}/report"]) == 0
    csv, html = (store.buckets["bucket"][f"out/{n}"][0] for n in ("p.csv", "report/report.html"))
    assert csv == (tmp_path / "p.csv").read_bytes()
    assert len(html) == pytest.approx(len((tmp_path / "report/report.html").read_bytes()), rel=0.02)


def test_a_truncated_checkpoint_is_set_aside_and_an_unreadable_one_is_not(stored, store):
    folder = place(f"{stored}/checkpoints")
    newest = f"{folder}/3/config/metadata".removeprefix("gs://bucket/")
    before = store.buckets["bucket"][newest][0]
    assert intact.newest(folder, [2, 3]) == 3
    for code, kind in ((503, OSError), (403, PermissionError)):
        store.refuse = lambda method, path, code=code: code * path.endswith("seal.json")
        with pytest.raises(kind, match=f"gs://bucket.*refused, {code}"):
            intact.set_aside(folder)
    store.refuse = lambda method, path: 0
    store.put("bucket", newest, before[:-1])
    intact.set_aside(folder)
    moved = newest.replace("checkpoints", "corrupt")
    assert newest not in store.buckets["bucket"] and moved in store.buckets["bucket"]
    assert intact.newest(folder, [2]) == 2


def _refused(capsys, recipe, workdir, code):
    assert main([f"--config={recipe}", f"--workdir={workdir}"]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_mistake_is_2(recipe, store, capsys):
    said = _refused(capsys, recipe, "gs://other/w", 2)
    assert "--workdir=gs://other/w cannot be written (gs://other/w: FileNotFoundError" in said
    store.refuse = lambda method, path: 403
    assert "refused, 403" in _refused(capsys, recipe, "gs://bucket/w", 2)
    store.refuse = lambda method, path: 0


# orbax leaves the event loop of a save that fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_may_pass_is_1_though_tensorstore_calls_it_a_valueerror(recipe, store, capsys):
    store.refuse = lambda method, path: 403 * (method == "POST" and "ocdbt" in path)
    said = _refused(capsys, recipe, "gs://bucket/w", 1)
    store.refuse = lambda method, path: 0
    gc.collect()  # else the next test is warned of it
    assert "gs://bucket/w/checkpoints cannot be written" in said
    assert said.endswith("the same command goes on from the last checkpoint")


def test_checkpoints_are_not_written_to_s3(recipe, capsys, monkeypatch):
    """orbax takes s3:// for a path that is not absolute."""
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("trained"))
    said = _refused(capsys, recipe, "s3://bucket/w", 2)
    assert said.startswith(
        "error: s3://bucket/w: checkpoints are written to gs:// and to disks alone"
    )


def test_a_log_is_sent_now_and_then_and_goes_on(store, monkeypatch):
    workdir = "gs://bucket/log"
    killed = MetricLog(workdir)
    for step in (1, 2):
        killed.write(step, {"loss": step})
    assert read_metrics(workdir) == []
    killed.send()
    killed.write(3, {"loss": 3})
    assert _losses(workdir) == [(1, 1), (2, 2)]
    with MetricLog(workdir, resume_step=1) as log:
        log.write(2, {"loss": 20})
        monkeypatch.setattr(log, "_wait", 0.0)
        log.write(3, {"loss": 30})
        assert _losses(workdir) == [(1, 1), (2, 20), (3, 30)]
        log.write(4, {"loss": 40})
    assert _losses(workdir)[-1] == (4, 40)
    killed.close()


def _images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for i, array in enumerate(arrays):
        path = folder / "set" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    (folder / "set" / ".hidden").mkdir()
    (folder / "set" / ".hidden" / "x.png").write_bytes(b"")
    (folder / "list.txt").write_text("set/cat/0.png 0\nset/./dog/1.png 1\n")
    (folder / "lost.txt").write_text("set/cat/0.png 0\nset/dog/9.png 1\nnone/1.png 1\n")
    np.savez(folder / "a.npz", images=arrays, labels=np.arange(6))
    np.save(folder / "a.npy", arrays)


@pytest.mark.parametrize("spec", ["folder:set", "list:list.txt", "list:list.txt@.", "npz:a.npz"])
def test_sources_read_the_same_images(spec, store, tmp_path):
    _images(tmp_path)
    store.upload_folder("bucket", tmp_path, "data")
    ours, theirs = (open_source(spec, root=root) for root in ("gs://bucket/data", str(tmp_path)))
    assert ours.classes == theirs.classes and ours.labels.tolist() == theirs.labels.tolist()
    assert [ours.name(i) for i in range(len(ours))] == [theirs.name(i) for i in range(len(theirs))]
    store.asked.clear()
    for i in range(len(ours)):
        np.testing.assert_array_equal(ours.image(i), theirs.image(i))
    assert len(store.asked) <= len(ours)  # one request an image
    kind, _, where = spec.partition(":")
    where = where.replace("@.", "@gs://bucket/data")
    whole = open_source(f"{kind}:gs://bucket/data/{where}")  # without a root
    np.testing.assert_array_equal(whole.image(0), ours.image(0))
    stamp = cache.stamp(spec, "gs://bucket/data")
    assert stamp == cache.stamp(whole.spec, "")
    store.upload_folder("bucket", tmp_path, "data")
    if kind != "folder":
        assert cache.stamp(spec, "gs://bucket/data") != stamp


def test_an_npy_is_mapped_from_a_copy(store, tmp_path):
    _images(tmp_path)
    store.upload_folder("bucket", tmp_path, "data")
    source = open_source("npz:a.npy + npz:a.npz[:2]", root="gs://bucket/data")
    assert len(source) == 8
    np.testing.assert_array_equal(source.image(7), np.load(tmp_path / "a.npy")[1])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("folder:none", "gs://bucket/data/none is not a folder"),
        ("npz:none.npz", "gs://bucket/data/none.npz is not a file"),
        ("list:lost.txt", "2 of 3 files are missing, first set/dog/9.png"),
        ("npz:list.txt", "gs://bucket/data/list.txt cannot be read"),
    ],
)
def test_sources_that_are_not_there(spec, says, store, tmp_path):
    _images(tmp_path)
    store.upload_folder("bucket", tmp_path, "data")
    with pytest.raises(ValueError, match=says):
        open_source(spec, root="gs://bucket/data")
    store.refuse = lambda method, path: 503  # says nothing of the source
    with pytest.raises(OSError, match="refused, 503"):
        open_source(spec, root="gs://bucket/data")
    store.refuse = lambda method, path: 403
    with pytest.raises(ValueError, match=r"cannot be read .*refused, 403"):
        open_source(spec, root="gs://bucket/data")
    store.refuse = lambda method, path: 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed: the extra gcs"
)
def test_gcsfs_itself_in_processes_of_their_own(tmp_path):
    """Trained, stopped by SIGTERM, gone on with, scored, reported and asked, all by gs://."""
    recipe = write_recipe(tmp_path / "data", "tiny_config")
    steps = ("steps=15", "checkpoint_every=3", "log_every=1")
    flags = [f"--config={recipe}", *(f"--config.train.{step}" for step in steps)]
    env = environment(tmp_path / "cache", modules=_beside("gcsfs"))

    def run(module, *arguments, more=None):
        done = subprocess.run(
            [sys.executable, "-m", f"ood_jax.{module}", *arguments],
            env=env | (more or {}),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done

    run("main", *flags, f"--workdir={tmp_path / 'disk'}")
    with served("bucket") as (store, there):
        workdir = "--workdir=gs://bucket/a/run"
        command = [sys.executable, "-m", "ood_jax.main", *flags, workdir]
        held, done = store.buckets["bucket"], "a/run/checkpoints/3/commit_success.txt"
        code, said = signalled(command, env | there, lambda: done in held, signal.SIGTERM)
        assert code == 143 and "SIGTERM: stopped after step" in said
        run("main", *flags, workdir, more=there)
        run("score", workdir, f"--ood=more=npz:{tmp_path}/data/far.npz", more=there)
        run("report", "--workdirs=gs://bucket/a/run", "--out=gs://bucket/report", more=there)
        csv = ["--out=gs://bucket/p.csv", f"--images=npz:{tmp_path}/data/far.npz"]
        run("predict", workdir, *csv, more=there)
        store.download_folder("bucket", "a/run", tmp_path / "got")
        assert {"a/run/scores/more.json", "report/report.html", "p.csv"} <= set(
            store.buckets["bucket"]
        )
        wrong = subprocess.run(
            [sys.executable, "-m", "ood_jax.main", *flags, "--workdir=gs://other/run"],
            env=env | there,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert wrong.returncode == 2 and wrong.stderr.count("error: ") == 1, wrong.stderr
    found, expected = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("got", "disk")
    )
    assert found == expected
    assert _losses(tmp_path / "got") == _losses(tmp_path / "disk")


def _beside(package: str) -> Path:
    """The folder that `package` is imported from."""
    return Path(importlib.util.find_spec(package).origin).parent.parent
