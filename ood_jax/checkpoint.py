"""Checkpoints: the state and the config as JSON, by orbax. All that training and scoring share.

Nothing here executes what it reads: arrays and JSON only.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from ood_jax import intact
from ood_jax.config import INCIDENTAL, complete, flat, from_json, to_json
from ood_jax.place import absolute, is_remote, kind, place, told
from ood_jax.types import PyTree, TrainState
from ood_jax.untrusted import MISSHAPEN, read_json

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE_KEYS = (*INCIDENTAL, "score.")


class Restored(NamedTuple):
    """A checkpoint as scoring sees it: the teacher's (else the student's) params and stats."""

    config: ConfigDict
    step: int
    params: PyTree
    stats: PyTree
    memory: PyTree


class Checkpoints:
    """The checkpoints of one workdir. Saves asynchronously; a killed save leaves the last good one.

    Those that are newer than the newest whole one are moved to WORKDIR/corrupt, with a warning.

    Raises:
      ValueError: the workdir cannot be written, or has checkpoints and none is whole.
      OSError: object storage does not answer.
    """

    def __init__(self, workdir: str, *, keep_last: int, keep_every: int = 0):
        # orbax speaks of every save and cleaning at INFO and WARNING.
        logging.getLogger("absl").setLevel(logging.ERROR)
        folder = _folder(workdir)
        intact.set_aside(folder)
        self._saving = 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        with told(folder):
            self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The newest step there is; None = none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: ConfigDict) -> None:
        """Starts to save `state` under its step; does nothing where that step is already there.

        Raises:
          OSError: this or the save before cannot be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.wait_until_finished()  # what _seal seals next is of this step
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(_plain(config))
                ),
            )

    def _seal(self) -> None:
        """Called by orbax when all files are written, before the folder gets its name."""
        folder = self._manager.directory
        fresh = folder / str(self._saving)
        if not is_remote(folder):  # where orbax writes under the final name, then a mark
            fresh = next(iter(folder.glob(f"{self._saving}.*")), fresh)
        intact.seal(fresh)

    def config(self) -> ConfigDict:
        """The config saved with the newest step."""
        return _read_config(self._manager, self._manager.latest_step())

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest state, laid out as `abstract`'s shapes, dtypes and shardings say.

        Raises:
          ValueError: it has other arrays than `abstract`, naming the first.
        """
        step = self._manager.latest_step()
        assert step is not None
        folder = self._manager.directory
        _check_arrays(_item_metadata(self._manager, step), abstract, folder / str(step))
        with told(folder):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        return restored["state"]

    def close(self) -> None:
        """Waits for a save under way.

        Raises:
          OSError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """tensorstore calls a full disk a ValueError, among others; here all are OSErrors."""
        try:
            with told(self._manager.directory):
                yield
        except (ValueError, OSError) as error:
            raise OSError(f"{self._manager.directory} cannot be written ({error})") from error


def check_kind(workdir: str) -> None:
    """Refuses object storage where orbax writes no checkpoints.

    Raises:
      ValueError: it is s3://.
    """
    if workdir.startswith("s3://"):
        raise ValueError(
            f"{workdir}: checkpoints are written to gs:// and to disks alone; mount the bucket as a"
            " folder, or name another --workdir"
        )


def check_same_run(saved: ConfigDict, config: ConfigDict, workdir: str) -> None:
    """Refuses to go on from a checkpoint of another model, method, data or schedule.

    Raises:
      ValueError: naming the first keys that differ.
    """
    old, new = flat(complete(saved)), flat(config)
    different = [
        f"{key} = {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS)
    ]
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise ValueError(
            f"{workdir} holds another run: {'; '.join(different[:3])}{more}."
            " Use another --workdir, or the config of that run"
        )


def stages_in(workdir: str) -> dict[str, Any]:
    """The stages of the run in `workdir`, each a folder in it, and their configs as JSON trees.

    {} = the run is one stage.

    Raises:
      ValueError: its config.json is no JSON.
    """
    path = place(workdir) / "config.json"
    if not kind(path):
        return {}
    try:
        whole = read_json(path)
        return {stage: whole[stage] for stage in whole.get("stages", ())}
    except MISSHAPEN:
        raise ValueError(f"{path} is no config that ood_jax has written") from None


def saved_steps(workdir: str) -> list[int]:
    """The steps whose checkpoints `workdir` keeps, ascending; of several stages the last one's.

    Raises:
      ValueError: no workdir, or no checkpoint in it.
    """
    with _reader(workdir) as manager:
        return sorted(manager.all_steps())


def restore_for_scoring(workdir: str, step: int | None = None) -> Restored:
    """The newest checkpoint of `workdir` (or that of `step`), without any training code.

    Of a run of several stages the last one's. A corrupt newest one is passed over with a warning.

    Raises:
      ValueError: no workdir, no checkpoint in it, not that step, or none that is whole.
    """
    manager = _reader(workdir)
    steps = sorted(manager.all_steps())
    if step is not None and step not in steps:
        raise ValueError(f"no checkpoint of step {step} in {workdir}: it has {steps}")
    step = intact.newest(manager.directory, steps if step is None else [step])
    config = complete(_read_config(manager, step))
    tree = _item_metadata(manager, step)
    wanted = {"memory": tree["memory"]} if tree.get("memory") else {}
    if tree.get("teacher"):
        wanted["teacher"] = tree["teacher"]
    else:
        wanted |= {"params": tree["params"], "stats": tree.get("stats") or {}}
    state = _restore_part(manager, step, wanted)
    source = state.get("teacher") or state
    manager.close()
    return Restored(
        config, step, source["params"], source.get("stats") or {}, state.get("memory") or {}
    )


def _reader(workdir: str) -> ocp.CheckpointManager:
    """Of the last stage's checkpoints, of which there is one or more."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    if stages := stages_in(workdir):
        workdir = str(place(workdir) / list(stages)[-1])
    folder = _folder(workdir)
    if kind(folder) != "folder":
        raise ValueError(f"no checkpoint in {workdir}: train first, or name another --workdir")
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    with told(folder):
        manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(read_only=True),
            item_handlers=handlers,
        )
    if not manager.all_steps():
        raise ValueError(f"no checkpoint in {workdir}: train first, or name another --workdir")
    return manager


def _folder(workdir: str) -> epath.Path:
    check_kind(workdir)
    return absolute(place(workdir)) / "checkpoints"


def _check_arrays(saved: PyTree, abstract: PyTree, place: epath.Path) -> None:
    """Refuses a state that other code has written under the same config."""

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    old, new = shapes(saved), shapes(abstract)
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{place} was written by other code: {name} is {old.get(name, 'absent')} there,"
            f" {new.get(name, 'absent')} here; go on with that code, or use another --workdir"
        )


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(to_json(config))


def _read_config(manager: ocp.CheckpointManager, step: int | None) -> ConfigDict:
    with told(manager.directory):
        read = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    return from_json(json.dumps(read["config"]))


def _item_metadata(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    with told(manager.directory):
        return manager.item_metadata(step)["state"].tree


def _restore_part(manager: ocp.CheckpointManager, step: int, wanted: PyTree) -> PyTree:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), wanted
    )
    wanted_state = ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    with told(manager.directory):
        restored = manager.restore(step, args=ocp.args.Composite(state=wanted_state))
    return jax.device_get(restored["state"])
