"""TFDS sets that were prepared as array_record, read without TensorFlow and without a network."""

import os
import re
from typing import Any

import numpy as np

from ood_jax.data.decode import read_image
from ood_jax.data.source import Source
from ood_jax.place import place
from ood_jax.untrusted import parse_json

FEATURES = "tensorflow_datasets.core.features."  # where all classes of images and labels are
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of features.json; the last is old
UNREAD = -2  # a label that no record was read for yet


def open_tfds(name: str, spec: str, root: str) -> Source:
    """ "NAME[/config][:split]" from `root` or, without one, from $TFDS_DATA_DIR or
    ~/tensorflow_datasets; the newest version there. The split may be left out where there is one.

    Raises:
      ValueError: not prepared there (the message says how to), stored in another format, no such
        split, or no image in it; tensorflow_datasets is not installed.
    """
    name, _, split = name.partition(":")
    folder = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    builder = _builder(name, spec, folder)
    splits = sorted(builder.info.splits)
    if not split and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        got = f"no split {split!r}" if split else "which split"
        raise ValueError(
            f"{spec!r}: {got}? It has {', '.join(splits)}; write tfds:{name}:{splits[0]}"
        )
    image, label = _keys(builder.info.features, spec)
    return _of_records(spec, builder, split, image, label)


def _builder(name: str, spec: str, data_dir: str) -> Any:
    """The builder of a prepared set. Only files decide: TFDS itself might start a download."""
    folder = place(data_dir)
    if not re.fullmatch(r"\w+(/[\w+-][\w.+-]*)?", name):
        raise ValueError(f"{spec!r}: write tfds:NAME[/config][:split], such as tfds:cifar10:test")
    versions = [
        p for p in ((folder / name).iterdir() if (folder / name).is_dir() else ())
        if re.fullmatch(r"\d+\.\d+\.\d+", p.name) and (p / "dataset_info.json").exists()
    ]  # fmt: skip
    if not versions:
        raise ValueError(
            f"{spec!r}: no prepared set in {folder / name}; in a separate environment with"
            " tensorflow-cpu, tensorflow-datasets and importlib_resources run: tfds build"
            f" {name} --file_format=array_record --data_dir={folder}"
        )
    newest = max(versions, key=lambda p: tuple(map(int, p.name.split("."))))
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(f"{spec!r}: install tensorflow-datasets to read it") from None
    _check_features(newest / "features.json", spec)
    builder = tfds.builder_from_directory(newest)
    stored = builder.info.file_format
    if stored is None or stored.value != "array_record":
        raise ValueError(
            f"{spec!r}: {newest} is stored as {getattr(stored, 'value', stored)}, which needs"
            " TensorFlow; in an environment that has it run: tfds build"
            f" {name} --file_format=array_record --data_dir={folder} --overwrite"
        )
    return builder


def _check_features(path: Any, spec: str) -> None:
    """Refuses a set that names classes outside TFDS: TFDS imports whatever module it names.

    Raises:
      ValueError: that, or a damaged file.
    """
    if not path.exists():
        return  # as sets of early versions have it: nothing to import
    try:
        waiting = [parse_json(path.read_text())]
    except (OSError, ValueError) as error:
        raise ValueError(f"{spec!r}: {path} is damaged ({error}); prepare the set anew") from None
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            waiting += node.values()
            named = [value for key, value in node.items() if key in CLASS_KEYS]
            texts = [name for name in named if isinstance(name, str)]
            if strange := [name for name in texts if not name.startswith(FEATURES)]:
                raise ValueError(
                    f"{spec!r}: {path} names {strange[0]!r}, which is no feature of TFDS and could"
                    " run code; nothing was run. Prepare the set from a source that you trust"
                )


def _keys(features: Any, spec: str) -> tuple[str, str | None]:
    """The names of the image and of the label; None = no label."""
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    images = sorted((k for k, kind in kinds.items() if kind == "Image"), key=lambda k: k != "image")
    labels = sorted(
        (k for k, kind in kinds.items() if kind == "ClassLabel"), key=lambda k: k != "label"
    )
    if not images:
        raise ValueError(f"{spec!r} has no image, only {', '.join(kinds)}; choose an image set")
    return images[0], labels[0] if labels else None


def _of_records(spec: str, builder: Any, split: str, image: str, label: str | None) -> Source:
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    seen = np.full(len(records), UNREAD, np.int32)  # labels come along when images are read

    def record(i: int) -> dict[str, Any]:
        found = records[i]
        if label is not None:
            seen[i] = found[label]
        return found

    def read(i: int) -> np.ndarray:
        return read_image(bytes(record(i)[image]), f"{spec} image {i}")

    def read_labels(rows: np.ndarray) -> np.ndarray:
        for i in rows[seen[rows] == UNREAD]:
            record(int(i))
        return seen[rows]

    return Source(
        spec,
        len(records),
        read,
        classes=tuple(builder.info.features[label].names) if label else (),
        read_labels=read_labels if label else None,
    )
