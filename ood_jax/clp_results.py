"""What clp.json, clp.npz and clp_images.parquet hold, of an ensemble's probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ood_jax import confusion
from ood_jax.data.source import Part, Source
from ood_jax.data.union import uncut
from ood_jax.ensemble import Judged, Member

SCHEMA = 1
PerImage = dict[str, np.ndarray]  # inside set -> float64 [N], CLP of every test image


def _sets(test: Source) -> dict[str, range]:
    """Set -> its classes in the union."""
    return {part.name: range(part.first, part.first + len(part.classes)) for part in test.parts}


def class_names(part: Part) -> list[str]:
    """The names of a set's classes, as the set itself has them."""
    return [name.removeprefix(f"{part.name}/") for name in part.classes]


def image_wise(test: Source, judged: Judged) -> PerImage:
    """CLP of every image with respect to every set, its own too."""
    return {
        name: confusion.image_clp(judged.log_c, classes) for name, classes in _sets(test).items()
    }


def results(
    members: Sequence[Member], test: Source, judged: Judged, per_image: PerImage
) -> dict[str, Any]:
    """What clp.json holds: JSON values."""
    sets = _sets(test)
    dataset: dict[str, Any] = {name: {} for name in sets}
    classwise: dict[str, Any] = {name: {} for name in sets}
    for outside, classes in sets.items():
        own = np.isin(judged.labels, list(classes))
        for inside in [name for name in sets if name != outside]:
            values = per_image[inside][own]
            dataset[inside][outside] = confusion.dataset_clp(values)
            by_class = confusion.classwise_clp(values, judged.labels[own] - classes.start)
            classwise[inside][outside] = {str(label): clp for label, clp in by_class.items()}
    return {
        "schema": SCHEMA,
        "members": [
            {
                "workdir": str(member.workdir),
                "seed": member.seed,
                "step": member.restored.step,
                "accuracy": accuracy,
            }
            for member, accuracy in zip(members, judged.accuracies, strict=True)
        ],
        "accuracy": confusion.accuracy(judged.log_c, judged.labels),
        "sets": [
            {
                "name": part.name,
                "source": part.spec,
                "classes": class_names(part),
                "first": part.first,
            }
            for part in test.parts
        ],
        "dataset": dataset,
        "classwise": classwise,
        "range": {
            inside: {name: [min(v.values()), max(v.values())] for name, v in outside.items()}
            for inside, outside in classwise.items()
        },
        "confusion": confusion.set_confusion(
            judged.log_c, judged.labels, list(sets.values())
        ).tolist(),
    }


def class_arrays(test: Source, judged: Judged) -> dict[str, np.ndarray]:
    """The arrays of clp.npz, over the C classes of the union that have a test image.

    u float64 [C, C], Eq. 5: [i, j] is the mean probability of class i on images of class j.
    distance float64 [C, C], Eq. 6. linkage float64 [C - 1, 4], SciPy's, average linkage. sets,
    classes: text [C], names. labels int32 [C]: the class's number within its set.
    """
    present = np.unique(judged.labels)
    own = np.searchsorted(present, judged.labels)
    log_u = confusion.log_class_confusion(judged.log_c[:, present], own)
    distance = confusion.class_distance(log_u)
    each = [(p.name, name, i) for p in test.parts for i, name in enumerate(class_names(p))]
    sets, classes, labels = zip(*(each[i] for i in present), strict=True)
    return {
        "u": np.exp(log_u),
        "distance": distance,
        "linkage": confusion.average_linkage(distance),
        "sets": np.array(sets),
        "classes": np.array(classes),
        "labels": np.array(labels, np.int32),
    }


def image_table(test: Source, judged: Judged, per_image: PerImage) -> Any:
    """The table of clp_images.parquet: a line for each image and each set but its own.

    set; source, its spec without filters; image, its name there; index, its row in the set, after
    all filters; label within the set; inside; clp.
    """
    import pyarrow as pa

    tables = []
    for part in test.parts:
        own = np.isin(judged.labels, range(part.first, part.first + len(part.classes)))
        rows = judged.rows[own]
        source = uncut(part.spec)[0]
        own_names = [test.name(int(row)).removeprefix(f"{part.name}/") for row in rows]
        names = pa.array(own_names, pa.string())
        for inside in [name for name in per_image if name != part.name]:
            columns = {
                "set": pa.array([part.name] * len(rows), pa.string()),
                "source": pa.array([source] * len(rows), pa.string()),
                "image": names,
                "index": pa.array(rows - part.rows, pa.int32()),
                "label": pa.array(judged.labels[own] - part.first, pa.int32()),
                "inside": pa.array([inside] * len(rows), pa.string()),
                "clp": pa.array(per_image[inside][own]),
            }
            tables.append(pa.table(columns))
    return pa.concat_tables(tables)
