"""The spread of OOD ranks between seeds, a table like those of the metrics."""

from collections.abc import Sequence

from ood_jax import ranks
from ood_jax.reporting.blocks import Block, Cell, Column, LeftOut, Table, clean
from ood_jax.reporting.tables import NONE, bodies, columns, places
from ood_jax.reporting.variants import Variant, seed

MEANING = (
    "Mean over a set's images of the sample standard deviation (divisor n − 1) over seeds of the"
    " image's OOD rank, in points of the rank, which is in percent (Winkens et al. 2020, Table 2)."
    " Near 0: all seeds judge the same images alike."
)


def rank_spread(variants: Sequence[Variant]) -> list[Block]:
    """A row for each scorer of each variant that has several seeds; why others have none."""
    several = [variant for variant in variants if len(variant.runs) > 1]
    if not several:
        return [LeftOut("No setting has two seeds: there is no spread of OOD ranks.")]
    found = {v.name: ranks.spread({seed(run): run.workdir for run in v.runs}) for v in several}
    where = [place for place in places(several) if place.part == "sets"]

    def row(variant: Variant, scorer: str) -> tuple[Cell, ...]:
        points = found[variant.name].points
        values = [points.get(place.name, {}).get(scorer) for place in where]
        return tuple(NONE if value is None else Cell(f"{value:.1f}") for value in values)

    rows = bodies(several, row)
    header = (Column(""), *columns(where))
    out: list[Block] = []
    if rows:
        out.append(Table("Spread of OOD ranks between seeds, points", MEANING, header, rows))
    for name, one in found.items():
        if one.left_out:
            text = f"No spread of OOD ranks of {name}: {'; '.join(one.left_out)}."
            out.append(LeftOut(clean(text)))
    return out
