"""A golden network of OpenOOD's: evaluation, a training pass, running statistics, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ood_jax.models.heads import LinearHead
from ood_jax.models.torch_names import from_torch, in_torch_layout


def torch_weights(g):
    """PyTorch's name -> float32 array, of a golden file."""
    return {k[6:]: v.astype(np.float32) for k, v in g.items() if k.startswith("param/")}


class GoldenNetwork:
    """The network of one golden file: our trunk, with its parameters read by `rules`."""

    def __init__(self, g, trunk, rules):
        self.g, self.trunk, self.rules = g, trunk, rules
        weights = torch_weights(g)
        self.params, self.stats, unknown = from_torch(weights, rules)
        assert not unknown
        self.head = LinearHead(weights["fc.bias"].size, 0, jnp.dtype("float32"))
        self.images = g["images"].astype(np.float32).transpose(0, 2, 3, 1)
        ours = jax.eval_shape(lambda: trunk.init(jax.random.key(0), self.images, False))
        given = {"params": self.params["trunk"], "batch_stats": self.stats["trunk"]}
        assert _shapes(given) == _shapes({name: ours[name] for name in given})

    @partial(jax.jit, static_argnums=(0, 2))
    def apply(self, params, train):
        variables = {"params": params["trunk"], "batch_stats": self.stats["trunk"]}
        features, updated = self.trunk.apply(
            variables, self.images, train, mutable=["batch_stats"] if train else []
        )
        logits = self.head.apply({"params": params["head"]}, features, train).logits
        return features, logits, updated.get("batch_stats")

    def check_evaluation(self):
        features, logits, _ = self.apply(self.params, False)
        close(features, self.g["eval_feature"])
        close(logits, self.g["eval_logits"])

    def check_training_pass(self):
        features, logits, stats = self.apply(self.params, True)
        close(features, self.g["train_feature"])
        close(logits, self.g["train_logits"])
        after = [k.removeprefix("train_after/") for k in self.g if k.startswith("train_after/")]
        assert any(k.endswith("running_mean") for k in after)
        assert any(k.endswith("running_var") for k in after)
        for name in after:
            found = in_torch_layout({"trunk": stats}, name, self.rules)
            close(found, self.g[f"train_after/{name}"])

    def check_gradient_norms(self):
        shape = self.g["train_logits"].shape
        cotangent = jnp.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
        grads = jax.grad(lambda params: (self.apply(params, True)[1] * cotangent).sum())(
            self.params
        )
        names = self.g["train_grad_norm_names"]
        assert len(names) == len(jax.tree.leaves(grads))
        norms = [np.linalg.norm(in_torch_layout(grads, str(name), self.rules)) for name in names]
        close(norms, self.g["train_grad_norms"])


def close(found, expected):
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def _shapes(tree):
    return jax.tree.map(lambda x: tuple(x.shape), tree)
