"""Norms of contrastive features over training, inside and outside (Le-Gia & Ahn, Figs. 1, 2, 6).

python -m ood_jax.norms --workdir=W [--ood=NAME=SOURCE ...] [--images=1000] [--augmentations=16]
    [--config.score.KEY=VALUE ...] [--config.data.root=DIR]

Of every checkpoint that W keeps (train.keep_every=STEPS keeps them for good) and of each set: norms
|f(x)|, their parts mu, sigma and sigma_V over random views, alignment and uniformity, and how well
norms tell the test images from the others. f: the projections, else score.feature. Sets: train,
test, the near and far sets of the run's config, those of --ood, and the outliers that it trained
with; of each --images images, the same ones at each checkpoint.
Into W/norms.json, which python -m ood_jax.report draws. What it holds already, measured with the
same settings, is not measured again. W may be of a run that is still going on; of a run of several
stages the last one is measured.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from ood_jax import command, cpu
from ood_jax.config import named_sources
from ood_jax.recipe import is_override, override
from ood_jax.score import SCORING

if TYPE_CHECKING:  # jax and what needs it are imported where used: --help does not wait
    from ood_jax.checkpoint import Restored
    from ood_jax.norm_sets import Part
    from ood_jax.plan import Plan
    from ood_jax.progress import Progress
    from ood_jax.scorers.views import RandomViews

FILE = "norms.json"
IMAGES, AUGMENTATIONS = 1000, 16
FEW = 3  # checkpoints that make a curve


def measure(
    workdir: str,
    *,
    ood: dict[str, str] | None = None,
    images: int = IMAGES,
    augmentations: int = AUGMENTATIONS,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures the checkpoints of `workdir`, writes and prints norms.json's numbers, returns them.

    Args:
      ood: {NAME: SOURCE} beside the config's OOD sets. images: of each set, at most. augmentations:
        random views of an image. overrides: as of `score.score_run`.

    Raises:
      ValueError: in one line, whatever is wrong; before compute where it can be known.
    """
    from ood_jax import norm_results, norm_sets
    from ood_jax import plan as plans
    from ood_jax.atomic import check_writable
    from ood_jax.checkpoint import restore_for_scoring, saved_steps
    from ood_jax.place import place
    from ood_jax.scorers.views import random_views

    _check_numbers(images, augmentations)
    newest = restore_for_scoring(workdir)
    config = override(newest.config, [*overrides, "--config.score.scorers=norm"], SCORING)
    plan = plans.check(config)  # refuses what the norm score refuses, such as a head of norm 1
    plans.check_model(plan.shapes, newest, workdir)
    parts = {
        name: part._replace(source=norm_sets.choose(part.source, images))
        for name, part in norm_sets.parts(config, plan, ood or {}).items()
    }
    path = place(workdir) / FILE
    check_writable(path.parent)
    drawn = random_views(config.score)._replace(augmentations=augmentations)
    found = norm_results.header(config, parts, images, drawn)
    steps = saved_steps(workdir)
    found["steps"] = norm_results.earlier(path, found, workdir, steps)
    _add(found, workdir, steps, config, plan, parts, drawn)
    norm_results.show(found)
    print(f"written: {path}", file=sys.stderr)
    if len(found["steps"]) < FEW:
        flag = "--config.train.keep_every=STEPS"
        print(f"few checkpoints: {flag} keeps more while a run trains", file=sys.stderr)
    return found


def _check_numbers(images: int, augmentations: int) -> None:
    if images < 2:
        raise ValueError(f"--images={images}: uniformity is of pairs of images; use 2 or more")
    if augmentations < 2:
        raise ValueError(
            f"--augmentations={augmentations}: alignment is of two random views of an image; use 2"
            f" or more, such as {AUGMENTATIONS}"
        )


def _add(
    found: dict[str, Any],
    workdir: str,
    steps: list[int],
    config: ConfigDict,
    plan: "Plan",
    parts: "dict[str, Part]",
    drawn: "RandomViews",
) -> None:
    """Measures the steps that `found` lacks, and writes it after each."""
    from ood_jax import norm_results, norm_sets
    from ood_jax.atomic import replaced
    from ood_jax.checkpoint import restore_for_scoring, saved_steps
    from ood_jax.place import place
    from ood_jax.progress import Progress

    todo = [step for step in steps if str(step) not in found["steps"]]
    if todo:
        parts = norm_sets.held(parts, config.data.size, config.data.memory)
    total = len(todo) * sum(len(part.source) for part in parts.values())
    with Progress(total, unit="images", label="norms", enabled=bool(todo)) as bar:
        for step in todo:
            try:
                restored = restore_for_scoring(workdir, step)
            except (ValueError, OSError):
                if step in saved_steps(workdir):
                    raise
                continue  # the run is going on, and deleted it meanwhile
            sets = _of_step(restored, config, plan, parts, drawn, bar)
            found["steps"][str(step)] = {"arrays": norm_results.arrays_of(restored), "sets": sets}
            found["steps"] = dict(sorted(found["steps"].items(), key=lambda one: int(one[0])))
            with replaced(place(workdir) / FILE) as fresh:
                fresh.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")


def _of_step(
    restored: "Restored",
    config: ConfigDict,
    plan: "Plan",
    parts: "dict[str, Part]",
    drawn: "RandomViews",
    bar: "Progress",
) -> dict[str, Any]:
    """Set -> its numbers at one checkpoint; of all but train and test with AUROCs."""
    from ood_jax import features, norm_facts

    measured = {}
    bar.update(0, step=restored.step)
    for name, part in parts.items():
        extra = norm_facts.extra(drawn, part.turns)
        extracted = features.extract(
            plan.net,
            restored.params,
            restored.stats,
            part.source,
            config=config,
            mesh=plan.mesh,
            extras=(extra,),
            bar=bar,
        )
        measured[name] = norm_facts.per_image(extracted.features)
    out = {name: norm_facts.numbers(one) for name, one in measured.items()}
    for name, one in measured.items():
        if parts[name].role not in ("train", "test"):
            out[name]["auroc"] = norm_facts.aurocs(measured["test"], one)
    return out


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of `command.answered`."""
    parser = command.parser("ood_jax.norms", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, metavar="W", help="folder of the run")
    add("--ood", action="append", metavar="NAME=SOURCE", help="one more OOD set; may be repeated")
    add("--images", type=int, default=IMAGES, help="of each set, at most")
    add("--augmentations", type=int, default=AUGMENTATIONS, help="random views of an image")
    overrides = [argument for argument in argv if is_override(argument)]
    options = parser.parse_args([argument for argument in argv if not is_override(argument)])

    def act() -> None:
        measure(
            options.workdir,
            ood=named_sources(tuple(options.ood or ())),
            images=options.images,
            augmentations=options.augmentations,
            overrides=overrides,
        )

    return command.answered(act, stopped="the checkpoints that were done are kept in norms.json")


if __name__ == "__main__":
    cpu.prepare("ood_jax.norms")
    sys.exit(main(sys.argv[1:]))
