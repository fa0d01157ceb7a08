"""Every score by its name: it can be built, and the README says what it needs."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax import scorers, sharding
from ood_jax.config import base
from ood_jax.types import Features, Scorer

ROOT = Path(__file__).resolve().parents[2]
READS = {  # a column of the README's table -> what its scorers may need
    "features": {"features"},
    "projections": {"embedding", "norms", "shifted", "shift_logits"},
    "logits": {"logits", "second_logits", "odin", "turn_loss", "gram"},
    "last layer": {"last_layer"},
}


def table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- scores -->(.*)<!-- /scores -->", text, re.DOTALL)
    assert found is not None
    rows = [line.strip("| ").split(" | ") for line in found[1].strip().splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


def build(name):
    return scorers.build(name, base().score, sharding.make_mesh(1))


def test_the_readme_lists_every_score():
    assert sorted(table()) == sorted(scorers.NAMES)


@pytest.mark.parametrize("name", scorers.NAMES)
def test_the_readme_says_what_it_needs(name):
    reads, beside, _ = table()[name]
    needs = set(build(name).needs)
    assert ("labels" in needs) == ("labels" in beside)
    assert needs - {"labels"} <= READS[reads]
    assert (build(name).extra is not None) == any(
        word in beside for word in ("views", "gradients", "activations")
    ) or name == "norm"


def test_names_and_all():
    assert scorers.expand(("all",)) == tuple(scorers.NAMES)
    assert scorers.expand(("knn", "all"))[0] == "knn"
    for wrong in ((), ("knn", "knn")):
        with pytest.raises(ValueError, match="name one or more, each once"):
            scorers.expand(wrong)
    for wrong, hint in (("maximum_logit", "max_logit"), ("a.b:c", "import path")):
        with pytest.raises(ValueError, match=hint):
            build(wrong)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [1, 127, 128, 300, 4097])
def test_run_scores_every_row_once(count, devices):
    mesh = sharding.make_mesh(devices)
    rows = np.arange(count, dtype=np.float32)[:, None]
    scorer = Scorer(lambda train: jnp.float32(2), lambda state, x: state * x.features[:, 0])
    scores = scorers.run(scorer, jnp.float32(2), Features(rows, labels=rows[:, 0]), mesh)
    np.testing.assert_array_equal(scores, 2.0 * rows[:, 0])


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda state, x: x.features[:, 0] * np.nan, "3 of 3 scores are NaN"),
        (lambda state, x: x.features, r"scores \[3, 2\]; one number"),
        (lambda state, x: x.features.mean(), r"scores \[1\]; one number"),
        (lambda state, x: -np.asarray(x.features).max(1), "use jax.numpy"),
    ],
)
def test_scores_that_are_none(score, message):
    scorer = Scorer(lambda train: {}, score)
    with pytest.raises(ValueError, match=message):
        scorers.run(scorer, {}, Features(np.ones((3, 2), np.float32)), sharding.make_mesh(1))
