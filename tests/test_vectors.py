"""What data.embeddings, near and far name: images that cannot be read, other networks, any file."""

import io

import jax
import numpy as np
import oaml_run
import pytest
from hostile_files import archive, bomb, header
from PIL import Image

from ood_jax import kept, loop, outliers, stages
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.config import staged
from ood_jax.features import extract
from ood_jax.train import init_state, prepare
from ood_jax.vectors import loaded

pytestmark = pytest.mark.usefixtures("compiled_once")

BROKEN = (3, 10, 11)  # of 24 images


def fast(c, width):
    """A trunk that compiles fast."""
    c.model.name, c.model.depth, c.model.width = "vit", 1, width
    c.model.heads, c.model.patch, c.model.drop_path = 1, 8, 0.0
    return c


def folder_of_images(folder):
    """PNGs of three classes, eight each, in the order of their names; BROKEN are cut off."""
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / f"images/{'abc'[i // 8]}/{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 20, 3)) // 2 + 40 * (i // 8)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if i in BROKEN:
            path.write_bytes(path.read_bytes()[:60])
    return f"folder:{folder}/images"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def recipe(data, train):
    """Teacher, mine and student; the teacher sees 24 px, normalised in its own way."""
    teacher, student = fast(oaml_run.teacher(data), 8), fast(oaml_run.student(data), 6)
    mine = oaml_run.mine(data)
    teacher.data.size = teacher.model.image_size = 24
    teacher.data.mean, teacher.data.std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)
    mine.method.neighbour = 3
    student.data.far, student.method.far_weight = "", 0.0
    for c in (teacher, mine, student):
        c.data.train = train
        c.train.devices = 1
    return staged("r", teacher=teacher, mine=mine, student=student)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """(runs, workdir of all but the student's) over images of which some are broken."""
    folder = tmp_path_factory.mktemp("whole")
    runs = stages.prepared(recipe(data, folder_of_images(data)))
    stages.train({name: runs[name] for name in ("teacher", "mine")}, str(folder))
    return runs, folder


def vectors_of(whole, stage):
    runs, folder = whole
    run = runs[stage]
    return run._replace(vectors=loaded(run.vectors, run.config, run.train, str(folder)))


def test_nobody_reads_the_embedding_of_a_broken_image(whole):
    """In its place stands the image that the student sees, with its own embedding."""
    student = vectors_of(whole, "student")
    known = student.vectors.known
    assert np.flatnonzero(~known).tolist() == list(BROKEN)
    assert not student.vectors.embeddings[~known].any()
    batches = loop._batches(student, 0)
    seen, skipped = [], 0
    for _ in range(3):  # an epoch
        batch = next(batches)
        seen += batch["index"].tolist()
        skipped += batch["skipped"]
        assert np.abs(batch["embedding"]).max(1).min() > 0
        for name, field in (("embedding", "embeddings"), ("teacher_logits", "teacher_logits")):
            rows = getattr(student.vectors, field)[batch["index"]]
            np.testing.assert_array_equal(batch[name], rows)
    assert skipped == len(BROKEN) and set(seen) == set(np.flatnonzero(known).tolist())


def test_no_outlier_is_mined_of_a_broken_image(whole):
    found = outliers.read(whole[1] / "mine/outliers.npz", kind="near")
    assert not set(found.arrays["source"].tolist()) & set(BROKEN)
    labels = whole[0]["mine"].train.labels[found.arrays["source"]]
    np.testing.assert_array_equal(found.arrays["labels"], labels)
    assert np.linalg.norm(found.features, axis=1).min() > 0


def test_images_and_vectors_alone_come_in_one_order(whole):
    """A stage without images skips those that one with images skips, for the same others."""
    student = vectors_of(whole, "student")
    blind = student._replace(method=student.method._replace(images=False))
    pairs = zip(loop._batches(student, 0), loop._batches(blind, 0), strict=False)
    for _, (one, other) in zip(range(4), pairs, strict=False):
        assert "image" not in other and one["skipped"] == other["skipped"]
        for name in one.keys() - {"image", "skipped"}:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_teacher_sees_images_its_own_way(whole):
    runs, folder = whole
    restored = restore_for_scoring(str(folder / "teacher"))
    assert restored.config.data.size == 24 and runs["student"].config.data.size == 16
    network = kept.of_checkpoint(restored, folder)
    config = network.config
    assert tuple(config.data.mean) == (0.1, 0.2, 0.3)
    found = extract(
        network.net,
        restored.params,
        restored.stats,
        runs["student"].train,
        config=config,
        mesh=network.mesh,
        fields=("logits",),
    )
    vectors = vectors_of(whole, "student").vectors
    np.testing.assert_array_equal(vectors.embeddings[found.rows], found.features.features)
    np.testing.assert_array_equal(vectors.teacher_logits[found.rows], found.features.logits)


def test_a_workdir_names_its_network(whole, data, tmp_path):
    """As its stage does; another run that reads it keeps the embeddings in its own folder."""
    student = whole[0]["student"].config.copy_and_resolve_references()
    with student.unlocked():
        student.data.embeddings = str(whole[1] / "teacher")
        student.data.near = str(whole[1] / "mine")
        student.train.steps = 0
    run = prepare(student)
    assert isinstance(run.vectors.embeddings, jax.ShapeDtypeStruct)
    read = loaded(run.vectors, run.config, run.train, str(tmp_path))
    expected = vectors_of(whole, "student").vectors
    np.testing.assert_array_equal(read.embeddings, expected.embeddings)
    np.testing.assert_array_equal(read.near, expected.near)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["embeddings@teacher.npz"]


def test_a_network_without_a_classifier_teaches_features_alone(data, tmp_path):
    teacher = fast(oaml_run.teacher(data), 8)
    teacher.method = oaml_run.base("simclr").method
    teacher.head.name, teacher.head.outputs, teacher.head.layers = "projection", 0, 1
    run = prepare(teacher)
    checkpoints = Checkpoints(str(tmp_path / "t"), keep_last=1)
    checkpoints.save(init_state(run), run.config)
    checkpoints.close()
    student = fast(oaml_run.student(data), 6)
    student.data.embeddings, student.data.near, student.data.far = str(tmp_path / "t"), "", ""
    student.method.near_weight = student.method.far_weight = 0.0
    with pytest.raises(ValueError, match=r"has no logits, which oaml learns from: give a teacher"):
        prepare(student)
    student.method.logit_weight = 0.0
    run = prepare(student)
    assert run.vectors.teacher_logits is None
    read = loaded(run.vectors, run.config, run.train, str(tmp_path / "s"))
    assert read.embeddings.shape == (24, 8) and read.teacher_logits is None


def config_of(data, path):
    c = oaml_run.mine(data)
    c.data.embeddings = str(path)
    return c


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


FEATURES = np.random.default_rng(0).normal(size=(24, 5))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_other_numbers_are_read_as_float32(data, tmp_path, dtype):
    features = (10 * FEATURES).astype(dtype)
    run = prepare(config_of(data, written(tmp_path / "e.npz", features=features)))
    assert run.vectors.embeddings.dtype == np.float32 and run.vectors.known.all()
    np.testing.assert_array_equal(run.vectors.embeddings, features.astype(np.float32))


def changed(**arrays):
    out = io.BytesIO()
    np.savez(out, **({"features": FEATURES} | arrays))
    return out.getvalue()


NAN = np.where(np.arange(24)[:, None] == 7, np.nan, FEATURES)
HOSTILE = {
    "nothing": (b"", "cannot be read"),
    "a text": (b"features", "cannot be read"),
    "cut off": (changed()[:-40], "cannot be read"),
    "half": (changed()[: len(changed()) // 2], "cannot be read"),
    "objects": (archive(features=header((24, 5), "|O")), r"cannot be read \(.*Python objects"),
    "claims": (archive(features=header((24, 10**12), "<f4")), r"cannot be read \(the header says"),
    "a bomb": (bomb(2 << 30, "features"), r"cannot be read \(features unfolds to"),
    "no features": (archive(meta=header((0,), "<f4")), "holds no `features`"),
    "letters": (changed(features=np.array([["a"] * 5] * 24)), "features: features are <U1: give"),
    "complex": (changed(features=FEATURES * 1j), "features: features are complex128: give numbers"),
    "fields": (changed(features=np.zeros((24, 5), "f4,i4")), "features: features are .*: give num"),
    "a vector": (changed(features=FEATURES[:, 0]), r"features: .* of shape \[24\]"),
    "no width": (changed(features=FEATURES[:, :0]), r"features: .* of shape \[24, 0\]"),
    "not finite": (changed(features=NAN), "features: .* not finite, the first in row 7"),
    "too large": (changed(features=1e300 * FEATURES), "features: .* not finite"),
    "logits": (changed(logits=NAN), "logits: .* not finite, the first in row 7"),
    "too few": (changed(features=FEATURES[:9]), r"has 9 rows of features, data.train = .* 24"),
    "few logits": (changed(logits=FEATURES[:9]), r"has 9 rows of logits, .* 24 images"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_any_file_is_answered_in_one_line(case, data, tmp_path):
    held, message = HOSTILE[case]
    path = tmp_path / "e.npz"
    path.write_bytes(held)
    with pytest.raises(ValueError, match=rf"data.embeddings = {path}.* ?{message}") as error:
        prepare(config_of(data, path))
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_named(data, tmp_path):
    with pytest.raises(ValueError, match=r"data.embeddings = .*none"):
        prepare(config_of(data, tmp_path / "none"))
