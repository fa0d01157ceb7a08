"""ELOC: the ensemble of leave-out classifiers, scored as one detector (Vyas et al. 2018).

python -m ood_jax.eloc --workdir=ROOT [--seed=N] [--ood=NAME=SOURCE ...]
    [--config.score.KEY=VALUE ...] [--config.data.root=DIR] [--out=FILE.json]

ROOT is the folder of a sweep over the K parts that the classes are divided into; each run leaves
one part out:

python -m ood_jax.sweep --config=configs/eloc_cifar.py:cifar10,small,0of5 ... (1of5, to 4of5) \\
    --workdir=ROOT --seeds=0

The score "eloc", higher = more OOD: less the mean over members of max p - H(p), p = softmax at
score.odin_temperature after ODIN's step of score.odin_epsilon (1 and 0: neither). A class is
predicted by the mean of the members' probabilities, 0 where a member leaves it out. Written, as
python -m ood_jax.score does: ROOT/results.json and what lies beside it; with --ood, these sets
alone, ROOT/scores/NAME+NAME.json. --seed=N takes the runs of one seed, into ROOT/seedN, so that
`python -m ood_jax.report --workdirs=ROOT/seed0,ROOT/seed1` compares ensembles.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from ood_jax import command, cpu
from ood_jax.config import flat, named_sources
from ood_jax.recipe import is_override, override

if TYPE_CHECKING:  # jax and what needs it are imported where used: --help does not wait
    from ood_jax.data.source import Source
    from ood_jax.features import Extracted
    from ood_jax.members import Member
    from ood_jax.types import Net

NAME = "eloc"  # of the score
OF_A_SPLIT = ("seed", "method.split", "train.steps", "train.steps_per_epoch")


def detect(
    workdir: str,
    *,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    ood: dict[str, str] | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Scores the ensemble under `workdir`, writes and prints the results, and returns them.

    seed: of the members; None = whatever it is. The rest is as `score.score_run` has it.

    Raises:
      ValueError: in one line, whatever is wrong; before compute where it can be known.
    """
    import jax

    from ood_jax import evaluate, leave_out, plan, score
    from ood_jax.place import place
    from ood_jax.scorers import odin

    folder = workdir if seed is None else str(place(workdir) / f"seed{seed}")
    path = score.results_file(folder, ood, out)
    members = leave_out_members(workdir, seed)
    config = override(leave_out.whole(members[0].restored.config), overrides, score.SCORING)
    with config.unlocked():
        config.score.scorers = (NAME,)
    temperature, epsilon = odin.numbers(config.score)
    sets, groups = plan.opened(config, ood)
    score.check_place(path)
    images = sets.pop(plan.TRAIN)
    found, scores, probabilities = judge(members, sets, config)
    facts = {"members": len(members), "temperature": temperature, "epsilon": epsilon}
    judged = evaluate.Judged({n: {NAME: s} for n, s in scores.items()}, {NAME: facts}, {})
    inside = _in_distribution(found, probabilities[plan.TEST], len(images), config)
    evaluation = evaluate.summed_up(judged, found, sets, groups, config, inside)
    trees = [member.restored.config.to_dict() for member in members]
    common = score.shared(trees, sets, config.data.root)
    step = min(member.restored.step for member in members)
    written = score.document(evaluation, groups, step, common)
    written["members"] = [_told(member) for member in members]
    if jax.process_index() == 0:
        score.keep(written, evaluation, path)
    return written


def leave_out_members(root: str, seed: int | None = None) -> "tuple[Member, ...]":
    """The finished runs under `root`, by the part that they leave out; of one seed, if given.

    Raises:
      ValueError: see `members.gathered`, of runs that differ in more than split and seed; a part
        that two leave out, or none.
    """
    from ood_jax.leave_out import partition
    from ood_jax.members import Kind, check_once, gathered

    splits = " ".join(f"--config=configs/eloc_cifar.py:cifar10,small,{i}of5" for i in range(5))
    kind = Kind(_keys, "their split and seed", splits, "configs/eloc_cifar.py")
    found = [m for m in gathered(root, kind) if seed is None or m.seed == seed]
    if not found:
        raise ValueError(f"--seed={seed}: no finished run in {root} has it")
    found.sort(key=_split)
    check_once(tuple(found), [f"leave out split {_split(member)}" for member in found])
    method = found[0].restored.config.method
    count = len(partition(method.classes, method.splits, method.split_seed))
    if missing := sorted(set(range(count)) - set(map(_split, found))):
        raise ValueError(
            f"{root} has {len(found)} of {count} classifiers: none that is trained to its end"
            f" leaves out split {', '.join(map(str, missing))}; run these by the same sweep"
        )
    return tuple(found)


def _split(member: "Member") -> int:
    return member.restored.config.method.split


def _keys(config: ConfigDict) -> dict[str, Any]:
    """What members have in common: all of the recipe but what follows from the split."""
    from ood_jax.leave_out import whole

    if config.method.name != "leave_out":
        raise ValueError(
            f"a run of the method {config.method.name}, not leave_out: give the folder of a sweep"
            " of configs/eloc_cifar.py"
        )
    return {key: value for key, value in flat(whole(config)).items() if key not in OF_A_SPLIT}


def judge(
    members: "Sequence[Member]", sets: "dict[str, Source]", config: ConfigDict
) -> "tuple[dict[str, Extracted], dict[str, np.ndarray], dict[str, np.ndarray]]":
    """What all members say of `sets`; kept in their workdirs as features/NAME@eloc.npz.

    config: of all classes, see `leave_out.whole`; its temperature and step count.

    Returns:
      Of each set: rows and labels; the score, float64 [N]; class probabilities, float64 [N, C].

    Raises:
      ValueError: members that have not read the same images; no image of a set can be read.
    """
    from ood_jax import kept
    from ood_jax.leave_out import learnt
    from ood_jax.members import check_rows, network
    from ood_jax.scorers import leave_out, odin

    extra = leave_out.judging(*odin.numbers(config.score))
    found: dict[str, Extracted] = {}
    scores, probabilities = {}, {}
    nets: dict[int, Net] = {}  # parts of one size are compiled once
    for member in members:
        outputs = member.restored.config.head.outputs
        own = config.copy_and_resolve_references()
        own.head.outputs = outputs
        asked = network(member, config=own, net=nets.get(outputs))
        asked = asked._replace(extras=(extra,), suffix=f"@{NAME}")
        nets[outputs] = asked.net
        classes = list(learnt(member.restored.config.method))
        for name, extracted in kept.extract(asked, sets).items():
            if name not in found:
                found[name] = extracted
                scores[name] = np.zeros(len(extracted.rows))
                probabilities[name] = np.zeros((len(extracted.rows), config.head.outputs))
            check_rows(members[0], found[name].rows, member, extracted.rows, name)
            said = extracted.features.extra or {}
            scores[name] -= said[leave_out.CERTAINTY] / len(members)
            probabilities[name][:, classes] += said[leave_out.PROBABILITIES] / len(members)
    return found, scores, probabilities


def _in_distribution(
    found: "dict[str, Extracted]", probabilities: np.ndarray, train: int, config: ConfigDict
) -> dict[str, Any]:
    """The block of results.json; what needs one space of features is null."""
    from ood_jax.accuracy import accuracy
    from ood_jax.plan import CALIBRATION, TEST

    test = found[TEST]
    labels = test.features.labels
    right = None
    if labels is not None and max(labels) >= 0:
        right = accuracy(np.argmax(probabilities, 1), labels)
    return {
        "accuracy": right,
        "knn_accuracy": None,
        "knn_neighbours": config.score.knn,
        "sensitivity_auroc": None,
        "sensitivity_auroc_literal": None,
        "occupied_classes": None,
        "n_train": train,
        "n_test": len(test.rows),
        "n_calibration": len(found[CALIBRATION].rows),
        "skipped": test.skipped,
    }


def _told(member: "Member") -> dict[str, Any]:
    from ood_jax.leave_out import left_out

    return {
        "workdir": str(member.workdir),
        "split": _split(member),
        "seed": member.seed,
        "step": member.restored.step,
        "left_out": list(left_out(member.restored.config.method)),
    }


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of `command.answered`."""
    parser = command.parser("ood_jax.eloc", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, metavar="ROOT", help="folder of the members' sweep")
    add("--seed", type=int, metavar="N", help="of the members, where the sweep had several")
    add("--ood", action="append", metavar="NAME=SOURCE", help="an OOD set; may be repeated")
    add("--out", metavar="FILE.json", help="where results go")
    options = parser.parse_args([argument for argument in argv if not is_override(argument)])

    def act() -> None:
        detect(
            options.workdir,
            seed=options.seed,
            overrides=[argument for argument in argv if is_override(argument)],
            ood=None if options.ood is None else named_sources(tuple(options.ood)),
            out=options.out,
        )

    return command.answered(act, stopped="what the members said of sets that were done is kept")


if __name__ == "__main__":
    cpu.prepare("ood_jax.eloc")
    sys.exit(main(sys.argv[1:]))
