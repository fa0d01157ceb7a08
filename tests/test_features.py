"""Features: order, padding, corrupt images, devices, the cache, and soft-class means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ood_jax import cache, features, sharding
from ood_jax.data.source import from_array
from ood_jax.data.sources import open_source
from ood_jax.types import Extra, LastLayer, Net, Outputs

K = 5


def config(batch=4, size=8):
    return ConfigDict(
        {
            "data": {
                "size": size,
                "mean": (0.5, 0.4, 0.3),
                "std": (0.2, 0.3, 0.4),
                "memory": 10**9,
                "timeout": 0.0,
            },
            "model": {"image_size": size},
            "score": {"batch": batch},
        }
    )


def linear_net():
    """Features: pixels through a matrix; logits: features through another."""

    def apply(params, stats, inputs, *, train, key=None):
        assert not train
        hidden = inputs.reshape(len(inputs), -1) @ params["trunk"] + stats["shift"]
        return Outputs(hidden, logits=hidden @ params["head"]), stats

    return Net(lambda key, inputs: ({}, {}), apply)


def weights(size=8):
    rng = np.random.default_rng(0)
    params = {
        "trunk": rng.normal(0, 0.1, (size * size * 3, 6)).astype(np.float32),
        "head": rng.normal(size=(6, K)).astype(np.float32),
    }
    return params, {"shift": np.float32(0.5)}


def images(count, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def expected(array, c):
    params, stats = weights()
    pixels = (array / 255.0 - np.array(c.data.mean)) / np.array(c.data.std)
    return pixels.reshape(len(array), -1) @ params["trunk"] + stats["shift"]


def extract(source, c, devices=2, **kwargs):
    mesh = sharding.make_mesh(devices)
    return features.extract(linear_net(), *weights(), source, config=c, mesh=mesh, **kwargs)


@pytest.mark.parametrize(("count", "batch"), [(11, 4), (8, 4), (1, 4), (7, 3), (3, 100)])
def test_rows_in_the_sources_order_whatever_the_batch(count, batch):
    array, labels = images(count), np.arange(count) % 3
    found = extract(from_array("a", array, labels), config(batch), fields=("features", "logits"))
    np.testing.assert_allclose(
        found.features.features, expected(array, config()), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(found.features.labels, labels)
    np.testing.assert_array_equal(found.rows, np.arange(count))
    assert found.features.logits.shape == (count, K)
    assert found.features.projections is None and found.skipped == 0


def test_one_device_and_two_say_the_same():
    source = from_array("a", images(9))
    one, two = (extract(source, config(), devices).features.features for devices in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def test_corrupt_images_are_left_out_and_counted(tmp_path):
    array = images(5)
    for i, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:60])
    found = extract(open_source(f"folder:{tmp_path}"), config(2))
    np.testing.assert_array_equal(found.rows, [0, 2, 3])
    assert found.skipped == 2
    right = expected(array[[0, 2, 3]], config())
    np.testing.assert_allclose(found.features.features, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_mean_probability_is_the_mean_over_valid_images(devices):
    array, centre = images(7), np.linspace(-1, 1, K).astype(np.float32)
    mean = features.mean_probability(
        linear_net(),
        *weights(),
        from_array("a", array),
        config=config(),
        mesh=sharding.make_mesh(devices),
        centre=centre,
        teacher_temperature=0.3,
    )
    logits = expected(array, config()) @ weights()[0]["head"]
    probs = np.exp((logits - centre) / 0.3)
    right = (probs / probs.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(mean, right, rtol=1e-4)
    assert features.occupied(mean) == np.mean(right > 1 / K)


def test_occupied_counts_classes_above_the_uniform_share():
    assert features.occupied(np.array([0.6, 0.4, 0.0, 0.0])) == 0.5
    assert features.occupied(np.full(4, 0.25)) == 0.0


def test_pixels_are_features():
    array = images(3)
    mesh = sharding.make_mesh(2)
    net = features.pixels_net()
    found = features.extract(net, {}, {}, from_array("a", array), config=config(), mesh=mesh)
    c = config()
    right = (array / 255.0 - np.array(c.data.mean)) / np.array(c.data.std)
    np.testing.assert_allclose(found.features.features, right.reshape(3, -1), rtol=1e-4, atol=1e-5)


def test_parameters_are_arguments_so_sets_and_weights_share_one_compilation():
    before = features._fields._cache_size()
    net, mesh = linear_net(), sharding.make_mesh(2)
    params, stats = weights()
    for seed, scale in ((0, 1.0), (1, 2.0)):
        features.extract(
            net,
            jax.tree.map(lambda p, s=scale: p * s, params),
            stats,
            from_array("a", images(6, seed=seed)),
            config=config(),
            mesh=mesh,
        )
    assert features._fields._cache_size() == before + 1


def noisy(calls):
    """An extra that needs the network, the raw images and the index; counts its traces."""

    def compute(forward, images, index):
        calls.append(1)
        draws = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(3), i)))
        inputs = jnp.zeros((len(images), forward.size, forward.size, 3))
        return {
            "brightness": images.astype(jnp.float32).mean((1, 2, 3)),
            "draw": draws(index),
            "black": forward.apply(inputs).features,
        }

    return Extra("noisy", compute)


@pytest.mark.parametrize(("batch", "devices"), [(7, 1), (4, 2)])
def test_extras_come_with_the_same_pass_whatever_the_batch(batch, devices):
    array, calls = images(9), []
    net, extra = linear_net(), noisy(calls)
    shared = {"config": config(batch), "mesh": sharding.make_mesh(devices), "extras": (extra,)}
    found = features.extract(net, *weights(), from_array("a", array), **shared).features
    draws = [jax.random.normal(jax.random.fold_in(jax.random.key(3), i)) for i in range(9)]
    np.testing.assert_array_equal(found.extra["draw"], np.array(draws))
    np.testing.assert_allclose(found.extra["brightness"], array.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.extra["black"], np.full((9, 6), 0.5), rtol=1e-6)
    np.testing.assert_allclose(found.features, expected(array, config()), rtol=1e-4, atol=1e-5)
    features.extract(net, *weights(), from_array("b", images(5, seed=2)), **shared)
    assert calls == [1], "another set must not compile again"


def test_extras_of_one_name_are_computed_once():
    first, second = [], []
    extract(from_array("a", images(3)), config(), extras=(noisy(first), noisy(second)))
    assert len(first) + len(second) == 1


def test_an_index_is_the_row_in_the_source(tmp_path):
    for i, image in enumerate(images(5)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    index = Extra("index", lambda forward, images, index: {"index": index})
    found = extract(open_source(f"folder:{tmp_path}"), config(2), extras=(index,))
    np.testing.assert_array_equal(found.features.extra["index"], found.rows)
    np.testing.assert_array_equal(found.rows, [0, 2, 3, 4])


def test_a_step_of_ones_own_batches():
    net, mesh, array = linear_net(), sharding.make_mesh(2), images(4)
    step = features.jitted_fields(net, config(), mesh, ("logits",), (noisy([]),))
    found = step(*weights(), {"image": array, "index": np.arange(4, dtype=np.int32)})
    held = features.as_features(found)
    right = extract(from_array("a", array), config(), fields=("logits",), extras=(noisy([]),))
    np.testing.assert_allclose(held.logits, right.features.logits, rtol=1e-6)
    np.testing.assert_array_equal(held.extra["draw"], right.features.extra["draw"])
    assert held.labels is None and held.projections is None


def test_each_device_computes_its_own_rows():
    """Of a matrix alone, the compiler would gather the images and multiply everywhere."""
    batch = {"image": images(8), "index": np.arange(8, dtype=np.int32)}

    def apply(params, stats, inputs, *, train, key=None):
        return Outputs(inputs.reshape(len(inputs), -1) @ params["trunk"]), stats

    net = Net(lambda key, inputs: ({}, {}), apply)

    def work(devices):
        mesh = sharding.make_mesh(devices)
        step = features.jitted_fields(net, config(), mesh)
        lowered = step.func.lower(*weights(), sharding.global_batch(mesh, batch), **step.keywords)
        return lowered.compile().cost_analysis()["flops"]

    assert work(2) < 0.6 * work(1)


def test_two_heads_and_the_last_layer():
    linear = linear_net()

    def apply(*args, **kwargs):
        outputs, stats = linear.apply(*args, **kwargs)
        return outputs.replace(second_logits=-outputs.logits), stats

    net = Net(
        linear.init, apply, lambda params: LastLayer(params["head"], jnp.zeros(K), "features")
    )
    source, mesh = from_array("a", images(3), np.arange(3)), sharding.make_mesh(1)
    params, stats = weights()
    fields, extras = ("logits", "second_logits"), (noisy([]),)
    found = features.extract(
        net, params, stats, source, config=config(), mesh=mesh, fields=fields, extras=extras
    )
    layer = found.features.last_layer
    assert isinstance(layer.kernel, np.ndarray) and layer.kernel.dtype == np.float32
    by_hand = found.features.features @ layer.kernel + layer.bias
    np.testing.assert_allclose(by_hand, found.features.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.features.second_logits, -found.features.logits)
    again = features.with_last_layer(features.unpack(features.pack(found)), net, params)
    jax.tree.map(np.testing.assert_array_equal, again, found)
    assert set(again.features.extra) == {"brightness", "draw", "black"}


def test_mistakes():
    source = from_array("a", images(3))
    with pytest.raises(ValueError, match="no projections, only features, logits"):
        extract(source, config(), fields=("projections",))
    with pytest.raises(ValueError, match="'empty' is empty"):
        extract(from_array("empty", images(0)), config())
    with pytest.raises(ValueError, match="batch = 0: use 1"):
        extract(source, config(batch=0))


def test_cache_is_used_only_for_the_same_meta(tmp_path):
    path, calls = tmp_path / "new" / "a.npz", []

    def compute():
        calls.append(1)
        return features.pack(extract(from_array("a", images(3), np.arange(3)), config()))

    meta = {"source": "a", "step": 3}
    first = features.unpack(cache.cached(path, meta, compute))
    again = features.unpack(cache.cached(path, dict(reversed(meta.items())), compute))
    assert len(calls) == 1
    np.testing.assert_array_equal(first.features.features, again.features.features)
    np.testing.assert_array_equal(again.features.labels, np.arange(3))
    assert again.features.logits is None and again.skipped == 0
    cache.cached(path, meta | {"step": 4}, compute)
    assert len(calls) == 2
    path.write_bytes(path.read_bytes()[:300])
    cache.cached(path, meta | {"step": 4}, compute)
    assert len(calls) == 3
    cache.cached(None, meta, compute)
    assert len(calls) == 4
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert '"step": 4' in str(file["meta"])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    cache.cached(path, {"step": 1}, lambda: {"x": np.zeros(2)})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ValueError, match=r"cannot be written [(]No space left"):
        cache.cached(path, {"step": 2}, lambda: {"x": np.ones(2)})
    found = cache.cached(path, {"step": 1}, lambda: {"x": np.ones(2)})
    np.testing.assert_array_equal(found["x"], np.zeros(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_digest_sees_values_names_shapes_and_types():
    tree = {"a": np.arange(4, dtype=np.float32), "b": {"c": jnp.ones(2)}}
    same = {"b": {"c": np.ones(2, np.float32)}, "a": jnp.arange(4, dtype=jnp.float32)}
    assert cache.digest(tree) == cache.digest(same)
    others = (
        tree | {"a": tree["a"] + 1},
        tree | {"a": tree["a"].reshape(2, 2)},
        tree | {"a": tree["a"].astype(np.float16)},
        {"A": tree["a"], "b": tree["b"]},
    )
    assert len({cache.digest(t) for t in (tree, *others)}) == 5


def test_stamp_changes_with_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", images=images(3))
    spec = "npz:a.npz[:2][classes=0]"
    before = cache.stamp(spec, str(tmp_path))
    assert before is not None and before == cache.stamp(spec, str(tmp_path))
    np.savez(tmp_path / "a.npz", images=images(4))
    assert cache.stamp(spec, str(tmp_path)) != before
    assert cache.stamp("builtin:glyphs/train", "") is None
    assert cache.stamp("npz:absent.npz", str(tmp_path)) is None
