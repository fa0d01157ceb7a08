"""Gram matrices: the literal matrices in NumPy, bounds by class, devices, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import features, sharding
from ood_jax.data.source import from_array
from ood_jax.scorers import gram
from ood_jax.types import Features, Net, Outputs

SIZE, K, POWERS = 4, 3, (1, 2, 3)
RNG = np.random.default_rng(0)
PARAMS = [RNG.normal(0, 1, shape).astype(np.float32) for shape in ((3, 5), (48, 4), (48, K))]


def config(batch=6, powers=POWERS):
    return ConfigDict(
        {
            "data": {
                "size": SIZE,
                "mean": (0.5,) * 3,
                "std": (0.25,) * 3,
                "memory": 10**9,
                "timeout": 0.0,
            },
            "model": {"image_size": SIZE},
            "score": {"batch": batch, "gram_powers": powers},
        }
    )


def apply(params, stats, inputs, *, train, key=None):
    """Stages [B, 4, 4, 5] and, without positions, [B, 4]; a class K - 1 that is never predicted."""
    flat = inputs.reshape(inputs.shape[0], -1)
    stages = (jnp.tanh(inputs @ params[0]), flat @ params[1])
    logits = 0.1 * (flat @ params[2]) - 1e3 * (jnp.arange(K) == K - 1)
    return Outputs(flat, logits=logits, stages=stages), stats


NET = Net(lambda key, inputs: ({}, {}), apply)


def images(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def extract(array, c=None, devices=1, net=NET):
    c = c or config()
    scorer = gram.gram(c.score, None)
    found = features.extract(
        net,
        PARAMS,
        {},
        from_array("a", array),
        config=c,
        mesh=sharding.make_mesh(devices),
        fields=("logits",),
        extras=(scorer.extra,),
    )
    return scorer, found.features


def literal_rows(stage, powers):
    """Row sums from whole Gram matrices, image by image, in float64."""
    out = []
    for image in np.asarray(stage, np.float64):
        flat = image.reshape(-1, image.shape[-1]).T
        sums = [((flat**p) @ (flat**p).T).sum(1) for p in powers]
        out.append([np.sign(s) * np.abs(s) ** (1 / p) for s, p in zip(sums, powers, strict=True)])
    return np.array(out)


def right_scores(train, test):
    """The score in the words of its paper, stage by stage and class by class."""

    def look(array):
        inputs = jnp.asarray((array / 255.0 - 0.5) / 0.25, jnp.float32)
        outputs, _ = apply(PARAMS, {}, inputs, train=False)
        logits = np.asarray(outputs.logits, np.float64)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        stages = [literal_rows(s, POWERS).reshape(len(array), -1) for s in outputs.stages]
        return stages, logits.argmax(1), probs.max(1)

    (stages, predicted, _), (looked, test_predicted, sure) = look(train), look(test)
    apart = np.arange(len(train)) % 10 == 9
    total = 0
    for values, others in zip(stages, looked, strict=True):

        def deviation(value, c, values=values):
            group = values[~apart & (predicted == c)]
            group = group if len(group) else values[~apart]
            low, high = group.min(0), group.max(0)
            below = np.maximum(low - value, 0) / np.abs(low + 1e-6)
            return np.sum(below + np.maximum(value - high, 0) / np.abs(high + 1e-6))

        unit = np.mean(
            [deviation(*pair) for pair in zip(values[apart], predicted[apart], strict=True)]
        )
        found = [deviation(*pair) for pair in zip(others, test_predicted, strict=True)]
        total += np.array(found) / unit
    return total / sure


def test_equals_numpy_whatever_the_batch_and_the_devices():
    train, test = images(60), images(8, seed=2)
    scorer, fitted_on = extract(train)
    state = scorer.fit(fitted_on)
    found = extract(test, config(batch=3), devices=2)[1]
    right = right_scores(train, test)
    np.testing.assert_allclose(scorer.score(state, found), right, rtol=1e-3)
    np.testing.assert_allclose(jax.jit(scorer.score)(state, found), right, rtol=1e-3)
    assert scorer.facts(state) == {"predicted_classes": K - 1, "classes": K}
    assert set(scorer.needs) <= {"logits", *found.extra}
    assert found.extra["gram"].shape == (8, len(POWERS) * (5 + 4))


def test_a_class_that_was_never_predicted_has_the_bounds_of_all():
    scorer, train = extract(images(40))
    state = scorer.fit(train)
    logits = np.eye(K, dtype=np.float32)[[K - 1] * 3]
    held = extract(images(3, seed=3))[1]._replace(logits=logits)
    scores = scorer.score(state, held)
    everything = train.extra["gram"][np.arange(40) % 10 != 9]
    low, high = everything.min(0), everything.max(0)
    values = held.extra["gram"]
    outside = np.maximum(low - values, 0) / np.abs(low + 1e-6)
    outside += np.maximum(values - high, 0) / np.abs(high + 1e-6)
    sure = np.exp(1) / (np.exp(1) + K - 1)
    np.testing.assert_allclose(scores, outside @ state.weight / sure, rtol=1e-4)


@pytest.mark.parametrize("powers", [(1,), (2, 5), (10,)])
def test_row_sums_are_those_of_the_whole_matrix(powers):
    stage = RNG.normal(0, 3, (3, 2, 4, 6)).astype(np.float32)
    found = gram.row_sums(jnp.asarray(stage), powers)
    np.testing.assert_allclose(found, literal_rows(stage, powers), rtol=1e-3, atol=1e-3)


def test_high_powers_of_large_activations_do_not_overflow():
    stage = 1e5 * RNG.uniform(0.5, 1, (2, 9, 4)).astype(np.float32)
    found = np.asarray(gram.row_sums(jnp.asarray(stage), (1, 10)))
    np.testing.assert_allclose(found, literal_rows(stage, (1, 10)), rtol=1e-4)
    assert np.isfinite(np.asarray(gram.row_sums(jnp.zeros((1, 3, 2)), (1, 10)))).all()


def test_networks_that_lack_something_are_refused():
    bare = Net(
        NET.init,
        lambda params, stats, inputs, *, train, key: (
            Outputs(inputs.reshape(inputs.shape[0], -1), logits=inputs[:, 0, 0]),
            stats,
        ),
    )
    with pytest.raises(ValueError, match="stages: use a network that gives the activations"):
        extract(images(2), net=bare)


def test_train_sets_that_are_refused():
    scorer, train = extract(images(10))
    scorer.fit(train)
    few = Features(
        train.features[:9],
        logits=train.logits[:9],
        extra={name: values[:9] for name, values in train.extra.items()},
    )
    with pytest.raises(ValueError, match="gram needs 10 train images or more, not 9"):
        scorer.fit(few)
    broken = train.extra["gram"].copy()
    broken[3, 1] = np.inf
    with pytest.raises(ValueError, match="1 of 10 gram features are not finite"):
        scorer.fit(train._replace(extra=train.extra | {"gram": broken}))


@pytest.mark.parametrize("powers", [(), (0,), (1, 2.5)])
def test_powers_that_make_no_sense(powers):
    with pytest.raises(ValueError, match=r"gram_powers = .*: use whole numbers from 1 up"):
        gram.gram(config(powers=powers).score, None)
