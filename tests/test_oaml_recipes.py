"""configs/oaml_quickstart.py and configs/oaml_cifar.py: every stage has a step, words mean things.

The steps are shapes alone; a ViT-B at 224 px costs nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import ROOT

from ood_jax import optim, stages
from ood_jax.config import stages_of
from ood_jax.data.vectors import OF_IMAGES, OUTLIERS
from ood_jax.recipe import load
from ood_jax.step import make_step
from ood_jax.train import abstract_state

CLASSES = {"cifar10": 10, "cifar100": 100}
EMBEDDING, WHOLE = 128, 768  # width of the small teacher's features, of ViT-B's
NAMES = ("teacher", "mine", "generate", "student")


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Both CIFARs of a few pixels, with enough images of each class to mine."""
    folder = tmp_path_factory.mktemp("cifar")
    for name, classes in CLASSES.items():
        for part, count in (("train", 1000 + 301 * classes), ("test", 2000)):
            images = np.zeros((count, 2, 2, 3), np.uint8)
            np.savez(
                folder / f"{name}-{part}.npz", images=images, labels=np.arange(count) % classes
            )
    return folder


def cifar(argument, *more):
    return load([f"--config=configs/oaml_cifar.py:{argument}", *more])


def prepared(argument, root, *more):
    return stages.prepared(cifar(argument, f"--config.data.root={root}", *more))


def assert_steps(run):
    """The step of `run` keeps the shapes of its state, and says a loss; of a mine there is none."""
    config, vectors = run.config, run.vectors._asdict()
    batch, size = config.train.batch, config.data.size
    if not run.method.updates:
        assert config.train.steps == 0
        return
    index = jax.ShapeDtypeStruct((batch,), jnp.int32)
    host = {"index": index, "label": index}
    if run.method.images:
        host["image"] = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    for name, field in (OF_IMAGES | {name: name for name in OUTLIERS}).items():
        if field in run.method.reads:
            width = vectors[field].shape[1]
            host[name] = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    step = make_step(run.method, run.optimisers, run.rates, seed=0)
    state = abstract_state(run)
    new, metrics = jax.eval_shape(step, state, host)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()


def test_every_stage_of_the_quickstart_has_a_step():
    runs = stages.prepared(load(["--config=configs/oaml_quickstart.py"]))
    assert tuple(runs) == NAMES
    for run in runs.values():
        assert_steps(run)
    params = abstract_state(runs["student"]).params
    assert set(params) == {"trunk", "head", "feature_map", "near_q", "far_q"}


@pytest.mark.parametrize(
    ("argument", "width", "names"),
    [
        ("", EMBEDDING, NAMES),
        ("cifar100,near,official", EMBEDDING, ("teacher", "mine", "student")),
        ("distil", EMBEDDING, ("teacher", "student")),
        ("resnet18,ce", None, ("",)),
        pytest.param("resnet18", WHOLE, NAMES, marks=pytest.mark.slow),
        pytest.param("cifar100,resnet18,official", WHOLE, NAMES, marks=pytest.mark.slow),
    ],
)
def test_every_stage_has_a_step(argument, width, names, root):
    runs = prepared(argument, root)
    assert tuple(runs) == names
    for run in runs.values():
        assert_steps(run)
    *earlier, student = runs.values()
    assert student.method.classes == CLASSES["cifar100" if "cifar100" in argument else "cifar10"]
    assert all(one.config.model.weights == "" for one in earlier)  # what is not given is trained
    for one in (*earlier[1:], student):
        assert (width is None) == (one.vectors.embeddings is None)
        assert width is None or one.vectors.embeddings.shape[1] == width
    params = abstract_state(student).params
    assert ("near_q" in params, "far_q" in params) == ("mine" in names, "generate" in names)


WEIGHTS = ("logit_weight", "feature_weight", "near_weight", "far_weight")


@pytest.mark.parametrize("official", ["", ",official"])
@pytest.mark.parametrize(
    ("part", "weights", "reads"),
    [
        ("distil", (4.0, 8.0, 0.0, 0.0), ("stage:teacher", "", "")),
        ("near", (4.0, 8.0, 0.1, 0.0), ("stage:teacher", "stage:mine", "")),
        ("far", (4.0, 8.0, 0.1, 0.2), ("stage:teacher", "stage:mine", "stage:generate")),
    ],
)
def test_a_part_is_its_weights_and_stages(part, weights, reads, official):
    config = cifar(f"cifar10,small,{part}{official}")
    assert config.name == f"oaml_cifar10_small_{part}_{'official' if official else 'paper'}"
    student = stages_of(config)["student"]
    assert tuple(student.method[name] for name in WEIGHTS) == weights
    assert tuple(student.data[name] for name in ("embeddings", "near", "far")) == reads
    assert student.method.likelihood == (not official)
    mine = stages_of(config).get("mine")
    assert mine is None or mine.method.selection == ("official" if official else "paper")


def test_ce_is_the_student_alone():
    [alone] = stages_of(cifar("ce")).values()
    assert alone.method.name == "supervised" and alone.name == "oaml_cifar10_small_ce_paper"
    student = stages_of(cifar("far"))["student"]
    for part in ("model", "head", "optim", "train"):
        assert alone[part] == student[part]


@pytest.mark.parametrize(("dataset", "rate"), [("cifar10", 0.001), ("cifar100", 0.01)])
def test_the_map_and_q_learn_at_the_released_codes_rates(dataset, rate, root):
    student = prepared(f"{dataset},resnet18,far", root)["student"]
    assert student.config.optim.lr == rate and student.config.optim.lr_batch == 0
    rates = jax.tree.map(lambda x: rate, abstract_state(student).params)
    found, _ = optim.multiplied(student.config.optim.multipliers).update(rates, ())
    own = {"feature_map": 0.01, "near_q": 0.0001, "far_q": 0.0001, "trunk": rate, "head": rate}
    assert set(found) == set(own)
    for name, part in found.items():
        np.testing.assert_allclose(jax.tree.leaves(part), own[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (
            "mnist",
            "'mnist': .* cifar10 . cifar100, small . resnet18, ce . distil . near . far, off",
        ),
        ("near,far", "'near,far': .* at most one each"),
        ("cifar10,cifar100", "'cifar10,cifar100'"),
        ("small,npos", "'small,npos'"),
    ],
)
def test_what_there_is_not(argument, says):
    with pytest.raises(ValueError, match=says):
        cifar(argument)
