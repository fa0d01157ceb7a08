"""A run is the same on one device, split by batch, by fsdp and over `model`; rules and refusals."""

import functools
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mesh_runs import has_step
from small_run import ROOT, assert_close, environment, tiny_config

from ood_jax import layout, loop, optim, scorers, sharding
from ood_jax.config import base
from ood_jax.losses.contrastive import nt_xent
from ood_jax.train import abstract_state, init_state, prepare
from ood_jax.types import Features

pytestmark = pytest.mark.usefixtures("compiled_once")

METHODS = sorted(p.stem for p in (ROOT / "ood_jax" / "methods").glob("[!_]*.py"))
MESHES = ("data", "fsdp", "mixed")
LOSS = {"logit_norm": 3e-6}  # its logits are divided by .04, and their rounding with them
HALF = (  # what DINO's head takes on a `model` axis
    "head/last/direction=- model",
    "head/last/gain=model",
    "memory/centre=model",
)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """method -> what tests/mesh_runs.py finds on every mesh."""

    @functools.cache
    def found(method):
        folder = tmp_path_factory.mktemp(method)
        done = subprocess.run(
            [sys.executable, "-W", "error", "tests/mesh_runs.py", method, str(folder), *MESHES],
            cwd=ROOT,
            env=environment(folder / "cache", devices=4),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_on_every_mesh(method, mesh, four_devices):
    if not has_step(method):
        pytest.skip("trains nothing: it has no step that could be split")
    found = four_devices(method)[mesh]
    assert found["start"] == 0
    assert found["loss"] < LOSS.get(method, 1e-6)
    for part in ("params", "teacher", "memory", "stats", "resumed_here", "resumed_on_one"):
        assert found[part] < 1e-5, part
    assert found["optimiser"] < 1e-4  # of its largest number
    assert found["scored"] == 0
    assert found["moved"] > 1e-3
    share = found["share"]
    assert share == 1 if mesh == "data" else share < {"fsdp": 0.3, "mixed": 0.6}[mesh]


def test_a_method_without_a_step_is_known_by_its_updates():
    assert not has_step("mine") and has_step("oaml")


def config_of(folder, devices=2, model=1, rules=()):
    c = tiny_config(folder)
    c.optim.name, c.optim.lr, c.optim.lr_batch = "sgd", 0.01, 0
    c.optim.warmup_epochs = c.optim.freeze_epochs = 0.0
    c.train.devices, c.mesh.model, c.mesh.rules = devices, model, rules
    return c


class Killed(Exception):
    """Nothing more is saved."""


@pytest.mark.slow
def test_fsdp_goes_on_on_one_device(tmp_path, monkeypatch):
    """A run that was killed on two devices, each with half of the state, ends as that of one."""
    whole = loop.train(prepare(config_of(tmp_path / "data", 1)), str(tmp_path / "whole"))
    start = jax.device_get(init_state(prepare(config_of(tmp_path / "data", 1))))
    split = prepare(config_of(tmp_path / "data", rules=(".*=fsdp",)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(init_state(split)), start)
    batches = loop.train_batches

    def five(*sources, **options):
        yield from itertools.islice(batches(*sources, **options), 5)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_batches", five)
        loop.train(split, str(tmp_path / "w"))
    state = loop.train(prepare(config_of(tmp_path / "data", 1)), str(tmp_path / "w"))
    assert int(state.step) == 6
    assert_close(state.params, whole.params, 1e-6)
    assert_close(state.teacher, whole.teacher, 1e-6)
    assert_close(state.memory, whole.memory, 1e-6)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.params, start.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def specs(run):
    places = layout.places(abstract_state(run))
    return jax.tree.map(lambda where: tuple(where.spec), places)


def test_what_belongs_together_lies_together(tmp_path):
    rules = (*HALF, "head/.*kernel=fsdp", "trunk/patch/bias=data")
    run = prepare(config_of(tmp_path, 2, 2, rules))
    found = specs(run)
    direction = found.params["head"]["last"]["direction"]
    assert direction == (None, "model")
    assert found.memory["centre"] == ("model",)
    assert found.params["trunk"]["patch"] == {"bias": ("data",), "kernel": ()}
    kernel = found.params["head"]["mlp_0"]["kernel"]  # [8, 16]
    assert kernel == (None, "data")
    assert found.teacher["params"] == found.params
    opt = jax.tree_util.tree_leaves_with_path(layout.places(abstract_state(run)).opt)
    ends = {"direction": direction, "mlp_0/kernel": kernel, "learning_rate": (), "norm/scale": ()}
    for end, expected in ends.items():
        owned = [x for path, x in opt if optim.path_name(path).endswith(end)]
        assert owned and {tuple(where.spec) for where in owned} == {expected}, end


def test_no_device_has_more_than_its_part(tmp_path):
    run = prepare(config_of(tmp_path, 2, 2, (*HALF, ".*=fsdp")))
    state = init_state(run)
    for params in (state.params, dict(state.teacher or {})["params"]):
        direction = params["head"]["last"]["direction"]
        assert {shard.data.shape for shard in direction.addressable_shards} == {(8, 8)}


def test_without_rules_all_is_whole(tmp_path):
    places = layout.places(abstract_state(prepare(config_of(tmp_path))))
    assert all(where.is_fully_replicated for where in jax.tree.leaves(places))


def test_scalars_and_what_does_not_divide_stay_whole(tmp_path):
    """The [1, 5, 8] table of positions is split at its 8; BatchNorm and scalars never."""
    config = config_of(tmp_path, rules=(".*=fsdp",))
    config.head.name, config.head.outputs = "projection", 3
    found = specs(prepare(_as(config, "supervised")))
    assert found.params["trunk"]["position"] == (None, None, "data")
    assert found.params["head"]["linear"]["bias"] == ()
    assert set(jax.tree.leaves(found.stats, is_leaf=lambda x: type(x) is tuple)) == {()}
    assert found.step == ()


def _as(config, method):
    with config.unlocked():
        config.method = base(method).method
    return config


MISTAKES = [
    ((1, ("head",)), r"'head' is not REGEX=SPEC, such as head/last/direction=- model"),
    ((1, ("head=",)), r"'head=' is not REGEX=SPEC"),
    ((1, ("(=fsdp",)), r"'\(' is no regular expression"),
    ((1, ("head/.*=- modle",)), r"splits over 'modle': use -, data and model, each axis once"),
    ((1, ("head/.*=data data",)), r"splits over 'data' twice: use"),
    ((1, ("head/.*=fsdp -",)), r"splits over 'fsdp': use .* or the word fsdp alone"),
    (
        (1, ("head/last/direktion=fsdp",)),
        r"'head/last/direktion=fsdp' matches no array .* did you mean head/last/direction\?",
    ),
    ((1, ("centre=fsdp",)), r"did you mean memory/centre\?"),
    ((1, (".*=fsdp", "head/.*=data")), r"'head/.*=data' matches no array that an earlier rule"),
    ((1, ("memory/centre=- data",)), r"names 2 dimensions, and memory/centre has 1, \[16\]"),
    (
        (1, ("trunk/position=- data",)),
        r"splits trunk/position \[1, 5, 8\] over data, and 5 does not divide over its 2 devices",
    ),
    ((2, ()), r"mesh.model = 2: no rule splits anything over model, so these devices would do the"),
    ((3, HALF), r"mesh.model = 3 does not divide the 2 devices: use 1 or 2"),
    ((0, ()), r"mesh.model = 0 does not divide"),
]


@pytest.mark.parametrize(("settings", "says"), MISTAKES)
def test_mistakes_cost_no_compute(settings, says, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "place", lambda *a: pytest.fail("computed"))
    with pytest.raises(ValueError, match=says) as error:
        prepare(config_of(tmp_path, 2, *settings))
    assert "\n" not in str(error.value)


def test_a_batch_divides_over_data_alone(tmp_path):
    config = config_of(tmp_path, 2, 2, HALF)
    config.train.batch = 1
    sharding.check_batch(prepare(config).mesh, 1)
    with pytest.raises(ValueError, match=r"batch 1 does not divide over 2 devices x 1"):
        sharding.check_batch(sharding.make_mesh(2), 1)
    with pytest.raises(ValueError, match=r"batch 3 .* over 1 groups of 2 devices x 2 micro"):
        sharding.check_batch(sharding.make_mesh(2, 2), 3, 2)


def test_model_does_not_span_processes(monkeypatch):
    row = [SimpleNamespace(process_index=i) for i in range(2)]
    monkeypatch.setattr(
        sharding, "_mesh", lambda *_: SimpleNamespace(devices=np.array([row], object))
    )
    with pytest.raises(ValueError, match=r"mesh.model = 2 spans processes of 2 devices each"):
        sharding.make_mesh(2, 2)


def test_blocked_losses_and_banks_on_two_axes():
    """Both devices of `model` have the same rows, and count once."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((6, 2, 5), np.float32)
    plain = jax.value_and_grad(lambda x: nt_xent(x, temperature=0.5).mean())(z)
    bank, test = (rng.standard_normal((n, 5), np.float32) for n in (23, 7))
    settings = base().score
    settings.update(neighbour=3, block=4, scorers=("knn",))
    found = []
    for mesh in (sharding.make_mesh(1), sharding.make_mesh(2, 2)):
        rows = sharding.each_row(mesh, 4)
        blocked = jax.jit(
            jax.value_and_grad(lambda x, rows=rows: nt_xent(x, temperature=0.5, rows=rows).mean())
        )(jnp.asarray(z))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), blocked, plain)
        scorer = scorers.build("knn", settings, mesh)
        state = scorer.fit(Features(bank))
        found.append(scorers.run(scorer, state, Features(test), mesh))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
