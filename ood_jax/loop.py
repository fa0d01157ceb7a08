"""The training loop: resume, step, log, save, stop for a signal or a NaN."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ood_jax import features, in_distribution, sharding
from ood_jax.atomic import replaced
from ood_jax.checkpoint import Checkpoints, check_kind, check_same_run
from ood_jax.config import to_json
from ood_jax.data.pipeline import train_batches
from ood_jax.data.vectors import numbered_batches, with_vectors
from ood_jax.data.waited import in_time
from ood_jax.logs import MetricLog
from ood_jax.place import make_folder, place, reason, remove, told
from ood_jax.progress import Progress
from ood_jax.step import Metrics
from ood_jax.train import Run, abstract_state, init_state, jitted_step, open_test
from ood_jax.types import TrainState


class Diverged(RuntimeError):
    """The loss or its gradient is no number any more."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop. `code` is the exit code."""

    def __init__(self, number: int, step: int):
        super().__init__(
            f"{signal.Signals(number).name}: stopped after step {step};"
            " the same command goes on from the last checkpoint"
        )
        self.code = 128 + number


def train(run: Run, workdir: str, label: str = "train") -> TrainState:
    """Trains to the last step of `run`, from the newest checkpoint in `workdir` if there is one.

    label: what the progress bar calls it.

    Raises:
      ValueError: the workdir cannot be written, or holds another run.
      Diverged: a loss or gradient that is no number; the last good checkpoint is kept.
      Interrupted: SIGINT or SIGTERM, of several processes to any; the state is saved first.
      OSError: a disk that is full or gone, or object storage that does not answer.
    """
    config, total = run.config, run.config.train.steps
    checkpoints = open_workdir(run, workdir)
    state, start = _start(run, checkpoints)
    first = jax.process_index() == 0
    with _caught_signals() as caught:  # until the last save is done
        try:
            if start >= total:
                checkpoints.save(state, config)  # of a run without steps; else it is there
            else:
                watched = in_time(_batches(run, start), config.data.timeout)
                with (
                    MetricLog(workdir, enabled=first, resume_step=start) as log,
                    Progress(total, unit="steps", label=label, start=start, enabled=first) as bar,
                ):
                    state = _steps(run, state, watched, checkpoints, log, bar, caught)
        finally:
            checkpoints.close()
    if caught:
        raise Interrupted(caught[0], total)
    return state


def _batches(run: Run, start: int) -> Iterator[dict[str, Any]]:
    config = run.config
    common: dict[str, Any] = dict(
        batch=config.train.batch,
        seed=config.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if run.method.images:
        batches = train_batches(
            run.train,
            run.auxiliary,
            size=config.data.size,
            balanced=config.data.balanced,
            workers=config.data.workers,
            memory=config.data.memory,
            **common,
        )
    else:
        known = run.vectors.known
        batches = numbered_batches(run.train, known, balanced=config.data.balanced, **common)
    return with_vectors(batches, run.method.prepared(run.vectors), **common)


def open_workdir(run: Run, workdir: str) -> Checkpoints:
    """The checkpoints in `workdir`, made if need be, with the config beside them as JSON.

    Raises:
      ValueError: it cannot be written, or holds another run.
    """
    folder = make_workdir(workdir)
    keep = run.config.train
    checkpoints = Checkpoints(workdir, keep_last=keep.keep_last, keep_every=keep.keep_every)
    if checkpoints.latest_step() is not None:
        check_same_run(checkpoints.config(), run.config, workdir)
    if jax.process_index() == 0:
        with replaced(folder / "config.json") as fresh:
            fresh.write_text(to_json(run.config) + "\n")
    return checkpoints


def make_workdir(workdir: str) -> epath.Path:
    """Makes the folder if need be.

    Raises:
      ValueError: it cannot be written, or no checkpoints can.
    """
    check_kind(workdir)
    folder = place(workdir)
    try:
        make_folder(folder)
        with told(folder):
            (folder / ".writable").touch()
        remove(folder / ".writable")  # another process may have been first
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be written ({reason(error)}): name a folder that can"
        ) from None
    return folder


def _start(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    if checkpoints.latest_step() is None:
        return init_state(run), 0
    state = checkpoints.restore(abstract_state(run))
    return state, int(state.step)


def _steps(
    run: Run,
    state: TrainState,
    batches: Iterator[dict[str, Any]],
    checkpoints: Checkpoints,
    log: MetricLog,
    bar: Progress,
    caught: list[int],
) -> TrainState:
    config, mesh = run.config, run.mesh
    begin = int(state.step)
    step_fn = jitted_step(run)
    interval = _Interval(run, log, checkpoints)
    for step in range(begin, config.train.steps):
        host = next(batches)
        skipped = host.pop("skipped")
        state, metrics = step_fn(state, sharding.global_batch(mesh, host))
        if mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(state)  # queued collectives of simulated devices can time out
        interval.add(host["index"], metrics, skipped)
        done = step + 1
        stop = _asked_to_stop(caught, done)
        save = stop or done == config.train.steps or done % config.train.checkpoint_every == 0
        shown = {}
        knn_steps = round(config.train.knn_every * config.train.steps_per_epoch)
        judged = judge(run, state) if knn_steps and done % knn_steps == 0 else {}
        if save or judged or done % config.train.log_every == 0:
            shown = interval.close(done, judged)
        bar.update(1, **shown)
        if save:
            log.send()  # a checkpoint is never ahead of the log
            checkpoints.save(state, config)
        if stop:
            raise Interrupted(stop, done)
    return state


def _asked_to_stop(caught: list[int], step: int) -> int:
    """The signal to stop for after `step`, 0 = none.

    Several processes must stop after one step: JAX's preemption service tells all of a SIGTERM to
    any, in the background, and agrees on a step that none has passed.
    """
    mine = caught[0] if caught else 0
    if jax.process_count() == 1:
        return mine
    return (mine or signal.SIGTERM) if multihost_utils.reached_preemption_sync_point(step) else 0


def judge(run: Run, state: TrainState) -> dict[str, float]:
    """Weighted kNN accuracy of the teacher (else the student) on data.test, from data.train."""
    config, mesh = run.config, sharding.data_parallel(run.mesh)
    network = sharding.replicate(
        mesh, state.teacher or {"params": state.params, "stats": state.stats}
    )
    train, test = (
        features.extract(
            run.net,
            network["params"],
            network["stats"],
            source,
            config=config,
            mesh=mesh,
            fields=(config.score.feature,),
            label=f"kNN {name}",
        )
        for name, source in (("train", run.train), ("test", open_test(config)))
    )
    accuracy = in_distribution.knn_accuracy(config, train, test, mesh)
    return {} if accuracy is None else {"knn_accuracy": accuracy}


class _Interval:
    """What happened since the last line of the log; refuses losses that are no numbers."""

    def __init__(self, run: Run, log: MetricLog, checkpoints: Checkpoints):
        self._run, self._log, self._checkpoints = run, log, checkpoints
        self._rows: list[tuple[np.ndarray, Metrics]] = []
        self._skipped = 0
        self._since = time.monotonic()
        self._warned: set[str] = set()

    def add(self, index: np.ndarray, metrics: Metrics, skipped: int) -> None:
        self._rows.append((index, metrics))
        self._skipped += skipped

    def close(self, step: int, judged: dict[str, float]) -> dict[str, float]:
        """Logs the means of the interval that ends with `step`, and `judged` beside them.

        Returns what the bar shows.
        """
        rows = jax.device_get([metrics for _, metrics in self._rows])
        first = step - len(rows) + 1
        for i, row in enumerate(rows):
            if not (np.isfinite(row["loss"]) and np.isfinite(row["gradient_norm"])):
                self._diverged(first + i, self._rows[i][0], row)
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        seconds = time.monotonic() - self._since
        images = len(rows) * self._run.config.train.batch
        self._log.write(
            step,
            means | judged | {"images_per_second": images / seconds, "skipped": self._skipped},
        )
        for warning in self._run.method.warn(means | {"step": step}):
            kind = warning.split("(")[0]  # the same with other numbers is no news
            if kind not in self._warned and jax.process_index() == 0:
                print(f"warning: step {step}: {warning}", file=sys.stderr, flush=True)
            self._warned.add(kind)
        self._rows, self._skipped, self._since = [], 0, time.monotonic()
        return {"loss": means["loss"]} | judged

    def _diverged(self, step: int, index: np.ndarray, row: dict[str, Any]) -> None:
        kept = self._checkpoints.latest_step()
        raise Diverged(
            f"loss {row['loss']:g}, gradient norm {row['gradient_norm']:g} at step {step}, on"
            f" images {', '.join(map(str, index.tolist()))} of data.train;"
            f" {'no checkpoint yet' if kept is None else f'the checkpoint of step {kept} is kept'}."
            " Lower optim.lr, or look at these images"
        )


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append their number to, while the context lasts.

    A second SIGINT, of someone who waits, stops at once; more SIGTERMs, which schedulers and
    launchers send as they like, do not cut short what is saved after the first. Of several
    processes SIGTERM is left to JAX's preemption service, which a SIGINT is passed to.
    """
    caught: list[int] = []
    several = jax.process_count() > 1

    def catch(number: int, _: Any) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)
        if several:  # so that all processes hear of it
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(number, catch) for number in numbers]
    try:
        yield caught
    finally:
        for number, handler in zip(numbers, old, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)  # None: C++ code had set it
