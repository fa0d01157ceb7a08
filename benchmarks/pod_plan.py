"""What a training step costs on a pod that is not there: work, traffic, memory, what limits it.

    python benchmarks/pod_plan.py --model=vit_s16 --chips=64,256,1024 [--layouts=data,fsdp]
        [--dtype=bfloat16] [--topology=v5e:8x8,...] [--json] [--config.key=value ...]

vit_s16: configs/dino_rot_imgn.py, at its 2 + 8 positive and 1 + 8 negative crops. resnet50x3: the
joint stage of configs/simclr_joint_cifar.py with ImageNet's stem at 224 px, two views. Both at
batch 4,096. Compiles for simulated CPU devices, or with --topology for TPUs by their own compiler,
without any (needs libtpu); runs nothing. mesh.model and mesh.rules, if set, are a layout `config`.

Of one chip and step: floating-point operations as XLA counts them (a loop's body once) and, from
the traced step divided by the chips, those of its matrix products and convolutions alone (loops
in full); bytes of memory accessed; what is held; collectives, with the bytes that a device sends
in the ring algorithm. Then least times, see roofline.py; the CPU's compiler fuses less than a
chip's, so its bytes accessed (in brackets) and temporaries are too many, and bfloat16 is float32
for it within the step. --json prints a line of JSON each.
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from collectives import Collective, each_collective, meshes, simulate, stand_in, traced
from roofline import CHIPS, bounds, on_wire, products

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MODELS = {
    "vit_s16": ("", [f"--config={CONFIGS}/dino_rot_imgn.py"]),
    "resnet50x3": (
        "joint",
        [
            f"--config={CONFIGS}/simclr_joint_cifar.py",
            "--config.model.stem=imagenet",
            "--config.model.image_size=224",
            "--config.data.size=256",
            "--config.method.blur=0.5",
        ],
    ),
}


def recipe(model: str, dtype: str, overrides: list[str]) -> Any:
    """The config of a name in MODELS at batch 4,096, with the user's own keys over it."""
    from ood_jax.config import stages_of
    from ood_jax.recipe import load

    stage, argv = MODELS[model]
    own = ["--config.train.batch=4096", f"--config.model.dtype={dtype}"]
    return stages_of(load([*argv, *own, *overrides]))[stage]


def cost(config: Any) -> dict[str, Any]:
    """What the compiled step of `config` costs on each device of its mesh, as plain numbers.

    Where a TPU's compiler finds no room, only what was wanted and what there is.
    """
    import jax

    start = time.perf_counter()
    state, step = traced(config)
    count = math.prod(next(iter(jax.tree.leaves(state))).sharding.mesh.devices.shape)
    found: dict[str, Any] = {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "products": products(step.jaxpr.jaxpr) / count,
    }
    try:
        compiled = step.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        room = re.search(r"Used (\S+) of (\S+) hbm", str(error))
        if not room:
            raise
        return found | {"wanted": room[1], "there is": room[2]}
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    found |= {"flops": analysis["flops"], "accessed": analysis["bytes accessed"]}
    for name in ("argument", "output", "alias", "temp"):
        found[name] = getattr(memory, f"{name}_size_in_bytes")
    found["held"] = found["argument"] + found["output"] - found["alias"] + found["temp"]
    found["collectives"] = [one._asdict() for one in each_collective(compiled.as_text())]
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def devices_of(topology: str) -> Any:
    """TPUs that are not there, such as v5e:8x8."""
    from jax.experimental import topologies

    # There is no machine to ask, and none to be alone on.
    alone = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (alone | {"TPU_WORKER_HOSTNAMES": "localhost"}).items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def summary(found: dict[str, Any], images: int, real: str) -> dict[str, Any]:
    """`found` with collectives summed by kind, and the bounds of the chip `real`, "" = of all."""
    ones = [Collective(**one) for one in found.pop("collectives")]
    kinds: dict[str, dict[str, float]] = {}
    for one in ones:
        kind = kinds.setdefault(one.kind, {"count": 0, "result": 0, "wire": 0.0})
        kind["count"] += 1
        kind["result"] += one.size
        kind["wire"] += on_wire(one.kind, one.size, one.members)[0]
    limits = {}
    for name in [real] if real else CHIPS:
        chip = CHIPS[name]
        sent = [on_wire(one.kind, one.size, one.members, chip.domain) for one in ones]
        wire = (sum(within for within, _ in sent), sum(between for _, between in sent))
        flops = max(found["flops"], found["products"])
        limits[name] = bounds(
            chip,
            flops=flops,
            accessed=found["accessed"],
            fused=bool(real),
            held=found["held"],
            wire=wire,
            images=images,
        )._asdict()
    return found | {"collectives": kinds, "bounds": limits}


def show(row: dict[str, Any]) -> None:
    """Prints what `summary` found."""
    where = row["topology"] or "simulated"
    print(f"\n{row['model']}, {row['layout']}, {row['chips']} chips ({where}), {row['dtype']}")
    print(f"    parameters {row['parameters'] / 1e6:.1f} M; of each chip and step:")
    print(f"    {'matrix products':24}{row['products'] / 1e12:12.4f} TFLOP")
    if "wanted" in row:
        print(f"    does not fit: {row['wanted']} of {row['there is']}", flush=True)
        return
    print(f"    {'all as XLA counts':24}{row['flops'] / 1e12:12.4f} TFLOP")
    for name in ("accessed", "argument", "output", "alias", "temp", "held"):
        print(f"    {name:24}{row[name] / 1e9:12.4f} GB")
    for kind, of in sorted(row["collectives"].items()):
        print(f"    {kind:24}{of['wire'] / 1e9:12.4f} GB sent in {of['count']}")
    memory = "memory" if row["topology"] else "(memory)"
    print(f"    {'ms at least':12}{'compute':>10}{memory:>10}{'links':>10}  limit, images/s")
    for name, of in row["bounds"].items():
        times = "".join(f"{1e3 * of[k]:10.2f}" for k in ("compute", "memory", "interconnect"))
        fits = "" if of["fits"] else ", does not fit"
        print(f"    {name:12}{times}  {of['limit']}, {of['images']:,.0f}{fits}", flush=True)


def plan(asked: argparse.Namespace, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each size of pod and layout, as soon as it is there.

    Raises:
      ValueError: a layout that is none, whatever is wrong with the config.
    """
    import jax

    config = recipe(asked.model, asked.dtype, overrides)
    with tempfile.TemporaryDirectory() as folder, config.unlocked():
        stand_in(config, Path(folder))
        for topology in asked.topology or asked.chips:
            real = devices_of(topology) if asked.topology else jax.devices()[: int(topology)]
            own = meshes(config, len(real))
            kept = config.mesh.model, config.mesh.rules
            for layout in asked.layouts or own:
                if layout not in own:
                    raise ValueError(
                        f"--layouts={layout}: use data, fsdp, or config where mesh.* is set"
                    )
                config.train.devices, config.mesh.model, config.mesh.rules = own[layout]
                with mock.patch.object(jax, "devices", lambda found=real: found):
                    found = cost(config)
                jax.clear_caches()
                row = {
                    "model": asked.model,
                    "layout": layout,
                    "chips": len(real),
                    "topology": topology if asked.topology else "",
                    "dtype": asked.dtype,
                    "batch": config.train.batch,
                }
                if "flops" in found:
                    kind = topology.partition(":")[0] if asked.topology else ""
                    found = summary(found, config.train.batch, kind)
                yield row | found
            config.mesh.model, config.mesh.rules = kept


def main(argv: list[str]) -> None:
    """Prints a table, or a line of JSON, for every size of pod and layout."""

    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--chips", default=["64", "256", "1024"], type=words)
    parser.add_argument("--layouts", default=[], type=words)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--topology", default=[], type=words)
    parser.add_argument("--json", action="store_true")
    asked, overrides = parser.parse_known_args(argv)
    if wrong := [text for text in overrides if not text.startswith("--config.")]:
        parser.error(f"unknown {' '.join(wrong)}: see --help")
    if wrong := [text for text in asked.topology if text.partition(":")[0] not in CHIPS]:
        parser.error(f"--topology={wrong[0]}: use {', '.join(CHIPS)} and a shape, such as v5e:8x8")
    try:
        simulate(1 if asked.topology else max(map(int, asked.chips)))
        for row in plan(asked, overrides):
            if asked.json:
                print(json.dumps(row), flush=True)
            else:
                show(row)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
