"""ODIN: finite differences, an independent NumPy form, two heads, batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import features, sharding
from ood_jax.data.source import from_array
from ood_jax.scorers import odin
from ood_jax.types import Features, Net, Outputs

SIZE, K = 4, 3
STD = (0.2, 0.3, 0.4)


def config(temperature=10.0, epsilon=0.05, batch=4):
    return ConfigDict(
        {
            "data": {
                "size": SIZE,
                "mean": (0.5, 0.4, 0.3),
                "std": STD,
                "memory": 10**9,
                "timeout": 0.0,
            },
            "model": {"image_size": SIZE},
            "score": {
                "batch": batch,
                "odin_temperature": temperature,
                "odin_epsilon": epsilon,
            },
        }
    )


def weights(heads=1):
    rng = np.random.default_rng(0)
    return {
        str(i): rng.normal(0, 0.5, (SIZE * SIZE * 3, K)).astype(np.float32) for i in range(heads)
    }


def net(heads=1):
    def apply(params, stats, inputs, *, train, key=None):
        flat = inputs.reshape(inputs.shape[0], -1)
        logits = [jnp.tanh(flat @ params[str(i)]) * 3 for i in range(heads)] + [None, None]
        return Outputs(flat, logits=logits[0], second_logits=logits[1]), stats

    return Net(lambda key, inputs: ({}, {}), apply)


def images(count=9):
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def by_hand(array, weight, temperature, epsilon):
    """In float64, with the gradient written out."""

    def softmax(x):
        e = np.exp((x - x.max(1, keepdims=True)) / temperature)
        return e / e.sum(1, keepdims=True)

    c = config()
    x = ((array / 255.0 - np.array(c.data.mean)) / np.array(STD)).reshape(len(array), -1)
    squashed = np.tanh(x @ weight.astype(np.float64))
    probs = softmax(3 * squashed)
    inner = (probs - np.eye(K)[probs.argmax(1)]) / temperature * 3 * (1 - squashed**2)
    gradient = inner @ weight.T
    step = np.where(gradient >= 0, 1.0, -1.0) / np.tile(STD, SIZE * SIZE)
    return softmax(3 * np.tanh((x - epsilon * step) @ weight)).max(1)


def scores(array, c, devices=1, heads=1, given=None):
    scorer = odin.odin(c.score, None)
    mesh = sharding.make_mesh(devices)
    found = features.extract(
        net(heads),
        given or weights(heads),
        {},
        from_array("a", array),
        config=c,
        mesh=mesh,
        extras=(scorer.extra,),
    )
    state = scorer.fit(found.features)
    return np.asarray(scorer.score(state, found.features))


@pytest.mark.parametrize(("temperature", "epsilon"), [(10.0, 0.05), (1000.0, 0.0014), (1.0, 0.0)])
def test_equals_numpy(temperature, epsilon):
    array = images()
    found = scores(array, config(temperature, epsilon))
    right = by_hand(array, weights()["0"], temperature, epsilon)
    np.testing.assert_allclose(-found, right, rtol=2e-5)
    assert found.dtype == np.float32


def test_two_heads_are_averaged():
    array, both = images(), weights(2)
    right = np.mean([by_hand(array, both[str(i)], 10.0, 0.05) for i in range(2)], 0)
    found = scores(array, config(), heads=2)
    np.testing.assert_allclose(-found, right, rtol=2e-5)
    assert np.abs(-found - by_hand(array, both["0"], 10.0, 0.05)).max() > 1e-3


def test_a_second_classifier_of_something_else_is_left_alone():
    array, both = images(), weights(2)
    both["1"] = both["1"][:, : K - 1]
    right = by_hand(array, both["0"], 10.0, 0.05)
    found = scores(array, config(), heads=2, given=both)
    np.testing.assert_allclose(-found, right, rtol=2e-5)


@pytest.mark.parametrize(("batch", "devices"), [(1, 1), (4, 2)])
def test_batch_and_devices_do_not_matter(batch, devices):
    right = scores(images(), config(batch=9))
    found = scores(images(), config(batch=batch), devices)
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_the_step_follows_finite_differences():
    """The score's own step, read back from a network that shows it its inputs."""
    weight = weights()["0"].astype(np.float64)
    inputs = np.random.default_rng(2).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    seen = []

    def logits(x):
        if not isinstance(x, jax.core.Tracer):
            seen.append(np.asarray(x))
        return x.reshape(len(x), -1) @ weights()["0"]

    odin.tempered(logits, jnp.asarray(inputs), temperature=2.0, epsilon=0.01, std=STD)
    step = (inputs - seen[-1]) * np.array(STD) / 0.01

    def loss(x):
        scaled = x.reshape(len(x), -1) @ weight / 2.0
        return np.sum(np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)))

    for place in np.ndindex(*inputs.shape):
        moved = np.zeros(inputs.shape)
        moved[place] = 1e-4
        slope = loss(inputs + moved) - loss(inputs - moved)
        assert abs(slope) > 1e-9
        assert step[place] == pytest.approx(np.sign(slope), abs=1e-3)


def test_a_network_without_logits_is_refused():
    def apply(params, stats, inputs, *, train, key):
        return Outputs(inputs.mean((1, 2))), stats

    bare = Net(lambda key, inputs: ({}, {}), apply)
    extra = odin.odin(config().score, None).extra
    with pytest.raises(ValueError, match="logits: use a network with a classifier"):
        features.extract(
            bare,
            {},
            {},
            from_array("a", images(2)),
            config=config(),
            mesh=sharding.make_mesh(1),
            extras=(extra,),
        )


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0.0, 0.1), "odin_temperature = 0.0: use"), ((1.0, -0.1), "odin_epsilon = -0.1: use 0")],
)
def test_numbers_that_make_no_sense(numbers, message):
    with pytest.raises(ValueError, match=message):
        odin.odin(config(*numbers).score, None)


def test_equal_numbers_share_one_computation():
    one, other = (odin.odin(config(t).score, None).extra for t in (10.0, 10.0))
    assert one is other and one.name != odin.odin(config(5.0).score, None).extra.name


def test_higher_is_more_ood():
    scorer = odin.odin(config().score, None)
    sure = Features(np.zeros((2, 1)), extra={"odin": np.array([0.9, 0.4], np.float32)})
    low, high = np.asarray(scorer.score({}, sure))
    assert low < high
