"""Checkpoints: all of a state comes back, a torn one is passed over, another run is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import abstract_state, tiny_config

from ood_jax.checkpoint import Checkpoints, check_same_run, restore_for_scoring
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepare(tiny_config(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def state(run):
    """A state with another number in every leaf, as after steps of training."""
    state = init_state(run)
    leaves, structure = jax.tree.flatten(jax.device_get(state))
    leaves = [leaf + i for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves).replace(step=np.int32(3))


def _saved(folder, run, *states, **keep):
    checkpoints = Checkpoints(str(folder), **{"keep_last": 2, **keep})
    for state in states:
        checkpoints.save(jax.tree.map(jnp.asarray, state), run.config)
    checkpoints.close()


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]


@pytest.mark.parametrize("devices", [1, 2])
def test_all_of_a_state_comes_back(devices, run, state, tmp_path):
    _saved(tmp_path, run, state)
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    assert checkpoints.latest_step() == 3
    assert checkpoints.config().to_dict() == run.config.to_dict()
    found = checkpoints.restore(abstract_state(run, devices))
    checkpoints.close()
    _equal(found, state)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(found)} == {devices}


def test_which_are_kept(run, state, tmp_path):
    steps = [state.replace(step=np.int32(step)) for step in (2, 4, 5, 6, 7)]
    _saved(tmp_path, run, *steps, keep_last=2, keep_every=4)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"4", "6", "7"}


def test_a_save_that_was_killed_is_passed_over(run, state, tmp_path):
    _saved(tmp_path, run, state)
    torn = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    torn.mkdir(parents=True)
    (torn / "manifest.ocdbt").write_bytes(b"torn")
    assert restore_for_scoring(str(tmp_path)).step == 3
    _saved(tmp_path, run, state.replace(step=np.int32(5)))
    _equal(restore_for_scoring(str(tmp_path), 5).params, state.teacher["params"])


def test_scoring_gets_the_teacher(run, state, tmp_path):
    _saved(tmp_path, run, state.replace(step=np.int32(1)), state)
    found = restore_for_scoring(str(tmp_path))
    assert (found.step, found.config.to_dict()) == (3, run.config.to_dict())
    _equal(found.params, state.teacher["params"])
    _equal(found.memory, state.memory)
    assert restore_for_scoring(str(tmp_path), 1).step == 1


def test_scoring_gets_the_student_where_there_is_no_teacher(run, state, tmp_path):
    _saved(tmp_path, run, state.replace(teacher=None, memory={}))
    found = restore_for_scoring(str(tmp_path))
    _equal(found.params, state.params)
    assert found.memory == {}


def test_nothing_to_score(run, state, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint in .*: train first"):
        restore_for_scoring(str(tmp_path / "gone"))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint in .*: train first"):
        restore_for_scoring(str(tmp_path))
    _saved(tmp_path, run, state)
    with pytest.raises(ValueError, match=r"no checkpoint of step 4 in .*: it has \[3\]"):
        restore_for_scoring(str(tmp_path), 4)


def test_only_the_same_run_goes_on(run):
    other = run.config.copy_and_resolve_references()
    other.name, other.train.devices, other.train.log_every, other.score.knn = "other", 1, 7, 9
    check_same_run(run.config, other, "w")
    other.seed, other.model.width, other.optim.lr, other.data.train = 1, 32, 0.5, "noise:uniform"
    with pytest.raises(
        ValueError, match=r"w holds another run: data.train = .*; .* \(and 1 more\)"
    ):
        check_same_run(run.config, other, "w")


def test_a_state_of_other_code_is_refused(run, state, tmp_path):
    """The same config, but the method's file remembers something of another shape now."""
    _saved(tmp_path, run, state)
    expected = abstract_state(run, 1)
    place = expected.step.sharding
    wider = jax.ShapeDtypeStruct((99,), jnp.float32, sharding=place)
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    for memory, says in (
        ({**expected.memory, "centre": wider}, r"memory/centre is \(16,\) there, \(99,\) here"),
        ({**expected.memory, "queue": wider}, r"memory/queue is absent there, \(99,\) here"),
        ({}, r"memory/centre is \(16,\) there, absent here"),
    ):
        with pytest.raises(ValueError, match=f"3 was written by other code: {says}"):
            checkpoints.restore(expected.replace(memory=memory))
    checkpoints.close()


def test_a_disk_that_fails_is_an_oserror(run, state, tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)

    def full(*arguments, **options):
        raise ValueError("OUT_OF_RANGE: Failed to write 240 bytes: No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(OSError, match=r"checkpoints cannot be written \(.*No space left"):
        checkpoints.save(state, run.config)
    checkpoints.close()
