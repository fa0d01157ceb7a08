"""The metrics of a run over its steps: JSON lines to compute with, TensorBoard to look at."""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from etils import epath

from ood_jax.place import is_remote, kind, make_folder, place, send
from ood_jax.untrusted import TEXT_BYTES, parse_json, read_bytes

FILE = "metrics.jsonl"
SEND_EVERY = 30.0  # seconds, at the least, between two copies to object storage
_RESERVED = ("step", "time", "nonfinite")
_NONFINITE = ("nan", "inf", "-inf")


class MetricLog:
    """Appends to WORKDIR/metrics.jsonl and to WORKDIR/tensorboard/; a context manager.

    A line is {"step", "time" (seconds since 1970), NAME: value, ...}. JSON has no NaN: such a value
    is null, and "nonfinite" says {NAME: "nan" | "inf" | "-inf"}. A line is on its way to the disk
    when `write` returns, so that a killed run loses none. Object storage cannot append: there the
    files are kept on disk and copied whole, every now and then and by `send`.
    """

    def __init__(
        self, workdir: epath.PathLike, *, enabled: bool = True, resume_step: int | None = None
    ) -> None:
        """enabled: False = writes nothing, for processes other than the first.

        resume_step: what was logged after this step is dropped, since the run will do it again;
            0 = a run from the start; None = keep all.
        """
        self.enabled = enabled
        if not enabled:
            return
        from tensorboardX import SummaryWriter  # here: scoring reads logs without it

        self._workdir = folder = place(workdir)
        self._copied, self._sent, self._wait = None, time.monotonic(), SEND_EVERY
        if is_remote(folder):
            self._copied = tempfile.TemporaryDirectory()
            folder = epath.Path(self._copied.name)
            if kind(self._workdir / FILE):
                (folder / FILE).write_bytes(read_bytes(self._workdir / FILE, TEXT_BYTES))
        make_folder(folder)
        _drop_after(folder / FILE, math.inf if resume_step is None else resume_step)
        self._folder = folder
        self._file = open(folder / FILE, "a", encoding="utf-8")  # noqa: SIM115, until close()
        self._board = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=None if resume_step is None else resume_step + 1,
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs scalars (numbers or arrays of one element) at `step`.

        Raises:
          ValueError: a metric is called step, time or nonfinite.
          OSError: the disk is full, or object storage does not take the files.
        """
        if not self.enabled:
            return
        if taken := set(_RESERVED) & set(metrics):
            raise ValueError(f"a metric cannot be called {', '.join(taken)}: choose another name")
        values = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        line |= {n: v if math.isfinite(v) else None for n, v in values.items()}
        if odd := {n: str(v) for n, v in values.items() if not math.isfinite(v)}:
            line["nonfinite"] = odd
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, int(step))
        if time.monotonic() - self._sent >= self._wait:
            self.send()

    def send(self) -> None:
        """Copies the files to object storage, where the workdir lies there.

        Raises:
          OSError: it does not take them.
        """
        if not self.enabled or self._copied is None:
            return
        begin = time.monotonic()
        self._board.flush()
        self._copy()
        self._sent = time.monotonic()
        self._wait = max(SEND_EVERY, 20 * (self._sent - begin))  # a long log: at most 5 % of a run

    def _copy(self) -> None:
        for file in (FILE, *(f"tensorboard/{n}" for n in os.listdir(self._folder / "tensorboard"))):
            send(self._folder / file, self._workdir / file)

    def close(self) -> None:
        """Everything is on disk, or on object storage; calling it again does nothing.

        Raises:
          OSError: object storage does not take the files.
        """
        if not self.enabled:
            return
        self.enabled = False
        self._file.close()
        self._board.close()
        if self._copied is not None:
            with self._copied:
                self._copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of WORKDIR/metrics.jsonl in order, NaN and infinity as floats; [] = no such file.

    A torn last line, of a run that was killed or is writing now, is left out.

    Raises:
      ValueError: another line is none of `MetricLog`'s.
    """
    rows = []
    for _, row in _lines(place(workdir) / FILE):
        row |= {name: float(text) for name, text in row.pop("nonfinite", {}).items()}
        rows.append(row)
    return rows


def _lines(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(text, parsed) of each whole line."""
    if kind(path) != "file":
        return
    *whole, _ = read_bytes(path, TEXT_BYTES).decode("utf-8", errors="replace").split("\n")
    for number, text in enumerate(whole, 1):
        try:
            row = parse_json(text)
        except ValueError:
            raise ValueError(f"{path}:{number} is not JSON: delete that line") from None
        if not _whole(row):
            raise ValueError(f"{path}:{number} is no line of metrics: delete that line")
        yield text, row


def _whole(row: Any) -> bool:
    """Is it what `MetricLog.write` writes, as far as readers go by?"""
    odd = row.get("nonfinite", {}) if isinstance(row, dict) else None
    named = isinstance(odd, dict) and all(value in _NONFINITE for value in odd.values())
    return named and type(row.get("step")) is int


def _drop_after(path: epath.Path, step: float) -> None:
    """Rewrites the log without torn lines and steps > `step`; a kill leaves the old or the new."""
    if kind(path) != "file":
        return
    kept = "".join(text + "\n" for text, row in _lines(path) if row["step"] <= step)
    fresh = path.with_name(f"{path.name}.tmp")
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
