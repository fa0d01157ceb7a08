"""Golden resnet18_cifar: OpenOOD's ResNet-18 for CIFAR, one training pass too."""

import pytest
from golden_resnet import Golden


@pytest.fixture(scope="module")
def network(golden):
    return Golden(golden("resnet18_cifar"), "basic")


def test_evaluation(network):
    network.check_evaluation()


def test_training_pass_and_running_statistics(network):
    network.check_training()


def test_gradient_norms(network):
    network.check_gradients()
