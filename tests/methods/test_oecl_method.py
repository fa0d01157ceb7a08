"""OECL: what it adds up, its views, warm-up and warning, over one device as over two."""

import jax
import numpy as np
import pytest
from small_run import small_config

from ood_jax import loop, sharding
from ood_jax.config import base
from ood_jax.data.pipeline import train_batches
from ood_jax.methods import oecl
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")

CASES = {  # (settings, in-distribution views of an image, outlier views)
    "auxiliary": ({}, 2, 2),
    "none": (oecl.WITHOUT_OUTLIERS, 2, 0),
    "align_uniform": ({"method.base": "align_uniform", "method.uniformity_weight": 0.3}, 2, 2),
    "supclr": ({"method.base": "supclr", "head.outputs": 3}, 2, 2),
    "csi": ({"method.base": "csi", "method.shifts": (0, 1, 2), "head.second_outputs": 3}, 6, 2),
    "self": ({"method.outliers": "self", "head.second_outputs": 2}, 4, 4),
    "self, official": (
        {
            "method.outliers": "self",
            "method.base": "nt_xent",
            "method.turned_views": "shared",
            "method.outlier_shifts": (2,),
        },
        4,
        2,
    ),
}


def config_of(folder, settings):
    c = small_config(folder, "oecl")
    c.model.name, c.model.width, c.model.depth, c.model.stride = "resnet", 4, 10, 2
    c.head.name, c.head.hidden, c.head.bottleneck, c.head.outputs = "projection", 0, 8, 0
    c.optim.name, c.optim.warmup_epochs = "sgd", 0.0
    c.method.norm_weight, c.method.norm_warmup_epochs = 0.7, 0.0
    c.train.devices = 1
    c.update_from_flattened_dict(settings)
    if c.method.outliers != "auxiliary":
        c.data.auxiliary = ""
    return c


def first_batch(run):
    config = run.config
    batches = train_batches(
        run.train, run.auxiliary, batch=config.train.batch, size=config.data.size, seed=config.seed
    )
    host = next(batches)
    return {k: v for k, v in host.items() if k != "skipped"}


def views_of(run):
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 0))
    return jax.jit(run.method.views)(first_batch(run), key)


def numpy_log_shares(z, temperature):
    """Rows are views, float64: log of each other row's share; -inf on the diagonal."""
    z = np.asarray(z, np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s = z @ z.T / temperature
    np.fill_diagonal(s, -np.inf)
    return s - np.log(np.exp(s).sum(1, keepdims=True))


def numpy_cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


def numpy_alignment(z):
    """Eq. 12; rows 2 i and 2 i + 1 are two views of image i."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return ((z[::2] - z[1::2]) ** 2).sum(1).mean()


def numpy_uniformity(z):
    """Eq. 13 over different images, of each view's batch."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = ~np.eye(len(z) // 2, dtype=bool)
    return np.mean(
        [np.log(np.exp(-((v[:, None] - v) ** 2).sum(-1))[pairs].mean()) for v in (z[::2], z[1::2])]
    )


def expected_loss(case, run, outputs, labels):
    """The outputs of all views of an image lie beside one another: image, turn, view."""
    m, (_, inside, outside) = run.config.method, CASES[case]
    f = np.asarray(outputs.projections, np.float64).reshape(len(labels), inside + outside, -1)
    penalty = np.sqrt((f[:, inside:] ** 2).sum(-1)).mean() if outside else 0.0
    z = f[:, :inside].reshape(-1, f.shape[-1])
    log_shares = numpy_log_shares(z, m.temperature)
    each = np.arange(len(z))
    if case == "align_uniform":
        return 0.3 * numpy_uniformity(z) + 0.7 * numpy_alignment(z) + 0.7 * penalty
    if case == "supclr":
        classes = np.repeat(labels, 2)
        same = (classes[:, None] == classes) & (each[:, None] != each)
        contrast = -np.mean([log_shares[i][same[i]].mean() for i in each])
        logits = np.asarray(outputs.logits).reshape(*f.shape[:2], -1)[:, :2]
        contrast += numpy_cross_entropy(logits.reshape(len(z), -1), classes)
    else:
        contrast = -log_shares[each, each ^ 1].mean()
    if case in ("csi", "self"):
        logits = np.asarray(outputs.second_logits).reshape(*f.shape[:2], -1)[:, :inside]
        turns = np.tile(np.repeat(np.arange(inside // 2), 2), len(labels))
        contrast += numpy_cross_entropy(logits.reshape(len(z), -1), turns)
    return contrast + m.norm_weight * penalty


@pytest.mark.parametrize("case", CASES)
def test_loss_is_what_the_paper_adds_up(case, tmp_path):
    settings, inside, outside = CASES[case]
    run = prepare(config_of(tmp_path, settings))
    state, loss = init_state(run), run.method.updates[0].loss
    rng = np.random.default_rng(0)
    views = rng.normal(size=(8, inside + outside, 16, 16, 3)).astype(np.float32)
    labels = np.arange(8) % 3

    @jax.jit
    def both(views):
        key = jax.random.key(0)
        value, aux = loss(state.params, state, {"views": views, "label": labels}, key)
        flat = views.reshape(-1, *views.shape[2:])
        outputs, _ = run.net.apply(state.params, state.stats, flat, train=True, key=key)
        return value, aux.metrics, outputs

    value, metrics, outputs = jax.device_get(both(views))
    assert value == pytest.approx(expected_loss(case, run, outputs, labels), rel=1e-4)
    norms = np.linalg.norm(outputs.projections, axis=-1).reshape(8, -1)
    assert metrics["projection_norm"] == pytest.approx(norms[:, :inside].mean(), rel=1e-4)
    if case == "none":
        assert not {"outlier_norm", "norm_weight"} & set(metrics)
        return
    assert metrics["outlier_norm"] == pytest.approx(norms[:, inside:].mean(), rel=1e-4)
    assert metrics["outlier_norm_before"] == metrics["outlier_norm"]
    larger = norms[:, :inside].ravel()[:, None] > norms[:, inside:].ravel()
    assert metrics["norm_auroc"] == pytest.approx(larger.mean(), abs=1e-5)


def random_views():
    return np.random.default_rng(0).normal(size=(8, 4, 16, 16, 3)).astype(np.float32)


def stepped(run, steps_and_views):
    """((loss, aux), gradients) of each (step, views) at the first parameters."""
    state = init_state(run)

    @jax.jit
    def of(params, state, batch):
        loss = run.method.updates[0].loss
        return jax.value_and_grad(loss, has_aux=True)(params, state, batch, jax.random.key(0))

    found = []
    for step, views in steps_and_views:
        batch = sharding.global_batch(run.mesh, {"views": views, "label": np.zeros(8, np.int32)})
        found.append(of(state.params, state.replace(step=step), batch))
    return jax.device_get(found)


WARMUP = {"method.norm_warmup_epochs": 1.0}  # of 3 steps


@pytest.mark.slow
def test_one_device_is_two(tmp_path):
    config = config_of(tmp_path, WARMUP)
    [((one, aux), grads)] = stepped(prepare(config), [(3, random_views())])
    config.train.devices, config.method.block = 2, 3
    [((two, aux_two), grads_two)] = stepped(prepare(config), [(3, random_views())])
    assert one == pytest.approx(two, rel=1e-5)
    for name, value in aux.metrics.items():
        assert aux_two.metrics[name] == pytest.approx(value, rel=1e-4), name
    scale = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), grads, grads_two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), aux.stats, aux_two.stats)


def test_outliers_share_the_forward_while_alpha_is_0(tmp_path):
    """In the warm-up they reach BatchNorm but have no gradient of their own."""
    views = random_views()
    others = np.concatenate([views[:, :2], 0.5 - 2 * views[:, 2:]], axis=1)
    (early, moved, late) = stepped(
        prepare(config_of(tmp_path, WARMUP)), [(2, views), (2, others), (3, views)]
    )
    (value, aux), grads = early
    (penalised, after), late_grads = late
    assert value == aux.metrics["loss_contrastive"] != moved[0][1].metrics["loss_contrastive"]
    assert penalised == pytest.approx(value + 0.7 * after.metrics["outlier_norm"], rel=1e-6)
    assert (aux.metrics["norm_weight"], after.metrics["norm_weight"]) == (0, np.float32(0.7))
    assert aux.memory["outlier_norm_before"] == aux.metrics["outlier_norm"]
    assert after.memory["outlier_norm_before"] == 0  # as the state has it, no longer the batch's
    jax.tree.map(np.testing.assert_array_equal, aux.stats, after.stats)
    leaves = zip(jax.tree.leaves(grads), jax.tree.leaves(late_grads), strict=True)
    assert any(not np.allclose(a, b) for a, b in leaves)


def test_turned_views(tmp_path):
    """Turned after the flip, with draws of their own or the same, and outliers always their own."""
    plain = {"method.crop_scale": (1.0, 1.0), "method.colour": 0.0, "method.grey": 0.0}
    run = prepare(config_of(tmp_path, CASES["self"][0] | plain))
    views = np.asarray(views_of(run)["views"])
    images = first_batch(run)["image"] / 255.0
    images = (images - run.config.data.mean) / np.asarray(run.config.data.std)
    seen = set()
    for image, turned in zip(images, views.reshape(8, 4, 2, *images.shape[1:]), strict=True):
        for turn in range(4):
            for view in turned[turn]:
                straight = np.rot90(view, -turn)
                mirrored = np.abs(straight - image).max() > 1e-3
                expected = image[:, ::-1] if mirrored else image
                np.testing.assert_allclose(straight, expected, atol=1e-4)
                seen.add((turn, bool(mirrored)))
    assert len(seen) == 8
    shared = {"method.turned_views": "shared"}
    run = prepare(config_of(tmp_path, CASES["self"][0] | shared))
    views = np.asarray(views_of(run)["views"])
    np.testing.assert_array_equal(views[:, 2:4], np.rot90(views[:, :2], axes=(2, 3)))
    np.testing.assert_array_equal(views[:, 6:], np.rot90(views[:, 4:6], axes=(2, 3)))
    assert not np.allclose(views[:, :2], np.rot90(views[:, 4:6], 2, axes=(2, 3)))


def waves(folder, name, seed, noise=False):
    """48 images: coloured stripes, or noise."""
    rng = np.random.default_rng(seed)
    phase, colour = rng.uniform(0, 6, (48, 1, 1, 1)), rng.uniform(0.2, 1, (48, 1, 1, 3))
    place = np.arange(16)[:, None, None] + np.zeros((16, 1))
    images = 127 * colour * (1 + np.sin(place + phase))
    if noise:
        images = rng.integers(0, 256, images.shape)
    np.savez(folder / f"{name}.npz", images=images.astype(np.uint8))
    return f"npz:{folder / name}.npz"


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [True, False])
def test_a_run_is_told_when_outliers_are_its_training_set(overlap, tmp_path, capsys):
    c = config_of(tmp_path / "data", {"method.norm_weight": 1.0, "optim.lr": 0.1})
    c.data.train = waves(tmp_path, "waves", 0)
    c.data.auxiliary = c.data.train if overlap else waves(tmp_path, "noise", 1, noise=True)
    c.train.batch, c.train.epochs, c.method.norm_warmup_epochs = 16, 20.0, 3.0
    c.train.log_every, c.train.checkpoint_every = 10, 1000
    loop.train(prepare(c), str(tmp_path / "w"))
    told = capsys.readouterr().err
    assert ("have fallen together" in told) == overlap, told


def test_warning_names_numbers_and_waits():
    healthy = {
        "step": 500,
        "uniformity": -1.0,
        "projection_norm": 0.4,
        "outlier_norm": 0.4,
        "outlier_norm_before": 5.0,
        "norm_auroc": 0.51,
    }
    assert not oecl._warn(healthy, 500)
    found = oecl._warn(healthy, 499)
    assert len(found) == 1 and "to 0.4 and 0.4, from 5 before" in found[0]
    assert "use others" in found[0] and "train for longer" in found[0] and "\n" not in found[0]
    for other in ({"norm_auroc": 0.6}, {"outlier_norm": 3.0}):
        assert not oecl._warn(healthy | other, 0)


def test_presets():
    paper, official = (base("oecl", preset) for preset in ("paper", "official"))
    assert (paper.optim.name, paper.optim.weight_decay) == ("lars", 1e-6)
    assert (official.optim.name, official.optim.weight_decay_end) == ("sgd", 5e-4)
    for c in (paper, official):
        assert (c.optim.lr, c.optim.warmup_epochs, c.optim.momentum) == (0.1, 0.0, 0.9)
    assert (official.method.base, official.method.turned_views) == ("nt_xent", "shared")


MISTAKES = [
    ({"method.norm_weight": -1.0}, r"norm_weight = -1.0: alpha is 0 .* or more"),
    ({"method.norm_weight": float("nan")}, r"norm_weight = nan"),
    ({"method.norm_weight": float("inf")}, r"norm_weight = inf"),
    ({"method.norm_warmup_epochs": 2.0}, r"norm_warmup_epochs = 2 of train.epochs = 2: use 0"),
    ({"data.auxiliary": ""}, r"'auxiliary': name a source of outliers in data.auxiliary"),
    ({"method.outliers": "others"}, r"outliers = 'others': use 'auxiliary' or 'self' or 'none'"),
    (
        {"method.base": "align_uniform", "method.uniformity_weight": 1.5},
        r"uniformity_weight = 1.5: use 0 \(alignment alone\) to 1",
    ),
    ({"method.base": "simclr"}, r"base = 'simclr': use '' or 'nt_xent' or 'csi' or 'supclr'"),
    ({"method.turned_views": ""}, r"turned_views = '': use 'own' or 'shared'"),
    ({"head.name": "none"}, r"head.name = 'none'; use projection"),
    ({"train.accumulate": 2}, r"the loss of oecl needs the whole batch at once"),
    ({"method.base": "supclr"}, r"head.outputs = 0: supclr needs the classes, 2 or more"),
    ({"method.base": "supclr", "head.outputs": 2}, r"labels up to 2, head.outputs = 2"),
    ({"method.outliers": "self"}, r"head.second_outputs = 0: with method.base csi on 2 shifts"),
    ({"head.second_outputs": 2}, r"head.second_outputs = 2: with method.base nt_xent .* use 0"),
    ({"method.base": "csi", "method.shifts": (0,)}, r"'csi' tells shifts apart: use 2 or more"),
    ({"method.base": "csi", "method.shifts": (0, 4)}, r"shifts = \(0, 4\).* quarter turns"),
    ({"method.outliers": "self", "method.outlier_shifts": (1, 2)}, r"none twice"),
    ({"method.outliers": "self", "method.outlier_shifts": ()}, r"one or more of each"),
    (
        {"method.outliers": "self", "method.base": "supclr", "head.outputs": 3},
        r"a turned image has no class; use csi or nt_xent",
    ),
]


@pytest.mark.parametrize(("settings", "says"), MISTAKES)
def test_mistakes_cost_no_compute(settings, says, tmp_path):
    with pytest.raises(ValueError, match=says) as error:
        prepare(config_of(tmp_path, settings))
    assert "\n" not in str(error.value)
