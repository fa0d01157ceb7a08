"""Files of outlier features, near (mined) or far (generated), with where they came from."""

import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax import npz
from ood_jax.atomic import replaced
from ood_jax.scorers.cosine import check_features
from ood_jax.untrusted import MISSHAPEN, parse_json

SCHEMA = 1  # of the files
KINDS = ("near", "far")
PROVENANCE = ("seed", "settings", "checkpoint")
TAKEN = ("schema", "kind")  # of the meta, which provenance must leave alone
MAKERS = {"near": "the stage that mines", "far": "the stage that generates"}


class Outliers(NamedTuple):
    """features: float32 [M, D], finite. kind: near | far. provenance: JSON values, `write`'s.

    arrays: what else is known of each, {name: [M, ...]}.
    """

    features: np.ndarray
    kind: str
    provenance: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write(path: epath.PathLike, outliers: Outliers) -> None:
    """Writes a file of outliers, whole or not at all.

    provenance: seed, settings (of whatever made them) and checkpoint (digest of the arrays of the
    network whose features they were made from; cache.digest), and whatever else is JSON.

    Raises:
      ValueError: another kind, provenance missing, features that are not finite [M, D], arrays of
        another length; the place cannot be written.
    """
    _check_kind(outliers.kind)
    missing = [name for name in PROVENANCE if name not in outliers.provenance]
    wrong = [name for name in TAKEN if name in outliers.provenance]
    if missing or wrong:
        raise ValueError(f"provenance of outliers lacks {missing} and may not have {wrong}")
    features = check_features(outliers.features, "outlier")
    _check_arrays(features, outliers.arrays)
    if {"features", "meta"} & set(outliers.arrays):
        raise ValueError("arrays of outliers cannot be called features or meta: rename them")
    meta = {"schema": SCHEMA, "kind": outliers.kind, **outliers.provenance}
    text = np.array(json.dumps(meta, allow_nan=False))
    held: dict[str, Any] = {"meta": text, "features": features, **outliers.arrays}
    with replaced(path) as fresh, open(fresh, "wb") as file:
        np.savez(file, **held)


def read(
    path: epath.PathLike,
    *,
    kind: str | None = None,
    width: int | None = None,
    key: str = "outliers",
) -> Outliers:
    """The outliers at `path`, which anyone may have made.

    kind, width: what they must be; None = anything. key: of the config that names the file, for
    errors.

    Raises:
      ValueError: there is no file, it is broken or none of outliers, or of another kind or width.
    """
    if kind is not None:
        _check_kind(kind)
    try:
        with npz.opened(path) as file:
            meta = parse_json(str(file["meta"]))
            if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
                raise ValueError(f"it is no file of outliers of schema {SCHEMA}")
            arrays = {name: file[name] for name in file.names if name != "meta"}
        found = _parsed(meta, arrays)
    except FileNotFoundError:
        maker = f"; run {MAKERS[kind]} first, or name another file" if kind else ": name another"
        raise ValueError(f"{key} = {path}: there is no such file{maker}") from None
    except (OSError, *MISSHAPEN) as error:
        raise ValueError(f"{key} = {path} cannot be read ({error}): make it anew") from None
    if kind not in (None, found.kind):
        raise ValueError(f"{key} = {path} has {found.kind} outliers: give a file of {kind} ones")
    if width not in (None, found.features.shape[1]):
        raise ValueError(
            f"{key} = {path} has outliers of width {found.features.shape[1]}, where {width} is"
            " needed: make them from the same teacher's embeddings"
        )
    return found


def _parsed(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Outliers:
    kind, features = meta["kind"], arrays.pop("features")
    _check_kind(kind)
    if features.dtype != np.float32:
        raise ValueError(f"its features are {features.dtype}, not float32")
    features = check_features(features, "outlier")
    _check_arrays(features, arrays)
    provenance = {name: value for name, value in meta.items() if name not in TAKEN}
    return Outliers(features, kind, provenance, arrays)


def _check_arrays(features: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        if np.shape(values)[:1] != (len(features),):
            raise ValueError(f"{name} {list(np.shape(values))} for {len(features)} outliers")
        if np.asarray(values).dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which no reader takes: give numbers")


def _check_kind(kind: Any) -> None:
    if kind not in KINDS:
        raise ValueError(f"outliers of kind {kind!r}: use {' or '.join(KINDS)}")
