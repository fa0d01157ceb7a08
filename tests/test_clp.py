"""The command of confusion log probability, on two members trained for seconds; its recipe."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from checkpoint_edit import edit
from small_run import ROOT, tiny_config

from ood_jax import clp, clp_figures, features, loop, models, sharding
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.data.sources import open_source
from ood_jax.recipe import load
from ood_jax.score import check_sources, score_run
from ood_jax.step import make_step
from ood_jax.train import init_state, prepare

SETS = {"dark": ("coal", "soot", "ink"), "light": ("snow", "milk"), "noise": ("noise",)}
NOISE = "noise:gaussian/30"
FILES = {
    *("clp.json", "clp.npz", "clp_images.parquet"),
    *(f"clp_{name}.{kind}" for name in ("confusion", "dendrogram") for kind in ("svg", "png")),
}


def write_set(folder, name, count):
    """Images of noise over a colour; each class has its own."""
    kind = name.partition("-")[0]
    colours = np.random.default_rng(len(kind)).integers(0, 200, (len(SETS[kind]), 3))
    labels = np.arange(count) % len(colours)
    rng = np.random.default_rng(len(name))
    images = colours[labels][:, None, None] + rng.integers(0, 50, (count, 16, 16, 3))
    arrays = {"images": images.astype(np.uint8), "labels": labels, "classes": SETS[kind]}
    np.savez(folder / f"{name}.npz", **arrays)


def union(kind, noise):
    return f"dark=npz:dark-{kind}.npz + light=npz:light-{kind}.npz + noise={NOISE}{noise}"


def config_of(folder):
    """A classifier of three sets, 6 classes: 24 steps of 12 images, drawn class by class."""
    c = tiny_config(folder, "supervised")
    c.data.train, c.data.test = union("train", "[:20]"), union("test", "[20:]")
    c.data.root, c.data.auxiliary, c.data.balanced = str(folder), "", True
    c.head.name, c.head.outputs = "linear", 6
    c.optim.lr, c.optim.lr_batch, c.optim.freeze_epochs = 0.005, 0, 0.0
    c.train.batch, c.train.steps, c.train.checkpoint_every = 12, 24, 12
    c.score.near = c.score.far = ()
    c.score.scorers, c.score.calibration = ("msp",), "npz:dark-train.npz[-4:]"
    return c


def save_another(config, state, workdir):
    """A second member, for the price of a first: the same with noise on its weights, as seed 1."""
    rng = np.random.default_rng(1)
    config = config.copy_and_resolve_references()
    config.seed = 1
    noisy = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(x.dtype), state.params)
    checkpoints = Checkpoints(str(workdir), keep_last=2)
    checkpoints.save(state.replace(params=noisy), config)
    checkpoints.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    """The folder of a sweep with two finished members."""
    root = tmp_path_factory.mktemp("clp")
    data = root / "data"
    data.mkdir()
    for kind, count in (("train", 18), ("test", 9)):
        write_set(data, f"dark-{kind}", count)
        write_set(data, f"light-{kind}", count - 1)
    config = config_of(data)
    run = prepare(config)
    state = loop.train(run, str(root / "sweep" / "seed0"))
    save_another(run.config, state, root / "sweep" / "seed1")
    return root / "sweep"


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return clp.measure(str(trained), out=str(out)), out


@pytest.fixture
def sweep(trained, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "sweep")


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def brute(trained):
    """(c_k [N, 6], labels [N]) of both members by Eq. 3 as it is written."""
    found = []
    for seed in (0, 1):
        restored = restore_for_scoring(str(trained / f"seed{seed}"))
        config = restored.config
        test = open_source(config.data.test, root=config.data.root)
        net, mesh = models.build(config), sharding.make_mesh(1)
        arrays = (net, restored.params, restored.stats)
        said = features.extract(*arrays, test, config=config, mesh=mesh, fields=("logits",))
        found.append(softmax(np.asarray(said.features.logits, np.float64)))
    return np.mean(found, 0), test.labels


CLASSES = {"dark": [0, 1, 2], "light": [3, 4], "noise": [5]}
PAIRS = [(a, b) for a in CLASSES for b in CLASSES if a != b]


def test_the_json_by_the_equations_as_they_are_written(measured, brute, trained):
    found, out = measured
    c, labels = brute
    assert json.loads((out / "clp.json").read_text()) == found
    assert {path.name for path in out.iterdir()} == FILES
    assert found["schema"] == 1
    assert [member["seed"] for member in found["members"]] == [0, 1]
    assert [member["step"] for member in found["members"]] == [24, 24]
    assert [m["workdir"] for m in found["members"]] == [str(trained / f"seed{i}") for i in (0, 1)]
    assert found["accuracy"] == np.mean(c.argmax(1) == labels)
    assert {one["name"]: tuple(one["classes"]) for one in found["sets"]} == SETS
    assert [one["first"] for one in found["sets"]] == [0, 3, 5]
    assert found["sets"][2]["source"] == "noise:gaussian/30[20:]"
    assert {(a, b) for a, row in found["dataset"].items() for b in row} == set(PAIRS)
    for inside, outside in PAIRS:
        mass = c[:, CLASSES[inside]].sum(1)
        of_set = np.isin(labels, CLASSES[outside])
        close(found["dataset"][inside][outside], np.log(mass[of_set].mean()))
        by_class = [np.log(mass[labels == k].mean()) for k in CLASSES[outside]]
        assert list(found["classwise"][inside][outside]) == [str(i) for i in range(len(by_class))]
        close(list(found["classwise"][inside][outside].values()), by_class)
        close(found["range"][inside][outside], [min(by_class), max(by_class)])
    matrix = [
        [c[np.isin(labels, rows)][:, columns].sum(1).mean() for columns in CLASSES.values()]
        for rows in CLASSES.values()
    ]
    close(found["confusion"], matrix)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # logits are float32


def test_the_table_of_images(measured, brute):
    _, out = measured
    c, labels = brute
    table = pyarrow.parquet.read_table(out / "clp_images.parquet").to_pydict()
    assert list(table) == ["set", "source", "image", "index", "label", "inside", "clp"]
    assert len(table["set"]) == 2 * len(labels)
    first = {"dark": 0, "light": 9, "noise": 17}
    rows = [first[name] + index for name, index in zip(table["set"], table["index"], strict=True)]
    assert len(set(zip(rows, table["inside"], strict=True))) == 2 * len(labels)
    for i, row in enumerate(rows):
        name, inside = table["set"][i], table["inside"][i]
        assert inside != name
        assert table["label"][i] == labels[row] - CLASSES[name][0]
        close(table["clp"][i], np.log(c[row, CLASSES[inside]].sum()))
    sources = {"dark": "npz:dark-test.npz", "light": "npz:light-test.npz", "noise": NOISE}
    assert set(zip(table["set"], table["source"], strict=True)) == set(sources.items())
    # As a run that is scored on noise[20:] alone names them: numbers in the uncut set.
    named = [image for name, image in zip(table["set"], table["image"], strict=True)]
    of_noise = [image for name, image in zip(table["set"], named, strict=True) if name == "noise"]
    assert of_noise == 2 * [str(i) for i in range(20, 30)]


def test_the_arrays_and_the_tree(measured, brute):
    _, out = measured
    c, labels = brute
    with np.load(out / "clp.npz", allow_pickle=False) as file:
        held = dict(file)
    u = np.array([[c[labels == j, i].mean() for j in range(6)] for i in range(6)])
    close(held["u"], u)
    close(held["distance"], np.sqrt(-np.log((u + u.T) / 2)))
    assert held["linkage"].shape == (5, 4)
    assert [*zip(held["sets"], held["labels"], held["classes"], strict=True)] == [
        (name, i, text) for name, classes in SETS.items() for i, text in enumerate(classes)
    ]


def test_the_pictures_name_all_classes_and_are_drawn_the_same_again(measured, tmp_path):
    found, out = measured
    with np.load(out / "clp.npz", allow_pickle=False) as file:
        clp_figures.write(found, dict(file), tmp_path)
    for name in ("confusion", "dendrogram"):
        drawn = (out / f"clp_{name}.svg").read_text()
        assert drawn == (tmp_path / f"clp_{name}.svg").read_text()
        texts = {"".join(e.itertext()).strip() for e in ElementTree.fromstring(drawn).iter()}
        assert texts >= set(SETS)
        if name == "dendrogram":
            assert texts >= {text for classes in SETS.values() for text in classes}


def test_what_scoring_kept_is_read_again(sweep, tmp_path, capsys, measured):
    """Scoring works without any OOD set, and leaves the logits that CLP needs."""
    shutil.rmtree(sweep / "seed0" / "features")
    score_run(str(sweep / "seed0"))
    kept = (sweep / "seed0" / "features" / "test.npz").stat().st_mtime_ns
    found = clp.measure(str(sweep), out=str(tmp_path / "again"))
    assert (sweep / "seed0" / "features" / "test.npz").stat().st_mtime_ns == kept
    assert found["dataset"] == measured[0]["dataset"]


def test_the_command(sweep, capsys):
    """One member's workdir is an ensemble of one; results go into it."""
    assert clp.main([f"--workdir={sweep / 'seed1'}", "--inside=light"]) == 0
    shown, said = capsys.readouterr()
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= clp.WIDTH
    lines = [line.split() for line in shown.splitlines() if line.strip()]
    found = json.loads((sweep / "seed1" / "clp.json").read_text())
    by_set = found["dataset"]["light"]
    order = sorted(by_set, key=by_set.get, reverse=True)
    assert [line[0] for line in lines if line[0] in by_set] == order
    (dark,) = [line for line in lines if line[0] == "dark"]
    low, high = found["range"]["light"]["dark"]
    assert dark[1:5] == [f"{by_set['dark']:.1f}", f"{low:.1f}", "to", f"{high:.1f}"]
    nearest = max(found["classwise"]["light"]["dark"].items(), key=lambda pair: pair[1])[0]
    assert dark[5] == SETS["dark"][int(nearest)]
    assert "1 member:" in shown
    assert str(sweep / "seed1" / "clp.json") in said
    assert {path.name for path in (sweep / "seed1").iterdir()} >= FILES


def refused(capsys, sweep, *flags):
    """The one line on stderr."""
    assert clp.main([f"--workdir={sweep}", *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_members_of_two_recipes_are_refused(sweep, capsys):
    edit(sweep / "seed1", optim_lr=0.5)
    line = refused(capsys, sweep)
    assert "optim.lr = 0.005 and 0.5" in line and "seed0" in line and "seed1" in line


def test_members_may_differ_in_what_changes_no_number(sweep, measured, tmp_path):
    edit(sweep / "seed1", data_memory=1234, score_block=5)
    found = clp.measure(str(sweep), out=str(tmp_path / "out"))
    assert found["confusion"] == measured[0]["confusion"]


def test_a_member_twice_is_refused(sweep, capsys):
    shutil.copytree(sweep / "seed1", sweep / "seed2")
    line = refused(capsys, sweep)
    assert "both have seed 1" in line and str(sweep / "seed2") in line


def test_a_member_that_is_not_finished_is_left_out(sweep, capsys, tmp_path):
    shutil.rmtree(sweep / "seed0" / "checkpoints" / "24")
    (sweep / "seed2" / "checkpoints").mkdir(parents=True)
    found = clp.measure(str(sweep), out=str(tmp_path / "out"))
    assert [member["seed"] for member in found["members"]] == [1]
    said = capsys.readouterr().err
    assert f"warning: {sweep / 'seed0'} is left out: it is at step 12 of 24" in said
    assert f"warning: {sweep / 'seed2'} is left out: it has no checkpoint yet" in said
    shutil.rmtree(sweep / "seed1")
    assert clp.main([f"--workdir={sweep}"]) == 2
    assert "none of 1 runs" in capsys.readouterr().err


def test_no_members(tmp_path, capsys):
    assert "is no folder" in refused(capsys, tmp_path / "nothing")
    assert "ood_jax.sweep --config=configs/clp.py" in refused(capsys, tmp_path)


@pytest.mark.parametrize("name", ["ligth", ""])
def test_a_set_that_is_not_there(sweep, capsys, name):
    line = refused(capsys, sweep, f"--inside={name}")
    assert f"--inside={name}: " in line and "the union has dark, light, noise" in line
    assert ("did you mean light?" in line) == bool(name)


def test_a_place_that_cannot_be_written(sweep, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, sweep, f"--out={tmp_path / 'file' / 'out'}")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data_train": "npz:dark-train.npz", "data_test": "npz:dark-test.npz"}, "is one set"),
        ({"data_test": union("test", "[20:]").replace("light=", "bright=")}, "same sets"),
        ({"data_test": f"({union('test', '[20:]')})[:17]"}, "no image of noise"),
        ({"head_outputs": 7}, "--config.head.outputs=6"),
    ],
)
def test_unions_that_make_no_sense(sweep, capsys, settings, says):
    for seed in (0, 1):
        edit(sweep / f"seed{seed}", **settings)
    assert says in refused(capsys, sweep)


def test_classes_without_a_test_image_are_left_out(sweep, capsys, tmp_path):
    some = union("test", "[20:]").replace("dark-test.npz", "dark-test.npz[classes=coal,ink]")
    for seed in (0, 1):
        edit(sweep / f"seed{seed}", data_test=some)
    found = clp.measure(str(sweep), out=str(tmp_path))
    assert "warning: 1 of 3 classes of dark have no test image" in capsys.readouterr().err
    assert list(found["classwise"]["light"]["dark"]) == ["0", "2"]
    with np.load(tmp_path / "clp.npz", allow_pickle=False) as file:
        assert file["classes"].tolist() == ["coal", "ink", "snow", "milk", "noise"]
        assert file["labels"].tolist() == [0, 2, 0, 1, 0]
        assert file["linkage"].shape == (4, 4)


@pytest.mark.parametrize("size", ["small", "paper"])
def test_recipe(size, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load([f"--config=configs/clp.py:{size}"])
    train, test = config.data.train.split(" + "), config.data.test.split(" + ")
    assert [part.partition("=")[0] for part in train] == ["cifar10", "cifar100", "noise"]
    assert [part.partition("=")[0] for part in test] == ["cifar10", "cifar100", "noise"]
    noise = [open_source(union[2].partition("=")[2]) for union in (train, test)]
    drawn = {noise.image(i).tobytes() for noise in noise for i in range(len(noise))}
    assert len(drawn) == 6000  # none is in both
    for name, count, classes in (("cifar10", 1010, 10), ("cifar100", 100, 100)):
        labels = np.arange(count) % classes
        images = np.zeros((count, 32, 32, 3), np.uint8)
        for kind in ("train", "test"):
            np.savez(tmp_path / f"{name}-{kind}.npz", images=images, labels=labels)
    config = load([f"--config=configs/clp.py:{size}", f"--config.data.root={tmp_path}"])
    run = prepare(config)
    check_sources(run.config)
    host = {
        "image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8),
        **dict.fromkeys(("index", "label"), jax.ShapeDtypeStruct((8,), jnp.int32)),
    }
    state = jax.eval_shape(lambda: init_state(run))
    new, _ = jax.eval_shape(make_step(run.method, run.optimisers, run.rates, seed=0), state, host)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert run.method.classes == sum(len(part.classes) for part in run.train.parts) == 111
    with pytest.raises(ValueError, match="size 'large': use small, paper"):
        load(["--config=configs/clp.py:large"])
