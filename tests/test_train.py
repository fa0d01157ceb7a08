"""The train step: devices, accumulation, teacher, NaN, collapse, and the shapes of every recipe."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import assert_close, tiny_config, write_images

from ood_jax import loop, optim, sharding
from ood_jax.config import stages_of
from ood_jax.data.pipeline import train_batches
from ood_jax.logs import read_metrics
from ood_jax.recipe import load
from ood_jax.step import make_step, trained
from ood_jax.train import init_state, jitted_step, prepare, resolved
from ood_jax.types import Aux, Method, Update

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = Path(__file__).resolve().parent.parent


def _steps(config, count):
    """`count` steps of a run; returns the last state and the metrics of each step."""
    run = prepare(config)
    state = init_state(run)
    step = jitted_step(run)
    batches = train_batches(
        run.train,
        run.auxiliary,
        batch=config.train.batch,
        size=config.data.size,
        seed=config.seed,
    )
    metrics = []
    for _ in range(count):
        host = next(batches)
        host.pop("skipped")
        state, values = step(state, sharding.global_batch(run.mesh, host))
        metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


@pytest.mark.parametrize("trunk", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
def test_one_device_is_two(tmp_path, trunk):
    config = tiny_config(tmp_path)
    if trunk == "resnet":  # its BatchNorm must see the global batch
        config.model.name, config.model.depth, config.model.width = trunk, 10, 8
    states = []
    for devices in (1, 2):
        config.train.devices = devices
        states.append(_steps(config, 3))
    (one, metrics_one), (two, metrics_two) = states
    for a, b in zip(metrics_one, metrics_two, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
    assert_close(one.params, two.params, 1e-6)
    assert_close(one.teacher, two.teacher, 1e-6)
    assert_close(one.memory, two.memory, 1e-6)
    assert_close(one.stats, two.stats, 1e-5)


def test_accumulation_changes_nothing(tmp_path):
    config = tiny_config(tmp_path)
    whole, metrics_whole = _steps(config, 2)
    config.train.accumulate = 2
    parts, metrics_parts = _steps(config, 2)
    np.testing.assert_allclose(metrics_whole[1]["loss"], metrics_parts[1]["loss"], rtol=1e-5)
    assert_close(whole.memory, parts.memory, 1e-5)
    # Adam's first steps are +-lr whatever the gradient, so rounding can turn a sign near 0.
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b), whole.params, parts.params))
    assert np.mean([np.mean(m > 1e-6) for m in moved]) < 0.02


def test_seed_is_all_the_randomness(tmp_path):
    config = tiny_config(tmp_path)
    a, _ = _steps(config, 2)
    b, _ = _steps(config, 2)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    config.seed = 1
    c, _ = _steps(config, 2)
    assert not np.array_equal(
        a.params["head"]["mlp_0"]["kernel"], c.params["head"]["mlp_0"]["kernel"]
    )


def test_teacher_follows_and_last_layer_waits(tmp_path):
    config = tiny_config(tmp_path)
    config.optim.warmup_epochs, config.optim.freeze_epochs = 0.0, 1.0
    start = jax.device_get(init_state(prepare(config)))
    state, metrics = _steps(config, 2)
    per_epoch = resolved(config, 24).train.steps_per_epoch
    assert per_epoch == 3
    jax.tree.map(
        np.testing.assert_array_equal, state.params["head"]["last"], start.params["head"]["last"]
    )
    kernel = ("trunk", "patch", "kernel")
    student, teacher, first = (
        s[kernel[0]][kernel[1]][kernel[2]]
        for s in (state.params, state.teacher["params"], start.params)
    )
    assert np.abs(student - first).max() > 1e-4
    share = np.linalg.norm(teacher - first) / np.linalg.norm(student - first)
    assert 0 < share < 3 * (1 - metrics[0]["teacher_momentum"])
    later, _ = _steps(config, 4)
    moved = later.params["head"]["last"]["direction"] - start.params["head"]["last"]["direction"]
    assert np.abs(moved).max() > 1e-5


def test_update_moves_only_what_it_trains(tmp_path):
    config = tiny_config(tmp_path)
    run = prepare(config)
    optimiser = optim.build(run.config, "head/.*")
    params = {"head": {"a": jnp.ones(2)}, "trunk": {"b": jnp.ones(2)}}
    state = optim.with_rates(
        optimiser.init(params), optim.Schedules(lambda s: 0.1, lambda s: 0.0), 0
    )
    moves, _ = optimiser.update(params, state, params, train_step=jnp.asarray(5))
    np.testing.assert_array_equal(moves["trunk"]["b"], 0)
    np.testing.assert_allclose(moves["head"]["a"], -0.1, rtol=1e-5)


@pytest.mark.slow
def test_two_updates_share_the_steps_rates(tmp_path):
    """Schedules follow the run's step, not the number of optimiser calls."""
    config = tiny_config(tmp_path)
    run = prepare(config)

    def loss(params, state, batch, key):
        value = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
        return value, Aux(state.stats, state.memory, {})

    method = Method((Update(loss), Update(loss, "head/.*")), views=lambda batch, key: batch)
    optimisers = tuple(optim.build(run.config, u.trains) for u in method.updates)
    state = init_state(run._replace(method=method, optimisers=optimisers))
    step = make_step(method, optimisers, run.rates, seed=0)
    for i in range(3):
        state, metrics = step(state, {})
        np.testing.assert_allclose(metrics["learning_rate"], run.rates.learning_rate(i))
    assert int(state.step) == 3 and "gradient_norm_1" in metrics


def test_updates_of_the_same_parameters_share_their_momentum(tmp_path):
    config = tiny_config(tmp_path)
    config.optim.name, config.optim.lr, config.optim.lr_batch = "sgd", 0.1, 0
    config.optim.momentum, config.optim.weight_decay, config.optim.weight_decay_end = 0.5, 0.0, 0.0
    config.optim.warmup_epochs = config.optim.freeze_epochs = config.optim.clip = 0.0
    run = prepare(config)

    def slope(value):
        def loss(params, state, batch, key):
            total = sum(value * jnp.sum(p) for p in jax.tree.leaves(params))
            return total, Aux(state.stats, state.memory, {})

        return loss

    method = Method((Update(slope(1.0)), Update(slope(3.0))), views=lambda batch, key: batch)
    optimisers = tuple(optim.build(run.config, trains) for trains in trained(method))
    assert len(optimisers) == 1
    state = init_state(run._replace(method=method, optimisers=optimisers))
    new, metrics = make_step(method, optimisers, run.rates, seed=0)(state, {})
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), new.params, state.params)
    rate = float(metrics["learning_rate"])
    for leaf in jax.tree.leaves(moved):  # -rate (1 + (0.5 * 1 + 3))
        np.testing.assert_allclose(leaf, -4.5 * rate, rtol=1e-4)


def test_nan_stops_with_the_last_checkpoint(tmp_path):
    config = tiny_config(tmp_path / "data")
    config.optim.lr, config.optim.clip = 1e30, 0.0
    config.train.checkpoint_every, config.train.log_every = 1, 1
    with pytest.raises(loop.Diverged, match=r"loss .*nan.* on images \d+, .* is kept|loss nan"):
        loop.train(prepare(config), str(tmp_path / "w"))
    kept = list((tmp_path / "w" / "checkpoints").iterdir())
    assert kept


def test_collapse_is_noticed_within_50_steps(tmp_path, capsys):
    config = tiny_config(tmp_path / "data")
    config.method.negative_weight, config.optim.lr = 50.0, 0.3
    config.optim.warmup_epochs = 0.0
    config.train.epochs, config.train.log_every = 50 / 3, 10
    config.train.checkpoint_every = 50
    loop.train(prepare(config), str(tmp_path / "w"))
    assert "the student is collapsing to the uniform distribution" in capsys.readouterr().err


@pytest.mark.slow
def test_healthy_run_gets_no_warning(tmp_path, capsys):
    config = tiny_config(tmp_path / "data")
    config.method.negatives = ()
    loop.train(prepare(config), str(tmp_path / "w"))
    assert "warning" not in capsys.readouterr().err


# Without a step (tests/models/test_frozen.py), of vectors (test_oaml_recipes.py), or among SLOW.
ELSEWHERE = ("pretrained_knn.py", "oaml_quickstart.py", "oaml_cifar.py", "food101_mcd.py")
RECIPES = sorted(
    str(p.relative_to(ROOT))
    for p in (ROOT / "configs").glob("*.py")
    if p.name[0] != "_" and p.name not in ELSEWHERE
)
VARIANTS = (
    "dino,cifar10",
    "imgn,cifar10",
    "rot_imgn,cifar100",
    "rot360_imgn,cifar10,official",
    "dti,cifar10",
    "rot_dti,cifar10",
    "perm16_imgn,cifar10",
    "perm4_imgn,cifar10",
    "pixperm,cifar10",
    "rot_indist,cifar10",
    "combined,cifar10,official",
)
SLOW = [
    *(f"configs/{name}_cifar.py:cifar100,small" for name in ("simclr_joint", "supclr", "csi")),
    *(f"configs/supervised_cifar.py:{variant}" for variant in ("resnet18", "cifar10,small")),
    *(
        f"configs/oecl_cifar.py:{variant}"
        for variant in ("unlabelled,small", "one_vs_rest,3,self", "one_vs_rest,0,self,official")
    ),
    *(f"configs/oecl_sets.py:{variant}" for variant in ("raabin_wbc", "dior,self,official")),
    "configs/food101_mcd.py",
]


@pytest.mark.parametrize(
    "recipe",
    [
        *RECIPES,
        *(pytest.param(recipe, marks=pytest.mark.slow) for recipe in SLOW),
        *(
            pytest.param(f"configs/dino_negatives.py:{variant}", marks=pytest.mark.slow)
            for variant in VARIANTS
        ),
    ],
)
def test_every_recipe_has_a_step(recipe, tmp_path, monkeypatch):
    """Shapes only: the recipe's own network, views and optimiser, on stand-in data."""
    monkeypatch.chdir(ROOT)
    for config in stages_of(load([f"--config={recipe}"])).values():
        _check_step(config, tmp_path)


def _check_step(config, folder):
    with config.unlocked():
        labels = np.arange(2048) % max(config.head.outputs, 1)
        config.data.train = write_images(folder, "train", 2048, labels=labels)
        config.data.auxiliary = config.data.auxiliary and write_images(folder, "aux", 8)
    run = prepare(config)
    state = jax.eval_shape(lambda: init_state(run))
    size, batch = config.data.size, config.train.batch
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    index = jax.ShapeDtypeStruct((batch,), jnp.int32)
    host = {"image": images, "index": index, "label": index}
    if config.data.auxiliary:
        host |= {"auxiliary": images, "auxiliary_index": index}
    step = make_step(run.method, run.optimisers, run.rates, seed=0)
    new, metrics = jax.eval_shape(step, state, host)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].shape == ()


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_parameters_and_losses(tmp_path):
    config = tiny_config(tmp_path)
    _, exact = _steps(config, 1)
    config.model.dtype = "bfloat16"
    state, metrics = _steps(config, 1)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    assert metrics[0]["loss"].dtype == np.float32
    np.testing.assert_allclose(metrics[0]["loss"], exact[0]["loss"], rtol=0.02)


def test_without_grain_and_tfds(tmp_path):
    """The core trains where they are not installed."""
    code = (
        "import sys; sys.modules['grain'] = sys.modules['tensorflow_datasets'] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path; from small_run import assert_close, tiny_config\n"
        "from ood_jax import loop; from ood_jax.train import prepare\n"
        f"c = tiny_config(Path({str(tmp_path / 'data')!r})); c.train.steps = 2\n"
        f"assert int(loop.train(prepare(c), {str(tmp_path / 'w')!r}).step) == 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_knn_accuracy_while_training(tmp_path):
    config = tiny_config(tmp_path / "data")
    config.train.knn_every = 1
    loop.train(prepare(config), str(tmp_path / "w"))
    rows = [r for r in read_metrics(tmp_path / "w") if "knn_accuracy" in r]
    assert [r["step"] for r in rows] == [3, 6]
    assert all(0 <= r["knn_accuracy"] <= 1 for r in rows)
    config.data.train = write_images(tmp_path, "unlabelled", 24)
    with pytest.raises(ValueError, match=r"knn_every.*labels"):
        prepare(config)
