"""What a user would score with instead of ood_jax, written as well as each library allows.

A contender is a function that prepares it (its bank in its own form) and returns its scoring. All
of one table return the same numbers, which scoring.py checks.
"""

import importlib.util
from collections.abc import Callable

import numpy as np

TEMPERATURE = 0.04
NEIGHBOUR = 50
BLOCK = 4096
Scoring = Callable[[], np.ndarray]
Contenders = dict[str, Callable[[], Scoring]]


def _installed(contenders: Contenders) -> Contenders:
    return {
        name: prepare
        for name, prepare in contenders.items()
        if name.split()[0] not in ("torch", "faiss") or importlib.util.find_spec(name.split()[0])
    }


def exp_cosine(bank: np.ndarray, test: np.ndarray) -> Contenders:
    """log of the mean of exp(cos / t). faiss has no sum over a whole bank."""
    return _installed(
        {
            "numpy blocked": lambda: lambda: _numpy_exp(bank, test),
            "sklearn rbf_kernel": lambda: lambda: _sklearn_exp(bank, test),
            "torch blocked": lambda: _torch_exp(bank, test),
            "ood_jax": lambda: _ours("exp_cosine", bank, test),
        }
    )


def knn(bank: np.ndarray, test: np.ndarray) -> Contenders:
    """Squared distance to the k-th nearest row."""
    return _installed(
        {
            "numpy blocked": lambda: lambda: _numpy_knn(bank, test),
            "sklearn brute": lambda: _sklearn_knn(bank, test),
            "torch blocked": lambda: _torch_knn(bank, test),
            "faiss flat": lambda: _faiss_knn(bank, test),
            "ood_jax": lambda: _ours("knn", bank, test),
        }
    )


def mahalanobis(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> Contenders:
    """Fit of one Gaussian a class, and distance with log determinant to the nearest."""
    groups = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return _installed(
        {
            "numpy inverse": lambda: lambda: _nearest(_numpy_class, train, groups, test),
            "sklearn": lambda: lambda: _nearest(_sklearn_class, train, groups, test),
            "torch Cholesky": lambda: lambda: _torch_mahalanobis(train, groups, test),
            "ood_jax": lambda: lambda: _our_mahalanobis(train, labels, test),
        }
    )


def _ours(name: str, bank: np.ndarray, test: np.ndarray) -> Scoring:
    from ood_jax import config, scorers, sharding
    from ood_jax.types import Features

    settings = config.base("dino_negatives").score
    settings.update(temperature=TEMPERATURE, neighbour=NEIGHBOUR, block=BLOCK)
    mesh = sharding.make_mesh()
    scorer = scorers.build(name, settings, mesh)
    state = scorer.fit(Features(bank))
    return lambda: scorers.run(scorer, state, Features(test), mesh)


def _numpy_exp(bank: np.ndarray, test: np.ndarray) -> np.ndarray:
    total = np.zeros(len(test), np.float32)
    for start in range(0, len(bank), BLOCK):
        part = test @ bank[start : start + BLOCK].T
        part -= 1
        part /= TEMPERATURE
        total += np.exp(part, out=part).sum(1)
    return -np.log(total / len(bank)) - 1 / TEMPERATURE


def _sklearn_exp(bank: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.metrics.pairwise import rbf_kernel

    total = np.zeros(len(test))
    for start in range(0, len(bank), BLOCK):
        total += rbf_kernel(test, bank[start : start + BLOCK], gamma=0.5 / TEMPERATURE).sum(1)
    return -np.log(total / len(bank)) - 1 / TEMPERATURE


def _torch_exp(bank: np.ndarray, test: np.ndarray) -> Scoring:
    import torch

    rows, tests = torch.from_numpy(bank), torch.from_numpy(test)

    def score() -> np.ndarray:
        total = torch.zeros(len(tests))
        for start in range(0, len(rows), BLOCK):
            part = tests @ rows[start : start + BLOCK].T
            total += part.sub_(1).div_(TEMPERATURE).exp_().sum(1)
        return (-torch.log(total / len(rows)) - 1 / TEMPERATURE).numpy()

    return score


def _numpy_knn(bank: np.ndarray, test: np.ndarray) -> np.ndarray:
    best = np.empty((len(test), 0), np.float32)
    for start in range(0, len(bank), BLOCK):
        part = np.concatenate([best, test @ bank[start : start + BLOCK].T], 1)
        best = np.partition(part, -NEIGHBOUR, 1)[:, -NEIGHBOUR:]
    return 2 - 2 * best.min(1)


def _sklearn_knn(bank: np.ndarray, test: np.ndarray) -> Scoring:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=NEIGHBOUR, algorithm="brute").fit(bank)
    return lambda: index.kneighbors(test)[0][:, -1] ** 2


def _torch_knn(bank: np.ndarray, test: np.ndarray) -> Scoring:
    import torch

    rows, tests = torch.from_numpy(bank), torch.from_numpy(test)

    def score() -> np.ndarray:
        best = torch.empty((len(tests), 0))
        for start in range(0, len(rows), BLOCK):
            found = (tests @ rows[start : start + BLOCK].T).topk(min(NEIGHBOUR, len(rows) - start))
            best = torch.cat([best, found.values], 1)
            best = best.topk(NEIGHBOUR).values
        return (2 - 2 * best[:, -1]).numpy()

    return score


def _faiss_knn(bank: np.ndarray, test: np.ndarray) -> Scoring:
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    return lambda: 2 - 2 * index.search(test, NEIGHBOUR)[0][:, -1]


def _nearest(of_class: Callable, train: np.ndarray, groups: list, test: np.ndarray) -> np.ndarray:
    return np.min([of_class(train[rows], test) for rows in groups], 0)


def _numpy_class(rows: np.ndarray, test: np.ndarray) -> np.ndarray:
    mean = rows.mean(0)
    centred, offset = rows - mean, test - mean
    covariance = centred.T @ centred / len(rows)
    squared = np.einsum("nd,nd->n", offset @ np.linalg.inv(covariance), offset)
    return squared + np.linalg.slogdet(covariance)[1] + rows.shape[1] * np.log(2 * np.pi)


def _sklearn_class(rows: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.covariance import EmpiricalCovariance

    found = EmpiricalCovariance().fit(rows)
    log_det = np.linalg.slogdet(found.covariance_)[1]
    return found.mahalanobis(test) + log_det + rows.shape[1] * np.log(2 * np.pi)


def _torch_mahalanobis(train: np.ndarray, groups: list, test: np.ndarray) -> np.ndarray:
    import torch

    rows, tests = torch.from_numpy(train), torch.from_numpy(test)

    def of_class(index: np.ndarray) -> "torch.Tensor":
        mine = rows[torch.from_numpy(index)]
        mean = mine.mean(0)
        mine = mine - mean
        factor = torch.linalg.cholesky(mine.T @ mine / len(mine))
        white = torch.linalg.solve_triangular(factor, (tests - mean).T, upper=False)
        return white.square().sum(0) + 2 * factor.diagonal().log().sum()

    nearest = torch.stack([of_class(index) for index in groups]).min(0).values
    return (nearest + train.shape[1] * np.log(2 * np.pi)).numpy()


def _our_mahalanobis(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    from ood_jax import config, scorers, sharding
    from ood_jax.types import Features

    settings = config.base("dino_negatives").score
    settings.shrinkage = "none"
    mesh = sharding.make_mesh()
    scorer = scorers.build("mahalanobis", settings, mesh)
    return scorers.run(scorer, scorer.fit(Features(train, labels=labels)), Features(test), mesh)
