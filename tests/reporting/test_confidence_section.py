"""The report's section on two classifiers: whose it is, its panels, what damaged files do."""

import json

import numpy as np
import pytest
from scored_workdir import FAR, NEAR, make

from ood_jax import examples, report
from ood_jax.reporting import confidence
from ood_jax.reporting.blocks import LeftOut, Panels
from ood_jax.reporting.variants import variants
from ood_jax.reporting.workdirs import read
from ood_jax.types import Features

TITLE = "Confidence of both classifiers"


def write(folder, **arrays):
    """A scored workdir whose examples.npz has confidences: as `arrays` say, else of every set."""
    make(folder, images=20, points=5, steps=2, name=folder.name)
    rng = np.random.default_rng(0)
    with np.load(folder / "examples.npz") as file:
        held = dict(file)
    for name in ("test", *NEAR, *FAR):
        held[f"{name}/confidences"] = rng.uniform(0, 1, (30, 3)).astype(np.float32)
    np.savez(folder / "examples.npz", **(held | arrays))
    return folder


def section(*folders):
    made = report.report([str(folder) for folder in folders])
    return next((one for one in made.sections if one.title == TITLE), None)


def test_three_panels_for_each_ood_set(tmp_path):
    found = section(write(tmp_path / "mcd"))
    panels = [
        panel for block in found.blocks if isinstance(block, Panels) for panel in block.panels
    ]
    assert len(panels) == 3 * len(NEAR + FAR)
    assert len({panel.name for panel in panels}) == len(panels)
    assert "svhn: histograms of classifier 2" in " ".join(panel.alt for panel in panels)


def test_runs_with_one_classifier_have_no_such_section(tmp_path):
    make(tmp_path / "plain", images=20, points=5, steps=2, name="plain")
    assert section(tmp_path / "plain") is None
    both = section(tmp_path / "plain", write(tmp_path / "mcd"))
    left_out = [block.text for block in both.blocks if isinstance(block, LeftOut)]
    assert len(left_out) == 1 and left_out[0].startswith("plain: its examples.npz has no")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 2), np.float32),
        np.zeros((0, 3), np.float32),
        np.full((4, 3), np.nan),
        np.full((4, 3), "sure"),
        np.zeros(3),
    ],
)
def test_what_is_no_confidence_is_left_out(tmp_path, array):
    folder = write(tmp_path / "mcd", **{"svhn/confidences": array})
    blocks = confidence.confidence(variants([read(str(folder))]))
    panels = [panel for block in blocks if isinstance(block, Panels) for panel in block.panels]
    assert len(panels) == 3 * (len(NEAR + FAR) - 1)
    folder = write(tmp_path / "mcd", **{"test/confidences": array})
    blocks = confidence.confidence(variants([read(str(folder))]))
    assert isinstance(blocks[-1], LeftOut)


def test_confidences():
    first = np.log(np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    second = np.log(np.array([[0.7, 0.2, 0.1], [0.98, 0.01, 0.01]])) + 5
    found = examples.confidences(Features(first, logits=first, second_logits=second))
    expected = [[0.7, 0.7, 0.0], [1 / 3, 0.98, 2 * (0.98 - 1 / 3)]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    huge = examples.confidences(Features(first, logits=1e4 * first, second_logits=second))
    assert np.isfinite(huge).all()
    for other in (None, second[:, :2]):  # none, or one of shifts
        assert examples.confidences(Features(first, logits=first, second_logits=other)) is None
    assert examples.confidences(Features(first, second_logits=second)) is None


def test_results_of_an_earlier_version_are_read(tmp_path):
    make(tmp_path / "old", images=20, points=5, steps=2)
    results = json.loads((tmp_path / "old" / "results.json").read_text())
    assert "transductive" not in results
    assert report.report([str(tmp_path / "old")]).sections
