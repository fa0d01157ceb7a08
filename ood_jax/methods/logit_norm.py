"""LogitNorm: Wei et al. 2022, "Mitigating neural network overconfidence with logit normalization".

Cross-entropy of logits of one length, f / (tau |f|), of two classifiers their sum. Scores read
the logits as they are, as in the released code.
"""

import math
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from ood_jax.losses.classify import logit_norm
from ood_jax.methods import _labelled
from ood_jax.types import Method, Net

DEFAULTS: dict[str, Any] = dict(
    **_labelled.VIEW,
    temperature=0.04,  # tau; the paper's for CIFAR-10, OpenOOD's for all sets
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    normalised = partial(logit_norm, temperature=config.method.temperature)
    return _labelled.classifying(config, net, normalised)


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    if not 0 < config.method.temperature < math.inf:
        raise ValueError(
            f"method.temperature = {config.method.temperature}: tau is a number above 0, such as"
            f" {DEFAULTS['temperature']}"
        )
