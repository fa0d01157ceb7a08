"""TFDS sets: a small one is built without TensorFlow, then read; what is missing is said."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from ood_jax.data.pipeline import decoded, train_batches
from ood_jax.data.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TFDS imports
N = {"train": 12, "test": 5}


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the prepared set `tiny`: image k is (k, 0, 255 - k), its label k % 3."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 6, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {split: self._generate_examples(count) for split, count in N.items()}

        def _generate_examples(self, count):
            for k in range(count):
                yield k, {"image": _png(k), "label": k % 3}

    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return folder


def test_reads_images_and_labels(prepared):
    source = open_source("tfds:tiny:train", root=str(prepared))
    assert len(source) == 12 and source.classes == ("cat", "dog", "owl")
    values = [int(source.image(i)[0, 0, 0]) for i in range(12)]
    assert sorted(values) == list(range(12))
    assert source.labels.tolist() == [v % 3 for v in values]
    assert source.labels.dtype == np.int32
    assert len(open_source("tfds:tiny:test[classes=cat]", root=str(prepared))) == 2
    assert "tensorflow" not in sys.modules


def test_default_folder(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(open_source("tfds:tiny:test")) == 5


def test_feeds_batches_from_memory_and_record_by_record(prepared):
    source = open_source("tfds:tiny:train", root=str(prepared))
    assert decoded(source, 4).images.shape == (12, 4, 4, 3)
    for memory in (10**9, 0):
        source = open_source("tfds:tiny:train", root=str(prepared))
        batch = next(train_batches(source, batch=12, size=6, seed=0, memory=memory))
        assert (batch["image"][:, 0, 0, 0] % 3).tolist() == batch["label"].tolist()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tfds:tiny:valid", "no split 'valid'? It has test, train; write tfds:tiny:test"),
        ("tfds:tiny", "which split? It has test, train"),
        ("tfds:cifar10:test", "tfds build cifar10 --file_format=array_record --data_dir="),
        ("tfds:imagenet_resized/32x32:train", "tfds build imagenet_resized/32x32"),
        ("tfds:no such set:train", "write tfds:NAME[/config][:split]"),
        ("tfds:../tiny:train", "write tfds:NAME[/config][:split]"),
    ],
)
def test_missing_sets(prepared, spec, says):
    with pytest.raises(ValueError) as error:
        open_source(spec, root=str(prepared))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_set_in_a_format_that_needs_tensorflow(prepared, tmp_path):
    target = tmp_path / "tiny" / "1.0.0"
    target.mkdir(parents=True)
    for file in (prepared / "tiny" / "1.0.0").glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    info = json.loads((target / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (target / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"stored as tfrecord.*--overwrite"):
        open_source("tfds:tiny:test", root=str(tmp_path))
