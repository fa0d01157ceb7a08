"""ELOC from training to the table: three classifiers of three classes, each without one."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from checkpoint_edit import edit
from small_run import ROOT, tiny_config, write_images

from ood_jax import eloc, leave_out, loop, metrics, models
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.data.sources import open_source
from ood_jax.recipe import load
from ood_jax.results import read_results
from ood_jax.score import score_run
from ood_jax.step import make_step
from ood_jax.train import init_state, prepare
from ood_jax.views.crops import evaluation_view

TEMPERATURE, EPSILON = 10.0, 0.01


def config_of(folder, split):
    """A classifier of two of four classes in three parts, or of three; 6 steps of 8 images."""
    c = tiny_config(folder, "leave_out")
    for name, count in (("train", 24), ("test", 16)):
        write_images(folder, name, count, labels=np.arange(count) % 4)
    c.data.root, c.data.train, c.data.test = str(folder), "npz:train.npz[:20]", "npz:test.npz"
    c.score.calibration = "npz:train.npz[20:]"
    c.data.auxiliary = ""
    c.head.name = "linear"
    c.method.classes, c.method.splits, c.method.split = 4, 3, split
    c.update_from_flattened_dict(leave_out.cut(c))
    c.optim.lr, c.optim.lr_batch, c.optim.freeze_epochs = 0.01, 0, 0.0
    c.train.steps = 6
    c.score.scorers = ("msp", "energy")
    c.score.odin_temperature, c.score.odin_epsilon = TEMPERATURE, EPSILON
    return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    """The folder of a sweep; split 1 is trained, the others are as they begin, at step 6."""
    root = tmp_path_factory.mktemp("eloc")
    for split in range(3):
        run, workdir = prepare(config_of(root / "data", split)), root / "sweep" / f"{split}of3"
        if split == 1:
            loop.train(run, str(workdir))
            continue
        checkpoints = Checkpoints(str(workdir), keep_last=2)
        checkpoints.save(init_state(run).replace(step=jnp.int32(6)), run.config)
        checkpoints.close()
    return root / "sweep"


@pytest.fixture(scope="module")
def detected(trained):
    return eloc.detect(str(trained))


@pytest.fixture
def sweep(trained, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "sweep")


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(trained, specs):
    """(sum over members of max p - H(p), mean probabilities) of sources, as it is written."""
    score, total = 0.0, 0.0
    for split in range(3):
        restored = restore_for_scoring(str(trained / f"{split}of3"))
        c = restored.config
        sources = [open_source(spec, root=c.data.root) for spec in specs]
        images = np.concatenate([source.images(np.arange(len(source))) for source in sources])
        x = evaluation_view(images, size=16, mean=c.data.mean, std=c.data.std)
        plain, gradient = asked(c, restored, np.asarray(x))
        sign = np.where(gradient >= 0, 1.0, -1.0)
        moved, _ = asked(c, restored, x - (EPSILON * sign / c.data.std).astype(np.float32))
        p = softmax(np.asarray(moved, np.float64) / TEMPERATURE)
        score = score + p.max(1) + (p * np.log(p)).sum(1)
        full = np.zeros((len(images), 4))
        full[:, leave_out.learnt(c.method)] = softmax(np.asarray(plain, np.float64))
        total = total + full / 3
    return score, total


def asked(c, restored, inputs):
    """A member's logits of inputs, and the gradient of its cross-entropy with what it predicts."""
    net = models.build(c)

    @jax.jit
    def both(x):
        def loss(x):
            logits = net.apply(restored.params, restored.stats, x, train=False)[0].logits
            log_p = jax.nn.log_softmax(logits / TEMPERATURE)
            return -log_p.max(-1).sum(), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        return logits, gradient

    return jax.device_get(both(inputs))


def test_results_by_the_equations_as_they_are_written(trained, detected):
    assert read_results(trained / "results.json") == detected
    near = detected["config"]["score"]["near"][0].partition("=")[2]
    score, said = by_hand(trained, ("npz:test.npz", near))
    inside, outside, said = score[:16], score[16:], said[:16]
    own = detected["sets"]["near"]["eloc"]
    assert own["auroc"] == metrics.auroc(-inside, -outside)
    assert (own["n_in"], own["n_out"]) == (16, 10)
    labels = np.arange(16) % 4
    assert detected["in_distribution"]["accuracy"] == np.mean(said.argmax(1) == labels)
    table = pyarrow.parquet.read_table(trained / "scores.parquet").to_pydict()
    test = [s for s, name in zip(table["score"], table["set"], strict=True) if name == "test"]
    # The paper's score but for its sign, the mean over members, and a constant.
    constant = np.mean([1 / n - np.log(n) for n in (2, 3, 3)])
    np.testing.assert_allclose(test, constant - inside / 3, atol=2e-6)


def test_results_are_as_a_runs(trained, detected):
    own = score_run(str(trained / "0of3"))
    assert set(detected) - {"members"} == set(own)
    assert set(detected["in_distribution"]) == set(own["in_distribution"])
    assert set(detected["sets"]["far"]["eloc"]) == set(own["sets"]["far"]["msp"])
    assert list(detected["scorers"]) == ["eloc"]
    assert detected["scorers"]["eloc"]["facts"] == {
        "members": 3,
        "temperature": TEMPERATURE,
        "epsilon": EPSILON,
    }
    assert detected["config"]["data"]["train"] == "npz:train.npz[:20]"
    assert detected["config"]["data"]["test"] == "npz:test.npz"
    assert [m["split"] for m in detected["members"]] == [0, 1, 2]
    assert sorted(c for m in detected["members"] for c in m["left_out"]) == [0, 1, 2, 3]
    assert (trained / "calibration.json").is_file() and (trained / "plots").is_dir()


def test_the_command_without_temperature_and_step(sweep, capsys):
    near = read_results(sweep / "results.json")["config"]["score"]["near"][0]
    flags = ["--config.score.odin_temperature=1", "--config.score.odin_epsilon=0"]
    assert eloc.main([f"--workdir={sweep}", f"--ood={near}", *flags]) == 0
    shown = capsys.readouterr().out
    assert "eloc" in shown and "accuracy" in shown and "\x1b" not in shown
    found = read_results(sweep / "scores" / "near.json")
    assert found["scorers"]["eloc"]["facts"]["temperature"] == 1.0
    assert found["groups"] == {"near": [], "far": []}
    assert found["config"]["score"]["odin_epsilon"] == 0.0


def test_members_of_one_seed(sweep, capsys):
    for split in range(3):
        shutil.copytree(sweep / f"{split}of3", sweep / "again" / f"{split}of3")
        edit(sweep / "again" / f"{split}of3", seed=1)
    assert "both leave out split 0" in refused(capsys, sweep)
    assert eloc.main([f"--workdir={sweep}", "--seed=1"]) == 0
    capsys.readouterr()
    found = read_results(sweep / "seed1" / "results.json")
    assert {m["seed"] for m in found["members"]} == {1} and found["config"]["seed"] == 1
    assert "no finished run" in refused(capsys, sweep, "--seed=7")


def refused(capsys, sweep, *flags):
    """The one line on stderr."""
    assert eloc.main([f"--workdir={sweep}", *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_a_member_that_is_missing(sweep, capsys):
    shutil.rmtree(sweep / "1of3")
    line = refused(capsys, sweep)
    assert "2 of 3 classifiers" in line and "leaves out split 1;" in line


def test_a_member_that_is_not_finished(sweep, capsys):
    shutil.rmtree(sweep / "1of3" / "checkpoints" / "6")
    assert eloc.main([f"--workdir={sweep}"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "1of3 is left out: it is at step 4 of 6" in warning
    assert "leaves out split 1" in error


def test_members_of_two_recipes(sweep, capsys):
    edit(sweep / "1of3", optim_lr=0.5)
    line = refused(capsys, sweep)
    assert "optim.lr = " in line and "differ in their split and seed alone" in line


def test_runs_that_are_no_members(sweep, capsys):
    edit(sweep / "1of3", method_split=0)
    line = refused(capsys, sweep)
    assert "1of3: data.train = " in line and "split 0 of 3" in line
    edit(sweep / "0of3", method_name="supervised")
    assert "0of3: a run of the method supervised" in refused(capsys, sweep)


def test_no_members(tmp_path, capsys):
    line = refused(capsys, tmp_path)
    assert "python -m ood_jax.sweep --config=configs/eloc_cifar.py:" in line and "4of5" in line


@pytest.mark.parametrize(
    ("dataset", "size"),
    [
        ("cifar100", "small"),
        ("cifar10", "small"),
        pytest.param("cifar10", "densenet", marks=pytest.mark.slow),
        ("cifar10", "wrn"),
    ],
)
def test_recipe(dataset, size, tmp_path, monkeypatch):
    """The sets of its five classifiers, and the shapes of one's step."""
    monkeypatch.chdir(ROOT)
    classes = {"cifar10": 10, "cifar100": 100}[dataset]
    labels = np.arange(1600) % classes
    for kind in ("train", "test"):
        np.savez(
            tmp_path / f"{dataset}-{kind}.npz",
            images=np.zeros((1600, 32, 32, 3), np.uint8),
            labels=labels,
        )
    runs = []
    for split in range(5) if size == "small" else [4]:
        flag = f"--config=configs/eloc_cifar.py:{dataset},{size},{split}of5"
        runs.append(prepare(load([flag, f"--config.data.root={tmp_path}"])))
    for run in runs:
        train, auxiliary = run.train, run.auxiliary
        assert sorted(set(train.labels)) == list(range(classes * 4 // 5))
        assert sorted(set(auxiliary.labels)) == list(leave_out.left_out(run.config.method))
        assert len(train) == 480 and len(auxiliary) == 120
    assert sorted(c for run in runs for c in set(run.auxiliary.labels)) == (
        list(range(classes)) if size == "small" else sorted(set(runs[0].auxiliary.labels))
    )
    run = runs[-1]
    image = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8)
    index = jax.ShapeDtypeStruct((8,), jnp.int32)
    host = {"image": image, "auxiliary": image, "index": index, "auxiliary_index": index}
    state = jax.eval_shape(lambda: init_state(run))
    step = make_step(run.method, run.optimisers, run.rates, seed=0)
    new, shown = jax.eval_shape(step, state, host | {"label": index})
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert {"loss", "accuracy", "margin_entropy"} <= set(shown)
    assert run.method.classes == classes * 4 // 5


@pytest.mark.parametrize(
    "argument", ["cifar", "cifar10,large", "cifar10,small,5", "cifar10,0of5,x"]
)
def test_recipe_refuses(argument, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="0of5 to 4of5"):
        load([f"--config=configs/eloc_cifar.py:{argument}"])
