"""A method's run on one of four simulated devices and on meshes of all: how far apart they end.

    python tests/mesh_runs.py METHOD FOLDER MESH...

Prints {mesh: what `compared` found} as JSON. The method's config is its first recipe in configs/,
shrunk, so a method that comes later is tested as soon as it has a recipe.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

DEVICES, STEPS = 4, 20
ROOT = Path(__file__).resolve().parent.parent
SHRUNK = {
    "data.size": 16,
    "model.image_size": 16,
    "model.depth": {"vit": 1, "resnet": 10, "densenet": 10, "wide_resnet": 10},
    "model.width": {"vit": 8, "resnet": 4, "densenet": 4, "wide_resnet": 16},
    "model.heads": 1,
    "model.patch": 8,
    "model.stride": 2,
    "model.drop_path": 0.0,
    "model.weights": "",
    "head.layers": 2,
    "head.bottleneck": 8,
    # A ReLU whose input is a rounding away from 0 has one of two gradients: here none is.
    "seed": 1,
    # Adam and LARS divide rounding by rounding where a gradient is zero.
    "optim.name": "sgd",
    "optim.lr": 0.001,
    "optim.lr_batch": 0,
    "optim.warmup_epochs": 0.0,
    "optim.freeze_epochs": 0.0,
    "train.batch": 8,
    "train.steps": STEPS,
}
AT_MOST = {"head.hidden": 16, "head.outputs": 8, "method.positive_local": 0}
AT_MOST |= {"method.negative_local": 0, "head.second_outputs": 8}
AT_MOST |= {"method.hidden": 16, "method.width": 8, "method.depth": 1}
EMBEDDING, FAR = 6, 10  # width of a teacher's embeddings, of far outliers
SPLIT = ("head/", "memory/", "feature_map/", "near_q/", "far_q/")  # over `model`, where there are
BASELINES = "configs/baselines_cifar.py"  # its argument is the method


def recipe_of(method: str) -> Any:
    """The config of the first recipe that runs `method`; the one of its name comes first."""
    from ood_jax.config import stages_of
    from ood_jax.recipe import load

    every = sorted((ROOT / "configs").glob("*.py"))
    paths = sorted(every, key=lambda p: not p.stem.startswith(method))
    for recipe in (*paths, f"{BASELINES}:{method}"):
        for config in stages_of(load([f"--config={recipe}"])).values():
            if config.method.name == method:
                return config
    raise ValueError(f"no recipe in configs/ runs {method}: write one")


def has_step(method: str) -> bool:
    """Does `method` train? One that only makes outliers or scores does not."""
    from ood_jax import models
    from ood_jax.config import method_module, put

    config = recipe_of(method)
    with config.unlocked():  # of a published network, which need not be there
        put(config, "model.weights", config.model.weights or "published")
    return bool(method_module(method).build(config, models.build(config)).updates)


def shrunk(config: Any, folder: Path) -> Any:
    """`config` with a network of a few thousand parameters and images that take no time."""
    import numpy as np
    from oaml_run import write_embeddings, write_outliers
    from small_run import write_images

    from ood_jax.config import flat, put

    folder.mkdir(parents=True, exist_ok=True)
    known = flat(config)
    with config.unlocked():
        for key, value in SHRUNK.items():
            put(config, key, value[config.model.name] if isinstance(value, dict) else value)
        for key, most in AT_MOST.items():
            if isinstance(known.get(key), int):
                put(config, key, min(known[key], most))
        labels = np.arange(64) % max(config.head.outputs, 1)
        config.data.train = write_images(folder, "train", 64, labels=labels)
        config.data.auxiliary = config.data.auxiliary and write_images(folder, "aux", 64, 1)
        if config.data.embeddings:
            logits = 4 * np.eye(max(config.head.outputs, 1), dtype=np.float32)[labels]
            path = folder / "embeddings.npz"
            config.data.embeddings = write_embeddings(path, EMBEDDING, 64, logits=logits)
        for kind, width in (("near", EMBEDDING), ("far", FAR)):
            if config.data[kind]:
                config.data[kind] = write_outliers(folder / f"{kind}.npz", kind, width)
    return config


def mesh_of(config: Any, name: str) -> Any:
    """`config` on one device, or on all by data, by fsdp, or by fsdp and two-way `model`."""
    from ood_jax.config import put
    from ood_jax.optim import path_name
    from ood_jax.train import abstract_state, jax, prepare

    config = config.copy_and_resolve_references()
    keys = {"train.devices": 1 if name == "one" else DEVICES, "mesh.model": 1, "mesh.rules": ()}
    with config.unlocked():
        for key, value in keys.items():
            put(config, key, value)
        if name == "mixed":
            state = abstract_state(prepare(config))
            arrays = {"memory": state.memory} | state.params
            named = [(path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(arrays)]
            even = [(name, x) for name, x in named if x.ndim and x.shape[-1] % 2 == 0]
            chosen = [(name, x) for name, x in even if name.startswith(SPLIT)]
            chosen = chosen or [(name, x) for name, x in even if x.ndim > 1]
            split = [f"{name}={'- ' * (x.ndim - 1)}model" for name, x in chosen]
            assert split
            config.mesh.model, config.mesh.rules = 2, (*split, ".*=fsdp")
        elif name == "fsdp":
            config.mesh.rules = (".*=fsdp",)
    config.lock()
    return config


class Trained(NamedTuple):
    """run and jitted step; losses of all steps; the state at first, in the middle and at last.

    places: where the state lies. checkpoint: folder of the state in the middle.
    """

    run: Any
    step: Any
    losses: list[float]
    states: list[Any]
    places: Any
    checkpoint: Path


def trained(config: Any, folder: Path) -> Trained:
    import jax

    from ood_jax.checkpoint import Checkpoints
    from ood_jax.train import init_state, jitted_step, prepare

    run = prepare(config)
    step, state = jitted_step(run), init_state(run)
    states = [jax.device_get(state)]
    state, first = go_on(run, step, state, STEPS // 2)
    states.append(jax.device_get(state))
    checkpoints = Checkpoints(str(folder), keep_last=1)
    checkpoints.save(state, config)
    checkpoints.close()
    state, second = go_on(run, step, state, STEPS)
    states.append(jax.device_get(state))
    places = jax.tree.map(lambda x: x.sharding, state)
    return Trained(run, step, first + second, states, places, folder)


def go_on(run: Any, step: Any, state: Any, last: int) -> tuple[Any, list[float]]:
    """(state after step `last`, losses up to there)."""
    from ood_jax import loop, sharding

    first, seeded = int(state.step), run.config.copy_and_resolve_references()
    with seeded.unlocked():
        seeded.seed = 0  # of the images' order
    batches = loop._batches(run._replace(config=seeded), first)
    losses = []
    for _ in range(first, last):
        host = next(batches)
        host.pop("skipped")
        state, metrics = step(state, sharding.global_batch(run.mesh, host))
        losses.append(float(metrics["loss"]))
    return state, losses


def resumed(checkpoint: Path, here: Trained) -> Any:
    """The last parameters of a run that goes on from `checkpoint` on the mesh of `here`."""
    import jax

    from ood_jax.checkpoint import Checkpoints
    from ood_jax.train import abstract_state

    checkpoints = Checkpoints(str(checkpoint), keep_last=1)
    state = checkpoints.restore(abstract_state(here.run))
    checkpoints.close()
    return jax.device_get(go_on(here.run, here.step, state, STEPS)[0].params)


def compared(one: Trained, other: Trained) -> dict[str, float]:
    """Largest differences by part of the state, how far parameters moved, and a device's share."""
    from ood_jax.checkpoint import restore_for_scoring

    first, middle, last = other.states
    scored = restore_for_scoring(str(other.checkpoint))
    network = middle.teacher or {"params": middle.params, "stats": middle.stats}
    expected = one.states[2]
    parts = ("params", "teacher", "memory", "stats")
    return {part: apart(getattr(last, part), getattr(expected, part)) for part in parts} | {
        "start": apart(first, one.states[0]),
        "loss": apart([a / b for a, b in zip(other.losses, one.losses, strict=True)], 1.0),
        "optimiser": apart(last.opt, expected.opt) / max(apart(expected.opt, 0.0), 1e-30),
        "resumed_here": apart(resumed(one.checkpoint, other), expected.params),
        "resumed_on_one": apart(resumed(other.checkpoint, one), expected.params),
        "scored": apart([scored.params, scored.stats], [network["params"], network["stats"]]),
        "moved": apart(first.params, last.params),
        "share": share(last, other.places),
    }


def apart(a: Any, b: Any) -> float:
    """The largest difference of two trees, or of a tree from a number."""
    import jax
    import numpy as np

    if isinstance(b, float):
        b = jax.tree.map(lambda _: b, a)
    differences = jax.tree.map(lambda x, y: float(np.max(np.abs(x - y), initial=0.0)), a, b)
    return max(jax.tree.leaves(differences), default=0.0)


def share(state: Any, places: Any) -> float:
    """Bytes of one device over bytes of the state, without BatchNorm's statistics."""
    import math

    import jax

    held, whole = 0, 0
    for part in ("params", "teacher", "memory", "opt"):
        arrays, where = (jax.tree.leaves(getattr(tree, part)) for tree in (state, places))
        for x, place in zip(arrays, where, strict=True):
            held += math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
            whole += x.nbytes
    return held / whole


def main(method: str, folder: Path, meshes: list[str]) -> None:
    config = shrunk(recipe_of(method), folder / "data")
    one = trained(mesh_of(config, "one"), folder / "one")
    found = {name: compared(one, trained(mesh_of(config, name), folder / name)) for name in meshes}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
