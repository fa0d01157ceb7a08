"""The same blocks as Markdown, with pictures as files beside it."""

import re
from collections.abc import Callable
from io import BytesIO

import numpy as np

from ood_jax.reporting.blocks import (
    Block,
    Body,
    Cell,
    Column,
    LeftOut,
    Mistakes,
    Panels,
    Picture,
    Report,
    Table,
    Text,
)

FOLDER = "figures"
Add = Callable[[str, bytes], None]
CELL, GAP = 64, 8  # px of a picture and between pictures in a gallery's sheet


def markdown(report: Report) -> tuple[str, dict[str, bytes]]:
    """(the text, {file name below FOLDER: its bytes})."""
    files: dict[str, bytes] = {}
    lines = [f"# {escaped(report.title)}", "", escaped(report.lead), ""]
    for section in report.sections:
        lines += [f"## {escaped(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block, files.__setitem__), ""]
    return "\n".join(lines), files


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no cell's end."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    # What opens a list, a heading or a rule does so at the start of a line alone.
    text = re.sub(r"^([-+#=])", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def _block(block: Block, add: Add) -> list[str]:
    if isinstance(block, Text):
        return [escaped(block.text)]
    if isinstance(block, LeftOut):
        return [f"*{escaped(block.text)}*"]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Panels):
        return _panels(block, add)
    if isinstance(block, Picture):
        return _picture(block, add)
    return _mistakes(block, add)


def _table(table: Table) -> list[str]:
    side = "--:" if table.numeric else ":--"
    return [
        f"**{escaped(table.title)}.** {escaped(table.caption)}".strip(),
        "",
        _line([_name(column) for column in table.columns]),
        _line([":--", *[side] * (len(table.columns) - 1)]),
        *(line for body in table.bodies for line in _body(body, len(table.columns))),
    ]


def _name(column: Column) -> str:
    """A Markdown table has one header row: the group stands in it."""
    return escaped(f"{column.text} ({column.group})" if column.group else column.text)


def _body(body: Body, columns: int) -> list[str]:
    title = [_line([f"*{escaped(body.title)}*", *[""] * (columns - 1)])] if body.title else []
    return title + [_line([escaped(row[0].text), *map(_cell, row[1:])]) for row in body.rows]


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
    return f"{text} {escaped(cell.spread)}".rstrip()


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _panels(block: Panels, add: Add) -> list[str]:
    out = [f"### {escaped(block.title)}", ""] if block.title else []
    out += [escaped(block.caption), ""] if block.caption else []
    for panel in block.panels:
        name = f"{panel.name}.svg"
        # Viewers in the dark show the picture on their own background.
        add(name, panel.svg.replace("<svg ", '<svg style="background:#fff" ', 1).encode())
        out.append(f"![{escaped(panel.alt)}]({FOLDER}/{name})")
    return out


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    out = BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _picture(block: Picture, add: Add) -> list[str]:
    add(f"{block.name}.png", _png(block.image))
    return [
        f"### {escaped(block.title)}",
        "",
        escaped(block.caption),
        "",
        f"![{escaped(block.alt)}]({FOLDER}/{block.name}.png)",
    ]


def _mistakes(block: Mistakes, add: Add) -> list[str]:
    """A sheet of pictures, a row for each mistake: it, a gap, its neighbours; then the numbers."""
    add(f"{block.name}.png", _png(_sheet(block)))
    rows = [
        _line([escaped(mistake.name), escaped(mistake.facts), ", ".join(cosines)])
        for mistake in block.items
        for cosines in [[f"{cosine:.2f}" for _, cosine in mistake.neighbours]]
    ]
    return [
        f"### {escaped(block.title)}",
        "",
        f"![{escaped(block.title)}]({FOLDER}/{block.name}.png)",
        "",
        _line(["image, from top to bottom", "judged", "cosine to its nearest train images"]),
        _line([":--"] * 3),
        *rows,
    ]


def _sheet(block: Mistakes) -> np.ndarray:
    size = max(block.items[0].image.shape)
    size *= max(1, round(CELL / size))
    columns = 1 + max(len(mistake.neighbours) for mistake in block.items)
    width = columns * (size + GAP) + 2 * GAP
    sheet = np.full((len(block.items) * (size + GAP) + GAP, width, 3), 255, np.uint8)
    for row, mistake in enumerate(block.items):
        top = GAP + row * (size + GAP)
        for column, image in enumerate([mistake.image, *(n for n, _ in mistake.neighbours)]):
            left = GAP + column * (size + GAP) + (GAP if column else 0)
            factor = size // max(image.shape)
            large = image.repeat(factor, 0).repeat(factor, 1)
            sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
    return sheet
