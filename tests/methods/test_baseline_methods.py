"""Trained baselines: what each adds up, what it learns, its mixtures, one device as two."""

import jax
import numpy as np
import pytest
from small_run import small_config

from ood_jax import loop, score, scorers, sharding
from ood_jax import plan as plans
from ood_jax.data.pipeline import train_batches
from ood_jax.methods import mix_oe
from ood_jax.train import init_state, jitted_step, prepare
from ood_jax.views.negatives import rotate_quarters

pytestmark = pytest.mark.usefixtures("compiled_once")

CASES = {  # the method, how many classifiers of the classes it has, its settings
    "logit_norm": ("logit_norm", 2, {}),
    "outlier_exposure": ("outlier_exposure", 1, {}),
    "outlier_exposure, two": ("outlier_exposure", 2, {}),
    "linear": ("mix_oe", 1, {}),
    "cutmix, two": ("mix_oe", 2, {"method.mix": "cutmix", "method.mixture_weight": 0.7}),
    "rotation": ("rotation", 1, {"method.rotation_weight": 0.7}),
}
LEARN = (
    *("logit_norm", "outlier_exposure, two"),
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("cutmix, two", "rotation")),
)


def config_of(folder, case, devices=1):
    """24 images of three classes, each a brightness of its own, all darker below; outliers are
    striped."""
    method, heads, settings = CASES[case]
    c = small_config(folder, method)
    labels = np.arange(24) % 3
    noise = np.random.default_rng(0).integers(0, 30, (24, 16, 16, 3))
    images = (60 * labels + 40)[:, None, None, None] + noise
    images[:, 8:] -= 30
    striped = 200 * (np.arange(16) % 2)[:, None] + noise[..., 0]
    for name, pixels in (("train", images), ("auxiliary", np.repeat(striped[..., None], 3, -1))):
        np.savez(folder / f"{name}.npz", images=pixels.astype(np.uint8), labels=labels)
    with_outliers = method in ("outlier_exposure", "mix_oe")
    c.data.auxiliary = f"npz:{folder}/auxiliary.npz" if with_outliers else ""
    c.model.name, c.model.width, c.model.depth, c.model.stride = "resnet", 4, 10, 2
    c.head.name, c.head.outputs, c.head.second_outputs = "linear", 3, 3 * (heads - 1)
    if method == "rotation":
        c.head.second_outputs = 4
    c.optim.warmup_epochs = c.optim.freeze_epochs = 0.0
    c.optim.lr, c.optim.lr_batch = 0.02, 0
    c.train.batch, c.train.steps, c.train.devices = 24, 30, devices
    c.update_from_flattened_dict(settings)
    return c


def first_batch(run):
    batches = train_batches(run.train, run.auxiliary, batch=24, size=16, seed=0)
    return {k: v for k, v in next(batches).items() if k != "skipped"}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def picked(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def mixed(logits, labels, share):
    """Cross-entropy to share of the class and 1 - share of the uniform distribution."""
    log_p = log_softmax(logits)
    targets = share * np.eye(log_p.shape[1])[labels] + (1 - share) / log_p.shape[1]
    return -(targets * log_p).sum(1).mean()


def expected_loss(method, m, batch, forward):
    """In float64, from what the network says; one term a classifier."""
    labels = batch["label"]
    if method == "logit_norm":
        units = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in forward(batch["image"])]
        return sum(picked(unit / m.temperature, labels) for unit in units)
    if method == "outlier_exposure":
        heads = forward(batch["both"].reshape(-1, *batch["both"].shape[2:]))
        classes = sum(picked(h[::2], labels) for h in heads)
        return classes - m.outlier_weight * sum(log_softmax(h[1::2]).mean() for h in heads)
    if method == "mix_oe":
        classes = sum(picked(h, labels) for h in forward(batch["image"]))
        mixtures = sum(mixed(h, labels, batch["share"]) for h in forward(batch["mixed"]))
        return classes + m.mixture_weight * mixtures
    logits, turns = forward(batch["turned"].reshape(-1, *batch["turned"].shape[2:]))
    rotation = picked(turns, np.tile(np.arange(4), len(labels)))
    return picked(logits[::4], labels) + m.rotation_weight * rotation


@pytest.mark.parametrize("case", CASES)
def test_loss_is_what_the_paper_adds_up(case, tmp_path):
    run = prepare(config_of(tmp_path, case))
    state, key = init_state(run), jax.random.key(0)

    @jax.jit
    def apply(images):
        outputs, _ = run.net.apply(state.params, state.stats, images, train=True, key=key)
        return [h for h in (outputs.logits, outputs.second_logits) if h is not None]

    batch = jax.device_get(jax.jit(run.method.views)(first_batch(run), key))
    value, aux = jax.jit(run.method.updates[0].loss)(state.params, state, batch, key)
    method, heads, _ = CASES[case]

    def forward(images):
        return [np.asarray(h, np.float64) for h in apply(images)]

    expected = expected_loss(method, run.config.method, batch, forward)
    assert value == pytest.approx(expected, rel=1e-4)
    assert ("second_accuracy" in aux.metrics) == (heads == 2)


@pytest.mark.parametrize("case", LEARN)
def test_it_learns(case, tmp_path):
    run = prepare(config_of(tmp_path, case))
    state, step = init_state(run), jitted_step(run)
    host = first_batch(run)
    rows = []
    for _ in range(30):
        state, metrics = step(state, sharding.global_batch(run.mesh, host))
        rows.append(jax.device_get(metrics))
    first, last = rows[0], rows[-1]
    assert last["loss"] < 0.8 * first["loss"]
    heads = CASES[case][1]
    assert min(last[name] for name in ("accuracy", "second_accuracy")[:heads]) > 0.9
    if case == "rotation":
        assert last["rotation_accuracy"] > 0.6
    if case == "outlier_exposure, two":
        floor = heads * np.log(3)  # of the outliers' loss: uniform
        assert last["loss_outliers"] == pytest.approx(floor, abs=0.15 * heads)
        assert last["loss_class"] < 0.3 * heads


@pytest.mark.slow
@pytest.mark.parametrize("case", LEARN)
def test_one_device_is_two(case, tmp_path):
    found = []
    for devices in (1, 2):
        config = config_of(tmp_path, case, devices)
        config.optim.name = "sgd"
        run = prepare(config)
        batch = sharding.global_batch(run.mesh, first_batch(run))
        state, metrics = jitted_step(run)(init_state(run), batch)
        found.append(jax.device_get((state.params, state.stats, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *found)


def numpy_boxed(inside, outside, share, centre):
    """MixOE's cutmix by loops: a box of sqrt(1 - share) of each side, cut off at the edges."""
    found, (rows, columns) = inside.copy(), inside.shape[1:3]
    half = [int(side * np.sqrt(1 - share)) // 2 for side in (rows, columns)]
    for i in range(max(centre[0] - half[0], 0), min(centre[0] + half[0], rows)):
        for j in range(max(centre[1] - half[1], 0), min(centre[1] + half[1], columns)):
            found[:, i, j] = outside[:, i, j]
    return found


@pytest.mark.parametrize("share", [0.0, 0.13, 0.6, 1.0])
def test_cutmix_pastes_the_released_codes_box(share):
    inside, outside = np.zeros((2, 6, 9, 3), np.float32), np.ones((2, 6, 9, 3), np.float32)
    key = jax.random.key(3)
    found, kept = jax.device_get(mix_oe.cutmix(inside, outside, np.float32(share), key))
    boxes = {
        (i, j): numpy_boxed(inside, outside, share, (i, j)) for i in range(6) for j in range(9)
    }
    assert any(np.array_equal(found, box) for box in boxes.values())
    assert kept == pytest.approx(1 - found.mean(), abs=1e-6)


def test_boxes_lie_everywhere():
    """A pixel is in a box of 2 x 2 whose lower right centre is its own or the next one."""
    inside, outside = np.zeros((1, 4, 4, 3), np.float32), np.ones((1, 4, 4, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 1000)
    boxed = jax.vmap(lambda key: mix_oe.cutmix(inside, outside, 0.5, key)[0])(keys)
    likely = np.array([2, 2, 2, 1]) / 4
    often = np.asarray(boxed)[:, 0, :, :, 0].mean(0)
    np.testing.assert_allclose(often, np.outer(likely, likely), atol=0.06)


def test_linear_mixes_every_pixel():
    inside, outside = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    found, share = mix_oe.linear(inside, outside, 0.3, jax.random.key(0))
    np.testing.assert_allclose(found, 0.3 * inside + 0.7 * outside, rtol=1e-6)
    assert share == 0.3


def test_one_share_a_step_from_the_beta_distribution(tmp_path):
    """The mean of Beta(a, a) is 1/2 and its variance 1 / (8 a + 4)."""
    config = config_of(tmp_path, "linear")
    config.method.alpha = 2.0
    run = prepare(config)
    host = first_batch(run)
    keys = jax.random.split(jax.random.key(0), 400)
    shares = jax.jit(lambda keys: jax.lax.map(lambda k: run.method.views(host, k)["share"], keys))
    shares = np.asarray(shares(keys))
    assert shares.shape == (400,) and len(set(shares.tolist())) > 390
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / 20, rel=0.2)


def test_rotation_turns_as_its_score_does(tmp_path):
    run = prepare(config_of(tmp_path, "rotation"))
    turned = jax.jit(run.method.views)(first_batch(run), jax.random.key(0))["turned"]
    for turn in range(4):
        right = jax.vmap(rotate_quarters, (0, None))(turned[:, 0], turn)
        np.testing.assert_array_equal(turned[:, turn], right)
    assert np.abs(turned[:, 1] - turned[:, 3]).max() > 0.1


def without(heads, case):
    """The scores that a network of this kind has no part for."""
    missing = {"l1_discrepancy"} if heads == 1 else set()
    return missing if case == "rotation" else missing | {"rotation"}


@pytest.mark.parametrize("case", ["outlier_exposure", "outlier_exposure, two", "rotation"])
def test_every_score_that_it_has_the_parts_for_can_run(case, tmp_path):
    """Shapes only; of a trunk that is traced fast."""
    config = config_of(tmp_path, case)
    config.model.name, config.model.depth, config.model.width, config.model.heads = "vit", 1, 8, 1
    config.score.scorers = ("all",)
    plan = plans.check(config)
    assert plan.not_scored.keys() == without(CASES[case][1], case)
    assert plan.scorers.keys() | plan.not_scored.keys() == set(scorers.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("case", LEARN)
def test_every_score_runs_on_it(case, tmp_path):
    config = config_of(tmp_path / "data", case)
    config.train.steps, config.train.checkpoint_every = 4, 4
    config.score.scorers, config.score.bootstrap, config.score.augmentations = ("all",), 0, 2
    config.score.neighbour = config.score.nnguide_neighbours = 5
    loop.train(prepare(config), str(tmp_path / "w"))
    found = score.score_run(str(tmp_path / "w"))
    assert found["not_scored"].keys() == without(CASES[case][1], case)
    for by_scorer in found["sets"].values():
        assert set(scorers.NAMES) == by_scorer.keys() | found["not_scored"].keys()
        assert all(0 <= one["auroc"] <= 100 for one in by_scorer.values())
    assert found["in_distribution"]["accuracy"] > 0


MISTAKES = [
    ("logit_norm", "method.temperature", 0.0, r"method.temperature = 0.0: tau is a number above 0"),
    ("logit_norm", "method.temperature", float("nan"), "temperature = nan"),
    ("logit_norm", "head.outputs", 1, r"logit_norm needs classes: .* head.outputs 1"),
    ("outlier_exposure", "data.auxiliary", "", r"data.auxiliary = '': outlier_exposure learns"),
    ("outlier_exposure", "method.outlier_weight", -0.5, r"outlier_weight = -0.5: lambda is 0"),
    ("outlier_exposure", "head.name", "none", r"outlier_exposure needs classes"),
    ("linear", "data.auxiliary", "", r"data.auxiliary = '': mix_oe learns from other images"),
    ("linear", "method.alpha", 0.0, r"method.alpha = 0.0: Beta\(alpha, alpha\) needs a number"),
    ("linear", "method.mix", "mixup", r"method.mix = 'mixup': use 'linear' or 'cutmix'"),
    ("linear", "method.mixture_weight", float("inf"), "mixture_weight = inf: beta is 0 or more"),
    ("rotation", "head.second_outputs", 3, r"head.second_outputs = 3: rotation tells four turns"),
    ("rotation", "head.outputs", 4, r"head.outputs = 4: .* use 5, of which one has no images"),
    ("rotation", "method.rotation_weight", -1.0, "rotation_weight = -1.0: lambda is 0 or more"),
    ("rotation", "head.name", "dino", "head.name 'dino': rotation needs linear or projection"),
]


@pytest.mark.parametrize(("case", "key", "value", "says"), MISTAKES)
def test_mistakes_cost_no_compute(case, key, value, says, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "place", lambda *a: pytest.fail("computed"))
    config = config_of(tmp_path, case)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=says) as error:
        prepare(config)
    assert "\n" not in str(error.value)
