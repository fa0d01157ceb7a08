"""Batches that must come in time: a reader that hangs ends the run, which else waits for ever."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

Batch = TypeVar("Batch")


class Stalled(TimeoutError):
    """No batch came in time. Threads may hang still, so the process must end without them."""


def in_time(batches: Iterator[Batch], seconds: float) -> Iterator[Batch]:
    """`batches`, read in a thread; none is read before it is asked for. seconds: 0 = no limit.

    Raises:
      Stalled: while iterating, a batch did not come within `seconds`.
    """
    return _in_time(batches, seconds) if seconds else batches


def _in_time(batches: Iterator[Batch], seconds: float) -> Iterator[Batch]:
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    # A daemon: the interpreter does not wait for it, as it does for those of a pool.
    threading.Thread(target=_serve, args=(batches, asked, answers), daemon=True).start()
    try:
        while True:
            asked.put(True)
            try:
                kind, answer = answers.get(timeout=seconds)
            except queue.Empty:
                raise Stalled(
                    f"no batch of images came in {seconds:g} s: a disk or data worker hangs, or"
                    " is too slow (then set data.timeout higher)"
                ) from None
            if kind == "end":
                return
            if kind == "error":
                raise answer
            yield answer
    finally:
        asked.put(False)


def _serve(batches: Iterator[Any], asked: queue.SimpleQueue, answers: queue.SimpleQueue) -> None:
    while asked.get():
        try:
            answers.put(("batch", next(batches)))
        except StopIteration:
            answers.put(("end", None))
        except BaseException as error:
            answers.put(("error", error))
