"""SimCLR, joint training, SupCLR and CSI: what each adds up, over one device as over two."""

import jax
import numpy as np
import pytest
from small_run import small_config

from ood_jax import sharding
from ood_jax.data.pipeline import train_batches
from ood_jax.losses.contrastive import supcon
from ood_jax.methods import _pairs
from ood_jax.train import init_state, jitted_step, prepare

METHODS = ("simclr", "simclr_joint", "supclr", "csi")
pytestmark = pytest.mark.usefixtures("compiled_once")


def config_of(method, folder):
    c = small_config(folder, method)
    c.data.auxiliary = ""
    c.model.name, c.model.width, c.model.depth, c.model.stride = "resnet", 4, 10, 2
    c.head.name, c.head.hidden, c.head.bottleneck = "projection", 0, 8
    c.head.outputs = 3 if method in ("simclr_joint", "supclr") else 0
    c.head.second_outputs = 4 if method == "csi" else 0
    c.optim.name, c.optim.lr, c.optim.lr_batch = "sgd", 0.1, 0
    c.optim.freeze_epochs = c.optim.warmup_epochs = 0.0
    c.train.devices = 1
    return c


def first_batch(run):
    host = next(train_batches(run.train, batch=run.config.train.batch, size=16, seed=0))
    return {k: v for k, v in host.items() if k != "skipped"}


def stepped(config):
    """(run, state before, state after, metrics) of the first step."""
    run = prepare(config)
    before = jax.device_get(init_state(run))
    batch = sharding.global_batch(run.mesh, first_batch(run))
    after, metrics = jitted_step(run)(init_state(run), batch)
    return run, before, jax.device_get(after), jax.device_get(metrics)


def outputs_of(run, state):
    """What the network says of the first step's views, and the batch: recomputed by hand."""
    view_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 0))
    batch = run.method.views(first_batch(run), view_key)
    pair = batch["pair"]
    flat = pair.reshape(-1, *pair.shape[2:])
    outputs, _ = run.net.apply(state.params, state.stats, flat, train=True, key=view_key)
    return jax.device_get(outputs), batch


def numpy_nt_xent(z, temperature):
    """Mean form, rows 2i and 2i + 1 are views of one image, float64."""
    z = np.asarray(z, np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s = z @ z.T / temperature
    np.fill_diagonal(s, -np.inf)
    other = np.arange(len(z)) ^ 1
    return np.mean(np.log(np.exp(s).sum(1)) - s[np.arange(len(z)), other])


def numpy_cross_entropy(logits, labels, smoothing=0.0):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    classes = logits.shape[1]
    q = np.full(logits.shape, smoothing / classes)
    q[np.arange(len(q)), labels] += 1 - smoothing
    return -np.mean((q * log_p).sum(1))


def expected_loss(method, run, outputs, batch):
    m = run.config.method
    contrast = numpy_nt_xent(outputs.projections, m.temperature)
    if method == "simclr":
        return contrast
    if method == "csi":
        count = len(outputs.second_logits) // 2
        turned = np.repeat(np.arange(count) % 4, 2)  # shifts of an image side by side, two views
        return contrast + m.shift_weight * numpy_cross_entropy(outputs.second_logits, turned)
    labels = np.repeat(np.asarray(batch["label"]), 2)
    ce = numpy_cross_entropy(outputs.logits, labels, m.get("label_smoothing", 0.0))
    if method == "simclr_joint":
        return 2 * contrast + m.class_weight * ce
    z = np.asarray(outputs.projections, np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s = z @ z.T / m.temperature
    np.fill_diagonal(s, -np.inf)
    log_p = s - np.log(np.exp(s).sum(1, keepdims=True))
    positive = (labels[:, None] == labels) & ~np.eye(len(z), dtype=bool)
    return -np.mean([log_p[i][positive[i]].mean() for i in range(len(z))]) + ce


@pytest.mark.parametrize("method", METHODS)
def test_loss_is_what_the_paper_adds_up(method, tmp_path):
    run, before, after, metrics = stepped(config_of(method, tmp_path))
    outputs, batch = outputs_of(run, before)
    assert metrics["loss"] == pytest.approx(expected_loss(method, run, outputs, batch), rel=1e-4)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.params, after.params)
    assert max(jax.tree.leaves(moved["trunk"])) > 0
    assert metrics["uniformity"] <= 0 <= metrics["alignment"]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=[pytest.mark.slow] * (method != "simclr_joint"))
        for method in METHODS
    ],
)
def test_one_device_is_two_and_blocks_change_nothing(method, tmp_path):
    config = config_of(method, tmp_path)
    _, _, one, metrics = stepped(config)
    with config.unlocked():
        config.train.devices, config.method.block = 2, 3
    _, _, two, blocked = stepped(config)
    assert blocked["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, two.params)


def test_without_classes_no_label_is_read(tmp_path):
    config = config_of("simclr_joint", tmp_path)
    with config.unlocked():
        config.method.class_weight, config.head.outputs = 0.0, 0
        config.data.train = config.data.train.replace("train", "near")  # has no labels
    run, before, _, metrics = stepped(config)
    outputs, _ = outputs_of(run, before)
    assert metrics["loss"] == pytest.approx(2 * numpy_nt_xent(outputs.projections, 1.0), rel=1e-4)
    assert "loss_class" not in metrics and run.method.classes == 0


def test_the_probe_moves_no_feature(tmp_path):
    run = prepare(config_of("supclr", tmp_path))
    state = jax.device_get(init_state(run))
    _, batch = outputs_of(run, state)

    def contrast(params):
        flat = batch["pair"].reshape(-1, *batch["pair"].shape[2:])
        outputs, _ = run.net.apply(params, state.stats, flat, train=True, key=jax.random.key(0))
        z = outputs.projections.reshape(-1, 2, outputs.projections.shape[-1])
        return supcon(z, batch["label"], temperature=run.config.method.temperature).mean()

    def whole(params):
        return run.method.updates[0].loss(params, state, batch, jax.random.key(0))[0]

    alone, together = (jax.jit(jax.grad(f))(state.params) for f in (contrast, whole))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone["trunk"], together["trunk"]
    )
    kernel = together["head"]["linear"]["kernel"]
    assert not np.any(alone["head"]["linear"]["kernel"]) and np.any(kernel)


def test_csi_mirrors_then_turns_by_every_quarter(tmp_path):
    """The other way round a mirrored quarter turn would pass for a turn the other way."""
    config = config_of("csi", tmp_path)
    with config.unlocked():
        config.method.crop_scale, config.method.colour, config.method.grey = (1.0, 1.0), 0.0, 0.0
        config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    run = prepare(config)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    host = {"image": images, "index": np.arange(40, dtype=np.int32)}
    pair = np.asarray(jax.jit(run.method.views)(host, jax.random.key(0))["pair"])
    pair = np.round(255 * pair).reshape(40, 4, 2, 16, 16, 3)
    mirrored = np.zeros((40, 4, 2), bool)
    for i, k, v in np.ndindex(40, 4, 2):
        plain, mirror = (
            np.abs(pair[i, k, v] - np.rot90(image, k)).max() < 2
            for image in (images[i], images[i, :, ::-1])
        )
        assert plain != mirror
        mirrored[i, k, v] = mirror
    assert 0.3 < mirrored.mean() < 0.7 and np.any(mirrored[..., 0] != mirrored[..., 1])


MISTAKES = [
    ("simclr", {"train.batch": 1}, r"train.batch = 1: simclr contrasts each image"),
    ("simclr", {"method.temperature": 0.0}, r"method.temperature = 0.0: use a number above 0"),
    ("simclr", {"head.name": "none"}, r"head.name = 'none'; use projection"),
    ("simclr", {"train.accumulate": 2}, r"the loss of simclr needs the whole batch at once"),
    ("simclr", {"method.block": 0}, r"method.block = 0: use 1 or more"),
    ("simclr_joint", {"method.class_weight": -1.0}, r"class_weight = -1.0: use 0"),
    ("simclr_joint", {"head.outputs": 0}, r"needs classes: head.outputs = 0"),
    ("simclr_joint", {"head.outputs": 2}, r"labels up to 2, head.outputs = 2"),
    ("simclr_joint", {"method.label_smoothing": 1.0}, r"label_smoothing = 1.0: use a share"),
    ("supclr", {"method.form": "sup"}, r"method.form = 'sup': use supcon or csi"),
    ("supclr", {"head.outputs": 1}, r"supclr learns from classes: head.outputs = 1"),
    ("supclr", {"head.outputs": 5, "data.balanced": True}, r"no image of class 3, 4"),
    ("csi", {"method.shifts": 5}, r"method.shifts = 5: use 1"),
    ("csi", {"method.shifts": 1}, r"head.second_outputs = 4: .* use 0"),
    ("csi", {"method.shift_weight": -1.0}, r"shift_weight = -1.0: use 0"),
]


@pytest.mark.parametrize(("method", "settings", "says"), MISTAKES)
def test_mistakes_cost_no_compute(method, settings, says, tmp_path):
    config = config_of(method, tmp_path)
    for key, value in settings.items():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=says):
        prepare(config)


def test_one_shift_is_simclr_without_a_classifier(tmp_path):
    config = config_of("csi", tmp_path)
    with config.unlocked():
        config.method.shifts, config.head.second_outputs = 1, 0
    run, before, _, metrics = stepped(config)
    outputs, batch = outputs_of(run, before)
    assert batch["pair"].shape == (8, 2, 16, 16, 3)
    assert metrics["loss"] == pytest.approx(expected_loss("simclr", run, outputs, batch), rel=1e-4)


def test_a_collapsed_run_is_told():
    assert not _pairs.warnings({"step": 500, "uniformity": -1.2})
    assert "collapsed" in _pairs.warnings({"step": 500, "uniformity": -1e-4})[0]
