"""The score of rotation prediction: OpenOOD's formula in NumPy, batches, devices, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import features, models, needs, sharding
from ood_jax.config import base
from ood_jax.data.source import from_array
from ood_jax.scorers import rotation
from ood_jax.types import Features, Forward, Net, Outputs

SIZE, K = 5, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
RNG = np.random.default_rng(0)
CLASSES = RNG.normal(0, 0.3, (SIZE * SIZE * 3, K)).astype(np.float32)
TURNS = RNG.normal(0, 0.3, (SIZE * SIZE * 3, 4)).astype(np.float32)


def config(batch=4):
    data = {"size": SIZE, "mean": MEAN, "std": STD, "memory": 10**9, "timeout": 0.0}
    return ConfigDict({"data": data, "model": {"image_size": SIZE}, "score": {"batch": batch}})


def apply(params, stats, inputs, *, train, key=None):
    flat = inputs.reshape(inputs.shape[0], -1)
    return Outputs(flat, logits=flat @ params[0], second_logits=flat @ params[1]), stats


def images(count=7):
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def extracted(array, batch=4, devices=1, params=(CLASSES, TURNS)):
    scorer = rotation.rotation(config().score, None)
    found = features.extract(
        Net(lambda key, inputs: ({}, {}), apply),
        params,
        {},
        from_array("a", array),
        config=config(batch),
        mesh=sharding.make_mesh(devices),
        fields=("features", "logits"),
        extras=(scorer.extra,),
    )
    return scorer, found.features


def scores(*args, **kwargs):
    scorer, found = extracted(*args, **kwargs)
    return np.asarray(scorer.score(scorer.fit(found), found))


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def openoods(array):
    """KL in base 2 as OpenOOD computes it, float64; higher = in-distribution."""
    x = (array / 255.0 - np.array(MEAN)) / np.array(STD)
    uniform = np.full((len(x), K), 1 / K)
    sure = (uniform * np.log2(uniform / softmax(x.reshape(len(x), -1) @ CLASSES))).sum(1)
    told = 0
    for turn in range(4):
        turned = np.rot90(x, turn, axes=(1, 2)).reshape(len(x), -1)
        told -= np.log2(softmax(turned @ TURNS)[:, turn]) / 4
    return sure - told


@pytest.mark.parametrize(("batch", "devices"), [(7, 1), (2, 2)])
def test_is_openoods(batch, devices):
    found = scores(images(), batch, devices)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, -np.log(2) * openoods(images()), rtol=1e-4, atol=1e-4)


def test_divergence_in_closed_form():
    uniform, sure = np.full((1, K), 3.0), np.array([[1000.0, 0.0, 0.0]])
    found = rotation.uniform_divergence(np.concatenate([uniform, sure]).astype(np.float32))
    np.testing.assert_allclose(found, [0, 1000 * (K - 1) / K - np.log(K)], atol=1e-4, rtol=1e-5)


def test_higher_is_more_ood():
    """Unsure of the class, and unable to tell the turns."""
    scorer = rotation.rotation(config().score, None)
    logits = np.array([[9.0, 0, 0], [9.0, 0, 0], [0.1, 0, 0]], np.float32)
    told = {"turn_loss": np.array([0.1, 2.0, 0.1], np.float32)}
    found = np.asarray(scorer.score({}, Features(logits, logits=logits, extra=told)))
    assert found[0] < found[1] and found[0] < found[2]


def test_traces_with_a_free_number_of_images():
    scorer = rotation.rotation(config().score, None)
    forward = Forward(lambda x: apply((CLASSES, TURNS), {}, x, train=False)[0], SIZE, MEAN, STD)

    def traced(images):
        index = jnp.arange(images.shape[0], dtype=jnp.int32)
        fields = ("features", "logits")
        seen = features.computed(forward, images, index, fields, (scorer.extra,))
        return scorer.score({}, features.as_features(seen))

    (rows,) = jax.export.symbolic_shape("rows")
    asked = jax.ShapeDtypeStruct((rows, SIZE, SIZE, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(traced))(asked)
    assert exported.out_avals[0].shape == exported.in_avals[0].shape[:1] == (rows,)


@pytest.mark.parametrize(
    ("outputs", "second", "missing"),
    [(3, 4, False), (3, 0, True), (3, 3, True), (4, 4, True), (0, 4, True)],
)
def test_networks_without_a_classifier_of_turns_are_refused(outputs, second, missing):
    c = base("supervised")
    c.model.name, c.model.depth, c.model.width, c.model.image_size = "resnet", 10, 8, 16
    c.head.name, c.head.hidden, c.head.bottleneck = "projection", 0, 4
    c.head.outputs, c.head.second_outputs = outputs, second
    net = models.build(c)
    shapes = jax.eval_shape(lambda: models.init_params(net, c))
    scorer = rotation.rotation(c.score, None)
    said = needs.lacking(needs.Network(c, net, shapes), scorer, labelled=False)
    assert (said is not None) == missing, said
    if missing and outputs:
        assert "train with method.name = rotation" in said
