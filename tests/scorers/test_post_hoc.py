"""What holds for every score that is made of statistics, logits and the last layer."""

import jax
import numpy as np
import pytest
from jax import export

from ood_jax import config, scorers, sharding
from ood_jax.types import Features, LastLayer

WIDTH, CLASSES = 8, 3
DISTANCES = ("mahalanobis", "mahalanobis_shared", "mahalanobis_relative", "ssd")
LAST_LAYER = ("react", "gradnorm", "dice", "nci", "fdbd", "she", "vim", "residual")
LOGITS = ("msp", "max_logit", "energy", "gen", "klm", "l1_discrepancy")
ALL = (*DISTANCES, *LAST_LAYER, *LOGITS)


@pytest.fixture(scope="module")
def settings():
    return config.base("dino_negatives").score


def given(rows, labels=None, seed=0, reads="features"):
    rng = np.random.default_rng(100)
    kernel = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    bias = rng.normal(size=CLASSES).astype(np.float32)
    other = np.random.default_rng(seed + 7).normal(size=(len(rows), 5)).astype(np.float32)
    logits = rows @ kernel + bias
    return Features(
        rows if reads == "features" else other,
        logits=logits,
        projections=rows if reads == "projections" else other,
        labels=labels,
        last_layer=LastLayer(kernel, bias, reads),
        second_logits=logits[:, ::-1] * 0.5,
    )


def train(count=120, reads="features"):
    """Three classes that the last layer mostly tells apart."""
    rng = np.random.default_rng(0)
    spread = np.diag(np.linspace(0.5, 2, WIDTH)) + 0.1 * rng.normal(size=(WIDTH, WIDTH))
    rows = np.float32(rng.normal(size=(count, WIDTH)) @ spread + rng.normal(size=WIDTH))
    first = given(rows, reads=reads)
    labels = first.logits.argmax(1).astype(np.int32)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return first._replace(labels=labels)


def test_rows(count=37, seed=1):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32) * 2


test_rows.__test__ = False


def scored(scorer, state, features):
    read = features._replace(labels=None, last_layer=None)
    return np.asarray(jax.jit(scorer.score)(state, read))


@pytest.mark.parametrize("name", ALL)
def test_exports_with_any_number_of_rows(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    state = scorer.fit(train())
    test = given(test_rows())._replace(last_layer=None)
    held = {k: v for k, v in test._asdict().items() if v is not None}
    (b,) = export.symbolic_shape("b")
    shapes = {k: jax.ShapeDtypeStruct((b, *v.shape[1:]), v.dtype) for k, v in held.items()}
    exported = export.export(jax.jit(lambda x: scorer.score(state, Features(**x))))(shapes)
    expected = scored(scorer, state, test)
    assert expected.dtype == np.float32 and expected.shape == (37,)
    for count in (1, 5, 37):
        found = exported.call({k: v[:count] for k, v in held.items()})
        np.testing.assert_allclose(found, expected[:count], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_two_devices_say_what_one_says(settings, name):
    found = []
    for devices in (1, 2):
        mesh = sharding.make_mesh(devices)
        scorer = scorers.build(name, settings, mesh)
        state = scorer.fit(train(121))
        found.append(scorers.run(scorer, state, given(test_rows(38))._replace(labels=None), mesh))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", (*DISTANCES, *LAST_LAYER, "klm"))
def test_order_of_the_train_set_is_nothing(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    first = train()
    mixed = np.random.default_rng(3).permutation(120)
    second = first._replace(
        features=first.features[mixed],
        projections=first.projections[mixed],
        logits=first.logits[mixed],
        labels=first.labels[mixed],
    )
    test = given(test_rows())
    found = [scored(scorer, scorer.fit(features), test) for features in (first, second)]
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAST_LAYER)
def test_reads_what_the_last_layer_reads(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    found = [
        scored(scorer, scorer.fit(train(reads=reads)), given(test_rows(), reads=reads))
        for reads in ("features", "projections")
    ]
    np.testing.assert_array_equal(*found)
    state = scorer.fit(train(reads="projections"))
    with pytest.raises(ValueError, match="reads projections, which are not there"):
        scorer.score(state, Features(test_rows()))


@pytest.mark.parametrize("name", (*DISTANCES, *LAST_LAYER, "klm"))
def test_broken_features(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    rows = train().features.copy()
    rows[[4, 9], 2] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        broken = given(rows, train().labels)
    with pytest.raises(
        ValueError, match="2 of 120 train features are not finite, the first in row 4"
    ):
        scorer.fit(broken)


@pytest.mark.parametrize("name", (*DISTANCES, *LAST_LAYER))
def test_another_width(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    state = scorer.fit(train())
    with pytest.raises(ValueError, match=r"features \[5, 7\] where .* 8 wide: same network"):
        scorer.score(state, Features(np.zeros((5, 7), np.float32)))


@pytest.mark.parametrize("name", ALL)
def test_says_what_is_missing(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    for need in set(scorer.needs) & {"labels", "logits", "last_layer", "second_logits"}:
        with pytest.raises(ValueError, match=f"{name}.* needs"):
            scorer.fit(train()._replace(**{need: None}))
    if "labels" in scorer.needs:
        with pytest.raises(ValueError, match=f"{name} needs labels"):
            scorer.fit(train()._replace(labels=np.full(120, -1, np.int32)))
        with pytest.raises(ValueError, match=r"labels \[119\] for 120 features"):
            scorer.fit(train()._replace(labels=train().labels[1:]))


@pytest.mark.parametrize("name", (*DISTANCES[:3], "she"))
def test_images_without_a_label_do_not_count_and_numbers_may_have_gaps(settings, name):
    scorer = scorers.build(name, settings, sharding.make_mesh(1))
    first, test = train(), given(test_rows())
    labels = first.labels.copy()
    labels[60:] = -1
    half = first._replace(features=first.features[:60], labels=labels[:60])
    expected = scored(scorer, scorer.fit(half), test)
    found = scored(scorer, scorer.fit(first._replace(labels=labels)), test)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    gaps = first._replace(labels=np.where(labels < 0, -1, np.array([2, 7, 900])[labels]))
    found = scored(scorer, scorer.fit(gaps), test)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    "key, value, names",
    [
        ("shrinkage", "oas", DISTANCES),
        ("clusters", 0, ("ssd",)),
        ("energy_temperature", 0.0, ("energy",)),
        ("gen_gamma", 1.0, ("gen",)),
        ("gen_top", 0, ("gen",)),
        ("react_percentile", 100.0, ("react",)),
        ("dice_percentile", 0.0, ("dice",)),
        ("she_metric", "l1", ("she",)),
        ("vim_dim", -1, ("vim", "residual")),
    ],
)
def test_settings_that_make_no_sense(settings, key, value, names):
    wrong = settings.copy_and_resolve_references()
    wrong[key] = value
    for name in names:
        with pytest.raises(ValueError, match=f"score.{key} = "):
            scorers.build(name, wrong, sharding.make_mesh(1))


@pytest.mark.parametrize("shrinkage", ["trace", "ridge"])
def test_strength_of_zero(settings, shrinkage):
    wrong = settings.copy_and_resolve_references()
    wrong.shrinkage, wrong.shrinkage_strength = shrinkage, 0.0
    with pytest.raises(ValueError, match="shrinkage_strength = 0"):
        scorers.build("mahalanobis", wrong, sharding.make_mesh(1))
