"""Hyperparameters come from OOD validation images, and never from a test set."""

import json

import numpy as np
import pytest
from small_run import tiny_config, write_images
from test_detector import write_run

from ood_jax import calibration, metrics, score, tuning
from ood_jax.config import flat


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    config = tiny_config(folder)
    config.score.bootstrap = 0
    config.score.scorers = ("knn", "energy", "max_logit")
    config.score.validation = write_images(folder, "validation", 14, 9)
    write_run(folder / "w", config)
    return folder / "w"


def test_the_best_on_validation_is_used_and_written(workdir):
    found = score.score_run(str(workdir), tune=True)
    tried = found["tuned"]["knn"]["tried"]
    values = [entry["neighbour"] for entry in tried]
    assert values == [v for v in tuning.TRIED["knn"]["neighbour"] if v <= 22]  # the bank has 22
    best = max(tried, key=lambda entry: entry["auroc"])
    assert found["tuned"]["knn"]["chosen"] == {"neighbour": best["neighbour"]}
    assert found["config"]["score"]["neighbour"] == best["neighbour"]
    assert "max_logit" not in found["tuned"]
    held = calibration.read(workdir / "calibration.json")
    assert flat(held.config)["score.neighbour"] == best["neighbour"]
    for name, scores in held.scores.items():
        assert held.thresholds[name] == metrics.threshold(scores, 0.95)


def test_tuning_is_refused_without_validation_images_or_on_a_test_set(workdir):
    with pytest.raises(ValueError, match="--tune needs OOD images"):
        score.score_run(str(workdir), tune=True, overrides=["--config.score.validation="])
    near = json.loads((workdir / "results.json").read_text())["config"]["score"]["near"][0]
    for cut in ("", "[:5]"):
        spec = near.partition("=")[2] + cut
        with pytest.raises(ValueError, match="never choose on what is tested"):
            score.score_run(
                str(workdir), tune=True, overrides=[f"--config.score.validation={spec}"]
            )


def test_only_scoring_keys_may_change(workdir):
    with pytest.raises(ValueError, match="seed is the checkpoint's"):
        score.score_run(str(workdir), overrides=["--config.seed=1"])
    with pytest.raises(ValueError, match=r"Did you mean --config\.score\.neighbour\?"):
        score.score_run(str(workdir), overrides=["--config.score.neighbor=1"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "scorers": 3}'])
def test_a_calibration_that_cannot_be_read_is_none(tmp_path, text):
    path = tmp_path / "calibration.json"
    assert calibration.read(path) is None
    path.write_text(text)
    assert calibration.read(path) is None


def test_a_calibration_survives_the_file(tmp_path):
    config = tiny_config(tmp_path)
    scores = {"knn": np.random.default_rng(0).normal(size=30)}
    calibration.write(
        calibration.Calibration(7, {"knn": 1.25}, scores, config), tmp_path / "calibration.json"
    )
    held = calibration.read(tmp_path / "calibration.json")
    assert (held.step, held.thresholds) == (7, {"knn": 1.25})
    np.testing.assert_array_equal(held.scores["knn"], np.sort(scores["knn"]))
    assert flat(held.config) == flat(config)
