"""The methods mine and diffusion: what their stages make, and what they refuse beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import oaml_run
import pytest

from ood_jax import sharding
from ood_jax.config import base
from ood_jax.methods import mine as mine_method
from ood_jax.train import abstract_state, init_state, jitted_step, prepare

WIDTH = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    oaml_run.write_embeddings(folder / "embeddings.npz")
    oaml_run.write_outliers(folder / "near_outliers.npz", "near", WIDTH, 6)
    return folder


def config_of(folder, method, **settings):
    c = getattr(oaml_run, method)(folder)
    c.data.embeddings = str(folder / "embeddings.npz")
    if method == "generate":
        c.data.near = str(folder / "near_outliers.npz")
    for key, value in settings.items():
        c.method[key] = value
    return c


def made(config, params=None, devices=1):
    run = prepare(config)
    mesh = sharding.make_mesh(devices)
    return run, run.method.maker.make(params, run.vectors, run.train.labels, mesh)


def test_mined_ones_lie_where_their_source_does(folder):
    run, (features, about) = made(config_of(folder, "mine"))
    assert run.config.train.steps == 0 and run.method.maker.kind == "near"
    assert features.shape == (3 * 3 * 4, WIDTH) and features.dtype == np.float32
    embeddings = run.vectors.embeddings
    sources = embeddings[about["source"]]
    norms = np.linalg.norm(features, axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(sources, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(about["labels"], run.train.labels[about["source"]])
    cosines = (features * sources).sum(1) / norms**2
    assert cosines.min() > 0.9  # sigma is .07 in each of five dimensions


def test_rows_the_teacher_could_not_read_are_left_out(folder):
    run = prepare(config_of(folder, "mine", neighbour=3))
    known = np.ones(24, bool)
    known[:3] = False
    embeddings = np.where(known[:, None], run.vectors.embeddings, 0.0).astype(np.float32)
    vectors = run.vectors._replace(known=known, embeddings=embeddings)
    mesh = sharding.make_mesh(1)
    _, about = run.method.maker.make({}, vectors, run.train.labels, mesh)
    assert about["source"].min() >= 3
    np.testing.assert_array_equal(about["labels"], run.train.labels[about["source"]])


def test_gaussian_tails_are_another_setting(folder):
    config = config_of(folder, "mine", sampling="gaussian", draws=200, keep=2, rounds=3)
    _, (features, about) = made(config)
    assert features.shape == (3 * 2 * 3, WIDTH)
    assert (about["source"] == -1).all() and about["distances"].min() > WIDTH


def test_presets_are_the_papers():
    official, npos, vos = (base("mine", name).method for name in ("official", "npos", "vos"))
    assert (official.selection, official.neighbour, official.sigma) == ("official", 300, 0.07)
    assert (npos.neighbour, npos.picked, npos.draws, npos.sigma) == (100, 2, 600, 0.1)
    assert (vos.sampling, vos.draws, vos.keep) == ("gaussian", 10_000, 1)
    assert {*mine_method.PRESETS} == {"official", "npos", "vos"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbour": 9}, r"method.neighbour = 9 of a bank of 8 embeddings \(class 0\)"),
        ({"points": 9, "picked": 3}, "method.points = 9 of a bank of 8"),
        (
            {"class_wise": False, "neighbour": 25},
            r"method.neighbour = 25 of a bank of 24 .*the set",
        ),
        ({"sigma": 0.0}, "method.sigma = 0.0"),
        ({"selection": "best"}, "method.selection 'best'"),
        ({"sampling": "uniform"}, "method.sampling 'uniform': use boundary or gaussian"),
        ({"sampling": "gaussian", "ridge": 0.0}, "method.ridge = 0.0"),
    ],
)
def test_mining_is_refused_before_anything_is_computed(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(config_of(folder, "mine", **settings))


def test_class_wise_mining_needs_labels(folder, tmp_path):
    config = config_of(folder, "mine")
    with np.load(config.data.train.removeprefix("npz:")) as held:
        np.savez(tmp_path / "bare.npz", images=held["images"])
    with config.unlocked():
        config.data.train = f"npz:{tmp_path}/bare.npz"
    with pytest.raises(ValueError, match="mining class by class needs labels"):
        prepare(config)
    with config.unlocked():
        config.method.class_wise = False
    prepare(config)


def step_of(folder, **settings):
    config = config_of(folder, "generate", **settings)
    with config.unlocked():
        config.train.batch, config.train.devices = 24, 1
        config.optim.name, config.optim.lr, config.optim.min_lr = "adamw", 0.01, 0.01
    run = prepare(config)
    rows = run.method.prepared(run.vectors).embeddings
    every = np.arange(24, dtype=np.int32)
    return run, {"embedding": rows, "index": every, "label": run.train.labels}


def test_the_diffusion_learns_standardised_embeddings(folder):
    run, host = step_of(folder, width=32, times=1000, sample_steps=50)
    np.testing.assert_allclose(host["embedding"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(host["embedding"].std(0), 1, atol=1e-4)
    assert run.method.prepared(run.vectors).near is None  # no step reads them
    state, step = init_state(run), jitted_step(run)
    losses = []
    for _ in range(200):
        state, metrics = step(state, host)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_far_ones_are_as_many_as_asked_for_and_the_same_anywhere(folder):
    config = config_of(folder, "generate", outliers=4)
    run = prepare(config)
    params = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), init_state(run).params
    )
    _, (features, about) = made(config, params)
    _, (again, _) = made(config, params, devices=2)
    assert features.shape == (4, WIDTH) and run.method.maker.width(run.vectors) == WIDTH
    assert len(set(about["source"])) == 4 and about["source"].max() < 6
    np.testing.assert_allclose(features, again, rtol=1e-4, atol=1e-4)
    _, (every, about) = made(config_of(folder, "generate", outliers=0), params)
    assert len(every) == 6 and about["source"].tolist() == list(range(6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "vae"}, "method.backend 'vae': use embeddings or stable_diffusion"),
        ({"outliers": -1}, "method.outliers = -1"),
        ({"outliers": 1}, "method.outliers = 1"),
        ({"sample_steps": 7}, "steps = 7 does not divide the 10 noise steps"),
        ({"sampler": "euler"}, "sampler 'euler'"),
        ({"width": 7}, "width = 7: use an even number"),
        ({"blur": -0.5}, "method.blur = -0.5"),
        ({"dropout": 1.5}, "method.dropout = 1.5"),
        ({"schedule": "linear"}, "schedule 'linear'"),
        ({"backend": "stable_diffusion", "sample_steps": 50, "block": 0}, "block = 0 rows at once"),
        (
            {"backend": "stable_diffusion", "sample_steps": 50, "guidance": float("inf")},
            "guidance = inf",
        ),
    ],
)
def test_generating_is_refused_before_anything_is_computed(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(config_of(folder, "generate", **settings))


def test_missing_weights_of_stable_diffusion_are_named(folder, tmp_path):
    settings = {"backend": "stable_diffusion", "sample_steps": 50}
    for weights in ("", str(tmp_path)):
        with pytest.raises(ValueError, match=r"method.weights = .* lacks unet/config.json, .*put"):
            prepare(config_of(folder, "generate", weights=weights, **settings))


def test_a_dimension_that_never_varies_is_named(folder, tmp_path):
    path = tmp_path / "flat.npz"
    oaml_run.write_embeddings(path)
    with np.load(path) as held:
        arrays = dict(held)
    arrays["features"][:, 2] = 1.0
    np.savez(path, **arrays)
    config = config_of(folder, "generate", keep_constant=False)
    with config.unlocked():
        config.data.embeddings = str(path)
    run = prepare(config)
    with pytest.raises(ValueError, match=r"1 of 5 dimensions .* zero variance, the first is 2: .*"):
        run.method.prepared(run.vectors)
    with config.unlocked():
        config.method.keep_constant = True
    run = prepare(config)
    assert not run.method.prepared(run.vectors).embeddings[:, 2].any()
    features, _ = run.method.maker.make(init_state(run).params, run.vectors, None, run.mesh)
    assert (features[:, 2] == 1.0).all() and features[:, 3].std() > 0.1


def test_neither_stage_reads_an_image(folder):
    for method in ("mine", "generate"):
        run = prepare(config_of(folder, method))
        assert not run.method.images
        assert "trunk" not in abstract_state(run).params


def test_accuracy_while_training_is_refused_where_no_network_is(folder):
    config = config_of(folder, "generate")
    with config.unlocked():
        config.train.knn_every = 1
    with pytest.raises(ValueError, match=r"train.knn_every: diffusion trains no network of images"):
        prepare(config)
