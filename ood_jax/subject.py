"""One recipe as a benchmark sees it: its sets, and how many images of each class they hold."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ood_jax.config import method_module, named_sources, stages_of
from ood_jax.data.sources import class_numbers, open_source

SHARED = ("train", "test", "root")  # keys below data that all stages of a run must agree on


class Counts(NamedTuple):
    """A set as far as its size goes.

    spec: the source as the config has it. size: images. classes: names of the labels, () =
    unknown. images: label -> how many, of labels that have any; {} = no image has a label.
    """

    spec: str
    size: int
    classes: tuple[str, ...]
    images: dict[int, int]


class Subject(NamedTuple):
    """A recipe that a benchmark is made of.

    config: of the stage that is scored. sets: config key -> its set: data.train, data.test and,
    where it is named, score.calibration. readers: what stands before the keys of each stage that
    reads data.auxiliary, "" or "STAGE."; () = none does. without: keys that train it without
    outliers; None = its method has no such way.
    """

    config: ConfigDict
    sets: dict[str, Counts]
    readers: tuple[str, ...]
    without: dict[str, Any] | None

    @property
    def train(self) -> Counts:
        return self.sets["data.train"]

    @property
    def test(self) -> Counts:
        return self.sets["data.test"]


def counted(spec: str, root: str, labels: bool = True) -> Counts:
    """Opens a set and counts it; labels: by class too, which TFDS sets are read through for.

    Raises:
      ValueError: what `open_source` refuses.
    """
    source = open_source(spec, root=root)
    found = source.labels if labels else None
    if found is None:
        return Counts(spec, len(source), source.classes, {})
    numbers, images = np.unique(found[found >= 0], return_counts=True)
    by_label = dict(zip(numbers.tolist(), images.tolist(), strict=True))
    return Counts(spec, len(source), source.classes, by_label)


def subject(
    config: ConfigDict, count: Callable[[str, str, bool], Counts] = counted, *, labels: bool
) -> Subject:
    """Opens every set that the recipe's runs will read, and counts those that are cut.

    count: `counted`, or what remembers it. labels: the benchmark asks for classes.

    Raises:
      ValueError: a set that cannot be opened or has no labels, class names that differ between
        sets, stages of different sets, score.benchmark.
    """
    stages = stages_of(config)
    own = list(stages.values())[-1]
    if own.score.benchmark:
        raise ValueError(
            f"score.benchmark = {own.score.benchmark!r} brings its own sets: empty it, and name"
            " data.test and score.near"
        )
    for key in SHARED:
        if len({one.data[key] for one in stages.values()}) > 1:
            listed = ", ".join(f"{stage} {one.data[key]!r}" for stage, one in stages.items())
            raise ValueError(f"data.{key} differs between stages ({listed}): use one set in all")
    root = own.data.root
    sets = {"data.train": own.data.train, "data.test": own.data.test}
    if own.score.calibration:
        sets["score.calibration"] = own.score.calibration
    outliers = [one.data.auxiliary for one in stages.values() if one.data.auxiliary]
    for spec in (*outliers, *named_sources(own.score.near + own.score.far).values()):
        count(spec, root, False)
    found = {key: count(spec, root, labels) for key, spec in sets.items()}
    if labels:
        _check_labels(found)
    return Subject(own, found, *_readers(stages))


def _readers(stages: dict[str, ConfigDict]) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    """`readers` and `without` of a Subject."""
    readers: list[str] = []
    without: dict[str, Any] | None = {}
    for stage, config in stages.items():
        if config.data.auxiliary:
            before = f"{stage}." if stage else ""
            readers.append(before)
            keys = getattr(method_module(config.method.name), "WITHOUT_OUTLIERS", None)
            if keys is None:
                without = None
            elif without is not None:
                without |= {before + key: value for key, value in keys.items()}
    return tuple(readers), without


def _check_labels(sets: dict[str, Counts]) -> None:
    train = sets["data.train"]
    for key, one in sets.items():
        if not one.images:
            raise ValueError(f"{key} = {one.spec!r} has no labels: this benchmark needs them")
        if one.classes and train.classes and one.classes != train.classes:
            pairs = zip(train.classes, one.classes, strict=False)
            a, b = next(
                ((a, b) for a, b in pairs if a != b), (len(train.classes), len(one.classes))
            )
            raise ValueError(
                f"the classes of data.train and {key} differ ({a!r} and {b!r}): use sets of the"
                " same classes; parts of unions are called alike by NAME=A + NAME=B"
            )


def names(recipe: Subject) -> tuple[str, ...]:
    """The names of all classes, () = unknown."""
    return recipe.train.classes or recipe.test.classes


def title(recipe: Subject, number: int) -> str:
    """What the class is called: its name, with its number where it has none of its own."""
    known = names(recipe)
    if not known:
        return str(number)
    name = known[number]
    return name if known.count(name) == 1 else f"{number} {name}"


def present(recipe: Subject) -> set[int]:
    """The classes that have an image in the train or the test set."""
    return {*recipe.train.images, *recipe.test.images}


def chosen(recipe: Subject, flag: str, text: str) -> list[int]:
    """The classes that --FLAG=TEXT names; all of them where the text is empty.

    Raises:
      ValueError: no such class, with the nearest name.
    """
    known = names(recipe)
    labels = sorted(present(recipe))
    if text:
        return class_numbers(text, known, np.array(labels), f"--{flag}={text}")
    return list(range(len(known))) if known else labels


def check_images(recipe: Subject, key: str, numbers: Iterable[int]) -> None:
    """Refuses classes without images in the set of `key`.

    Raises:
      ValueError: naming the first of them.
    """
    one = recipe.sets[key]
    for number in sorted(numbers):
        if number not in one.images:
            raise ValueError(
                f"the class {title(recipe, number)!r} has no image in {key} = {one.spec!r}:"
                " use other classes (see --help) or another set"
            )
