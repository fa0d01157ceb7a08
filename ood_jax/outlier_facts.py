"""What tells, before a training run is spent on them, whether outliers are far from a set."""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from ood_jax.neighbours import kth_distances
from ood_jax.scorers.cosine import check_features
from ood_jax.scorers.ssd import clustered
from ood_jax.types import Array

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST_VARIANCE = 1e-6  # of a dimension, against the mean one of both sets
ROWS = 5000  # of each set that are clustered, and whose distances are measured
MEMORY = 256 * 1024**2  # bytes of a block of cosines
MAPPED = 400  # rows of each set on the map
# Outliers whose median distance exceeds this many times the distance that 95 % of train embeddings
# keep to one another leave so wide a gap that any boundary in it tells them apart.
GAP = 3.0


def outlier_facts(inside: Array, outside: Array, *, mesh: Mesh | None = None) -> dict[str, Any]:
    """All checks of this file, JSON values; of outliers of another width only their number.

    Args:
      inside: features of the train set, [N, D]. outside: outliers, [M, E].

    Raises:
      ValueError: features that are not finite, fewer than two, or all the same.
    """
    inside, outside = check_features(inside, "train"), check_features(outside, "outlier")
    found: dict[str, Any] = {"outliers": len(outside), "width": outside.shape[1]}
    if inside.shape[1] == outside.shape[1]:
        found["gaussian_kl"] = gaussian_kl(inside, outside)
        found["separability"] = separability(inside, outside)
        found["distances"] = nearest_distances(inside, outside, mesh=mesh)
        found["map"] = outlier_map(inside, outside)
    return found


def lines(facts: dict[str, Any]) -> list[str]:
    """What `outlier_facts` gave, for a screen."""
    said = [f"{facts['outliers']:,} outliers, {facts['width']:,} wide"]
    if "distances" not in facts:
        return [f"{said[0]}: another width than the train embeddings', so nothing is compared"]
    outliers, train = (facts["distances"][name]["0.5"] for name in ("outliers", "train"))
    said += [
        f"KL of Gaussians, train to outliers: {facts['gaussian_kl']:.4g} nats a dimension",
        f"k-means separability {facts['separability']:.3f} (0.5 = the clusters tell nothing of the"
        " sets, 1 = they are the sets)",
        f"median distance to the nearest train embedding {outliers:.4g}; between train embeddings"
        f" {train:.4g}",
    ]
    found = warning(facts["distances"])
    return [*said, f"warning: {found}"] if found else said


def warning(distances: dict[str, dict[str, float]]) -> str:
    """What is wrong with outliers at such `nearest_distances`; "" = nothing is."""
    median = distances["outliers"]["0.5"]
    if median <= distances["train"]["0.5"]:
        return (
            "overlap: half of the outliers lie no farther from train embeddings than these do from"
            " one another; training on them as outliers rejects what is in distribution"
        )
    if median > GAP * distances["train"]["0.95"]:
        return (
            f"very far: half of the outliers lie more than {GAP:g} times as far from train"
            " embeddings as 95 % of these do from one another; they teach little of the boundary"
        )
    return ""


def gaussian_kl(inside: Array, outside: Array) -> float:
    """KL(inside || outside) of Gaussians fitted to each dimension, mean over dimensions, nats.

    What Gao et al. show in Fig. 4 is, in the released code, KL of the two mean features, each
    divided by its sum: a number about two vectors, without meaning where a feature is negative. A
    dimension that does not vary counts as varying by LEAST_VARIANCE of the mean one.

    Args:
      inside: [N, D]. outside: [M, D].

    Raises:
      ValueError: as `outlier_facts`, or widths that differ.
    """
    inside, outside = _pair(inside, outside)
    means = [x.mean(0, dtype=np.float64) for x in (inside, outside)]
    spread = [x.var(0, dtype=np.float64) for x in (inside, outside)]
    least = LEAST_VARIANCE * np.mean(spread)
    first, second = (np.maximum(x, least) for x in spread)
    squares = (means[0] - means[1]) ** 2
    return float(np.mean((first + squares) / second - 1 - np.log(first / second)) / 2)


def separability(inside: Array, outside: Array) -> float:
    """How well two k-means clusters are the two sets (Fig. 5): 0.5 = not at all, 1 = wholly.

    The mean of both sets' shares of rows in their own cluster, under the better of the two ways to
    match clusters and sets, so that the sizes of the sets do not count; of ROWS rows of each, even
    ones of larger sets, and scikit-learn's k-means with seed 0.

    Args:
      inside: [N, D]. outside: [M, D].

    Raises:
      ValueError: as `gaussian_kl`.
    """
    inside, outside = (_some(x) for x in _pair(inside, outside))
    rows = np.concatenate([inside, outside])
    first = clustered(rows, 2)[0]
    share = np.mean(first < len(inside)) * len(first) / len(inside)
    other = np.mean(first >= len(inside)) * len(first) / len(outside)
    return float((1 + abs(share - other)) / 2)


def nearest_distances(
    inside: Array, outside: Array, *, mesh: Mesh | None = None
) -> dict[str, dict[str, float]]:
    """Quantiles of the distance to the nearest train row, both of norm 1: of outliers, and of train
    rows to the nearest other.

    Args:
      inside: [N, D], all of which are the bank. outside: [M, D]. Of each ROWS are measured.

    Returns:
      {"outliers": {"0.05": d, ...}, "train": ...}, in [0, 2].

    Raises:
      ValueError: as `gaussian_kl`.
    """
    inside, outside = _pair(inside, outside)
    found = {}
    for name, rows, k in (("outliers", outside, 1), ("train", inside, 2)):
        squares = kth_distances(inside, _some(rows), k=k, memory=MEMORY, mesh=mesh)
        values = np.quantile(np.sqrt(squares), QUANTILES)
        found[name] = {str(q): float(v) for q, v in zip(QUANTILES, values, strict=True)}
    return found


def outlier_map(inside: Array, outside: Array) -> dict[str, list]:
    """Both sets in two dimensions: their first principal axes, each set weighed the same.

    The origin is midway between the two means; an axis points to where its largest component is
    positive, so that the same rows give the same map. One-dimensional rows lie on a line.

    Args:
      inside: [N, D]. outside: [M, D]. MAPPED even rows of larger sets are fitted and shown.

    Returns:
      {"inside": [[x, y], ...], "outliers": [[x, y], ...], "explained": [share, share]}, all of four
      digits; explained: of the weighed variance, by each axis.

    Raises:
      ValueError: as `gaussian_kl`.
    """
    sets = [_some(x, MAPPED).astype(np.float64) for x in _pair(inside, outside)]
    centre = np.mean([rows.mean(0) for rows in sets], axis=0)
    weighed = np.concatenate([(rows - centre) / np.sqrt(2 * len(rows)) for rows in sets])
    _, lengths, axes = np.linalg.svd(weighed, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    axes = (axes * np.sign(largest))[:2]
    shares = (lengths**2 / np.sum(lengths**2))[:2]
    short = 2 - len(axes)
    points = [np.pad((rows - centre) @ axes.T, ((0, 0), (0, short))) for rows in sets]
    return {
        "inside": _rounded(points[0]),
        "outliers": _rounded(points[1]),
        "explained": _rounded(np.pad(shares, (0, short))),
    }


def _rounded(values: np.ndarray) -> list:
    """Nested lists, four digits that count, no negative zero."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.4g}") + 0.0 for value in values]


def _some(rows: np.ndarray, most: int = ROWS) -> np.ndarray:
    return rows[:: -(-len(rows) // most)]


def _pair(inside: Array, outside: Array) -> tuple[np.ndarray, np.ndarray]:
    inside = check_features(inside, "train")
    outside = check_features(outside, "outlier", width=inside.shape[1])
    for name, rows in (("train", inside), ("outlier", outside)):
        if len(rows) < 2 or not (rows != rows[0]).any():
            raise ValueError(
                f"{len(rows)} {name} features that are all the same (zero variance): nothing to"
                " compare; have they collapsed?"
            )
    return inside, outside
