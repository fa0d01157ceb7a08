"""What a stage that makes outliers left in its folder, which anyone may have edited since."""

import math
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax.data.decode import read_image
from ood_jax.outlier_facts import MAPPED, QUANTILES
from ood_jax.outliers import KINDS
from ood_jax.untrusted import read_bytes, read_json

SCHEMA = 1  # of FILE
FILE, PICTURES = "outliers.json", "pictures.png"
PICTURE_BYTES, PICTURE_PIXELS = 4 * 1024**2, 1024**2
SIDES = ("outliers", "train")
LARGEST = 1e20  # of a coordinate: features whose squares float32 can hold are smaller


class Map(NamedTuple):
    """inside: float64 [N, 2]. outliers: float64 [M, 2]. explained: share of variance by axis."""

    inside: np.ndarray
    outliers: np.ndarray
    explained: tuple[float, float]


class Outliers(NamedTuple):
    """See outlier_facts.py; None = outliers of another width, which nothing was compared with.

    kind: near | far. distances: outliers | train -> quantile -> distance.
    """

    kind: str
    number: int
    width: int
    provenance: dict[str, Any]
    gaussian_kl: float | None
    separability: float | None
    distances: dict[str, dict[str, float]] | None
    map: Map | None


def read(path: epath.PathLike) -> Outliers:
    """Reads FILE.

    Raises:
      OSError, any of MISSHAPEN: it is not what this version reads.
    """
    found = read_json(path)
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r}; this version reads {SCHEMA}")
    kind, provenance = found["kind"], found["provenance"]
    if kind not in KINDS or not isinstance(provenance, dict):
        raise ValueError(f"its kind or provenance is none; kinds are {', '.join(KINDS)}")
    numbers = {
        name: _number(found[name], name) if name in found else None
        for name in ("gaussian_kl", "separability")
    }
    distances = {
        side: {str(q): _number(found["distances"][side][str(q)], side) for q in QUANTILES}
        for side in (SIDES if "distances" in found else ())
    }
    return Outliers(
        kind,
        int(_number(found["outliers"], "outliers")),
        int(_number(found["width"], "width")),
        provenance,
        **numbers,
        distances=distances or None,
        map=_map(found["map"]) if "map" in found else None,
    )


def _map(found: dict[str, Any]) -> Map:
    first, second = (_number(share, "explained") for share in found["explained"])
    return Map(_points(found["inside"]), _points(found["outliers"]), (first, second))


def _points(rows: list) -> np.ndarray:
    if not 0 < len(rows) <= MAPPED:
        raise ValueError(f"a map of {len(rows):,} points; 1 to {MAPPED} are shown")
    points = np.asarray(rows, np.float64)
    if points.shape != (len(rows), 2) or not (np.abs(points) < LARGEST).all():
        raise ValueError("its map has points that are no two numbers")
    return points


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is no number")
    return float(value)


def pictures(path: epath.PathLike) -> np.ndarray:
    """PICTURES -> uint8 [H, W, 3].

    Raises:
      OSError, ValueError: no PNG, or one of more than PICTURE_BYTES or PICTURE_PIXELS.
    """
    data = read_bytes(path, PICTURE_BYTES)
    return read_image(data, PICTURES, formats=("PNG",), pixels=PICTURE_PIXELS)
