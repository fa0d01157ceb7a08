"""Supervised classification: the baseline that scores with labels are compared on.

Cross-entropy with label smoothing on one random view of each image (METHODS: section 6), of two
classifiers their sum (Yu & Aizawa 2019, Eq. 2, its pre-training).
"""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from ood_jax.losses.classify import cross_entropy
from ood_jax.methods import _labelled
from ood_jax.types import Method, Net

DEFAULTS: dict[str, Any] = dict(
    **_labelled.VIEW,
    label_smoothing=0.0,  # share of each target that is spread over all classes
)


def build(config: ConfigDict, net: Net) -> Method:
    """The method as `config.method` sets it, on `net`; head.outputs is the number of classes.

    Raises:
      ValueError: settings that make no sense together, before any compute.
    """
    _check(config)
    smoothed = partial(cross_entropy, label_smoothing=config.method.label_smoothing)
    return _labelled.classifying(config, net, smoothed)


def _check(config: ConfigDict) -> None:
    _labelled.check_classifier(config)
    if not 0 <= config.method.label_smoothing < 1:
        raise ValueError(
            f"method.label_smoothing = {config.method.label_smoothing}: use a share from 0 up to,"
            " not including, 1"
        )
