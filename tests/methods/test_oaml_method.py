"""OAML's student: Eq. 2 as NumPy has it, which term moves what, what is refused."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oaml_run
import pytest

from ood_jax.losses.mutual_information import club
from ood_jax.methods import oaml
from ood_jax.models import init_params
from ood_jax.train import init_state, jitted_step, prepare
from ood_jax.views.draws import draw_numbers

BATCH = 8
DISTILLED = ("loss_logit", "loss_feature")


def config_of(folder: Path, **method):
    folder.mkdir(parents=True, exist_ok=True)
    c = oaml_run.student(folder)
    c.data.embeddings = oaml_run.write_embeddings(folder / "embeddings.npz")
    c.data.near = oaml_run.write_outliers(folder / "near_outliers.npz", "near", 5)
    c.data.far = oaml_run.write_outliers(folder / "far_outliers.npz", "far", 7)
    c.train.devices, c.optim.min_lr = 1, c.optim.lr
    for key, value in method.items():
        c.method[key] = value
    return c


def host_of(run):
    every = np.arange(BATCH)
    vectors = run.vectors
    return {
        "image": run.train.images(every),
        "index": every.astype(np.int32),
        "label": run.train.labels[every],
        "embedding": vectors.embeddings[every],
        "teacher_logits": vectors.teacher_logits[every],
        "near": vectors.near[every],
        "far": vectors.far[every],
    }


def losses(run, host, params=None):
    """(value, aux) of the loss at the first state, and its gradients."""
    state = jax.device_get(init_state(run))
    params = state.params if params is None else params
    host = host | {"index": draw_numbers(host["index"])}
    batch = run.method.views(host, jax.random.key(0))
    value_and_grad = jax.value_and_grad(run.method.updates[0].loss, has_aux=True)
    (value, aux), grads = value_and_grad(params, state, batch, jax.random.key(1))
    return float(value), jax.device_get(aux), jax.device_get(grads), batch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepare(config_of(tmp_path_factory.mktemp("oaml")))


@pytest.fixture(scope="module")
def host(run):
    return host_of(run)


@pytest.fixture(scope="module")
def found(run, host):
    return losses(run, host)


def softmax(x):
    e = np.exp(np.float64(x) - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(first, second):
    p, q = softmax(first), softmax(second)
    return (p * np.log(p / q)).sum(-1).mean()


def mlp(params, name, x):
    layers = [params[key] for key in sorted(params) if key.startswith(name)]
    for i, layer in enumerate(layers):
        x = (np.maximum(x, 0) if i else x) @ layer["kernel"] + layer["bias"]
    return np.float64(x)


def batch_norm(params, x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * params["scale"] + params["bias"]


def bound(params, x, y):
    """Eq. 1 with a loop over all pairs."""
    mean, log_variance = mlp(params, "mean", x), np.tanh(mlp(params, "log_variance", x))

    def log_q(i, j):
        return -((y[j] - mean[i]) ** 2 / np.exp(log_variance[i])).sum() / 2

    n = range(len(x))
    return np.mean([log_q(i, i) - np.mean([log_q(i, j) for j in n]) for i in n])


def test_the_loss_is_eq_2(run, host, found):
    value, aux, _, batch = found
    state = jax.device_get(init_state(run))
    own = {name: held for name, held in state.stats.items() if name != oaml.MAP}
    outputs, _ = run.net.apply(state.params, own, batch["image"], train=True, key=jax.random.key(1))
    logits, features = np.float64(outputs.logits), np.float64(outputs.features)
    right = softmax(logits)[np.arange(BATCH), host["label"]]
    mapping = state.params[oaml.MAP]
    x = batch_norm(mapping["norm_0"], np.float64(host["embedding"]))
    x = np.maximum(x @ mapping["mlp_0"]["kernel"] + mapping["mlp_0"]["bias"], 0)
    expected = {
        "loss_class": -np.log(right).mean(),
        "loss_logit": kl(logits, host["teacher_logits"]),
        "loss_feature": kl(features, batch_norm(mapping["norm_1"], x)),
        "loss_near": bound(state.params["near_q"], features, np.float64(host["near"])),
        "loss_far": bound(state.params["far_q"], features, np.float64(host["far"])),
    }
    for name, number in expected.items():
        assert aux.metrics[name] == pytest.approx(number, rel=2e-4, abs=2e-5), name
    weights = {"class": 1.0, "logit": 4.0, "feature": 8.0, "near": 0.1, "far": 0.2}
    eq_2 = sum(weight * expected[f"loss_{name}"] for name, weight in weights.items())
    assert aux.metrics["loss"] == pytest.approx(eq_2, rel=1e-4)
    assert value == pytest.approx(eq_2 + aux.metrics["loss_q"], rel=1e-4)


def moved(grads):
    """Which parts of the parameters have a gradient."""
    return {
        name
        for name, part in grads.items()
        if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(part))
    }


def test_likelihood_moves_q_and_the_bound_the_student(run, host, found):
    grads = found[2]
    assert moved(grads) == {"trunk", "head", oaml.MAP, "near_q", "far_q"}

    def student(weights):
        config = run.config.copy_and_resolve_references()
        with config.unlocked():
            for key, weight in weights.items():
                config.method[key] = weight
        return losses(prepare(config), host)[2]

    less = student({"near_weight": 1e-9, "far_weight": 1e-9})
    equal = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-7), grads, less)
    assert all(jax.tree.leaves([equal["near_q"], equal["far_q"], equal[oaml.MAP]]))
    assert not all(jax.tree.leaves(equal["trunk"]))


def test_released_code_teaches_q_by_the_bound(run, host, tmp_path):
    config = config_of(tmp_path)
    with config.unlocked():
        config.method.update(
            {k.removeprefix("method."): v for k, v in oaml.PRESETS["official"].items()}
        )
    official = prepare(config)
    value, aux, grads, batch = losses(official, host)
    names = {"class": 1.0, "logit": 4.0, "feature": 8.0, "near": 0.1, "far": 0.2}
    eq_2 = sum(weight * aux.metrics[f"loss_{name}"] for name, weight in names.items())
    assert "loss_q" not in aux.metrics and value == pytest.approx(eq_2, rel=1e-5)
    assert moved(grads) == {"trunk", "head", oaml.MAP, "near_q", "far_q"}
    state = jax.device_get(init_state(official))
    own = {name: held for name, held in state.stats.items() if name != oaml.MAP}
    features = np.float64(
        official.net.apply(state.params, own, batch["image"], train=True, key=jax.random.key(1))[
            0
        ].features
    )
    near = bound(state.params["near_q"], np.float64(host["near"]), features)
    assert aux.metrics["loss_near"] == pytest.approx(near, rel=1e-3, abs=1e-5)


def test_drawn_at_random_outliers_push_nowhere_on_average():
    """The bound's mean over all pairings of a batch is 0 whatever the network: METHODS' trap."""
    rng = np.random.default_rng(0)
    mean, log_variance, y = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(3))

    def over_pairings(mean):
        pairings = np.array(list(itertools.permutations(range(4))))
        each = jax.vmap(lambda order: club(mean, log_variance, jnp.take(y, order, 0)).mean())(
            pairings
        )
        return each.mean()

    value, gradient = jax.value_and_grad(over_pairings)(jnp.asarray(mean))
    assert abs(value) < 1e-6
    assert np.abs(gradient).max() < 1e-6
    assert np.abs(jax.grad(lambda m: club(m, log_variance, y).mean())(mean)).max() > 0.01


def test_the_student_does_not_begin_as_a_teacher_of_its_seed_did(run):
    teacher, _ = init_params(run.net, run.config)
    own = init_state(run).params
    same = jax.tree.map(np.array_equal, own["trunk"], teacher["trunk"])
    kernels = jax.tree.map(lambda leaf: leaf.ndim > 1, teacher["trunk"])
    both = zip(jax.tree.leaves(same), jax.tree.leaves(kernels), strict=True)
    assert not any(equal for equal, kernel in both if kernel)


def test_a_step_teaches_and_keeps_the_map_s_statistics(run, host):
    state, step = init_state(run), jitted_step(run)
    first = jax.device_get(state)
    rows = []
    for _ in range(30):
        state, metrics = step(state, host)
        rows.append(jax.device_get(metrics))
    last = jax.device_get(state)
    assert rows[0]["teacher_accuracy"] == 1.0
    for name in ("loss_q", *DISTILLED):
        assert rows[-1][name] < rows[0][name]
    before, after = first.stats[oaml.MAP]["norm_0"], last.stats[oaml.MAP]["norm_0"]
    assert not np.array_equal(before["mean"], after["mean"])
    assert jax.tree.structure(first) == jax.tree.structure(last)


def test_a_weight_of_0_leaves_its_part_out(run, host, tmp_path):
    none = {"logit_weight": 0.0, "feature_weight": 0.0, "near_weight": 0.0, "far_weight": 0.0}
    config = config_of(tmp_path, **none)
    with pytest.raises(ValueError, match=r"data.embeddings = .* does not read: set it to ''"):
        prepare(config)
    with config.unlocked():
        config.data.embeddings = config.data.near = config.data.far = ""
    alone = prepare(config)
    assert set(init_state(alone).params) == {"trunk", "head"} and alone.method.separable
    plain = {key: host[key] for key in ("image", "index", "label")}
    value, aux, *_ = losses(alone, plain)
    assert value == aux.metrics["loss_class"] and not set(aux.metrics) & set(DISTILLED)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("near_weight", -1.0, "method.near_weight = -1.0: use 0"),
        ("far_weight", float("nan"), "method.far_weight = nan"),
        ("distillation", "both", "method.distillation 'both': use student_teacher or"),
        ("mutual_information", "", "method.mutual_information '': use outlier_given_student or"),
        ("hidden", 1, "method.hidden = 1"),
    ],
)
def test_mistakes_are_named(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        prepare(config_of(tmp_path, **{key: value}))


def test_what_is_missing_or_of_another_kind_is_named(tmp_path):
    config = config_of(tmp_path)
    near, embeddings = config.data.near, config.data.embeddings

    def refused(message, **data):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            for key, value in data.items():
                changed.data[key] = value
        with pytest.raises(ValueError, match=message):
            prepare(changed)

    refused("data.near = '': oaml reads it; name stage:NAME", near="")
    refused("data.embeddings = '': oaml reads it", embeddings="")
    nowhere = str(tmp_path / "nowhere")
    refused("data.embeddings = .*nowhere': there is no such workdir or file", embeddings=nowhere)
    refused("data.far = .* has near outliers: give a file of far ones", far=near)
    refused("data.near = .* no such file", near=str(tmp_path / "none.npz"))
    wide = oaml_run.write_outliers(tmp_path / "wide.npz", "near", 6)
    refused("data.near = .* width 6, where 5 is needed", near=wide)
    refused(
        "data.far = 'stage:generate': no such earlier stage; none is before it",
        far="stage:generate",
    )
    np.savez(tmp_path / "bare.npz", features=np.load(embeddings)["features"])
    refused("has no logits, which oaml learns from", embeddings=str(tmp_path / "bare.npz"))
    four = np.zeros((24, 4), np.float32)
    other = oaml_run.write_embeddings(tmp_path / "other.npz", logits=four)
    refused("has logits of 4 classes, head.outputs = 3", embeddings=other)
    short = oaml_run.write_embeddings(tmp_path / "short.npz", rows=20)
    refused("has 20 rows of features, .* 24 images", embeddings=short)


def test_a_teacher_in_another_order_is_warned_of(run):
    [text] = run.method.warn({"teacher_accuracy": 0.34})
    assert "no better than chance (right for 34.0 %" in text
    assert run.method.warn({"teacher_accuracy": 0.6}) == run.method.warn({}) == []
