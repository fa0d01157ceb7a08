"""AUROC against confusion log probability (CLP): Winkens et al. (2020), section 4, Fig. 1."""

from collections.abc import Sequence

import numpy as np

from ood_jax.reporting import clp_read
from ood_jax.reporting.across import spearman
from ood_jax.reporting.blocks import (
    Block,
    Body,
    Cell,
    Column,
    LeftOut,
    Panel,
    Panels,
    Table,
    Text,
    clean,
)
from ood_jax.reporting.clp_bins import FEWEST
from ood_jax.reporting.clp_figures import bin_panel, class_panel
from ood_jax.reporting.clp_points import Judged, Notes, Point, judge, matched
from ood_jax.reporting.clp_read import Clp, Images
from ood_jax.reporting.tables import NONE, Place, cell, counted
from ood_jax.reporting.variants import Variant

FEW = 3  # classes; the correlation of fewer says nothing


def against_clp(variants: Sequence[Variant], clp: Clp) -> list[Block]:
    """Two panels and a table for each in-distribution set and scorer that is first in a run."""
    notes = Notes()
    by_image = _images(variants, clp, notes)
    found = [judge(i, variant, clp, by_image, notes) for i, variant in enumerate(variants)]
    judged = [one for one in found if one is not None]
    out: list[Block] = [Text(_meaning(clp))] if judged else []
    for number, (inside, scorer) in enumerate(
        dict.fromkeys((one.inside, one.scorer) for one in judged), 1
    ):
        own = [one for one in judged if (one.inside, one.scorer) == (inside, scorer)]
        out += _blocks(own, number)
    if not judged:
        out.append(LeftOut("No run matches the sets of CLP: there is nothing to draw."))
    return [*out, *_lines(notes, len(variants))]


def _meaning(clp: Clp) -> str:
    return (
        "CLP: log of the probability with which an ensemble of classifiers"
        f" ({clp.members} here), trained on the in-distribution and the OOD sets together, takes"
        " OOD images for in-distribution classes. Nearer 0 = nearer OOD. AUROC is against all"
        " in-distribution test images."
    )


def _images(variants: Sequence[Variant], clp: Clp, notes: Notes) -> dict[str, dict[str, Images]]:
    """Inside set -> its outside sets' images, for all inside sets that a variant needs."""
    out: dict[str, dict[str, Images]] = {}
    for variant in variants:
        inside, _ = matched(variant, clp, Notes())
        if inside and inside not in out:
            try:
                out[inside] = clp_read.images(clp, inside)
            except ValueError as error:
                out[inside] = {}
                notes.say(f"no image-wise CLP: {error}", "")
    return out


def _lines(notes: Notes, count: int) -> list[Block]:
    """One for each reason, with the variants that it holds for, where it does not for all."""
    out: list[Block] = []
    for text, names in notes.items():
        all_of_them = names == [""] or len(names) == count
        whose = "" if all_of_them else f"{', '.join(names)}: "
        out.append(LeftOut(clean(f"{whose}{text}.")))
    return out


def _blocks(judged: Sequence[Judged], number: int) -> list[Block]:
    title = clean(f"In distribution: {judged[0].inside}; score: {judged[0].scorer}")
    panels: list[Panel] = []
    absent: list[Block] = []
    if any(one.points for one in judged):
        own = [one for one in judged if one.points]
        panels.append(class_panel(own, f"clp-{number}-classes"))
    if (bins := bin_panel(judged, f"clp-{number}-bins")) is not None:
        panels.append(bins)
    else:
        text = f"{title}: no two bins of image-wise CLP have {FEWEST} images."
        absent.append(LeftOut(text))
    out: list[Block] = [Panels(title, clean(_caption(judged)), tuple(panels))] if panels else []
    return [*out, *absent, _table(judged, title)]


def _caption(judged: Sequence[Judged]) -> str:
    texts = []
    counts = [point.images for one in judged for point in one.points.values()]
    if counts:
        texts.append(
            f"OOD classes: a point is a class, of {_span(counts)} images; AUROC is the mean over"
            " seeds. Named are the ends of CLP"
            + (", and where the first two colours differ most." if len(judged) > 1 else ".")
        )
    several = {len(one.samples) > 1 for one in judged if one.samples}
    if several:
        spread = {True: "± sample standard deviation over seeds", False: "95 % bootstrap interval"}
        bars = " or, of a single run, ".join(spread[k] for k in sorted(several, reverse=True))
        texts.append(
            "OOD images: all sets together, in bins of an image's own CLP (grey: their bounds; of"
            f" less than {FEWEST} images: merged). Bars: {bars}. Marked near: half of a bin's"
            " images or more are of near sets."
        )
    return " ".join(texts)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(judged: Sequence[Judged], title: str) -> Table:
    names = dict.fromkeys(name for one in judged for name in one.group)
    header = [Column(""), Column("CLP"), Column("class-wise CLP")]
    header += [Column(counted(one.variant), "AUROC, %") for one in judged]
    header += [Column(counted(one.variant), "ρ of AUROC and CLP") for one in judged]
    rows = [_row(judged, name) for name in names]
    if len(names) > 1:
        every = [list(one.points.values()) for one in judged]
        rows.append((Cell("all classes"), *[NONE] * (2 + len(judged)), *_rhos(every)))
    caption = (
        "CLP of all images of a set, and the lowest and highest of its classes. ρ: Spearman's rank"
        f" correlation over the classes of a set, of {FEW} or more. Below zero: nearer classes are"
        " detected worse."
    )
    return Table(
        f"CLP and AUROC; {title[0].lower()}{title[1:]}",
        caption,
        tuple(header),
        (Body("", tuple(rows)),),
    )


def _row(judged: Sequence[Judged], name: str) -> tuple[Cell, ...]:
    own = [[p for p in one.points.values() if p.set == name] for one in judged]
    values = [point.clp for points in own for point in points]
    first = next(one for one in judged if name in one.group)
    whole = first.clp[name]
    group = first.group[name]
    ranged = Cell(f"{_minus(min(values))} to {_minus(max(values))}") if values else NONE
    return (
        Cell(clean(f"{name} ({group})" if group != "other" else name)),
        Cell(_minus(whole)),
        ranged if len(set(values)) > 1 else NONE,
        *(cell(one.variant, Place("", "sets", name), one.scorer, "auroc") for one in judged),
        *_rhos(own),
    )


def _rhos(points: Sequence[Sequence[Point]]) -> list[Cell]:
    out = []
    for own in points:
        x, y = (np.array([getattr(p, key) for p in own]) for key in ("clp", "auroc"))
        rho = spearman(x, y) if len(own) >= FEW else None
        out.append(NONE if rho is None else Cell(_minus(rho, 2)))
    return out


def _minus(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
