"""ODIN against the golden arrays of OpenOOD's ODINPostprocessor."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.scorers.odin import tempered


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_odin(golden, precision):
    z = golden("scorers")
    cases = [found for key in z if (found := re.fullmatch(r"f64/odin_T(.+)_eps(.+)", key))]
    assert cases
    channels = z["odin/x"].shape[1:]

    with jax.enable_x64(precision == "float64"):
        inputs = jnp.asarray(np.moveaxis(z["odin/x"], 1, 3), precision)
        weight, bias = (jnp.asarray(z[f"odin/{name}"], precision) for name in "Wb")

        def logits(x):
            flat = jnp.moveaxis(x, 3, 1).reshape(len(x), np.prod(channels))
            return jnp.matmul(flat, weight.T, precision="highest") + bias

        for case in cases:
            key, temperature, epsilon = case[0], float(case[1]), float(case[2])
            moved = tempered(
                logits,
                inputs,
                temperature=temperature,
                epsilon=epsilon,
                std=tuple(z["odin/input_std"].tolist()),
            )
            found = jax.nn.softmax(moved).max(-1)
            assert found.dtype == precision
            np.testing.assert_allclose(found, z[key], rtol=0, atol=1e-6)
            np.testing.assert_allclose(found, z[key.replace("f64", "official")], rtol=0, atol=1e-6)
