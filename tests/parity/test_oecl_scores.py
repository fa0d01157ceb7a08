"""Norm scores against the golden arrays of OECL's AdvancedStatUpdate, through the whole path."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax.scorers import norm, views
from ood_jax.types import Features, Forward, Outputs


@pytest.fixture
def found(golden, monkeypatch):
    """(the golden arrays, Features): f of view v and image n is what the golden file says."""
    z = golden("oecl")
    given = jnp.asarray(z["features"], jnp.float32)  # [views, n, P], the clean image first
    index = jnp.arange(given.shape[1])
    monkeypatch.setattr(views, "_clean", lambda forward, images: jnp.stack([0 * images, images], 1))
    monkeypatch.setattr(
        views,
        "_view",
        lambda forward, images, index, number, scale: jnp.stack(
            [jnp.full_like(index, number + 1), index], 1
        ),
    )
    forward = Forward(lambda at: Outputs(at, projections=given[at[:, 0], at[:, 1]]), 1, (), ())
    extra = views.norms(config(z)).compute(forward, index, index)
    return z, Features(np.zeros((len(index), 1)), extra=extra)


def config(z):
    return ConfigDict(
        {
            "feature": "features",
            "augmentations": len(z["features"]) - 1,
            "crop_scale": (0.08, 1.0),
            "block": 8,
            "bank_memory": 10**6,
        }
    )


@pytest.mark.parametrize(
    ("name", "square", "root"),
    [
        ("norm", "s_l2_sq", "s_l2"),
        ("norm_ensemble", "s_l2_ens_sq", None),
        ("norm_mean", "s_mu_sq", "s_mu"),
    ],
)
def test_oecl_scores(found, name, square, root):
    z, features = found
    scorer = getattr(norm, name)(config(z), None)
    scores = np.asarray(scorer.score(scorer.fit(features), features))
    np.testing.assert_allclose(-scores, z[square], rtol=1e-5)
    if root is not None:
        np.testing.assert_allclose(np.sqrt(-scores), z[root], rtol=1e-5)


def test_mean_of_norms(golden):
    z = golden("oecl")
    norms = np.sqrt(views.squared_norm(jnp.asarray(z["features"], jnp.float32)))
    np.testing.assert_allclose(norms.mean(0), z["s_l2_ens_norm"], rtol=1e-5)
