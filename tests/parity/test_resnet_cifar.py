"""Golden resnet18_cifar and resnet_bottleneck_cifar: OpenOOD's, evaluation and a training pass."""

import re

import jax.numpy as jnp
import pytest
from golden_network import GoldenNetwork, torch_weights

from ood_jax.models.batch_norm import EPSILON
from ood_jax.models.resnet import ResNet
from ood_jax.models.torch_names import RESNET

KINDS = {"resnet18_cifar": "basic", "resnet_bottleneck_cifar": "bottleneck"}


@pytest.fixture(scope="module", params=KINDS)
def network(golden, request):
    g = golden(request.param)
    counts = _counts(torch_weights(g))
    if "blocks" in g:
        assert counts == tuple(g["blocks"])
    if "bn_eps" in g:
        assert float(g["bn_eps"]) == EPSILON
    width, kind, dtype = int(g["base_width"]), KINDS[request.param], jnp.dtype("float32")
    return GoldenNetwork(g, ResNet(counts, width, 1, "batch", dtype, kind, "cifar"), RESNET)


def test_evaluation(network):
    network.check_evaluation()


def test_training_pass_and_running_statistics(network):
    network.check_training_pass()


def test_gradient_norms(network):
    network.check_gradient_norms()


def _counts(weights):
    found = [re.match(r"layer(\d)\.(\d+)\.", name) for name in weights]
    pairs = {(int(m[1]), int(m[2])) for m in found if m}
    stages = max(stage for stage, _ in pairs)
    return tuple(sum(s == stage for s, _ in pairs) for stage in range(1, stages + 1))
