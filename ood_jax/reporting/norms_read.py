"""What `python -m ood_jax.norms` left in a workdir."""

from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ood_jax.untrusted import read_json

SCHEMA = 1
FILE = "norms.json"
SINGLE = ("mu", "sigma", "sigma_v", "mu_over_sigma_v", "alignment", "uniformity")
SCORES = {"norm": "s_ℓ2", "norm_mean": "s_μ"}  # as ood_jax.scorers calls them -> as the paper does


class Norms(NamedTuple):
    """Numbers at S checkpoints.

    images: of each set at most. augmentations: random views of each. roles: set -> train, test,
    near, far, other or outliers. steps: float64 [S], ascending. values: set -> name -> float64 [S],
    NaN = none: norm (mean of |f|), q05 and q95 (its quantiles), SINGLE, and of all sets but train
    and test the AUROC in [0, 1] of each of SCORES.
    """

    images: int
    augmentations: int
    roles: dict[str, str]
    steps: np.ndarray
    values: dict[str, dict[str, np.ndarray]]

    def outside(self) -> list[str]:
        """The OOD sets; what the run trained on as outliers is none."""
        return [name for name, role in self.roles.items() if role in ("near", "far", "other")]


def read(path: epath.PathLike) -> Norms:
    """Reads W/norms.json.

    Raises:
      OSError, any of MISSHAPEN: it is not what this version reads.
    """
    found = read_json(path)
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r}; this version reads {SCHEMA}")
    steps = sorted(found["steps"], key=int)
    roles = {str(name): str(one["role"]) for name, one in found["sets"].items()}
    if not steps or "test" not in roles:
        raise ValueError("no steps, or no test set")
    each = [found["steps"][step]["sets"] for step in steps]
    settings = found["settings"]
    return Norms(
        int(settings["images"]),
        int(settings["augmentations"]),
        roles,
        np.array(steps, np.float64),
        {name: _over_steps([one[name] for one in each]) for name in roles},
    )


def _over_steps(each: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """One set: name -> its values over the steps."""
    rows = [
        {"norm": one["norm"]["mean"], "q05": one["norm"]["q05"], "q95": one["norm"]["q95"]}
        | {name: one[name] for name in SINGLE}
        | {name: one["auroc"][key] for key, name in SCORES.items() if "auroc" in one}
        for one in each
    ]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
