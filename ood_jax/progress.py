"""How far a long loop is: a bar on a terminal, plain lines in a log file."""

import math
import sys
import time
from types import TracebackType
from typing import Any, Self


class Progress:
    """Counts work done and says so on stderr; a context manager.

    On a terminal: a tqdm bar with rate and time left. Elsewhere: a line at most every `every`
    seconds and one at the end, such as
    `train: 1,200/5,000 images, 3,210 images/s, 1 min 12 s left, loss 3.21`.
    The rate counts only what this object saw, so a resumed run does not look faster than it is.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        label: str,
        start: int = 0,
        every: float = 30.0,
        enabled: bool = True,
    ) -> None:
        """total, start: in `unit`s, a plural such as "images". every: seconds between lines.

        enabled: False = silent, for processes other than the first.
        """
        self.total, self.unit, self.label = total, unit, label
        self.start = self.done = start
        self.every, self.enabled = every, enabled
        self._values: dict[str, Any] = {}
        self._began = self._last_line = time.monotonic()
        self._printed = -1  # `done` of the last line
        self._bar = self._make_bar() if enabled and sys.stderr.isatty() else None

    def _make_bar(self) -> Any:
        from tqdm import tqdm  # here: a command line's --help need not wait for it

        return tqdm(
            total=self.total,
            initial=self.start,
            unit=f" {self.unit}",
            desc=self.label,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def update(self, n: int = 1, **values: Any) -> None:
        """Another `n` units are done; `values` (numbers or text) stand beside the count."""
        self.done += n
        if not self.enabled:
            return
        self._values.update(values)
        if self._bar is not None:
            if values:
                shown = {k: format_value(v) for k, v in self._values.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= self.every:
            self._print_line()

    def close(self) -> None:
        """The bar or the last line is final; calling it again does nothing."""
        if not self.enabled:
            return
        self.enabled = False
        if self._bar is not None:
            self._bar.close()
        elif self._printed != self.done:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        self._printed = self.done
        print(self.line(self._last_line - self._began), file=sys.stderr, flush=True)

    def line(self, elapsed: float) -> str:
        """The line that a log shows `elapsed` seconds after the start."""
        parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit}"]
        rate = (self.done - self.start) / elapsed if elapsed > 0 else 0.0
        if rate > 0:
            parts.append(f"{format_value(rate)} {self.unit}/s")
            left = max(self.total - self.done, 0) / rate
            parts.append(f"{duration(left)} left" if left else f"took {duration(elapsed)}")
        parts += [f"{name} {format_value(value)}" for name, value in self._values.items()]
        return ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def format_value(value: Any) -> str:
    """Three significant digits, whole numbers with separators: 3.21, 0.000123, 12,345."""
    if isinstance(value, str):
        return value
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if abs(number) >= 100 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds as `2 h 3 min`, `1 min 12 s` or `8 s`, rounded to the smaller unit shown."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
