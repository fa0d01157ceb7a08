"""Accuracy under the stage that a run's last stage began with: what fine-tuning did to it."""

from etils import epath
from ml_collections import ConfigDict

from ood_jax import in_distribution, kept
from ood_jax.checkpoint import Restored, restore_for_scoring
from ood_jax.models.heads import CLASSIFIERS
from ood_jax.place import place
from ood_jax.plan import TEST, Plan
from ood_jax.start import STAGE


def accuracies(
    workdir: str, restored: Restored, config: ConfigDict, plan: Plan, folder: epath.Path | None
) -> dict[str, float]:
    """The accuracies on the test set, NAME_before; {} where no earlier stage had a classifier.

    restored: of `workdir`, a run whose last stage began with an earlier one. config: the scoring
    run's. folder: where features are kept, as test@STAGE.npz; None = nowhere.
    """
    weights = restored.config.model.weights
    if not weights.startswith(STAGE):
        return {}
    stage = weights.removeprefix(STAGE)
    where = str(place(workdir) / stage)
    try:
        earlier = restore_for_scoring(where)
    except ValueError:  # a run of which the last stage alone was kept
        return {}
    own, head = earlier.config, earlier.config.head
    if head.name not in CLASSIFIERS or head.outputs != config.head.outputs:
        return {}
    own = kept.run_as(own, config)
    fields = ("logits", "second_logits") if head.second_outputs else ("logits",)
    network = kept.of_checkpoint(earlier, where, config=own)
    network = network._replace(fields=fields, suffix=f"@{stage}", folder=folder)
    found = kept.extract(network, {TEST: plan.sets[TEST]})[TEST]
    measured = in_distribution.accuracies(own, found)
    return {f"{name}_before": value for name, value in measured.items() if value is not None}
