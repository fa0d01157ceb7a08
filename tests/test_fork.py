"""A method in a file of one's own, outside the package: trained, overridden and scored."""

import json
import subprocess
import sys

from small_run import environment, write_recipe

from ood_jax.logs import read_metrics

# SimCLR's loss (Chen et al. 2020, Eq. 1) on the projections; nothing of it is in ood_jax.
METHOD = '''
import jax
import jax.numpy as jnp

from ood_jax.types import Aux, Method, Update
from ood_jax.views.crops import View, multi_view

DEFAULTS = dict(
    temperature=0.5,
    scale=(0.3, 1.0),  # share of the image's area in a crop
)


def contrastive(a, b, *, temperature):
    """[B, D], [B, D] -> [2 B]: each view against all others, its pair the right answer."""
    z = jnp.concatenate([a, b])
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    similarity = z @ z.T / temperature - 1e9 * jnp.eye(len(z))
    log_probs = jax.nn.log_softmax(similarity)
    pair = jnp.roll(jnp.arange(len(z)), len(a))
    return -log_probs[jnp.arange(len(z)), pair]


def build(config, net):
    m = config.method
    if m.temperature <= 0:
        raise ValueError(f"method.temperature = {m.temperature}: use a number above 0")
    pair = (View(config.model.image_size, m.scale),) * 2

    def views(host, key):
        c = config.data
        images = multi_view(host["image"], host["index"], key, pair, mean=c.mean, std=c.std)
        return {"views": images}

    def loss(params, state, batch, key):
        both = batch["views"]
        rows = both.reshape(-1, *both.shape[2:])
        outputs, stats = net.apply(params, state.stats, rows, train=True, key=key)
        z = outputs.projections.reshape(len(both), 2, -1)
        value = contrastive(z[:, 0], z[:, 1], temperature=m.temperature).mean()
        return value, Aux(stats, state.memory, {"contrastive": value})

    return Method(updates=(Update(loss),), views=views)
'''


def _run(tmp_path, *flags):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "ood_jax.main",
            f"--config={write_recipe(tmp_path / 'data', 'tiny_config')}",
            "--config.method.name=my_pkg.my_method",
            f"--workdir={tmp_path / 'w'}",
            *flags,
        ],
        env=environment(tmp_path / "cache", modules=tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )


def _write(tmp_path):
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_method.py").write_text(METHOD)


def test_a_method_outside_the_package(tmp_path):
    _write(tmp_path)
    done = _run(tmp_path, "--config.method.temperature=0.25", "--config.train.log_every=1")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "w")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(0 < row["contrastive"] == row["loss"] for row in rows)
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert results["config"]["method"] == {
        "name": "my_pkg.my_method",
        "preset": "paper",
        "temperature": 0.25,
        "scale": [0.3, 1.0],
    }
    assert 0 <= results["sets"]["near"]["exp_cosine"]["auroc"] <= 1
    assert results["in_distribution"]["occupied_classes"] is None  # it has no soft-classes
    assert "near (near)" in done.stdout


def test_its_own_mistakes_and_keys(tmp_path):
    _write(tmp_path)
    for flag, says in (
        (
            "--config.method.temperature=0",
            "error: method.temperature = 0.0: use a number above 0\n",
        ),
        (
            "--config.method.temprature=1",
            "error: unknown config key 'method.temprature'."
            " Did you mean --config.method.temperature?\n",
        ),
    ):
        done = _run(tmp_path, flag)
        assert (done.returncode, done.stderr) == (2, says)
    assert not (tmp_path / "w").exists()
