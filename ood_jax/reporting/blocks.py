"""What a report is made of, before it is HTML or Markdown. All text is plain: writers escape it."""

from typing import NamedTuple

import numpy as np


class Text(NamedTuple):
    """A paragraph."""

    text: str


class LeftOut(NamedTuple):
    """A line that says what is not shown, and why."""

    text: str


class Cell(NamedTuple):
    """One number or word of a table; spread: a deviation or an interval beside it."""

    text: str
    spread: str = ""
    best: bool = False


class Column(NamedTuple):
    """group: what stands above this column and its neighbours of the same group."""

    text: str
    group: str = ""
    mean: bool = False


class Body(NamedTuple):
    """Rows under one heading; the first cell of a row is its header."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


class Table(NamedTuple):
    """numeric: all columns but the first are numbers."""

    title: str
    caption: str
    columns: tuple[Column, ...]
    bodies: tuple[Body, ...]
    numeric: bool = True


class Panel(NamedTuple):
    """One small picture, about 320 px wide. name: of its file. alt: for those who cannot see it."""

    name: str
    alt: str
    svg: str


class Panels(NamedTuple):
    """Small multiples under one caption."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


class Mistake(NamedTuple):
    """An image on the wrong side; image: uint8 [S, S, 3]; neighbours: (image, cosine)."""

    image: np.ndarray
    name: str
    facts: str
    neighbours: tuple[tuple[np.ndarray, float], ...]


class Mistakes(NamedTuple):
    """The worst mistakes in one set. name: of its picture's file."""

    name: str
    title: str
    items: tuple[Mistake, ...]


class Picture(NamedTuple):
    """An image, uint8 [H, W, 3], under its caption. name: of its file. alt: as of a Panel."""

    name: str
    title: str
    caption: str
    alt: str
    image: np.ndarray


Block = Text | LeftOut | Table | Panels | Mistakes | Picture


class Section(NamedTuple):
    """title: one of ours, so that links can be made of it."""

    title: str
    blocks: tuple[Block, ...]


class Report(NamedTuple):
    """The whole page."""

    title: str
    lead: str
    sections: tuple[Section, ...]


def clean(text: str) -> str:
    """Names come from files: one line, without control characters or text direction marks."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(text).split()))


def short(text: str, width: int = 18) -> str:
    """At most `width` characters, cut in the middle: names differ at both ends."""
    text = clean(text)
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
