"""Golden resnet18_cifar and resnet_bottleneck_cifar: OpenOOD's, evaluation and a training pass."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.models.batch_norm import EPSILON
from ood_jax.models.heads import LinearHead
from ood_jax.models.resnet import ResNet
from ood_jax.models.torch_names import RESNET, from_torch, in_torch_layout


class Golden:
    """The network of one golden file. kind: of its blocks."""

    def __init__(self, g, kind):
        self.g = g
        weights = {k[6:]: v.astype(np.float32) for k, v in g.items() if k.startswith("param/")}
        self.params, self.stats, unknown = from_torch(weights, RESNET)
        assert not unknown
        counts = _counts(weights)
        if "blocks" in g:
            assert counts == tuple(g["blocks"])
        if "bn_eps" in g:
            assert float(g["bn_eps"]) == EPSILON
        self.trunk = ResNet(
            counts, int(g["base_width"]), 1, "batch", jnp.dtype("float32"), kind, "cifar"
        )
        self.head = LinearHead(weights["fc.bias"].size, jnp.dtype("float32"))
        self.images = g["images"].astype(np.float32).transpose(0, 2, 3, 1)

    @partial(jax.jit, static_argnums=(0, 2))
    def apply(self, params, train):
        variables = {"params": params["trunk"], "batch_stats": self.stats["trunk"]}
        features, updated = self.trunk.apply(
            variables, self.images, train, mutable=["batch_stats"] if train else []
        )
        logits = self.head.apply({"params": params["head"]}, features, train).logits
        return features, logits, updated.get("batch_stats")


KINDS = {"resnet18_cifar": "basic", "resnet_bottleneck_cifar": "bottleneck"}


@pytest.fixture(scope="module", params=KINDS)
def network(golden, request):
    return Golden(golden(request.param), KINDS[request.param])


def test_evaluation(network):
    features, logits, _ = network.apply(network.params, False)
    close(features, network.g["eval_feature"])
    close(logits, network.g["eval_logits"])


def test_training_pass_and_running_statistics(network):
    features, logits, stats = network.apply(network.params, True)
    close(features, network.g["train_feature"])
    close(logits, network.g["train_logits"])
    after = [k.removeprefix("train_after/") for k in network.g if k.startswith("train_after/")]
    assert any(k.endswith("running_mean") for k in after)
    assert any(k.endswith("running_var") for k in after)
    for name in after:
        found = in_torch_layout({"trunk": stats}, name, RESNET)
        close(found, network.g[f"train_after/{name}"])


def test_gradient_norms(network):
    shape = network.g["train_logits"].shape
    cotangent = jnp.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    grads = jax.grad(lambda params: (network.apply(params, True)[1] * cotangent).sum())(
        network.params
    )
    names = network.g["train_grad_norm_names"]
    assert len(names) == len(jax.tree.leaves(grads))
    norms = [np.linalg.norm(in_torch_layout(grads, str(name), RESNET)) for name in names]
    close(norms, network.g["train_grad_norms"])


def close(found, expected):
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def _counts(weights):
    found = [re.match(r"layer(\d)\.(\d+)\.", name) for name in weights]
    pairs = {(int(m[1]), int(m[2])) for m in found if m}
    stages = max(stage for stage, _ in pairs)
    return tuple(sum(s == stage for s, _ in pairs) for stage in range(1, stages + 1))
