"""The cases of a benchmark: which keys of a recipe's config each of its runs sets.

Text and counts alone: nothing here opens a set. Le-Gia & Ahn, sections IV-C and V-B, Table III,
Figs. 3 and 7.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ood_jax.config import named_sources
from ood_jax.data.sources import filtered
from ood_jax.subject import Subject, check_images, chosen, present, title

ALL = "all"


class Case(NamedTuple):
    """One run of a benchmark, for every recipe and seed.

    name: what its row of the table is called. settings: config key -> value, where "{seed}" within
    text stands for the run's seed. curve, at: where it lies in a picture against a number of
    images: on which line, at which number (None = the picture has no such axis). folder: what the
    run's folder is called behind its recipe; "" = nothing is added.
    """

    name: str
    settings: dict[str, Any]
    curve: str = ""
    at: int | None = None
    folder: str = ""


def split_by_classes(
    config: ConfigDict, inside: Iterable[int], outside: Iterable[int], name: str
) -> dict[str, Any]:
    """The keys that make the classes `inside` the in-distribution and `outside` the OOD set NAME.

    Both are cut from the sets that `config` names; its own OOD test sets are left out,
    score.validation stays. Recipes call this too.
    """
    own, others = (f"[classes={spans(numbers)}]" for numbers in (inside, outside))
    keys: dict[str, Any] = {
        "data.train": filtered(config.data.train, own),
        "data.test": filtered(config.data.test, own),
        "score.near": (f"{name}={filtered(config.data.test, others)}",),
        "score.far": (),
    }
    if config.score.calibration:
        keys["score.calibration"] = filtered(config.score.calibration, own)
    return keys


def spans(numbers: Iterable[int]) -> str:
    """0, 1, 2, 4 as "0-2,4", in ascending order."""
    ends: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ends and ends[-1][1] == number - 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def one_vs_rest(recipe: Subject, classes: str = "") -> list[Case]:
    """Each class in turn is normal, all others of the test set are the OOD set "rest".

    classes: which take turns, such as "0-4,7" or "cat,dog"; "" = all.

    Raises:
      ValueError: no such class, or one without images.
    """
    return [
        Case(title(recipe, own), _split(recipe, {own}, set(recipe.test.images) - {own}, "rest"))
        for own in chosen(recipe, "classes", classes)
    ]


def leave_one_class_out(recipe: Subject, classes: str = "") -> list[Case]:
    """Each class in turn is the OOD set "left_out", all others are normal; see `one_vs_rest`."""
    return [
        Case(title(recipe, other), _split(recipe, present(recipe) - {other}, {other}, "left_out"))
        for other in chosen(recipe, "classes", classes)
    ]


def unlabelled(recipe: Subject, outliers: Sequence[str] = ()) -> list[Case]:
    """All classes are normal, against the recipe's own OOD sets: Table III.

    outliers: NAME=SOURCE, each in turn in the place of data.auxiliary; () = the recipe's own.

    Raises:
      ValueError: no OOD set, or a name twice.
    """
    return [Case(curve or "all classes", keys) for curve, keys in _exposures(recipe, outliers)]


def few_shot(
    recipe: Subject, k: str = "0,1,10,all", normal: str = "", obtainable: Sequence[str] = ()
) -> list[Case]:
    """One class is normal, k train images of another are outliers, all others are "unseen" OOD.

    normal: a class, by default the one with most train images. obtainable: classes, each an
    experiment of its own; by default the next largest one. k: images drawn with the run's seed. A
    recipe that reads no outliers has k = 0 alone.

    Raises:
      ValueError: no such class, one without images, k larger than the class, k = 0 of a method
        that does not say how it trains without outliers.
    """
    sizes = recipe.train.images
    largest = sorted(sizes, key=lambda number: (-sizes[number], number))
    own = _one(recipe, "normal", normal) if normal else largest[0]
    named = [_one(recipe, "obtainable", text) for text in obtainable]
    others = named or [number for number in largest if number != own][:1]
    if own in others or not others:
        raise ValueError(
            f"the normal class is {title(recipe, own)!r}: another one must be obtainable, see"
            " --normal and --obtainable"
        )
    return [case for other in others for case in _shots(recipe, own, other, k)]


def diminishing(
    recipe: Subject, sizes: str = "100,1000,all", outliers: Sequence[str] = ()
) -> list[Case]:
    """Train sets of several sizes, drawn with the run's seed, with each source of outliers.

    outliers: as in `unlabelled`.

    Raises:
      ValueError: no OOD set, a name twice, a size larger than the train set.
    """
    train = recipe.train
    amounts = _amounts("sizes", sizes, (1, train.size), f"data.train = {train.spec!r}")
    return [
        Case(
            ", ".join(filter(None, [f"{text} images", curve])),
            ({} if text == ALL else {"data.train": _sample(train.spec, number)}) | keys,
            curve,
            number,
        )
        for curve, keys in _exposures(recipe, outliers)
        for text, number in amounts
    ]


def _split(recipe: Subject, inside: set[int], outside: set[int], name: str) -> dict[str, Any]:
    """`split_by_classes`, once every set is known to have what is cut from it."""
    for key in recipe.sets:
        check_images(recipe, key, inside)
    check_images(recipe, "data.test", outside)
    if not (inside and outside):
        raise ValueError(f"data.test = {recipe.test.spec!r} has too few classes to be split")
    return split_by_classes(recipe.config, inside, outside, name)


def _shots(recipe: Subject, own: int, other: int, k: str) -> list[Case]:
    """Of one obtainable class: a case for each number of its images."""
    split = _split(recipe, {own}, set(recipe.test.images) - {own, other}, "unseen")
    check_images(recipe, "data.train", {other})
    whole, name = filtered(recipe.train.spec, f"[classes={other}]"), title(recipe, other)
    amounts = _amounts("k", k, (0, recipe.train.images[other]), f"the class {name!r}")
    cases = []
    for text, number in amounts if recipe.readers else [("0", 0)]:
        drawn = whole if text == ALL else _sample(whole, number)
        keys = _exposed(recipe, drawn) if number else _unexposed(recipe)
        cases.append(Case(f"{title(recipe, own)} + {text} {name}", split | keys, name, number))
    return cases


def _one(recipe: Subject, flag: str, text: str) -> int:
    found = chosen(recipe, flag, text)
    if len(found) > 1:
        raise ValueError(f"--{flag}={text}: name one class; --obtainable may be repeated")
    return found[0]


def _sample(spec: str, number: int) -> str:
    return filtered(spec, f"[sample={number}@{{seed}}]")


def _exposures(recipe: Subject, outliers: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """(name, keys) of each source of outliers; ("", {}) = the recipe's own."""
    if not (recipe.config.score.near or recipe.config.score.far):
        raise ValueError("no OOD test set: name one, as in --config.score.near=NAME=SOURCE")
    names = [text.partition("=")[0] for text in outliers]
    if len(set(names)) < len(names):
        raise ValueError(f"--outliers: {', '.join(names)}; give each a name of its own")
    named = named_sources(tuple(outliers))
    if named and not recipe.readers:
        return [("no outliers", {})]
    return [(name, _exposed(recipe, source)) for name, source in named.items()] or [("", {})]


def _exposed(recipe: Subject, source: str) -> dict[str, Any]:
    return {f"{stage}data.auxiliary": source for stage in recipe.readers}


def _unexposed(recipe: Subject) -> dict[str, Any]:
    if recipe.without is None:
        raise ValueError(
            "k = 0: the method does not say how it trains without outliers; empty data.auxiliary if"
            " it reads none, else leave 0 out of --k or declare WITHOUT_OUTLIERS in its module"
        )
    return _exposed(recipe, "") | recipe.without


def _amounts(flag: str, text: str, within: tuple[int, int], what: str) -> list[tuple[str, int]]:
    """ "0,10,all" -> [("0", 0), ("10", 10), ("all", most)]; within: the least and the most."""
    least, most = within
    out: list[tuple[str, int]] = []
    for token in (one.strip() for one in text.split(",")):
        if token != ALL and not token.isdecimal():
            raise ValueError(f"--{flag}={text}: write whole numbers and {ALL}, as in 10,100,{ALL}")
        number = most if token == ALL else int(token)
        if not least <= number <= most:
            raise ValueError(f"--{flag}={text}: {what} has {most} images; use {least} to {most}")
        if number in (other for _, other in out):
            raise ValueError(f"--{flag}={text}: two of these are {number} of {what}; keep one")
        out.append((token, number))
    return out
