"""Feeds broken and hostile input to every reader, led by the lines that it reaches.

    python benchmarks/fuzz.py [--seconds=20] [--targets=npz,image] [--seed=0] [--out=FOLDER]

Good files (benchmarks/fuzz_targets.py) are changed at random; what reaches a line of ood_jax that
nothing reached before is changed further. A finding is any exception but ValueError and OSError, a
message of nothing, a process that dies, an input that takes more than LIMIT_SECONDS
or LIMIT_BYTES, or an attempt to run a program, connect, unpickle or write elsewhere. Each target
runs in a process of its own; findings are printed, a line each, and their inputs kept in --out.
Exit code 1 = there is a finding.
"""

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = str(ROOT / "ood_jax")
LIMIT_SECONDS = 5.0  # of CPU time
LIMIT_BYTES = 5 * 1024**3 // 2  # beyond what the libraries take; the readers' own limits are below
LONGEST = 1 << 20  # bytes of an input
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *("pickle.find_class", "socket.connect", "ctypes.dlopen"),
)


class TooLong(BaseException):
    """An input took more than LIMIT_SECONDS."""


class Forbidden(BaseException):
    """An input made its reader do what no reader may do."""


class Lines:
    """Which lines of ood_jax have run: sys.monitoring from Python 3.12, sys.settrace before."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.fresh = False
        if sys.version_info >= (3, 12):
            events = sys.monitoring
            events.use_tool_id(events.COVERAGE_ID, "fuzz")
            events.register_callback(events.COVERAGE_ID, events.events.LINE, self._line)
            events.set_events(events.COVERAGE_ID, events.events.LINE)
        else:
            sys.settrace(self._call)

    def _add(self, file: str, line: int) -> None:
        if file.startswith(PACKAGE) and (file, line) not in self.seen:
            self.seen.add((file, line))
            self.fresh = True

    def _line(self, code: CodeType, line: int) -> Any:
        self._add(code.co_filename, line)
        return sys.monitoring.DISABLE  # type: ignore[attr-defined]

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self._add(frame.f_code.co_filename, frame.f_lineno)
        return self._call

    def take(self) -> bool:
        """Were there new lines since the last call?"""
        fresh, self.fresh = self.fresh, False
        return fresh


def tried(run: Callable[[bytes], None], data: bytes) -> str:
    """What is wrong with how `run` takes `data`, "" = nothing."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        run(data)
    except (ValueError, OSError) as error:
        return "" if str(error) else f"{_where(error)} without a message"
    except Exception as error:
        return _where(error)
    except (TooLong, Forbidden) as error:
        return _where(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def _where(error: BaseException) -> str:
    """The error and the deepest line of ood_jax that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(PACKAGE)] or frames
    last = own[-1]
    text = " ".join(str(error).split())[:80]
    return f"{Path(last.filename).name}:{last.lineno} {type(error).__name__} {text}"


def fuzz(name: str, seconds: float, seed: int, out: Path) -> int:
    """Fuzzes one target in this process; returns the number of findings, each printed once."""
    targets = _targets()
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    target = targets[name](folder)
    for example in target.seeds:
        target.run(example)  # loads what the libraries load late; a seed must be read
    _guard(folder)
    draw = random.Random(f"{seed}{name}")
    lines, corpus, found = Lines(), list(target.seeds), dict[str, Path]()
    count, began = 0, time.monotonic()
    waiting = [*target.seeds, *target.hostile]
    while waiting or time.monotonic() - began < seconds:
        data = waiting.pop() if waiting else target.change(draw.choice(corpus), corpus, draw)
        data = data[:LONGEST]
        (out / f"{name}.last").write_bytes(data)
        problem, count = tried(target.run, data), count + 1
        if problem and problem.split(" ")[0:2] not in [key.split(" ")[0:2] for key in found]:
            found[problem] = out / f"{name}.{len(found)}"
            found[problem].write_bytes(data)
            print(f"  {name}: {problem}  <- {found[problem]}", flush=True)
        if lines.take() and not problem:
            corpus.append(data)
    sys.settrace(None)
    print(f"{name}: {count} inputs, {len(lines.seen)} lines, {len(corpus)} kept", flush=True)
    return len(found)


def _guard(folder: Path) -> None:
    def late(*_: Any) -> None:
        raise TooLong(f"more than {LIMIT_SECONDS} s")

    def refuse(event: str, arguments: tuple) -> None:
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
        )
        elsewhere = writes and not str(arguments[0]).startswith(tempfile.gettempdir())
        if elsewhere or event in FORBIDDEN:
            raise Forbidden(f"{event} {arguments}")

    signal.signal(signal.SIGPROF, late)
    sys.addaudithook(refuse)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))


def main(argv: list[str]) -> int:
    """Every target in a process of its own, so that one that dies is a finding too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20, help="for each target")
    parser.add_argument("--targets", default="", help="such as npz,image; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="where inputs of findings lie; a new folder by default")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    out = Path(options.out or tempfile.mkdtemp(prefix="findings_"))
    out.mkdir(parents=True, exist_ok=True)
    if options.inside:
        return int(fuzz(options.targets, options.seconds, options.seed, out) > 0)
    bad = 0
    for name in options.targets.split(",") if options.targets else _targets():
        flags = [f"--targets={name}", f"--seconds={options.seconds}", f"--seed={options.seed}"]
        inside = [sys.executable, __file__, *flags, f"--out={out}", "--inside"]
        try:
            code = subprocess.run(inside, timeout=10 * options.seconds + 600).returncode
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        if code not in (0, 1):
            print(f"  {name}: died with {code}  <- {out / name}.last")
        bad += code != 0
    print(f"{bad} targets with findings; inputs in {out}" if bad else "nothing found")
    return int(bad > 0)


def _targets() -> dict[str, Callable[[Path], Any]]:
    parts = (".", "benchmarks", "tests", "tests/models")  # what writes files for tests seeds these
    sys.path[:0] = [str(ROOT / part) for part in parts]
    import fuzz_targets

    return fuzz_targets.targets()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
