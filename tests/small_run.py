"""A run that takes seconds: random images in npz files, a network of a few thousand parameters."""

import os
import subprocess
import time
from pathlib import Path

import jax
import numpy as np

from ood_jax import sharding
from ood_jax.checkpoint import Checkpoints
from ood_jax.config import base
from ood_jax.train import init_state, prepare

ROOT = Path(__file__).resolve().parent.parent


def write_images(folder: Path, name: str, count: int, seed: int = 0, **arrays) -> str:
    """Random uint8 images [count, 16, 16, 3] as an npz source."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / f"{name}.npz", images=images, **arrays)
    return f"npz:{folder / name}.npz"


def small_config(folder: Path, method: str = "dino_negatives"):
    """A whole config over images in `folder`: 6 steps of 8 images."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(24) % 3
    c = base(method)
    c.name = "small"
    c.data.train = write_images(folder, "train", 24, 0, labels=labels)
    c.data.test = write_images(folder, "test", 12, 1, labels=labels[:12])
    c.data.auxiliary = write_images(folder, "auxiliary", 20, 2)
    c.data.size = 16
    c.model.image_size, c.model.patch = 16, 8
    c.model.width, c.model.depth, c.model.heads, c.model.drop_path = 16, 1, 2, 0.0
    c.head.hidden, c.head.bottleneck, c.head.outputs, c.head.layers = 16, 8, 16, 2
    c.optim.warmup_epochs = 0.5
    c.train.batch, c.train.epochs = 8, 2.0
    c.train.checkpoint_every, c.train.log_every = 2, 2
    c.score.near = ("near=" + write_images(folder, "near", 10, 3),)
    c.score.far = ("far=" + write_images(folder, "far", 10, 4),)
    c.score.batch, c.score.block, c.score.knn = 8, 16, 3
    if method == "dino_negatives":
        c.method.negatives = ("in_distribution", "auxiliary")
        c.method.local_size, c.method.positive_local, c.method.negative_local = 8, 1, 1
    return c


def tiny_config(folder: Path, method: str = "dino_negatives"):
    """`small_config` with what compiles in half the time: one negative, no local views."""
    c = small_config(folder, method)
    c.name = "tiny"
    c.model.name, c.model.depth, c.model.width = "vit", 1, 8
    c.model.heads, c.model.patch = 1, 8
    if method == "dino_negatives":
        c.method.negatives = ("auxiliary",)
        c.method.positive_local = c.method.negative_local = 0
    return c


RECIPE = '''"""A run of tests/small_run.py as a recipe; its argument is the folder."""

import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from small_run import {name}


def get_config(folder):
    return {name}(Path(folder))
'''


def write_recipe(folder: Path, name: str = "small_config") -> str:
    """A config file over `folder`, for command lines: --config=<what this returns>."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(tests=str(Path(__file__).parent), name=name))
    return f"{path}:{folder}"


def environment(cache: Path, *, devices: int = 1, modules: Path | None = None) -> dict[str, str]:
    """For a `python -m ood_jax...` of its own: what compiles fast, and is compiled once a cache.

    modules: a folder of more that can be imported.
    """
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    own = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, [ROOT, modules]))),
    }
    return os.environ | own


def signalled(command, env, ready, number: int, after: float = 0.0) -> tuple[int, str]:
    """Starts a process, and sends it a signal `after` seconds after ready(): exit code, output."""
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            limit = time.monotonic() + 120
            while not ready() and time.monotonic() < limit:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.01)
            time.sleep(after)
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, output


def abstract_state(run, devices: int = 1):
    """Shapes, types and places of the state of `run`, whole on each of the first `devices`."""
    everywhere = sharding.replicated(sharding.make_mesh(devices))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda: init_state(run)),
    )


def final_state(config, workdir: Path):
    """The newest state in `workdir` of a run of `config`, on the host."""
    checkpoints = Checkpoints(str(workdir), keep_last=2)
    state = jax.device_get(checkpoints.restore(abstract_state(prepare(config))))
    checkpoints.close()
    return state


def assert_close(found, expected, atol: float):
    """Equal to `atol`, but for a ViT's key biases: they do not change its attention.

    Their gradient is rounding alone, and Adam makes steps of it.
    """

    def compare(path, x, y):
        x, y = np.asarray(x), np.asarray(y)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("qkv/bias"):
            x, y = (np.delete(v.reshape(3, -1), 1, axis=0) for v in (x, y))
        np.testing.assert_allclose(x, y, atol=atol, rtol=0, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, found, expected)
