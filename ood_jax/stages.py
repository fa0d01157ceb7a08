"""A run of several stages: each trains in WORKDIR/STAGE, and may begin where an earlier one ended.

Stages that are done are skipped and the one under way goes on, so the same command finishes a run
that was stopped in any of them. What scores the run reads its last stage.
"""

import jax
from ml_collections import ConfigDict

from ood_jax import loop, made
from ood_jax.atomic import replaced
from ood_jax.checkpoint import stages_in
from ood_jax.config import staged, stages_of, to_json
from ood_jax.place import kind, place
from ood_jax.start import STAGE, check_start
from ood_jax.train import Run, prepare, started
from ood_jax.vectors import check_unchanged, loaded, references

Runs = dict[str, Run]  # by stage, in order; {"": run} where there is but one


def prepared(config: ConfigDict) -> Runs:
    """Every stage of `config`, opened and checked before the first one costs anything.

    Raises:
      ValueError: whatever is wrong with a stage, naming it; one that begins with no earlier stage.
    """
    runs: Runs = {}
    for stage, own in stages_of(config).items():
        try:
            runs[stage] = prepare(own, runs)
            if own.model.weights.startswith(STAGE):
                _check_earlier(runs, stage)
        except ValueError as error:
            raise ValueError(f"stage {stage}: {error}" if stage else str(error)) from error
    configs = [run.config for run in runs.values()]
    used = {name for own in configs for name in (own.model.weights, *references(own).values())}
    if idle := [stage for stage in list(runs)[:-1] if STAGE + stage not in used]:
        key = {"near": "data.near", "far": "data.far"}.get(_makes(runs[idle[0]]), "model.weights")
        raise ValueError(
            f"stage {idle[0]}: no later stage begins with it or reads it; set {key} of one to"
            f" {STAGE}{idle[0]}, or leave it out of --config.stages"
        )
    return runs


def _makes(run: Run) -> str:
    return "" if run.method.maker is None else run.method.maker.kind


def _check_earlier(runs: Runs, stage: str) -> None:
    run = runs[stage]
    name = run.config.model.weights.removeprefix(STAGE)
    earlier = [other for other in runs if other != stage]
    if name not in earlier:
        raise ValueError(
            f"model.weights = {STAGE + name!r}: the stages before it are {', '.join(earlier)}"
            if earlier
            else f"model.weights = {STAGE + name!r}: no stage comes before this one"
        )
    if makes := _makes(runs[name]):
        raise ValueError(
            f"model.weights = {STAGE + name!r}: that stage makes {makes} outliers, no network of"
            " images; name one that does"
        )
    check_start(name, (runs[name].config, runs[name].net), (run.config, run.net))


def train(runs: Runs, workdir: str) -> None:
    """Trains every stage to its end, from where it stopped.

    Raises:
      ValueError, loop.Diverged, loop.Interrupted, OSError: see `loop.train`.
    """
    _open(runs, workdir)
    folder = place(workdir)
    for stage, run in runs.items():
        weights = run.config.model.weights
        if weights.startswith(STAGE):
            run = started(run, str(folder / weights.removeprefix(STAGE)))
        vectors = loaded(run.vectors, run.config, run.train, workdir)
        run = run._replace(vectors=vectors)
        loop.make_workdir(str(folder / stage))
        check_unchanged(vectors, str(folder / stage))
        state = loop.train(run, str(folder / stage), label=f"train {stage}".rstrip())
        if run.method.maker is not None:
            made.make_outliers(run, state.params, str(folder / stage), label=stage)


def _open(runs: Runs, workdir: str) -> None:
    """Writes the config of a run of several stages into its workdir, where it belongs there.

    Raises:
      ValueError: the workdir holds another run, or cannot be written.
    """
    stages, there = tuple(stage for stage in runs if stage), tuple(stages_in(workdir))
    path = place(workdir) / "config.json"
    if kind(path) and there != stages:
        raise ValueError(
            f"{workdir} holds a run of {_named(there)}, this run has {_named(stages)}: use another"
            " --workdir"
        )
    if not stages:
        return
    for stage, run in runs.items():
        loop.open_workdir(run, str(place(workdir) / stage)).close()
    if jax.process_index() == 0:
        name = next(iter(runs.values())).config.name
        whole = staged(name, **{stage: run.config for stage, run in runs.items()})
        with replaced(path) as fresh:
            fresh.write_text(to_json(whole) + "\n")


def _named(stages: tuple[str, ...]) -> str:
    return f"the stages {', '.join(stages)}" if stages else "one stage"
