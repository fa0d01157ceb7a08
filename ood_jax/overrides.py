"""`--config.key=text` as a value of the type that the key has."""

import ast
import re
from collections.abc import Iterable
from typing import Any

PATTERN = r"--?(no)?config\."


def split(argv: Iterable[str]) -> list[tuple[str, str]]:
    """The overrides among command-line arguments, in order: (key, text).

    `--config.key` alone means true and `--noconfig.key` false.
    """
    out = []
    for argument in argv:
        if found := re.match(PATTERN, argument):
            key, equals, text = argument[found.end() :].partition("=")
            out.append((key, text if equals else "false" if found[1] else "true"))
    return out


def parse(key: str, texts: list[str], default: Any) -> Any:
    """What the flags of one key mean together; `default` has the type that is needed.

    The last flag wins, but tuples add up: `--config.score.near=a=x --config.score.near=b=y` is
    `--config.score.near=a=x,b=y`. A comma within brackets or quotes does not divide.

    Raises:
      ValueError: a text that is not of that type.
    """
    try:
        if isinstance(default, tuple):
            return tuple(value for text in texts for value in _elements(text, default))
        return _scalar(texts[-1], default)
    except ValueError as error:
        raise ValueError(f"--config.{key}={texts[-1]}: {error}, such as {default!r}") from None


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
    except (ValueError, SyntaxError):
        # "nan", "inf" and "1e-4" are numbers too, of which Python's literals know the last alone.
        try:
            return float(text)
        except ValueError:
            return _NOT_ONE


def _checked(value: Any, like: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, float):
        if number:
            return float(value)
        raise ValueError("a number is needed")
    if isinstance(like, int):
        if number and value == value // 1:  # 1e3 is a whole number
            return int(value)
        raise ValueError("a whole number is needed")
    if isinstance(value, type(like)):
        return value
    raise ValueError(f"a {type(like).__name__} is needed")


def _elements(text: str, default: tuple) -> tuple:
    """`('a', 'b')`, `a,b`, `a` and the empty text as elements of the type that `default` has."""
    value = _literal(text)
    if not isinstance(value, tuple | list):
        inner = re.fullmatch(r"\s*[(\[](.*)[)\]]\s*", text) or re.fullmatch(r"(.*)", text)
        assert inner is not None
        pieces = _divide(inner[1])
        like = default[0] if default else ""
        value = [_literal(p) if _quoted(p) else _scalar(p, like) for p in pieces]
    if not default:
        return tuple(value)
    like = 1.0 if float in map(type, default) else default[0]
    return tuple(_checked(element, like) for element in value)


def _quoted(piece: str) -> bool:
    return len(piece) > 1 and piece[0] == piece[-1] and piece[0] in "'\""


def _divide(text: str) -> list[str]:
    """At the commas outside brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces if piece.strip()]
