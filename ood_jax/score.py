"""Scores a workdir: checkpoint -> features -> scores -> metrics -> results. No training code.

python -m ood_jax.score --workdir=W [--scorers=all|NAME,...] [--ood=NAME=SOURCE ...] [--tune]
    [--config.score.KEY=VALUE ...] [--config.data.root=DIR] [--out=FILE.json] [--step=N]

Without --ood: the near and far sets of the run's config, into W/results.json. With --ood: these
sets alone, in no group, into W/scores/NAME+NAME.json, so that results.json stays the run's own.
--tune chooses hyperparameters on score.validation, never on a test set.
--out=FILE.json writes there instead. Per-image scores and plots lie beside: W/scores.parquet,
W/scores.csv, W/examples.npz (for the report), W/calibration.json (thresholds) and W/plots/; for
FILE.json FILE.scores.parquet and so on.
W may be of a run that is still going on. Features are kept in W/features/ for the next time.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from ood_jax import command, cpu
from ood_jax.config import named_sources, to_json
from ood_jax.recipe import is_override, override

SCORING = (
    *("score.", "data.root", "data.train", "data.test"),
    *("data.workers", "data.memory", "data.timeout", "train.devices"),
)

if TYPE_CHECKING:  # jax and what needs it are imported where used: --help does not wait
    from etils import epath

    from ood_jax.data.source import Source
    from ood_jax.evaluate import Evaluation
    from ood_jax.plan import Plan
    from ood_jax.transductive import Common


def check_sources(config: ConfigDict, ood: dict[str, str] | None = None) -> "Plan":
    """Opens all sets and checks the scorers; no compute. `ood`: these instead of the config's.

    Raises:
      ValueError: in one line, whatever is wrong.
    """
    from ood_jax import plan

    return plan.check(config, ood)


def score_run(
    workdir: str,
    *,
    config: ConfigDict | None = None,
    overrides: Sequence[str] = (),
    ood: dict[str, str] | None = None,
    out: str | None = None,
    step: int | None = None,
    tune: bool = False,
) -> dict[str, Any]:
    """Scores a checkpoint of `workdir`, writes and prints the results, and returns them.

    Args:
      config: in place of the checkpoint's, for other sets or scorers. overrides: over either, as
        ("--config.score.neighbour=10",). ood: {NAME: SOURCE} in place of the config's OOD sets.
        out: the JSON file; None = see the top of this file. step: of the checkpoint; None = the
        newest. tune: choose hyperparameters on the OOD validation images.

    Raises:
      ValueError: in one line, whatever is wrong; before compute where it can be known.
    """
    import jax

    from ood_jax import before, kept
    from ood_jax import plan as plans
    from ood_jax.checkpoint import restore_for_scoring, stages_in
    from ood_jax.evaluate import evaluate

    path = results_file(workdir, ood, out)
    restored = restore_for_scoring(workdir, step)
    config = override(restored.config if config is None else config, overrides, SCORING)
    plan = plans.check(config, ood, tune=tune)
    plans.check_model(plan.shapes, restored, workdir)
    check_place(path)
    earlier = dict(list(stages_in(workdir).items())[:-1])
    trees = [*earlier.values(), restored.config.to_dict()]
    common = shared(trees, plan.sets, config.data.root)
    folder = kept.folder_in(workdir)
    if folder is None:
        print(f"{workdir}/features cannot be written: features are not kept", file=sys.stderr)
    found = evaluate(plan, config, restored, folder, tune=tune)
    written = document(found, plan.groups, restored.step, common) | {"earlier_stages": earlier}
    written["in_distribution"] |= before.accuracies(workdir, restored, config, plan, folder)
    if jax.process_index() == 0:
        keep(written, found, path)
    return written


def shared(trees: Sequence[dict[str, Any]], sets: "dict[str, Source]", root: str) -> "Common":
    """Images of the scored ones of `sets` that were trained on, by runs of the configs `trees`."""
    from ood_jax import transductive
    from ood_jax.plan import FITTED

    scored = {name: source for name, source in sets.items() if name not in FITTED}
    return transductive.in_common(transductive.sources_of(trees), scored, root=root)


def document(
    found: "Evaluation", groups: dict[str, tuple[str, ...]], step: int, common: "Common"
) -> dict[str, Any]:
    """What results.json says of a run without earlier stages. step: of the checkpoint."""
    from ood_jax.results import SCHEMA

    config = found.config
    return {
        "schema": SCHEMA,
        "name": config.name or config.method.name,
        "step": step,
        "config": json.loads(to_json(config)),
        "earlier_stages": {},
        "in_distribution": found.in_distribution,
        "scorers": found.scorers,
        "sets": found.metrics,
        "groups": {group: list(names) for group, names in groups.items()},
        **found.groups,
        "skipped": found.skipped,
        "not_scored": found.not_scored,
        "tuned": found.tuned,
        "transductive": common.counts,
        "unopened": common.unopened,
    }


def keep(written: dict[str, Any], found: "Evaluation", path: "epath.Path") -> None:
    """Writes the results and all that lies beside, and shows them."""
    from ood_jax import results

    _write(written, found, path)
    results.show(written)
    print(f"written: {path}", file=sys.stderr)


def results_file(workdir: str, ood: dict[str, str] | None, out: str | None) -> "epath.Path":
    """The JSON file that results go to; see the top of this file.

    Raises:
      ValueError: `out` does not end in .json; many OOD sets and no `out`.
    """
    from ood_jax.place import place

    if out is not None:
        if not out.endswith(".json"):
            raise ValueError(f"--out={out}: name a file that ends in .json")
        return place(out)
    folder = place(workdir)
    if ood is None:
        return folder / "results.json"
    name = "+".join(ood)
    if len(name) > 100:  # file systems stop at 255 bytes, and the parts have names of their own
        raise ValueError(f"{len(ood)} --ood sets make a long name: give --out=FILE.json")
    return folder / "scores" / f"{name}.json"


def check_place(path: "epath.Path") -> None:
    """Refuses a JSON file that cannot be written.

    Raises:
      ValueError: it is a folder, or its folder cannot be written.
    """
    from ood_jax.atomic import check_writable
    from ood_jax.place import kind

    if kind(path) == "folder":
        example = path / "ood.json"
        raise ValueError(f"--out={path} is a folder: name a file in it, such as {example}")
    check_writable(path.parent)


def _write(written: dict[str, Any], found: "Evaluation", path: "epath.Path") -> None:
    """Everything, the JSON last: where it is, the rest is there too."""
    import numpy as np

    from ood_jax import calibration, plots, results
    from ood_jax.atomic import replaced
    from ood_jax.plan import TEST

    places = results.places(path)
    results.write_scores(found.scores, places["parquet"], places["csv"])
    if found.examples:
        with replaced(places["examples"]) as fresh, open(fresh, "wb") as file:
            np.savez(file, **found.examples)  # type: ignore[arg-type]
    calibration.write(
        calibration.Calibration(
            written["step"],
            {name: one["threshold"] for name, one in found.scorers.items()},
            found.calibration,
            found.config,
        ),
        places["calibration"],
    )
    scores = {name: one.scores for name, one in found.scores.items()}
    plots.write_plots(scores.pop(TEST), scores, places["plots"])
    results.write_results(written, path)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of `command.answered`."""
    parser = command.parser("ood_jax.score", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the run")
    add("--ood", action="append", metavar="NAME=SOURCE", help="an OOD set; may be repeated")
    add("--scorers", metavar="all|NAME,...", help="in place of the run's own")
    add("--tune", action="store_true", help="choose hyperparameters on score.validation")
    add("--out", metavar="FILE.json", help="where results go")
    add(
        "--step",
        type=int,
        help="of the checkpoint; the newest, of the last stage, by default; W/STAGE has others",
    )
    overrides = [argument for argument in argv if is_override(argument)]
    options = parser.parse_args([argument for argument in argv if not is_override(argument)])
    if options.scorers is not None:
        overrides.append(f"--config.score.scorers={options.scorers}")

    def act() -> None:
        ood = None if options.ood is None else named_sources(tuple(options.ood))
        score_run(
            options.workdir,
            overrides=overrides,
            ood=ood,
            out=options.out,
            step=options.step,
            tune=options.tune,
        )

    return command.answered(act, stopped="features of the sets that were done are kept")


if __name__ == "__main__":
    cpu.prepare("ood_jax.score")
    sys.exit(main(sys.argv[1:]))
