"""CSI's score: views under rotations, an independent NumPy form, devices, leave-one-out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ood_jax import features, models, needs, sharding
from ood_jax.config import base
from ood_jax.data.source import from_array
from ood_jax.scorers import csi, views
from ood_jax.types import Features, Forward, Net, Outputs

SIZE, A = 6, 2
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
RNG = np.random.default_rng(0)
TRUNK = RNG.normal(0, 0.1, (SIZE * SIZE * 3, 5)).astype(np.float32)
SHIFT = RNG.normal(0, 0.1, (SIZE * SIZE * 3, 2)).astype(np.float32)


def config(shifts=2, batch=4):
    return ConfigDict(
        {
            "data": {"size": SIZE, "mean": MEAN, "std": STD, "memory": 10**9, "timeout": 0.0},
            "model": {"image_size": SIZE},
            "score": {
                "batch": batch,
                "feature": "features",
                "augmentations": A,
                "shifts": shifts,
                "block": 4,
                "bank_memory": 10**6,
            },
        }
    )


def apply(params, stats, inputs, *, train, key=None):
    flat = inputs.reshape(inputs.shape[0], -1)
    return Outputs(flat, projections=flat @ params[0], second_logits=1 + flat @ params[1]), stats


NET = Net(lambda key, inputs: ({}, {}), apply)


def images(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def extract(array, c, devices=1):
    mesh = sharding.make_mesh(devices)
    scorer = csi.csi(c.score, mesh)
    source = from_array("a", array)
    found = features.extract(
        NET, (TRUNK, SHIFT), {}, source, config=c, mesh=mesh, extras=(scorer.extra,)
    )
    return scorer, found.features


@jax.jit
def random_view(array, index, number):
    forward = Forward(lambda x: x, SIZE, MEAN, STD)
    return views._view(forward, array, index, number, views.CSI_SCALE)


def by_hand(array, shifts):
    """Means over views: f float64 [N, K, P] and own logits [N, K], view by view."""
    f, logits = np.zeros((len(array), shifts, 5)), np.zeros((len(array), shifts))
    index = jnp.arange(len(array))
    for k in range(shifts):
        for a in range(A):
            # Mirrored before it is turned: after, a quarter would seem another.
            view = np.rot90(random_view(array, index, k * A + a), k, (1, 2))
            flat = np.asarray(view, np.float64).reshape(len(array), -1)
            f[:, k] += flat @ TRUNK / A
            logits[:, k] += (1 + flat @ SHIFT)[:, k] / A
    return f, logits if shifts == SHIFT.shape[1] else np.zeros_like(logits)


def right_scores(train, test, shifts):
    (bank, bank_logits), (f, logits) = by_hand(train, shifts), by_hand(test, shifts)
    total = 0
    for k in range(shifts):
        lengths = np.linalg.norm(bank[:, k], axis=1)
        nearest = (f[:, k] @ (bank[:, k] / lengths[:, None]).T).max(1)
        total += nearest / (lengths.mean() if shifts > 1 else 1)
        if logits.any():
            total += logits[:, k] / bank_logits[:, k].mean()
    return -total / shifts


@pytest.mark.parametrize(("shifts", "batch"), [(1, 2), (2, 6)])
def test_equals_numpy_whatever_the_batch_and_the_devices(shifts, batch):
    train, test = images(6), images(6, seed=2)
    scorer, fitted_on = extract(train, config(shifts), devices=1)
    state, found = scorer.fit(fitted_on), extract(test, config(shifts, batch), devices=2)[1]
    right = right_scores(train, test, shifts)
    np.testing.assert_allclose(scorer.score(state, found), right, rtol=1e-4)
    np.testing.assert_allclose(scorer.streamed(state, found), right, rtol=1e-4)
    assert set(scorer.needs) <= found.extra.keys()
    facts = scorer.facts(state)
    assert len(facts["weight_shift"]) == shifts
    assert any(facts["weight_shift"]) == (shifts == SHIFT.shape[1])


def test_each_train_image_is_left_out_of_the_bank_that_judges_it():
    """The weights are of the whole train set, the nearest image is another one."""
    scorer, found = extract(images(6), config(1))
    state = scorer.fit(found)
    f = by_hand(images(6), 1)[0][:, 0]
    products = f @ (f / np.linalg.norm(f, axis=1, keepdims=True)).T
    np.fill_diagonal(products, -np.inf)
    np.testing.assert_allclose(scorer.score_train(state), -products.max(1), rtol=1e-4)
    with pytest.raises(ValueError, match="two train images or more"):
        scorer.score_train(scorer.fit(cut(found, 1)))


def cut(found, count):
    return found._replace(extra={name: values[:count] for name, values in found.extra.items()})


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.nan, "1 of 3 train features are not finite"), (None, "all train features are 0")],
)
def test_features_that_are_refused(values, message):
    shifted = np.ones((3, 1, 2), np.float32) * (values is not None)
    if values is not None:
        shifted[1, 0, 1] = values
    extra = {"shifted": shifted, "shift_logits": np.zeros((3, 1), np.float32)}
    with pytest.raises(ValueError, match=message):
        csi.csi(config(1).score, sharding.make_mesh(1)).fit(Features(shifted[:, 0], extra=extra))


@pytest.mark.parametrize("shifts", [0, 5])
def test_shifts_that_make_no_sense(shifts):
    with pytest.raises(ValueError, match=rf"shifts = {shifts}: use 1 [(]none[)] to 4"):
        csi.csi(config(shifts).score, sharding.make_mesh(1))


def test_traces_with_a_free_number_of_images():
    """From images to scores, as the exported detector runs."""
    scorer, found = extract(images(4), config())
    state = scorer.fit(found)
    forward = Forward(lambda x: apply((TRUNK, SHIFT), {}, x, train=False)[0], SIZE, MEAN, STD)

    def scores(images):
        index = jnp.arange(images.shape[0], dtype=jnp.int32)
        seen = features.computed(forward, images, index, ("features",), (scorer.extra,))
        return scorer.score(state, features.as_features(seen))

    (rows,) = jax.export.symbolic_shape("rows")
    asked = jax.ShapeDtypeStruct((rows, SIZE, SIZE, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(scores))(asked)
    assert exported.out_avals[0].shape == exported.in_avals[0].shape[:1] == (rows,)


def test_other_shifts_than_the_classifiers_are_refused():
    c = base("csi")
    c.model.name, c.model.depth, c.model.width, c.model.image_size = "resnet", 10, 8, 16
    c.head.name, c.head.hidden, c.head.bottleneck, c.head.second_outputs = "projection", 0, 4, 2
    net = models.build(c)
    shapes = jax.eval_shape(lambda: models.init_params(net, c))
    for shifts, refused in ((4, True), (2, False), (1, False)):
        c.score.shifts = shifts
        scorer = csi.csi(c.score, sharding.make_mesh(1))
        said = needs.lacking(needs.Network(c, net, shapes), scorer, labelled=False)
        assert (said is not None) == refused, said
    c.score.shifts = 4
    scorer = csi.csi(c.score, sharding.make_mesh(1))
    said = needs.lacking(needs.Network(c, net, shapes), scorer, labelled=False)
    assert "score.shifts = 4; use --config.score.shifts=2, or 1" in said
