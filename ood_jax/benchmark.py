"""Runs a benchmark for one recipe or more, and gathers one table: AUROC, mean ± deviation.

python -m ood_jax.benchmark NAME --config=FILE[:ARGUMENT] [--config.key=value ...] --workdir=ROOT \\
    --seeds=0,1,2 [--set=key=a,b] [--list] [--jobs=1] [--scorer=NAME]

NAME  one_vs_rest          each class in turn is normal, all others are OOD; --classes=0-4,cat:
                           these alone take turns
      leave_one_class_out  each class in turn is OOD, all others are normal; --classes likewise
      unlabelled           all classes are normal, against the recipe's OOD sets, once with each
                           --outliers=NAME=SOURCE, which may be repeated
      few_shot             --normal=CLASS (by default the largest) is normal, --k=0,1,10,all train
                           images of --obtainable=CLASS (the next largest; may be repeated, each an
                           experiment) are the outliers, all other classes are OOD
      diminishing          train sets of --sizes=100,1000,all images, with each --outliers

The classes are those of the recipe's data.train and data.test; any recipe on any labelled set will
do. A recipe that reads no outliers (no data.auxiliary) is run once where another is run for each
source or number of them. --config, --set and --seeds are those of ood_jax.sweep: all combinations
are run, each in a folder of its own, and finished ones are skipped. The table goes to
ROOT/benchmark.json, .md and .png: give each benchmark a ROOT. --scorer is one for all recipes, by
default each recipe's first.
"""

import argparse
import difflib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from ood_jax import cases, command
from ood_jax.benchmark_table import in_words, tabulate
from ood_jax.cases import Case
from ood_jax.config import named_sources
from ood_jax.gather import gather, markdown, show, write
from ood_jax.place import place
from ood_jax.runs import Cases, Run
from ood_jax.subject import counted, subject
from ood_jax.sweep import drive

FILE = "benchmark"  # .json, .md and .png below the workdir


class Benchmark(NamedTuple):
    """cases: (Subject, flags by name) -> its cases. flags: their names. labels: are they read?"""

    cases: Callable[..., list[Case]]
    flags: tuple[str, ...]
    labels: bool


BENCHMARKS = {
    "one_vs_rest": Benchmark(cases.one_vs_rest, ("classes",), True),
    "leave_one_class_out": Benchmark(cases.leave_one_class_out, ("classes",), True),
    "unlabelled": Benchmark(cases.unlabelled, ("outliers",), False),
    "few_shot": Benchmark(cases.few_shot, ("k", "normal", "obtainable"), True),
    "diminishing": Benchmark(cases.diminishing, ("sizes", "outliers"), False),
}
FLAGS = tuple(dict.fromkeys(flag for one in BENCHMARKS.values() for flag in one.flags))


def made(options: argparse.Namespace) -> Cases:
    """The cases that the command line asks for, of any recipe's config.

    Raises:
      ValueError: no such benchmark, or a flag that is another's; of a recipe, whatever is wrong
        with its sets, its scorers or what is asked of them.
    """
    name = options.name
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no benchmark {name!r}; {hint}there are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    given = {flag: getattr(options, flag) for flag in FLAGS if getattr(options, flag) is not None}
    if foreign := [flag for flag in given if flag not in benchmark.flags]:
        own = ", ".join(f"--{flag}" for flag in benchmark.flags)
        raise ValueError(f"--{foreign[0]} is of another benchmark; {name} has {own}")
    count = functools.cache(counted)

    def of(config: ConfigDict) -> list[Case]:
        recipe = subject(config, count, labels=benchmark.labels)
        _check_scorer(options.scorer, recipe.config)
        found = benchmark.cases(recipe, **given)
        for source in named_sources(tuple(options.outliers or ())).values():
            count(source, recipe.config.data.root, False)
        return [case._replace(folder=f"{name}={case.name}") for case in found]

    return of


def _check_scorer(scorer: str, config: ConfigDict) -> None:
    asked = tuple(config.score.scorers)
    if scorer and scorer not in asked and "all" not in asked:
        raise ValueError(
            f"--scorer={scorer}: the recipe has {', '.join(asked)}; use one of them, or"
            f" --config.score.scorers={scorer}"
        )


def _finish(options: argparse.Namespace, runs: list[Run]) -> epath.Path:
    """Writes the table and its picture, and shows it."""
    from ood_jax import benchmark_figure

    gathered = gather(runs)
    table = tabulate(options.name, runs, gathered, options.scorer)
    shown = in_words(table, gathered["deviation"])
    picture = place(options.workdir) / f"{FILE}.png"
    text = markdown([shown])
    if benchmark_figure.write(table, picture):
        text += f"\n![{shown.title}]({picture.name})\n"
    path = write(gathered | {"table": table}, text, options.workdir, FILE)
    show([shown])
    return path


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 1 = a run failed, 2 = the command makes no sense."""
    flags = command.parser("ood_jax.benchmark", __doc__)
    add = flags.add_argument
    add("name", metavar="NAME", help=", ".join(BENCHMARKS))
    add("--scorer", default="", help="whose AUROC the table has")
    add("--classes", help="which take turns, such as 0-4,cat")
    add("--outliers", action="append", metavar="NAME=SOURCE", help="may be repeated")
    add("--k", help="numbers of outliers, such as 0,1,10,all")
    add("--normal", metavar="CLASS", help="name or number")
    add("--obtainable", action="append", metavar="CLASS", help="may be repeated")
    add("--sizes", help="numbers of training images, such as 100,1000,all")
    return drive(flags, argv, made, _finish)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
