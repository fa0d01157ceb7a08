"""benchmarks/pod_plan.py: collectives read from HLO, ring formulas, least times, counted work."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ood_jax import models, sharding

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import collectives
    import pod_plan
    import roofline

GROUPS = [
    ("replica_groups={{0,2},{1,3}}, use_global_device_ids=true", (0, 2)),
    ("replica_groups={}, dimensions={0}", (0, 1, 2, 3, 4, 5, 6, 7)),
    ("replica_groups=[2,4]<=[8], dimensions={0}", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add", (0, 4)),
    ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, use", (0, 1, 2, 3, 4, 5, 6, 7)),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}, metadata={}", (0, 2, 4, 6)),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}, metadata={}", (0, 1)),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
    ("source_target_pairs={{0,0},{2,1},{1,2}}, metadata={}", (2, 1)),
    ("source_target_pairs={{0,0},{1,1}}, metadata={}", (0,)),
]


@pytest.mark.parametrize(("attributes", "first"), GROUPS)
def test_the_first_group_however_it_is_written(attributes, first):
    assert collectives.members(attributes, 8) == first


def test_groups_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"groups of devices that this cannot read: \"mesh"):
        collectives.members("replica_groups=mesh['a'=8] {'a':(1)2}", 8)


HLO = """HloModule jit_step, num_partitions=4
  %all-gather.2 = f32[64,8]{0,1} all-gather(%copy), replica_groups={{0,1,2,3}}, dimensions={0}
  %r = (f32[], bf16[8,4]{1,0:T(8,128)}) all-reduce(%a, %b), replica_groups={}, to_apply=%add
  %s = (f32[2,8], f32[8,8]) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %d = f32[8,8] all-gather-done(%s)
  %p = (s8[6], s8[6], u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %t = f32[2]{0} reduce-scatter(%r), replica_groups={{0,1},{2,3}}, to_apply=%add
"""


def test_collectives_in_a_module():
    everyone = (0, 1, 2, 3)
    assert collectives.each_collective(HLO) == [
        ("all-gather", 2048, everyone),
        ("all-reduce", 4 + 64, everyone),
        ("all-gather", 256, everyone),
        ("collective-permute", 6, (0, 1)),
        ("reduce-scatter", 8, (0, 1)),
    ]
    assert collectives.collectives(HLO)["all-gather"] == (2, 2048 + 256)


def test_collectives_that_xla_writes():
    mesh = sharding.make_mesh(2)
    split = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((6, 5), jnp.float32, sharding=split)
    total = jax.jit(lambda x: x.sum(0), out_shardings=sharding.replicated(mesh))
    text = total.lower(x).compile().as_text()
    assert text and collectives.each_collective(text) == [("all-reduce", 20, (0, 1))]


def ring(parts: int, gather: bool) -> tuple[np.ndarray, float]:
    """A reduce-scatter around a ring, then an all-gather: (what all hold, parts that each sent)."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((parts, parts))  # [device, part]
    held, sent = first.copy(), 0
    for step in range((parts - 1) * (2 if gather else 1)):
        moving = [(device - step) % parts for device in range(parts)]
        after = held.copy()
        for device, part in enumerate(moving):
            to = (device + 1) % parts
            add = after[to, part] if step < parts - 1 else 0.0
            after[to, part] = held[device, part] + add
        held, sent = after, sent + 1
    if gather:
        np.testing.assert_allclose(held, np.broadcast_to(first.sum(0), held.shape))
    else:
        mine = [held[device, (device + 1) % parts] for device in range(parts)]
        np.testing.assert_allclose(np.sort(mine), np.sort(first.sum(0)))
    return held, sent


@pytest.mark.parametrize("count", [2, 3, 8])
def test_bytes_on_the_wire_are_those_of_a_ring(count):
    """A part is size / count of the whole."""
    everyone, size = tuple(range(count)), 24.0
    part = size / count
    assert roofline.on_wire("all-reduce", size, everyone) == (part * ring(count, True)[1], 0)
    scattered = roofline.on_wire("reduce-scatter", part, everyone)
    assert scattered == (part * ring(count, False)[1], 0)
    assert roofline.on_wire("all-gather", size, everyone) == scattered
    assert roofline.on_wire("all-to-all", size, everyone) == (part * (count - 1), 0)


def test_two_levels():
    """8 devices, 4 a domain: a ring of 4 within, and a ring of 2 with the quarter that each has."""
    everyone = tuple(range(8))
    one, two = (0, 1, 2, 3), (0, 4)
    within, between = roofline.on_wire("all-reduce", 80.0, everyone, 4)
    assert within == roofline.on_wire("all-reduce", 80.0, one)[0]
    assert between == roofline.on_wire("all-reduce", 20.0, two)[0]
    within, between = roofline.on_wire("all-to-all", 80.0, everyone, 4)
    assert (within, between) == (30.0, 40.0)  # of 8 parts of 10, 3 and 4
    assert roofline.on_wire("collective-permute", 7.0, two, 4) == (0.0, 7.0)
    assert roofline.on_wire("collective-permute", 7.0, (0, 1), 4) == (7.0, 0.0)
    for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"):
        assert roofline.on_wire(kind, 8.0, everyone, 8) == roofline.on_wire(kind, 8.0, everyone)
        assert roofline.on_wire(kind, 8.0, (5,), 4) == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"no ring formula for 'broadcast'"):
        roofline.on_wire("broadcast", 8.0, everyone)


CHIP = roofline.Chip(100.0, 50.0, 10.0, 5.0, 4, 1.0)


@pytest.mark.parametrize(
    ("flops", "accessed", "wire", "limit", "images"),
    [
        (400.0, 20.0, (5.0, 1.0), "compute", 3.0),
        (400.0, 60.0, (5.0, 1.0), "memory", 2.0),
        (400.0, 20.0, (5.0, 5.0), "interconnect", 2.0),
        (400.0, 20.0, (60.0, 0.0), "interconnect", 1.0),
    ],
)
def test_the_slowest_limits(flops, accessed, wire, limit, images):
    numbers = dict(flops=flops, accessed=accessed, wire=wire, images=12)
    found = roofline.bounds(CHIP, **numbers, fused=True, held=50.0)
    assert (found.limit, found.images, found.fits) == (limit, images, True)
    assert found.interconnect == wire[0] / 5 + wire[1]
    other = roofline.bounds(CHIP, **numbers, fused=False, held=50.5)
    assert (other.limit == limit) is (limit != "memory")
    assert other.images >= images and not other.fits


def counted(function, *shapes):
    return roofline.products(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)).jaxpr)


def test_products_of_a_vision_transformer_are_those_of_the_formula():
    """12 D^2 multiply-adds a token and block for its parameters, 2 N D for attention."""
    config = pod_plan.recipe("vit_s16", "float32", ["--config.head.name=none", *SMALL])
    net, m = models.build(config), config.model
    images = jax.ShapeDtypeStruct((3, m.image_size, m.image_size, 3), jnp.float32)
    params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
    apply = jax.make_jaxpr(lambda p, s, x: net.apply(p, s, x, train=False)[0].features)
    patches = (m.image_size // m.patch) ** 2
    tokens = patches + 1
    block = 12 * m.width**2 + 2 * tokens * m.width
    expected = m.depth * tokens * block + patches * 3 * m.patch**2 * m.width
    assert roofline.products(apply(params, stats, images).jaxpr) == 2 * 3 * expected


def test_products_of_loops_branches_and_convolutions():
    def product(x, y):
        return x @ y

    square = (4, 4)
    once = 2 * 4**3
    assert counted(product, square, square) == once
    looped = counted(lambda x: jax.lax.map(lambda row: row @ x, x), square)
    assert looped == once
    branch = counted(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), square)
    assert branch == 2 * once
    mesh = sharding.make_mesh(2)
    blocked = sharding.on_each_device(mesh, lambda own, whole: own @ whole)
    assert counted(blocked, (6, 4), square) == 2 * 6 * 4 * 4

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 8, 8, 3), (2, 2, 3, 5)
    forward = 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)
    assert counted(convolved, *shapes) == forward
    gradient = jax.grad(lambda x, k: convolved(x, k).sum(), argnums=(0, 1))
    assert counted(gradient, *shapes) >= 2 * forward  # each of both is one more convolution


SMALL = [
    "--config.model.depth=2",
    "--config.model.width=32",
    "--config.model.heads=2",
    "--config.model.patch=8",
    "--config.model.image_size=32",
    "--config.model.drop_path=0",
]
TINY = [  # one pass of the student, so that its gradients are summed once
    *SMALL,
    "--config.model.depth=1",
    "--config.method.positive_local=0",
    "--config.method.negative_local=0",
    "--config.method.jitter_probability=0",
    "--config.method.blur=0",
    "--config.method.solarize=0",
    "--config.head.layers=1",
    "--config.head.bottleneck=64",
    "--config.head.outputs=512",
    "--config.train.batch=16",
]


@pytest.fixture(scope="module")
def rows():
    def planned(chips, layouts):
        asked = argparse.Namespace(
            model="vit_s16", dtype="float32", chips=chips, topology=[], layouts=layouts
        )
        return pod_plan.plan(asked, TINY)

    found = [*planned(["1", "2"], ["data"]), *planned(["2"], ["fsdp"])]
    return {(row["chips"], row["layout"]): row for row in found}


@pytest.mark.slow
def test_two_chips_do_half_of_the_work_each(rows):
    one, two = rows[1, "data"], rows[2, "data"]
    assert two["products"] == one["products"] / 2
    assert two["flops"] == pytest.approx(one["flops"] / 2, rel=0.05)
    assert 0.5 * one["flops"] < one["products"] < one["flops"]
    assert two["argument"] > 0.9 * one["argument"]
    assert rows[2, "fsdp"]["argument"] < 0.6 * one["argument"]


@pytest.mark.slow
def test_what_crosses_is_the_gradient(rows):
    """Data-parallel, every gradient is summed once: in a ring of two, its own bytes are sent."""
    assert rows[1, "data"]["collectives"] == {}
    two = rows[2, "data"]
    gradients = 4 * two["parameters"]
    assert two["collectives"]["all-reduce"]["wire"] == pytest.approx(gradients, rel=0.05)
    assert "all-gather" in rows[2, "fsdp"]["collectives"]


@pytest.mark.slow
def test_no_view_leaves_its_device(rows):
    """Positives and negatives pass together; put below each other, most would have to move."""
    assert not {"all-to-all", "collective-permute"} & set(rows[2, "data"]["collectives"])


@pytest.mark.slow
def test_tables_and_bounds(rows, capsys):
    row = rows[2, "data"]
    assert set(row["bounds"]) == set(roofline.CHIPS)
    slowest = row["bounds"]["v5e"]
    assert slowest["images"] == 16 / max(slowest["compute"], slowest["interconnect"])
    pod_plan.show(row)
    pod_plan.show({**row, "wanted": "30G", "there is": "16G"})
    text = capsys.readouterr().out
    assert "vit_s16, data, 2 chips (simulated), float32" in text
    assert "does not fit: 30G of 16G" in text


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--chip=4", "unknown --chip=4"),
        ("--topology=v9:2x2", "--topology=v9:2x2: use v4, v5e, v5p, v6e, H100 and a shape"),
        ("--config.model.depht=2", "unknown config key"),
        ("--layouts=config", "--layouts=config: use data, fsdp, or config where mesh.* is set"),
    ],
)
def test_arguments_that_are_none(argument, says, capsys, monkeypatch):
    monkeypatch.setattr(pod_plan, "simulate", lambda devices: None)
    with pytest.raises(SystemExit):
        pod_plan.main(["--model=vit_s16", "--chips=2", argument])
    assert says in capsys.readouterr().err
