"""Blocks as one HTML page: no script, nothing fetched, all that came from files escaped."""

import base64
import re
from html import escape
from io import BytesIO
from itertools import groupby

import numpy as np

from ood_jax.reporting.blocks import (
    Block,
    Body,
    Cell,
    Column,
    LeftOut,
    Mistake,
    Mistakes,
    Panels,
    Picture,
    Report,
    Table,
    Text,
)
from ood_jax.reporting.style import CSS

# The browser itself refuses scripts and requests, should a name ever get past the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """The whole document."""
    links = "".join(
        f'<li><a href="#{_slug(section.title)}">{escape(section.title)}</a></li>'
        for section in report.sections
    )
    sections = "".join(
        f'<section id="{_slug(section.title)}"><h2>{escape(section.title)}</h2>\n'
        + "\n".join(map(_block, section.blocks))
        + "</section>\n"
        for section in report.sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{CSS}</style></head>\n"
        f"<body><header><h1>{escape(report.title)}</h1><p>{escape(report.lead)}</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{sections}</main></body></html>\n"
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, LeftOut):
        return f'<p class="note">{escape(block.text)}</p>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Panels):
        return _panels(block)
    if isinstance(block, Picture):
        return _picture(block)
    return _mistakes(block)


def _caption(title: str, caption: str) -> str:
    head = f"<b>{escape(title)}.</b> " if title else ""
    return f"<figcaption>{head}{escape(caption)}</figcaption>"


def _table(table: Table) -> str:
    kind = "numbers" if table.numeric else "words"
    rows = "".join(_body(body, table.columns) for body in table.bodies)
    inner = f'<table class="{kind}"><thead>{_header(table.columns)}</thead>{rows}</table>'
    return (
        f"<figure>{_caption(table.title, table.caption)}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"{inner}</div></figure>"
    )


def _header(columns: tuple[Column, ...]) -> str:
    names = "".join(
        f'<th scope="col"{_class(column)}>{_breakable(column.text)}</th>' for column in columns
    )
    if not any(column.group for column in columns):
        return f"<tr>{names}</tr>"
    groups = [(name, len(list(same))) for name, same in groupby(columns, lambda c: c.group)]
    above = "".join(
        f'<th colspan="{count}" scope="colgroup"><span>{escape(name)}</span></th>'
        if name
        else "<td></td>" * count
        for name, count in groups
    )
    return f"<tr>{above}</tr><tr>{names}</tr>"


def _class(column: Column) -> str:
    return ' class="mean"' if column.mean else ""


def _body(body: Body, columns: tuple[Column, ...]) -> str:
    title = (
        f'<tr><th class="title" scope="rowgroup" colspan="{len(columns)}">'
        f"<span>{escape(body.title)}</span></th></tr>"
        if body.title
        else ""
    )
    rows = "".join(
        f'<tr><th scope="row">{_breakable(row[0].text)}</th>'
        + "".join(
            f"<td{_class(column)}>{_cell(cell)}</td>"
            for column, cell in zip(columns[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in body.rows
    )
    return f"<tbody>{title}{rows}</tbody>"


def _breakable(text: str) -> str:
    """Escaped, and lines may end before the parts of a long name."""
    return re.sub(r"(?<=[^\s@])([@_.:/,=])(?=\w)", r"<wbr>\1", escape(text))


def _cell(cell: Cell) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    return text + (f" <small>{escape(cell.spread)}</small>" if cell.spread else "")


def _panels(block: Panels) -> str:
    pictures = "".join(_svg(panel.svg, panel.alt) for panel in block.panels)
    head = f"<h3>{escape(block.title)}</h3>" if block.title else ""
    caption = f"<figcaption>{escape(block.caption)}</figcaption>" if block.caption else ""
    whole = f'{head}<figure>{caption}<div class="grid">{pictures}</div></figure>'
    return f'<div class="one">{whole}</div>' if len(block.panels) == 1 else whole


def _svg(svg: str, alt: str) -> str:
    """The page scales it: its size goes, and so do the names that only a file of its own needs."""
    start, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[-0-9. ]+"', start)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{rest}'


def _picture(block: Picture) -> str:
    image = f'<img class="picture" src="{data_url(block.image)}" alt="{escape(block.alt)}">'
    return (
        f"<h3>{escape(block.title)}</h3>"
        f"<figure><figcaption>{escape(block.caption)}</figcaption>{image}</figure>"
    )


def _mistakes(block: Mistakes) -> str:
    cards = "".join(map(_card, block.items))
    return f'<h3>{escape(block.title)}</h3><ol class="cards">{cards}</ol>'


def _card(mistake: Mistake) -> str:
    near = "".join(
        f'<span><img src="{data_url(image)}" alt="train image">{cosine:.2f}</span>'
        for image, cosine in mistake.neighbours
    )
    return (
        f'<li><img class="seen" src="{data_url(mistake.image)}" alt="{escape(mistake.name)}">'
        f'<div>{escape(mistake.facts)}<br><span class="name">{escape(mistake.name)}</span>'
        f'<div class="near">{near}</div></div></li>'
    )


def data_url(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a WebP within the page: exact where it is small, where pixels show."""
    from PIL import Image

    out = BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=max(image.shape) <= 64, quality=85)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
