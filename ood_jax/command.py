"""What the command lines of ood_jax share: how help looks, and one line for every mistake."""

import argparse
import signal
import sys
from collections.abc import Callable

LONGEST = 2_000  # letters of an error


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, whose help is the module's docstring as it is written."""
    return argparse.ArgumentParser(
        f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def said(error: BaseException | str) -> str:
    """An error as the command line prints it: one line, nothing that a terminal obeys.

    Names of files and what stands in them are part of it.
    """
    from ood_jax.reporting.blocks import clean  # here: --help needs no NumPy

    text = clean(str(error))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def answered(act: Callable[[], object], stopped: str) -> int:
    """Runs `act` and returns the exit code.

    0 done, 1 a disk that is full or gone, 2 a mistake in what was asked, 130 stopped by Ctrl-C, in
    which case `stopped` tells what is kept. Errors are one line on stderr.
    """
    try:
        act()
    except (ValueError, OSError) as error:
        print("error:", said(error), file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print(f"SIGINT: stopped; {stopped}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
