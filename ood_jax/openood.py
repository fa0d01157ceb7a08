"""The benchmarks of OpenOOD v1.5, as sources over its image lists and folders.

data.root is OpenOOD's `data` folder: benchmark_imglist/, images_classic/, images_largescale/. The
lists are its splits: an ID test list leaves the ID validation images out, for example.
Source: Zhang et al. 2023, "OpenOOD v1.5"; names as in its openood/evaluation_api/datasets.py.
"""

import difflib
from typing import NamedTuple

LISTS = "benchmark_imglist"
CLASSIC, LARGE = "images_classic", "images_largescale"


class Benchmark(NamedTuple):
    """Sources of one benchmark.

    train, test: in-distribution. calibration: ID validation images. validation: OOD images that
    hyperparameters may be chosen on. near, far: OOD test sets, ("name=source", ...).
    """

    train: str
    test: str
    calibration: str
    validation: str
    near: tuple[str, ...]
    far: tuple[str, ...]


def benchmark(name: str) -> Benchmark:
    """The sources of cifar10, cifar100, imagenet200 or imagenet1k.

    Raises:
      ValueError: another name; the nearest one is told.
    """
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"score.benchmark {name!r}: {hint}there are {', '.join(BENCHMARKS)}, and '' for none"
        )
    return BENCHMARKS[name]


def _source(folder: str, split: str, images: str) -> str:
    return f"list:{LISTS}/{folder}/{split}.txt@{images}"


def _cifar(name: str, other: str) -> Benchmark:
    def sets(*names: str) -> tuple[str, ...]:
        return tuple(f"{n}={_source(name, f'test_{n}', CLASSIC)}" for n in names)

    return Benchmark(
        train=_source(name, f"train_{name}", CLASSIC),
        test=_source(name, f"test_{name}", CLASSIC),
        calibration=_source(name, f"val_{name}", CLASSIC),
        validation=_source(name, "val_tin", CLASSIC),
        near=sets(other, "tin"),
        far=sets("mnist", "svhn", "texture", "places365"),
    )


def _imagenet(name: str) -> Benchmark:
    def sets(**images: str) -> tuple[str, ...]:
        return tuple(f"{n}={_source(name, f'test_{n}', where)}" for n, where in images.items())

    return Benchmark(
        train=_source(name, f"train_{name}", LARGE),
        test=_source(name, f"test_{name}", LARGE),
        calibration=_source(name, f"val_{name}", LARGE),
        validation=_source(name, "val_openimage_o", LARGE),
        near=sets(ssb_hard=LARGE, ninco=LARGE),
        far=sets(inaturalist=LARGE, textures=CLASSIC, openimage_o=LARGE),
    )


BENCHMARKS = {
    "cifar10": _cifar("cifar10", "cifar100"),
    "cifar100": _cifar("cifar100", "cifar10"),
    "imagenet200": _imagenet("imagenet200"),
    "imagenet1k": _imagenet("imagenet"),
}
