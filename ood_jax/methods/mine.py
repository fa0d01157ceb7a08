"""Near outliers of a teacher's embeddings: OAML, step 1 (METHODS: section 4), NPOS, VOS.

A stage without updates: it leaves WORKDIR/outliers.npz. Embeddings of the train images
(data.embeddings) of norm 1, class by class or all at once: those farthest from their k-th neighbour
are the boundary, noise around them makes candidates, the farthest of these are kept (mine.py); or
the tails of Gaussians are (gaussian_outliers.py). Outliers get the norm of the embedding that each
was made from, so that they lie where embeddings do; the released code gives them that of a token of
Stable Diffusion.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ood_jax.banks import parted
from ood_jax.gaussian_outliers import GaussianSettings, check_gaussian, gaussian_outliers
from ood_jax.methods._outliers import counted, no_network, no_views
from ood_jax.mine import Mined, Settings, check_settings, largest_need, mine
from ood_jax.types import Array, Maker, Method, Net, PyTree, Vectors

SAMPLINGS = ("boundary", "gaussian")

DEFAULTS: dict[str, Any] = dict(
    sampling="boundary",  # boundary | gaussian (VOS)
    class_wise=True,  # of each class's embeddings; False = of all, without labels
    keep=2,  # candidates kept in a round: of each boundary point, or of each Gaussian
    rounds=100,
    draws=1500,  # of noise in a round, which all points share; of each Gaussian
    neighbour=300,  # boundary: K, whose distance says how far out a point is
    points=50,  # boundary: boundary points
    picked=50,  # boundary: of these drawn for each round
    sigma=0.07,  # boundary: deviation of the noise, of embeddings of norm 1
    selection="paper",  # boundary: paper = the farthest | official = as the code has it (mine.py)
    ridge=1e-4,  # gaussian: added to the covariance's diagonal
)
PRESETS: dict[str, dict[str, Any]] = {
    "official": {"method.selection": "official"},
    "npos": {
        "method.neighbour": 100,
        "method.picked": 2,
        "method.sigma": 0.1,
        "method.draws": 600,
        "method.rounds": 1000,
    },
    "vos": {
        "method.sampling": "gaussian",
        "method.draws": 10_000,
        "method.keep": 1,
        "method.rounds": 1000,
    },
}


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it; `net` is not used.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    key = jax.random.key(config.seed)

    def make(
        params: PyTree, vectors: Vectors, labels: Array | None, mesh: Mesh
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rows = np.flatnonzero(vectors.known)
        embeddings = vectors.embeddings[rows]
        own = None if labels is None else np.asarray(labels)[rows]
        if config.method.sampling == "gaussian":
            tails = _gaussian(config)
            mined = gaussian_outliers(embeddings, own, settings=tails, key=key, mesh=mesh)
            return mined.outliers, _facts(mined, rows)
        settings = _boundary(config)
        banks = _banks(config, len(rows), own)
        with counted(banks * settings.rounds * settings.picked * settings.keep, "mine") as bar:
            mined = mine(embeddings, own, settings=settings, key=key, mesh=mesh, done=bar.update)
        norms = np.linalg.norm(embeddings[mined.source], axis=1, keepdims=True)
        return mined.outliers * norms, _facts(mined, rows)

    return Method(
        updates=(),
        views=no_views,
        init=no_network,
        images=False,
        reads=("embeddings",),
        maker=Maker(
            "near", lambda vectors: vectors.embeddings.shape[1], make, partial(_banks, config)
        ),
    )


def _banks(config: ConfigDict, count: int, labels: Array | None) -> int:
    """How many banks `count` embeddings make: of each class, or one.

    Raises:
      ValueError: labels missing, or fewer embeddings in a bank than the settings need.
    """
    need: dict[str, Any] = {"least": 2, "what": "a Gaussian"}
    if config.method.sampling == "boundary":
        need = largest_need(_boundary(config))
    return len(parted(count, labels, class_wise=config.method.class_wise, **need))


def _facts(mined: Mined, rows: np.ndarray) -> dict[str, np.ndarray]:
    """source: the train image that each was made from, -1 = none."""
    source = np.where(mined.source < 0, -1, rows[mined.source]).astype(np.int32)
    return {"source": source, "distances": mined.distances, "labels": mined.labels}


def _boundary(config: ConfigDict) -> Settings:
    names = [name for name in Settings._fields if name in config.method]
    return Settings(**{name: config.method[name] for name in names})


def _gaussian(config: ConfigDict) -> GaussianSettings:
    return GaussianSettings(**{name: config.method[name] for name in GaussianSettings._fields})


def _check(config: ConfigDict) -> None:
    if config.method.sampling not in SAMPLINGS:
        raise ValueError(
            f"method.sampling {config.method.sampling!r}: use {' or '.join(SAMPLINGS)}"
        )
    if config.method.sampling == "gaussian":
        check_gaussian(_gaussian(config))
    else:
        check_settings(_boundary(config))
