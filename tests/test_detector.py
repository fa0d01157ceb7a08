"""A run as a detector of one's own images: from Python, from the command line, as one file."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import tiny_config

import ood_jax
from ood_jax import metrics, models, predict, score
from ood_jax.checkpoint import Checkpoints
from ood_jax.export import export
from ood_jax.types import TrainState

K = 16


def write_run(workdir, config):
    params, stats = models.init_params(models.build(config), config)
    checkpoints = Checkpoints(str(workdir), keep_last=1)
    checkpoints.save(TrainState(np.int32(3), params, stats, None, {}, ()), config)
    checkpoints.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir of a scored run, its results, the folder of its images)."""
    folder = tmp_path_factory.mktemp("detector")
    config = tiny_config(folder)
    config.score.bootstrap, config.score.augmentations = 0, 2
    config.score.neighbour = 2
    config.score.scorers = ("exp_cosine", "knn", "max_logit", "norm_mean", "odin")
    config.score.feature = "features"
    config.head.name = "linear"
    write_run(folder / "w", config)
    return folder / "w", score.score_run(str(folder / "w")), folder


def images_of(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        return file["images"]


@pytest.mark.parametrize("scorer", [None, "knn", "max_logit", "norm_mean", "odin"])
def test_scores_are_those_of_the_scoring_run(run, scorer):
    workdir, found, folder = run
    detector = ood_jax.load(str(workdir), scorer=scorer)
    name = scorer or "exp_cosine"
    assert detector.name == name
    assert detector.threshold == pytest.approx(found["scorers"][name]["threshold"], rel=1e-5)
    test, near = (detector.score(images_of(folder, part)) for part in ("test", "near"))
    auroc = found["sets"]["near"][name]["auroc"]
    assert metrics.auroc(test, near) == pytest.approx(auroc, abs=1e-6)
    verdicts = detector.verdicts(images_of(folder, "near"))
    np.testing.assert_array_equal(verdicts.ood, verdicts.scores > detector.threshold)
    assert np.mean(verdicts.ood) == pytest.approx(found["sets"]["near"][name]["rejected"])
    rank = [100 * np.mean(detector.calibration < s) for s in verdicts.scores]
    np.testing.assert_allclose(verdicts.ood_rank, rank)


def test_any_number_and_any_kind_of_images(run):
    workdir, _, folder = run
    detector = ood_jax.load(str(workdir))
    images = images_of(folder, "near")
    whole = detector.score(images)
    for count in (1, 2, 3, 5, 9):
        np.testing.assert_allclose(detector.score(images[:count]), whole[:count], atol=1e-5)
    kinds = (
        images / np.float32(255),
        [Image.fromarray(image) for image in images],
        [image[..., 0] for image in np.repeat(images[..., :1], 3, 3)],
    )
    for kind in kinds[:2]:
        np.testing.assert_allclose(detector.score(kind), whole, atol=1e-5)
    grey = detector.score(np.repeat(images[..., :1], 3, 3))
    np.testing.assert_allclose(detector.score(kinds[2]), grey, atol=1e-5)
    assert np.isfinite(detector.score([np.zeros((40, 9, 3), np.uint8), images[0]])).all()


def test_an_opened_image_is_its_file(run, tmp_path):
    grey = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    detector = ood_jax.load(str(run[0]))
    path = tmp_path / "grey16.png"
    with Image.open(path) as opened:
        np.testing.assert_array_equal(detector.prepare([opened]), detector.prepare([path]))
    assert detector.prepare([path]).min() == 0 and detector.prepare([path]).max() == 255


def test_few_shapes_are_compiled(run):
    workdir, _, folder = run
    detector = ood_jax.load(str(workdir))
    images = images_of(folder, "near")
    before = detector._step.func._cache_size()
    for count in (3, 5, 6, 7, 8):
        detector.score(images[:count])
    assert detector._step.func._cache_size() - before <= 2  # batches of 4 and 8


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (np.zeros((2, 16, 16, 5), np.uint8), r"\[16, 16, 5\] is not uint8"),
        (np.full((1, 16, 16, 3), 2.0), r"floats from 2 to 2: give pixels in \[0, 1\]"),
        (np.full((1, 16, 16, 3), np.nan), "floats from nan"),
        ([{"not": "an image"}], "is a dict"),
        (np.zeros((16, 16, 3), np.uint8), r"\[16, 16, 3\] is one image: give image\[None\]"),
        (np.zeros((2, 0, 0, 3), np.uint8), "has no pixels"),
        (Image.new("RGB", (4, 4)), r"a Image is not several images: give \[image\]"),
        ("photo.png", "a str is not several images"),
        (np.zeros((2, 16, 16, 3), np.int64), "int64"),
    ],
)
def test_images_that_are_none(run, images, message):
    with pytest.raises(ValueError, match=message):
        ood_jax.load(str(run[0])).score(images)


def test_loading_says_what_is_missing(run, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        ood_jax.load(str(tmp_path))
    with pytest.raises(ValueError, match="did you mean knn"):
        ood_jax.load(str(run[0]), scorer="knm")
    with pytest.raises(ValueError, match="needs a second classifier"):
        ood_jax.load(str(run[0]), scorer="l1_discrepancy")


def test_a_run_moved_away_from_its_data(run, tmp_path):
    workdir, _, folder = run
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    for path in folder.glob("train.npz"):
        path.rename(path.with_suffix(".gone"))
    try:
        detector = ood_jax.load(str(moved))
    finally:
        (folder / "train.gone").rename(folder / "train.npz")
    near = images_of(folder, "near")
    np.testing.assert_allclose(detector.score(near), ood_jax.load(str(workdir)).score(near))


def photographs(folder: Path, images) -> None:
    (folder / "deep").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / ("deep" if i % 2 else "") / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")


def test_predict_a_folder(run, tmp_path, capsys):
    workdir, _, folder = run
    images = images_of(folder, "near")
    photographs(tmp_path / "mine", images)
    out = tmp_path / "out" / "predictions.csv"
    argv = [f"--workdir={workdir}", f"--images={tmp_path / 'mine'}", f"--out={out}"]
    assert predict.main(argv) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows[-1:]] == ["broken.png"]
    assert rows[-1]["verdict"] == "unreadable" and rows[-1]["score"] == ""
    detector = ood_jax.load(str(workdir))
    by_path = {row["path"]: row for row in rows[:-1]}
    assert len(by_path) == len(images)
    verdicts = detector.verdicts(images)
    for i, expected in enumerate(verdicts.scores):
        row = by_path[f"{'deep/' if i % 2 else ''}{i:02}.png"]
        assert float(row["score"]) == pytest.approx(expected, rel=1e-4)
        assert float(row["ood_rank"]) == pytest.approx(verdicts.ood_rank[i], abs=0.01)
        assert row["verdict"] == ("ood" if verdicts.ood[i] else "in")
        cosines = [float(row[f"cosine_{n}"]) for n in (1, 2, 3)]
        assert cosines == sorted(cosines, reverse=True)
        assert 0 <= int(row["nearest_1"]) < 22  # of 24 train images two set the threshold
    said = capsys.readouterr()
    assert f"{len(images)} images" in said.out
    assert "cannot be read: 1" in said.err and "broken.png" in said.err


def test_predict_finds_a_train_image_itself(run, tmp_path):
    workdir, _, folder = run
    Image.fromarray(images_of(folder, "train")[7]).save(tmp_path / "seven.png")
    out = tmp_path / "p.csv"
    argv = [f"--workdir={workdir}", f"--images={tmp_path / 'seven.png'}", f"--out={out}"]
    assert predict.main([*argv, "--neighbours=1"]) == 0
    with open(out, newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["nearest_1"], row["cosine_1"]) == ("7", "1.0000")


def test_predict_without_neighbours(run, tmp_path):
    out = tmp_path / "p.csv"
    argv = [f"--workdir={run[0]}", "--images=noise:uniform[:2]", f"--out={out}", "--neighbours=0"]
    assert predict.main(argv) == 0
    with open(out, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "score", "ood_rank", "verdict"]
    assert [len(row) for row in rows] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --images=PATH"),
        (["--images=nothing/here"], "no folder, no image"),
        (["--images=noise:uniform[:2]", "--neighbours=-1"], "--neighbours=-1"),
        (["--images=noise:uniform[:2]", "--scorer=nonsense"], "no scorer 'nonsense'"),
        (["--images=noise:uniform[:2]", "--scorer=all"], "name one"),
        (["--images=noise:uniform[:2]", "--out="], "--out=FILE.csv"),
        (["--images=noise:uniform[:2]", "--step=9"], "no checkpoint of step 9"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message, capsys):
    assert predict.main([f"--workdir={run[0]}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


RELOAD = """
import json, sys
import numpy as np
import jax
from jax import export
exported = export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
out = [[part.tolist() for part in exported.call(images[:n])] for n in (1, 7)]
assert "ood_jax" not in sys.modules
print(json.dumps(out))
"""


@pytest.mark.parametrize(
    "scorer", ["exp_cosine", pytest.param("norm_mean", marks=pytest.mark.slow)]
)
def test_an_exported_detector_runs_without_our_code(run, tmp_path, scorer):
    workdir, _, folder = run
    detector = ood_jax.load(str(workdir), scorer=scorer)
    path = tmp_path / "detector.stablehlo"
    assert export(detector, path) == path.stat().st_size
    images = images_of(folder, "near")
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-I", "-c", RELOAD, str(path), str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts = detector.verdicts(images)
    for count, (scores, ood) in zip((1, 7), json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(scores, verdicts.scores[:count], rtol=1e-4, atol=1e-5)
        assert ood == verdicts.ood[:count].tolist()


def test_a_score_in_numpy_is_not_exported(run, tmp_path):
    detector = ood_jax.load(str(run[0]))
    for traced in (None, lambda state, x: np.asarray(x.features)[:, 0]):
        detector.scorer = detector.scorer._replace(score=traced)
        with pytest.raises(ValueError, match=r"exp_cosine cannot be exported: .* jax\.numpy"):
            export(detector, tmp_path / "x.stablehlo")
