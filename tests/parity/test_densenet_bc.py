"""Golden densenet_bc: OpenOOD's DenseNet3, evaluation and a training pass."""

import jax.numpy as jnp
import pytest
from golden_network import GoldenNetwork

from ood_jax.models.densenet import DenseNet
from ood_jax.models.torch_names import DENSENET


@pytest.fixture(scope="module")
def network(golden):
    g = golden("densenet_bc")
    layers, growth = (int(g["depth"]) - 4) // 6, int(g["growth_rate"])
    reduction = float(g["reduction"])
    trunk = DenseNet(layers, growth, 1, "batch", jnp.dtype("float32"), reduction)
    return GoldenNetwork(g, trunk, DENSENET)


def test_evaluation(network):
    network.check_evaluation()


def test_training_pass_and_running_statistics(network):
    network.check_training_pass()


def test_gradient_norms(network):
    network.check_gradient_norms()
