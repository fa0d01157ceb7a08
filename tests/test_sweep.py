"""The sweep: which runs, in which folders, what is skipped, what the table says."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ood_jax import sweep
from ood_jax.gather import markdown, show, tables
from ood_jax.runs import expand, finished
from ood_jax.sweep import gather, launch, main, parse_setting

ROOT = Path(__file__).resolve().parent.parent

# What ood_jax.main does, as far as a sweep sees it: AUROC = seed / 10 + optim.lr.
FAKE_MAIN = """
import json, pathlib, sys
from ood_jax import config as configs
from ood_jax.recipe import load
argv = sys.argv[1:]
config = json.loads(configs.to_json(load(argv)))
print("ran", config["seed"])
if config["seed"] == 13:
    sys.exit("unlucky")
train = config["train"]
train["steps_per_epoch"] = train["steps_per_epoch"] or 7
train["steps"] = train["steps"] or round(train["epochs"] * train["steps_per_epoch"])
train["epochs"] = train["steps"] / train["steps_per_epoch"]
config["name"] = config["name"] or "a name"
auroc = config["seed"] / 10 + config["optim"]["lr"]
workdir = pathlib.Path(argv[-1].split("=", 1)[1])
workdir.mkdir(parents=True, exist_ok=True)
scores = {"exp_cosine": {"auroc": auroc, "n_in": 5}, "pixels": {"auroc": 0.5, "n_in": 5}}
out = {"schema": 2, "name": config["name"], "step": config["train"]["steps"], "config": config,
       "in_distribution": {"knn_accuracy": 0.5, "n_train": 1, "none": None,
                           "sensitivity": {"exp_cosine": auroc}},
       "sets": {"svhn": scores, "dtd": scores}, "near": {}, "far": scores}
(workdir / "results.json").write_text(json.dumps(out))
"""

RECIPE = """
from ood_jax.config import base

def get_config(argument="a"):
    config = base("tests_sweep.method")
    config.method.letter = argument
    return config
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe on a method of its own, and a stand-in for ood_jax.main."""
    package = tmp_path / "path" / "tests_sweep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text("DEFAULTS = {'letter': 'a'}\nbuild = None\n")
    (tmp_path / "tiny.py").write_text(RECIPE)
    (tmp_path / "main.py").write_text(FAKE_MAIN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{ROOT}")
    monkeypatch.setattr(
        sweep,
        "command",
        lambda run, python=sys.executable: [python, str(tmp_path / "main.py"), *run.arguments],
    )
    yield str(tmp_path / "tiny.py")
    for name in [name for name in sys.modules if name.startswith("tests_sweep")]:
        del sys.modules[name]


def test_expand_is_the_product_with_seeds_innermost(recipe, tmp_path):
    settings = {"optim.lr": ["0.1", "0.2"], "train.batch": ["8", "16"]}
    runs = expand([recipe, f"{recipe}:b"], ["--config.train.epochs=2"], [0, 1], settings, tmp_path)
    assert len(runs) == 2 * 2 * 2 * 2
    assert [run.seed for run in runs[:3]] == [0, 1, 0]
    assert runs[0].variant == "tiny optim.lr=0.1 train.batch=8"
    assert runs[-1].variant == "tiny-b optim.lr=0.2 train.batch=16"
    assert runs[-1].arguments == (
        f"--config={recipe}:b",
        "--config.train.epochs=2",
        "--config.optim.lr=0.2",
        "--config.train.batch=16",
        "--config.seed=1",
        f"--workdir={tmp_path}/tiny-b,optim.lr=0.2,train.batch=16/seed1",
    )
    assert runs[-1].config["method.letter"] == "b" and runs[-1].config["train.epochs"] == 2.0
    assert len({run.workdir for run in runs}) == len(runs)


def test_folders_do_not_depend_on_the_rest_of_the_sweep(recipe, tmp_path):
    (one,) = expand([recipe], [], [3], {"optim.lr": ["0.1"]}, tmp_path)
    many = expand([recipe, f"{recipe}:b"], [], [0, 3], {"optim.lr": ["0.5", "0.1"]}, tmp_path)
    assert one in many


def test_values_that_no_folder_can_have_get_one_each(recipe, tmp_path):
    values = ["npz:a/b.npz[classes=0-4]", "npz:a-b.npz[classes=0-4]", "x" * 400, "x" * 401]
    runs = expand([recipe], [], [0], {"data.train": values}, tmp_path)
    folders = [run.workdir.relative_to(tmp_path).parts for run in runs]
    assert len(set(folders)) == 4 and all(len(parts) == 2 for parts in folders)
    assert all(len(parts[0]) < 200 for parts in folders)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("optim.lr=.1,.2", "optim.lr", [".1", ".2"]),
        ("config.optim.lr=.1", "optim.lr", [".1"]),
        ('data.train=["npz:a[:9,]", "b"]', "data.train", ["npz:a[:9,]", "b"]),
        ("train.batch=[8, 16]", "train.batch", ["8", "16"]),
        ('score.near=[["a=x", "b=y"], []]', "score.near", ["('a=x', 'b=y')", "()"]),
        ("head.train_gain=[true]", "head.train_gain", ["true"]),
    ],
)
def test_parse_setting(text, key, values):
    assert parse_setting(text) == (key, values)


def test_tuples_and_booleans_reach_the_config(recipe, tmp_path):
    settings = dict(
        [parse_setting('score.near=[["a=x", "b=y"], []]'), parse_setting("head.train_gain=[false]")]
    )
    first, second = expand([recipe], [], [0], settings, tmp_path)
    assert first.config["score.near"] == ("a=x", "b=y") and second.config["score.near"] == ()
    assert first.config["head.train_gain"] is False


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set=optim.lrr=.1"], "optim.lr"),
        (["--set=train.batch=few"], "few"),
        (["--set=optim.lr"], "--set=KEY=VALUE"),
        (["--set=data.train=[a"], "JSON list"),
        (["--set=optim.lr=.1", "--set=optim.lr=.2"], "two --set flags"),
        (["--set=optim.lr=.1,.1"], "two runs would write to"),
        (["--set=optim.lr=.1", "--config.optim.lr=.2"], "not both"),
        (["--config.seed=3"], "--seeds alone"),
        (["--seeds=a"], "whole numbers"),
        (["--seeds=1,1"], "each once"),
        (["--jobs=0"], "use 1 or more"),
        (["--job=2"], "unknown flag --job=2"),
    ],
)
def test_what_makes_no_sense_is_one_line_before_any_run(recipe, tmp_path, capsys, flags, words):
    assert main([f"--config={recipe}", f"--workdir={tmp_path / 'w'}", *flags]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "w").exists()


def test_list_prints_commands_alone(recipe, tmp_path, capsys):
    flags = [f"--config={recipe}", f"--workdir={tmp_path}/a b", "--seeds=0,1", "--list"]
    assert main([*flags, '--set=data.train=["npz:a b.npz"]']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("python ") for line in lines)
    assert "'--config.data.train=npz:a b.npz'" in lines[0] and "--config.seed=1" in lines[1]


def test_command_is_the_main_job():
    (root,) = {Path(sweep.__file__).parent}
    run = sweep.Run("v", 0, "r", {}, Path("w"), ("--config=r", "--workdir=w"), {})
    assert sweep.command(run) == [
        sys.executable,
        "-m",
        f"{root.name}.main",
        "--config=r",
        "--workdir=w",
    ]


def test_runs_skips_reports_and_gathers(recipe, tmp_path, capfd):
    root = tmp_path / "w"
    flags = [f"--config={recipe}", f"--workdir={root}", "--set=optim.lr=0.1,0.2"]
    assert main([*flags, "--seeds=0,13,2", "--jobs=2"]) == 1
    captured = capfd.readouterr()
    assert "4 of 6 runs finished" in captured.err and captured.err.count("failed, exit code 1") == 2
    assert "unlucky" in (root / "tiny,optim.lr=0.1" / "seed13" / "log.txt").read_text()
    assert "30.00 ± 14.14" in captured.out  # lr 0.2, seeds 0 and 2

    assert main([*flags, "--seeds=0,1,2"]) == 0
    captured = capfd.readouterr()
    assert "6 runs, 4 finished already" in captured.err
    assert [line for line in captured.out.splitlines() if line.startswith("ran")] == ["ran 1"] * 2

    table = json.loads((root / "sweep.json").read_text())
    stat = table["variants"]["tiny optim.lr=0.2"]["sets"]["svhn"]["exp_cosine"]["auroc"]
    assert list(stat["values"]) == ["0", "1", "2"] and stat["n"] == 3
    assert stat["mean"] == pytest.approx(0.3)
    assert stat["std"] == pytest.approx(statistics.stdev([0.2, 0.3, 0.4]))
    text = (root / "sweep.md").read_text()
    row = "| tiny optim.lr=0.2 | {} | exp_cosine | 30.00 ± 10.00 | 3 |"
    assert row.format("svhn") in text and row.format("mean of far") in text
    assert "| tiny optim.lr=0.1 | sensitivity.exp_cosine | 20.00 ± 10.00 % | 3 |" in text
    assert "n - 1" in text and "mean of near" not in text and "none" not in text
    assert "n_train" not in text


def test_a_folder_that_cannot_be_written_is_said_before_any_run(recipe, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert main([f"--config={recipe}", f"--workdir={tmp_path / 'file' / 'w'}"]) == 2
    captured = capfd.readouterr()
    assert "cannot be written" in captured.err and "ran" not in captured.out


def test_one_seed_has_no_deviation(recipe, tmp_path):
    runs = expand([recipe], [], [1], {"optim.lr": ["0.1"]}, tmp_path)
    assert launch(runs) == ([], 0)
    stat = gather(runs)["variants"]["tiny optim.lr=0.1"]["far"]["pixels"]["auroc"]
    assert stat == {"mean": 0.5, "std": None, "n": 1, "values": {"1": 0.5}}


def test_results_count_only_for_their_config_and_at_the_end(recipe, tmp_path):
    (run,) = expand([recipe], ["--config.train.epochs=9.9"], [1], {}, tmp_path)
    assert finished(run) is None
    launch([run])
    found = finished(run)
    assert found is not None and found["step"] == 69
    for flags, same in (
        (["--config.head.hidden=4"], False),
        (["--config.train.epochs=11"], False),
        (["--config.train.steps=68"], False),
        (["--config.train.steps=69"], True),
        (["--config.train.epochs=9.9", "--config.train.steps_per_epoch=7"], True),
        (["--config.train.steps=69", "--config.train.steps_per_epoch=8"], False),
    ):
        (other,) = expand([recipe], flags, [1], {}, tmp_path)
        assert other.workdir == run.workdir and (finished(other) is not None) == same, flags
    path = run.workdir / "results.json"
    for broken in ({**found, "step": 68}, {**found, "schema": 1}):
        path.write_text(json.dumps(broken))
        assert finished(run) is None
    path.write_text(json.dumps(found)[:-9])
    assert finished(run) is None


def test_a_signal_reaches_the_run_and_no_other_begins(recipe, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(0)))\n"
        "print('began', flush=True)\ntime.sleep(60)\n"
    )
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\nfrom ood_jax import sweep\n"
        f"sweep.command = lambda run: [sys.executable, {str(slow)!r}]\n"
        "sys.exit(sweep.main(sys.argv[1:]))\n"
    )
    flags = [f"--config={recipe}", f"--workdir={tmp_path / 'w'}", "--seeds=0,1"]
    process = subprocess.Popen(
        [sys.executable, str(driver), *flags], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert rest.count("saved") == 1 and "began" not in rest
    assert process.returncode == 128 + signal.SIGTERM


def test_the_spread_of_ranks_stands_beside_auroc(recipe, tmp_path, capsys):
    runs = expand([recipe], [], [0, 1], {"optim.lr": ["0.1", "0.2"]}, tmp_path)
    assert launch(runs) == ([], 0)
    for seed, run in enumerate(runs[:2]):
        columns = {
            "image": ["a", "b", "a", "b", f"{seed}a", "b"],
            "index": [0, 1] * 3,
            "set": ["svhn"] * 4 + ["dtd"] * 2,
            "scorer": ["exp_cosine"] * 2 + ["pixels"] * 2 + ["exp_cosine"] * 2,
            "ood_rank": [10.0 + 6 * seed, 50.0 - 8 * seed, 1.0, 1.0, 2.0, 2.0],
        }
        parquet.write_table(pa.table(columns), run.workdir / "scores.parquet")
    gathered = gather(runs)
    first, second = gathered["variants"].values()
    # deviations of two ranks: |6| and |-8| over the root of 2
    assert first["ood_rank_spread"] == {
        "svhn": {"exp_cosine": pytest.approx(7 / 2**0.5), "pixels": 0}
    }
    assert first["ood_rank_left_out"] == ["dtd: its images differ between seeds"]
    assert second["ood_rank_spread"] == {}
    text = markdown(tables(gathered))
    assert "| variant | OOD set | scorer | AUROC, % | n | OOD rank, spread |" in text
    row = "| tiny optim.lr=0.1 | {} | exp_cosine | 15.00 ± 7.07 | 2 | {} |"
    assert row.format("svhn", "4.9") in text and row.format("dtd", "") in text
    assert "No OOD rank, spread of tiny optim.lr=0.2: seed 0 has no scores.parquet." in text
    show(tables(gathered))
    assert "4.9" in capsys.readouterr().out
    alone = markdown(tables(gather(runs[:1])))
    assert "| scorer | AUROC, % | n |\n" in alone and "OOD rank" not in alone
