"""Benchmarks as commands: which runs, in which folders, what is skipped, what is refused."""

import argparse
import json
import shlex

import pytest
from labelled_sets import finish, write_sets
from small_run import environment

from ood_jax import benchmark, sweep
from ood_jax.benchmark import main
from ood_jax.config import flat
from ood_jax.recipe import load
from ood_jax.runs import expand


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def launched(monkeypatch):
    """The runs that a command would start; each of them seems to be finished with AUROC .5."""
    started = []

    def launch(runs, jobs=1):
        started.extend(runs)
        for run in runs:
            finish(run, 0.5)
        return [], 0

    monkeypatch.setattr(sweep, "launch", launch)
    return started


def test_every_recipe_case_and_seed_is_run_once(recipe, tmp_path, launched, capsys):
    flags = [f"--config={recipe}:simclr", f"--config={recipe}:oecl,outliers", "--seeds=0,1"]
    command = ["one_vs_rest", *flags, f"--workdir={tmp_path}", "--set=optim.lr=.1,.2"]
    assert main([*command, "--classes=dog,3"]) == 0
    assert len(launched) == 2 * 2 * 2 * 2
    folders = [run.workdir.relative_to(tmp_path).as_posix() for run in launched]
    assert folders[0] == "tiny-simclr,optim.lr=.1,one_vs_rest=dog/seed0"
    assert folders[-1].startswith("tiny-oecl-outliers,optim.lr=.2,one_vs_rest=great-white-")
    assert len(set(folders)) == len(folders)
    assert launched[0].config["data.train"] == "npz:train.npz[classes=1]"
    assert launched[-1].config["data.auxiliary"] == "npz:other.npz"
    for name in ("json", "md", "png"):
        assert (tmp_path / f"benchmark.{name}").is_file()
    assert "![one_vs_rest: AUROC in % of norm_mean](benchmark.png)" in (
        tmp_path / "benchmark.md"
    ).read_text(encoding="utf-8")
    del launched[:]
    assert main([*command, "--classes=0-1"]) == 0  # dog is there already
    assert {run.case.name for run in launched} == {"cat"} and len(launched) == 8
    assert "16 runs, 8 finished already" in capsys.readouterr().err


def test_what_a_case_sets_takes_the_place_of_the_users_value(recipe, tmp_path, launched):
    flags = [
        "--config.data.train=npz:train.npz[:30]",
        "--config.score.near=mine=npz:far.npz",
        "--config.score.calibration=npz:calibration.npz",
        "--set=data.test=npz:test.npz,npz:calibration.npz",
    ]
    argv = ["one_vs_rest", f"--config={recipe}", f"--workdir={tmp_path}", "--classes=cat", *flags]
    assert main(argv) == 0
    for run, test in zip(launched, ("test", "calibration"), strict=True):
        assert run.config["data.train"] == "npz:train.npz[:30][classes=0]"
        assert run.config["score.near"] == (f"rest=npz:{test}.npz[classes=1-3]",)
        assert run.config["data.test"] == f"npz:{test}.npz[classes=0]"
        assert run.config["score.calibration"] == "npz:calibration.npz[classes=0]"
        assert sum(one.startswith("--config.data.t") for one in run.arguments) == 2


def test_stages_are_cut_alike_and_their_own_flags_give_way(recipe, tmp_path, launched):
    flags = ["--config.second.score.near=mine=npz:far.npz", "--config.second.optim.lr=0.3"]
    argv = ["few_shot", f"--config={recipe}:staged", f"--workdir={tmp_path}", "--k=0,2", *flags]
    assert main(argv) == 0
    zero, two = launched
    for run in launched:
        assert run.config["first.data.train"] == run.config["second.data.train"]
        assert run.config["second.score.near"] == ("unseen=npz:test.npz[classes=2-3]",)
        assert run.config["second.optim.lr"] == 0.3 != run.config["first.optim.lr"]
        assert run.config["first.data.auxiliary"] == ""
    assert zero.config["second.method.outliers"] == "none"
    assert two.config["second.data.auxiliary"] == "npz:train.npz[classes=0][sample=2@0]"
    del launched[:]
    assert main(argv) == 0 and launched == []


def test_samples_are_drawn_with_the_runs_seed(recipe, tmp_path, launched):
    argv = ["diminishing", f"--config={recipe}", f"--workdir={tmp_path}", "--sizes=5,all"]
    assert main([*argv, "--seeds=3,4"]) == 0
    assert [run.config["data.train"] for run in launched] == [
        *("npz:train.npz[sample=5@3]", "npz:train.npz[sample=5@4]"),
        *("npz:train.npz", "npz:train.npz"),
    ]


def test_listed_commands_ask_for_the_same_configs(recipe, tmp_path, capsys):
    argv = ["few_shot", f"--config={recipe}:oecl,outliers", f"--workdir={tmp_path / 'w'}"]
    assert main([*argv, "--list", "--seeds=0,7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    made = benchmark.made(benchmark_options(name="few_shot"))
    runs = expand([f"{recipe}:oecl,outliers"], [], [0, 7], {}, tmp_path / "w", made)
    assert len(lines) == len(runs) == 8 and not (tmp_path / "w").exists()
    for line, run in zip(lines, runs, strict=True):
        python, m, module, *arguments = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "ood_jax.main")
        assert flat(load(arguments)) == run.config
        assert arguments[-1] == f"--workdir={run.workdir}"


def benchmark_options(**given):
    return argparse.Namespace(**{**dict.fromkeys(benchmark.FLAGS), "scorer": "", **given})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["one_vs_rst"], "did you mean one_vs_rest?"),
        (["one_vs_rest", "--k=1"], "--k is of another benchmark; one_vs_rest has --classes"),
        (["one_vs_rest", "--classes=cats"], "did you mean cat?"),
        (["one_vs_rest", "--classes=cat,cat"], "each value once"),
        (["one_vs_rest", "--scorer=knn"], "the recipe has norm_mean, norm"),
        (["one_vs_rest", "--config.data.trian=x"], "data.train"),
        (["one_vs_rest", "--config.seed=1"], "--seeds alone"),
        (["few_shot", "--k=0,40"], "'cat' has 12 images; use 0 to 12"),
        (["few_shot", "--k=1", "--obtainable=owl", "--obtainable=2"], "each value once"),
        (["unlabelled", "--outliers=a=npz:gone.npz"], "gone.npz is not a file"),
        (["diminishing", "--sizes=100"], "has 46 images"),
    ],
)
def test_what_makes_no_sense_is_one_line_before_any_run(recipe, tmp_path, capsys, flags, words):
    assert main([*flags, f"--config={recipe}", f"--workdir={tmp_path / 'w'}"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "w").exists()


def test_a_mistake_names_the_recipe_that_makes_it(recipe, tmp_path, capsys):
    flags = [f"--config={recipe}", f"--config={recipe}:supclr,outliers", "--k=0"]
    assert main(["few_shot", *flags, f"--workdir={tmp_path}"]) == 2
    assert f"error: {recipe}:supclr,outliers: k = 0" in capsys.readouterr().err


@pytest.mark.slow
def test_two_methods_through_one_vs_rest(recipe, tmp_path, monkeypatch, capfd):
    """Nothing is made up here: four runs are trained, scored and gathered."""
    for key, value in environment(tmp_path / "cache").items():
        monkeypatch.setenv(key, value)
    flags = [f"--config={recipe}:simclr", f"--config={recipe}:oecl,outliers"]
    argv = ["one_vs_rest", *flags, f"--workdir={tmp_path / 'w'}", "--classes=cat,dog"]
    assert main([*argv, "--config.score.calibration=npz:calibration.npz"]) == 0
    captured = capfd.readouterr()
    assert "4 of 4 runs finished" in captured.err and "one_vs_rest: AUROC in %" in captured.out
    found = json.loads((tmp_path / "w" / "benchmark.json").read_text())
    assert found["table"]["missing"] == 0
    for variant in ("tiny-simclr", "tiny-oecl-outliers"):
        rows = [row["auroc"][variant]["rest"]["mean"] for row in found["table"]["rows"]]
        assert all(0 <= value <= 1 for value in rows) and len(rows) == 2
        assert found["table"]["mean"][variant]["rest"]["mean"] == pytest.approx(sum(rows) / 2)
    folder = tmp_path / "w" / "tiny-oecl-outliers,one_vs_rest=dog" / "seed0"
    results = json.loads((folder / "results.json").read_text())
    assert results["in_distribution"]["n_train"] == 16 and results["in_distribution"]["n_test"] == 3
    assert results["sets"]["rest"]["norm_mean"]["n_out"] == 9
    assert main([*argv, "--config.score.calibration=npz:calibration.npz"]) == 0
    assert "4 runs, 4 finished already" in capfd.readouterr().err
