"""What a leave-out classifier says: certainty to the last digit, ODIN's step, two heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.scorers.leave_out import certainty, judging
from ood_jax.types import Forward, Outputs

SIZE, K = 4, 3
STD = (0.2, 0.3, 0.4)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def paper(logits):
    """max p - H(p) in float64."""
    p = softmax(np.asarray(logits, np.float64))
    return p.max(-1) + np.sum(p * np.log(np.maximum(p, 1e-300)), -1)


@pytest.mark.parametrize("classes", [2, 8, 80])
@pytest.mark.parametrize("temperature", [1.0, 10.0, 1000.0])
def test_the_papers_score_but_for_a_constant(classes, temperature):
    logits = np.random.default_rng(0).normal(0, 5, (200, classes)).astype(np.float32)
    found = np.asarray(jax.jit(certainty)(logits / temperature), np.float64)
    right = paper(logits / np.float32(temperature)) - (1 / classes - np.log(classes))
    np.testing.assert_allclose(found, right, rtol=3e-5)
    assert (found >= 0).all()


def test_extremes():
    found = certainty(jnp.asarray([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, -1e4, 5.0], [1e-6, 0, 0, 0]]))
    np.testing.assert_allclose(found[:2], [0, 3 / 4 + np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(found[2], 1e-6 * 3 / 16, rtol=1e-3)  # lost in max p - H(p)
    assert found.dtype == jnp.float32


def weights(heads):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.5, (SIZE * SIZE * 3, K)).astype(np.float32) for _ in range(heads)]


def forward(given):
    def apply(inputs):
        flat = inputs.reshape(inputs.shape[0], -1)
        logits = [jnp.tanh(flat @ w) * 3 for w in given] + [None]
        return Outputs(flat, logits=logits[0], second_logits=logits[1])

    return Forward(apply, SIZE, (0.5, 0.4, 0.3), STD)


def images(count=9):
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def by_hand(array, weight, temperature, epsilon):
    """(max p - H(p) after the step, p as it is) in float64, with the gradient written out."""
    x = ((array / 255.0 - np.array((0.5, 0.4, 0.3))) / np.array(STD)).reshape(len(array), -1)
    squashed = np.tanh(x @ weight.astype(np.float64))
    plain, tempered = softmax(3 * squashed), softmax(3 * squashed / temperature)
    own = np.eye(K)[plain.argmax(1)]
    gradient = ((tempered - own) / temperature * 3 * (1 - squashed**2)) @ weight.T
    step = np.where(gradient >= 0, 1.0, -1.0) / np.tile(STD, SIZE * SIZE)
    return paper(3 * np.tanh((x - epsilon * step) @ weight) / temperature), plain


@pytest.mark.parametrize(("temperature", "epsilon"), [(10.0, 0.05), (1.0, 0.0)])
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_numpy_and_heads_are_averaged(temperature, epsilon, heads):
    array, given = images(), weights(heads)
    extra = judging(temperature, epsilon)
    found = jax.jit(lambda a: extra.compute(forward(given), a, None))(array)
    said = [by_hand(array, weight, temperature, epsilon) for weight in given]
    right = np.mean([one[0] for one in said], 0) - (1 / K - np.log(K))
    np.testing.assert_allclose(found["certainty"], right, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        found["probabilities"], np.mean([one[1] for one in said], 0), rtol=1e-4, atol=1e-6
    )


def test_its_name_tells_its_numbers():
    assert judging(1.0, 0.0) is judging(1.0, 0.0)
    assert len({judging(*pair).name for pair in ((1.0, 0.0), (2.0, 0.0), (1.0, 0.1))}) == 3
    assert judging(1.0, 0.0).train is False
