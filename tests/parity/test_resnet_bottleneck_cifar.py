"""Golden resnet_bottleneck_cifar: OpenOOD's ResNet of bottleneck blocks, one training pass too."""

import pytest
from golden_resnet import Golden


@pytest.fixture(scope="module")
def network(golden):
    return Golden(golden("resnet_bottleneck_cifar"), "bottleneck")


def test_evaluation(network):
    network.check_evaluation()


def test_training_pass_and_running_statistics(network):
    network.check_training()


def test_gradient_norms(network):
    network.check_gradients()
