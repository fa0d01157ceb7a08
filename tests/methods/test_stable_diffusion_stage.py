"""Far outliers by Stable Diffusion as a stage: its networks are stand-ins, nothing is computed."""

import json

import numpy as np
import oaml_run
import pytest

from ood_jax import made, outliers, stable_diffusion
from ood_jax.methods import diffusion
from ood_jax.stable_diffusion import FILES, Networks
from ood_jax.train import prepare

TOKENS, LATENT, NEAR = 6, (4, 2, 2), 5


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder with the configs of a model that small, as if its packages were there too."""
    folder = tmp_path / "weights"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "unet/config.json").write_text(json.dumps({"sample_size": 2, "in_channels": 4}))
    (folder / "text_encoder/config.json").write_text(json.dumps({"hidden_size": TOKENS}))
    monkeypatch.setattr(stable_diffusion, "find_spec", lambda name: name)
    return folder


@pytest.fixture
def networks(monkeypatch):
    """What the stand-ins were told: a condition is the mean of the noise, the null one is 0."""
    told = []

    def tell(rows):
        if rows is None:
            return np.zeros((1, 3, TOKENS), np.float32)
        told.append(rows)
        return np.repeat(rows[:, None], 3, 1)

    def noise(latents, step, words):
        return (0.5 * latents + words.mean((1, 2)).reshape(-1, 1, 1, 1)).astype(np.float32)

    networks = Networks(tell, noise, TOKENS, LATENT)
    monkeypatch.setattr(stable_diffusion, "load", lambda folder: networks)
    return told


def config_of(tmp_path, weights, width=TOKENS, **settings):
    c = oaml_run.images(tmp_path / "data", "diffusion")
    c.data.embeddings = oaml_run.write_embeddings(tmp_path / "embeddings.npz", width)
    c.data.near = oaml_run.write_outliers(tmp_path / "near.npz", "near", width, NEAR)
    c.method.backend, c.method.weights, c.method.sample_steps = "stable_diffusion", str(weights), 10
    for key, value in settings.items():
        c.method[key] = value
    return c


def written(run, folder):
    folder.mkdir()
    made.make_outliers(run, {}, str(folder), label="generate")
    return outliers.read(folder / "outliers.npz", kind="far")


def test_latents_are_written_with_their_provenance(tmp_path, weights, networks, capsys):
    config = config_of(tmp_path, weights, outliers=3, block=2)
    run = prepare(config)
    assert run.config.train.steps == 0 and not run.method.updates
    assert run.method.maker.width(run.vectors) == 16
    found = written(run, tmp_path / "w")
    assert found.features.shape == (3, 16)
    near = outliers.read(config.data.near)
    rows = found.arrays["source"]
    assert rows.dtype == np.int32 and len(set(rows.tolist())) == 3
    np.testing.assert_array_equal(np.concatenate(networks), near.features[rows])
    about = found.provenance
    assert about["settings"]["backend"] == "stable_diffusion" and about["seed"] == 0
    assert about["settings"]["weights"] == str(weights)
    assert about["near"]["from"] == config.data.near
    assert about["checkpoint"]["from"] == config.data.embeddings
    facts = json.loads((tmp_path / "w/outliers.json").read_text())
    assert facts["kind"] == "far" and facts["provenance"] == about
    assert "generate: 3 outliers" in capsys.readouterr().err
    before = (tmp_path / "w/outliers.npz").stat().st_mtime_ns
    made.make_outliers(run, {}, str(tmp_path / "w"), label="generate")
    assert before == (tmp_path / "w/outliers.npz").stat().st_mtime_ns and len(networks) == 2


def test_pooled_ones_are_the_means_of_channels_and_rows(tmp_path, weights, networks):
    whole, pooled = (
        prepare(config_of(tmp_path, weights, outliers=0, pooled=pooled)) for pooled in (False, True)
    )
    assert pooled.method.maker.width(pooled.vectors) == LATENT[-1]
    assert whole.method.maker.picture is not None and pooled.method.maker.picture is None
    latents, rows = (
        written(run, tmp_path / name).features for name, run in (("a", whole), ("b", pooled))
    )
    assert len(latents) == NEAR
    columns = latents.reshape(NEAR, *LATENT).mean(1).mean(1)
    np.testing.assert_allclose(rows, columns, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
def test_pictures_are_drawn_of_latents_alone(pooled, tmp_path, weights, networks, monkeypatch):
    drawn = []
    monkeypatch.setattr(diffusion, "picture", lambda *given: drawn.append(given))
    found = written(prepare(config_of(tmp_path, weights, pooled=pooled)), tmp_path / "w")
    if pooled:
        assert not drawn
        return
    [(folder, latents, path)] = drawn
    assert folder == str(weights) and str(path) == str(tmp_path / "w/pictures.png")
    np.testing.assert_array_equal(latents, found.features)


def test_without_an_autoencoder_there_is_no_picture(tmp_path, weights, networks):
    written(prepare(config_of(tmp_path, weights)), tmp_path / "w")
    assert not (tmp_path / "w/pictures.png").exists()


def test_another_width_than_the_tokens_costs_no_compute(tmp_path, weights, networks):
    with pytest.raises(ValueError, match=r"embeddings are 5 wide, .* tokens 6: use a teacher with"):
        prepare(config_of(tmp_path, weights, width=5))
    assert not networks


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_before_anything_is_computed(name, tmp_path, weights, networks):
    (weights / name).unlink()
    with pytest.raises(ValueError, match=rf"lacks {name}: name a folder, and put the weights"):
        prepare(config_of(tmp_path, weights))


def test_a_missing_package_is_named_before_anything_is_computed(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torch, .* \(no module torch\): pip install"):
        prepare(config_of(tmp_path, weights))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"sample_size": [64, 64], "in_channels": 4}', '{"sample_size": 2}']
)
def test_configs_that_are_none_are_named(text, tmp_path, weights):
    (weights / "unet/config.json").write_text(text)
    with pytest.raises(ValueError, match=r"weights: a config.json there is none of diffusers'"):
        prepare(config_of(tmp_path, weights))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_steps": 7}, "steps = 7 does not divide"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"block": 0}, "block = 0"),
    ],
)
def test_numbers_that_make_no_sense_cost_no_compute(settings, message, tmp_path, weights, networks):
    with pytest.raises(ValueError, match=message):
        prepare(config_of(tmp_path, weights, **settings))
