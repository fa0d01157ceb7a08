"""`--config.key=text` as a value of the type that the key has."""

import ast
import difflib
import re
from collections.abc import Iterable
from typing import Any

PATTERN = r"--?(no)?config\."


def split(argv: Iterable[str]) -> list[tuple[str, str | bool]]:
    """The overrides among command-line arguments, in order: (key, text).

    `--config.key` alone is True and `--noconfig.key` False.
    """
    out: list[tuple[str, str | bool]] = []
    for argument in argv:
        if found := re.match(PATTERN, argument):
            key, equals, text = argument[found.end() :].partition("=")
            out.append((key, text if equals else not found[1]))
    return out


def check_key(key: str, known: Iterable[str]) -> None:
    """Refuses a key that is not among those known.

    Raises:
      ValueError: naming the nearest one.
    """
    known = list(known)
    if key in known:
        return
    same_leaf = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    close = difflib.get_close_matches(key, same_leaf or known, 1, 0.0 if same_leaf else 0.5)
    guess = close[0] if close else ""
    hint = f"Did you mean --config.{guess}?" if guess else f"Keys: {', '.join(known)}"
    raise ValueError(f"unknown config key {key!r}. {hint}")


def parse(key: str, texts: list[str | bool], default: Any) -> Any:
    """What the flags of one key mean together; `default` has the type that is needed.

    The last flag wins, but tuples add up: `--config.score.near=a=x --config.score.near=b=y` is
    `--config.score.near=a=x,b=y`. A comma within brackets or quotes does not divide.

    Raises:
      ValueError: a text that is not of that type.
    """
    values: list[Any] = []
    for text in texts:
        if isinstance(text, bool):
            if not isinstance(default, bool):
                raise ValueError(f"--config.{key} has no value: write --config.{key}={default!r}")
            text = str(text)
        try:
            values.append(_elements(text, default) if _many(default) else _scalar(text, default))
        except ValueError as error:
            raise ValueError(f"--config.{key}={text}: {error}, such as {default!r}") from None
    return sum(values, ()) if _many(default) else values[-1]


def _many(default: Any) -> bool:
    return isinstance(default, tuple)


def _scalar(text: str, like: Any) -> Any:
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError("true or false is needed")
        return text.lower() in ("true", "1")
    if isinstance(like, str):
        return text
    value = _literal(text)
    if like is None:
        return text if value is _NOT_ONE else value
    return _checked(value, like)


_NOT_ONE = object()


def _literal(text: str) -> Any:
    """A Python literal, or _NOT_ONE."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last two: deep
        try:
            return float(text)  # inf
        except ValueError:
            return _NOT_ONE


def _checked(value: Any, like: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a number below 2**63 is needed")
    if isinstance(like, float):
        if number:
            return float(value)
        raise ValueError("a number is needed")
    if isinstance(like, int):
        if number and float(value).is_integer():  # 1e3 is a whole number
            return int(value)
        raise ValueError("a whole number is needed")
    if isinstance(value, type(like)):
        return value
    raise ValueError(f"a {type(like).__name__} is needed")


def _elements(text: str, default: tuple) -> tuple:
    """`('a', 'b')`, `a,b`, `a` and the empty text as elements of the type that `default` has."""
    value = _literal(text)
    if not isinstance(value, tuple | list):
        inner = re.fullmatch(r"\s*[(\[](.*)[)\]]\s*", text, re.DOTALL)
        pieces = _divide(inner[1] if inner else text)
        like = default[0] if default else ""
        value = [_literal(p) if _quoted(p) else _scalar(p, like) for p in pieces]
    if not default:
        return tuple(value)
    like = 1.0 if float in map(type, default) else default[0]
    return tuple(_checked(element, like) for element in value)


def _quoted(piece: str) -> bool:
    return len(piece) > 1 and piece[0] == piece[-1] and piece[0] in "'\""


def _divide(text: str) -> list[str]:
    """At the commas outside brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces if piece.strip()]
