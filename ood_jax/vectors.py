"""What `data.embeddings`, `data.near` and `data.far` name: a teacher's embeddings, and outliers.

Each is a file, a workdir, or stage:NAME. What an earlier stage has yet to make is known by its
shape, so that a stage is checked before the first one costs anything.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ood_jax import kept, models, npz, outliers
from ood_jax.atomic import replaced
from ood_jax.cache import digest
from ood_jax.checkpoint import Restored, restore_for_scoring
from ood_jax.data.source import Source
from ood_jax.models.heads import CLASSIFIERS
from ood_jax.place import kind, place
from ood_jax.scorers.cosine import check_features
from ood_jax.start import STAGE
from ood_jax.types import Net, Vectors
from ood_jax.untrusted import MISSHAPEN, read_json

KEYS = ("embeddings", "near", "far")
OUTLIERS = "outliers.npz"


def references(config: ConfigDict) -> dict[str, str]:
    """Those of data.embeddings, near and far that `config` sets."""
    return {key: config.data[key] for key in KEYS if config.data[key]}


def check_named(config: ConfigDict, reads: tuple[str, ...]) -> None:
    """Refuses a config that lacks what its method reads, or names what it does not.

    Raises:
      ValueError: naming the key and the method.
    """
    method = config.method.name
    wanted = {"embeddings" if field == "teacher_logits" else field for field in reads}
    for key in KEYS:
        if key in wanted and not config.data[key]:
            raise ValueError(
                f"data.{key} = '': {method} reads it; name {STAGE}NAME of an earlier stage, a"
                " workdir, or an .npz"
            )
        if config.data[key] and key not in wanted:
            raise ValueError(
                f"data.{key} = {config.data[key]!r}, which {method} with these settings does not"
                " read: set it to ''"
            )


def described(
    config: ConfigDict, reads: tuple[str, ...], train: Source, earlier: Mapping[str, Any]
) -> Vectors:
    """The Vectors of a run: arrays of what lies in files, shapes of what is not made yet.

    reads: the fields that its method needs. earlier: stage -> train.Run of it.

    Raises:
      ValueError: a key that is missing or too many, no such stage or file, one of another kind,
        width or number of images; a teacher without logits where they are read.
    """
    check_named(config, reads)
    found = Vectors()
    if name := config.data.embeddings:
        found = _embeddings(name, train, earlier)
        if "teacher_logits" not in reads:
            found = found._replace(teacher_logits=None)
        elif found.teacher_logits is None:
            raise ValueError(
                f"data.embeddings = {name!r} has no logits, which {config.method.name} learns from:"
                " give a teacher with a classifier, or set the weight of that loss to 0"
            )
    width = None if found.embeddings is None else found.embeddings.shape[1]
    for key in ("near", "far"):
        if name := config.data[key]:
            array, origin = _outliers(key, name, earlier, width if key == "near" else None)
            found = _with_outliers(found, key, array, origin)
    return found


def loaded(vectors: Vectors, config: ConfigDict, train: Source, workdir: str) -> Vectors:
    """`vectors` with arrays for shapes, now that the earlier stages of the run have ended.

    A teacher's embeddings are kept in WORKDIR/features.

    Raises:
      ValueError: what cannot be read, or is not what its shape promised.
    """
    if isinstance(vectors.embeddings, jax.ShapeDtypeStruct):
        name = config.data.embeddings
        made = _extracted(vectors, config, train, workdir)
        if made.embeddings.shape != vectors.embeddings.shape:
            raise ValueError(f"data.embeddings = {name!r} has become another network: run it anew")
        vectors = made
    for key in ("near", "far"):
        shape = getattr(vectors, key)
        if isinstance(shape, jax.ShapeDtypeStruct):
            name = config.data[key]
            path = _folder(name, workdir) / OUTLIERS
            array, origin = _read_outliers(key, name, path, shape.shape[1])
            vectors = _with_outliers(vectors, key, array, origin)
    return vectors


def check_unchanged(vectors: Vectors, workdir: str) -> None:
    """Refuses to go on with other vectors than the stage in `workdir` began with.

    Raises:
      ValueError: naming the key; the place cannot be written.
    """
    if not vectors.origins:
        return
    path = place(workdir) / "vectors.json"
    now = {key: origin["arrays"] for key, origin in vectors.origins.items()}
    before = read_json(path) if kind(path) else now
    if before != now:
        known = before if isinstance(before, dict) else {}
        keys = [f"data.{key}" for key in now if known.get(key) != now[key]]
        raise ValueError(
            f"{workdir} began with other vectors: {' and '.join(keys)} changed since; restore what"
            " it read, or delete that folder and what later stages made of it"
        )
    if jax.process_index() == 0:
        with replaced(path) as fresh:
            fresh.write_text(json.dumps(now, indent=1) + "\n")


def _embeddings(name: str, train: Source, earlier: Mapping[str, Any]) -> Vectors:
    held = "stage" if name.startswith(STAGE) else kind(place(name))
    if not held:
        raise ValueError(
            f"data.embeddings = {name!r}: there is no such workdir or file; run the teacher first,"
            " or name another"
        )
    if held == "file":
        return _file(place(name), train)
    if name.startswith(STAGE):
        run = _earlier("embeddings", name, earlier)
        if run.method.maker is not None:
            raise ValueError(
                f"data.embeddings = {name!r}: that stage makes outliers; name one that trains a"
                " network of images"
            )
        config, net = run.config, run.net
    else:
        network = _teacher(name)[1]
        config, net = network.config, network.net
    return _shapes(config, net, len(train))


def _shapes(config: ConfigDict, net: Net, images: int) -> Vectors:
    size = config.model.image_size

    def outputs() -> Any:
        params, stats = models.init_params(net, config)
        return net.apply(params, stats, jnp.zeros((1, size, size, 3)), train=False)[0]

    made = jax.eval_shape(outputs)

    def of_all(one: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((images, one.shape[1]), jnp.float32)

    logits = of_all(made.logits) if _classifies(config) else None
    return Vectors(of_all(made.features), logits)


def _classifies(config: ConfigDict) -> bool:
    """Are the network's logits of classes?"""
    return config.head.name in CLASSIFIERS and config.head.outputs > 0


def _file(path: epath.Path, train: Source) -> Vectors:
    key = f"data.embeddings = {path}"
    try:
        with npz.opened(path) as file:
            arrays = {name: file[name] for name in ("features", "logits") if name in file.names}
    except (OSError, *MISSHAPEN) as error:
        raise ValueError(
            f"{key} cannot be read ({error}): give an .npz with `features`, or a workdir"
        ) from None
    if "features" not in arrays:
        raise ValueError(f"{key} holds no `features`: write them as float32 [N, D]")
    for name, array in arrays.items():
        arrays[name] = check_features(array, f"{key}, {name}:")
        if len(array) != len(train):
            raise ValueError(
                f"{key} has {len(array)} rows of {name}, data.train = {train.spec!r}"
                f" {len(train)} images: give one row for each, in their order"
            )
    origin = {"from": str(path), "arrays": digest(arrays)}
    known = np.ones(len(train), bool)
    return Vectors(arrays["features"], arrays.get("logits"), known, origins={"embeddings": origin})


def _extracted(vectors: Vectors, config: ConfigDict, train: Source, workdir: str) -> Vectors:
    name = config.data.embeddings
    restored, network = _teacher(str(_folder(name, workdir)), config)
    network = network._replace(
        fields=("logits",) if _classifies(network.config) else (),
        suffix=f"@{_folder(name, workdir).name}",
        folder=kept.folder_in(workdir),
    )
    extracted = kept.extract(network, {"embeddings": train})["embeddings"]

    def of_all(rows: Any) -> np.ndarray | None:
        if rows is None or len(rows) == len(train):
            return rows
        out = np.zeros((len(train), rows.shape[1]), rows.dtype)
        out[extracted.rows] = rows
        return out

    known = np.zeros(len(train), bool)
    known[extracted.rows] = True
    found = extracted.features
    origin = {
        "from": name,
        "step": restored.step,
        "arrays": digest((restored.params, restored.stats)),
        "images": train.spec,
    }
    return vectors._replace(
        embeddings=of_all(found.features),
        teacher_logits=None if vectors.teacher_logits is None else of_all(found.logits),
        known=known,
        origins=vectors.origins | {"embeddings": origin},
    )


def _outliers(
    key: str, name: str, earlier: Mapping[str, Any], width: int | None
) -> tuple[Any, dict[str, Any] | None]:
    """(array or shape, where it came from, None = not made yet)."""
    if not name.startswith(STAGE):
        path = place(name)
        path = path / OUTLIERS if kind(path) == "folder" else path
        return _read_outliers(key, name, path, width)
    run = _earlier(key, name, earlier)
    maker = run.method.maker
    if maker is None or maker.kind != key:
        makes = "no outliers" if maker is None else f"{maker.kind} outliers"
        raise ValueError(f"data.{key} = {name!r}: that stage makes {makes}; name one of {key} ones")
    made = maker.width(run.vectors)
    if width not in (None, made):
        raise ValueError(
            f"data.{key} = {name!r} makes outliers of width {made}, where data.embeddings has"
            f" {width}: mine from the same teacher's embeddings"
        )
    return jax.ShapeDtypeStruct((1, made), jnp.float32), None


def _with_outliers(
    vectors: Vectors, key: str, array: Any, origin: dict[str, Any] | None
) -> Vectors:
    found: dict[str, Any] = {key: array, "origins": vectors.origins | {key: origin}}
    return vectors._replace(**found)


def _read_outliers(
    key: str, name: str, path: epath.Path, width: int | None
) -> tuple[np.ndarray, dict[str, Any]]:
    found = outliers.read(path, kind=key, width=width, key=f"data.{key}")
    return found.features, {"from": name, "arrays": digest(found.features)}


def _earlier(key: str, name: str, earlier: Mapping[str, Any]) -> Any:
    stage = name.removeprefix(STAGE)
    if stage not in earlier:
        known = f"those before it are {', '.join(earlier)}" if earlier else "none is before it"
        raise ValueError(f"data.{key} = {name!r}: no such earlier stage; {known}")
    return earlier[stage]


def _teacher(workdir: str, reader: ConfigDict | None = None) -> tuple[Restored, kept.Network]:
    """The network of images in `workdir`; reader: config of the run that it is computed for."""
    try:
        restored = restore_for_scoring(workdir)
        own = restored.config if reader is None else kept.run_as(restored.config, reader)
        return restored, kept.of_checkpoint(restored, workdir, config=own)
    except ValueError as error:
        raise ValueError(f"data.embeddings: {error}") from None


def _folder(name: str, workdir: str) -> epath.Path:
    if name.startswith(STAGE):
        return place(workdir) / name.removeprefix(STAGE)
    return place(name)
