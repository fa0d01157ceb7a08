"""How often an ensemble takes the images of one class for another: Winkens et al. (2020), Eqs. 3-6.

Float64 NumPy on the host. Probabilities are logarithms (natural) throughout, so that a confusion of
e^-300, or of e^-2000, is a number. Classes are those of the union of all sets, 0..C-1.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p(k | x) of one member's logits [N, C]: float64 [N, C]."""
    from scipy.special import log_softmax as of_rows

    return of_rows(np.asarray(logits, np.float64), axis=1)


def log_expected(members: Iterable[np.ndarray]) -> np.ndarray:
    """log c_k(x), Eq. 3: of the mean over members of their probabilities; float64 [N, C].

    members: log-probabilities [E, N, C], or E arrays [N, C] that need not be there at once.

    Raises:
      ValueError: no member.
    """
    count, total = 0, np.array(-np.inf)
    for one in members:
        total = np.logaddexp(total, np.asarray(one, np.float64))
        count += 1
    if not count:
        raise ValueError("an ensemble of no members has no probabilities: give one or more")
    return total - np.log(count)


def image_clp(log_c: np.ndarray, inside: Sequence[int]) -> np.ndarray:
    """log of the sum over the classes `inside` of c_k(x), of each image: float64 [N], <= 0.

    Eq. 4 with one test image. log_c: float64 [N, C].
    """
    from scipy.special import logsumexp

    return np.minimum(logsumexp(log_c[:, list(inside)], axis=1), 0.0)


def dataset_clp(per_image: np.ndarray) -> float:
    """CLP of a set of images, Eq. 4: log of the mean of their confusions, e to `image_clp` [M].

    Raises:
      ValueError: no image.
    """
    if len(per_image) == 0:
        raise ValueError("no image: the confusion log probability is of one or more")
    return float(_log_mean(per_image))


def classwise_clp(per_image: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Eq. 4 of the images of each class by themselves: {label: CLP}, in the labels' order.

    per_image: float64 [M], `image_clp` of the outside set. labels: int [M].
    """
    return {int(label): dataset_clp(per_image[labels == label]) for label in np.unique(labels)}


def log_class_confusion(log_c: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log u_{i->j}, Eq. 5: [i, j] = log of the mean over images of class j of c_i; float64 [C, C].

    log_c: float64 [N, C]. labels: int [N].

    Raises:
      ValueError: a class without an image.
    """
    count = log_c.shape[1]
    missing = sorted(set(range(count)) - set(np.unique(labels).tolist()))
    if missing:
        raise ValueError(
            f"class {missing[0]} (of {count}) has no test image, so nothing tells what it is"
            " confused with: test on images of all classes"
        )
    return np.stack([_log_mean(log_c[labels == j]) for j in range(count)], axis=1)


def class_distance(log_u: np.ndarray) -> np.ndarray:
    """d(i, j) = sqrt(-log((u_{i->j} + u_{j->i}) / 2)), Eq. 6: symmetric float64 [C, C].

    The diagonal is that of Eq. 6, which is not 0. log_u: of `log_class_confusion`.
    """
    mean = np.logaddexp(log_u, log_u.T) - np.log(2)
    return np.sqrt(np.maximum(-mean, 0.0))  # a mean of 1 may be 1 + 1e-16


def average_linkage(distance: np.ndarray) -> np.ndarray:
    """Agglomerative clustering with average linkage (appendix D): SciPy's linkage, [C - 1, 4].

    distance: symmetric [C, C], C >= 2; its diagonal is not read: a class lies at 0 from itself.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    return linkage(squareform(distance, checks=False), "average")


def set_confusion(
    log_c: np.ndarray, labels: np.ndarray, sets: Sequence[Sequence[int]]
) -> np.ndarray:
    """The confusion matrix of data sets (Fig. 7): float64 [S, S], rows are true, columns predicted.

    [r, s] = mean over the images of set r of the sum over the classes of set s of c_k. sets: the
    classes of each.
    """
    by_set = np.exp(np.stack([image_clp(log_c, classes) for classes in sets], axis=1))
    return np.stack([by_set[np.isin(labels, list(classes))].mean(0) for classes in sets])


def accuracy(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose most probable class is their own, in [0, 1]."""
    return float(np.mean(np.argmax(log_p, axis=1) == labels))


def _log_mean(log_values: np.ndarray) -> np.ndarray:
    """log of the mean over the first axis of exp(log_values)."""
    from scipy.special import logsumexp

    return logsumexp(log_values, axis=0) - np.log(len(log_values))
