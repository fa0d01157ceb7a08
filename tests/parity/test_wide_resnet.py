"""Golden wide_resnet: OpenOOD's WideResNet, evaluation and a training pass."""

import jax.numpy as jnp
import pytest
from golden_network import GoldenNetwork

from ood_jax.models.torch_names import WIDE_RESNET
from ood_jax.models.wide_resnet import STEM, WideResNet


@pytest.fixture(scope="module")
def network(golden):
    g = golden("wide_resnet")
    blocks, width = (int(g["depth"]) - 4) // 6, STEM * int(g["widen_factor"])
    trunk = WideResNet(blocks, width, 1, "batch", jnp.dtype("float32"))
    return GoldenNetwork(g, trunk, WIDE_RESNET)


def test_evaluation(network):
    network.check_evaluation()


def test_training_pass_and_running_statistics(network):
    network.check_training_pass()


def test_gradient_norms(network):
    network.check_gradient_norms()
