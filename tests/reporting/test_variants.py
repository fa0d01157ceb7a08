"""Which runs share a row, what the rows are called, and which settings differ."""

import json
import statistics

import pytest
from scored_workdir import make

from ood_jax.report import split_folders
from ood_jax.reporting import workdirs
from ood_jax.reporting.variants import differing, partial, variants


@pytest.fixture
def read(tmp_path):
    """read(name=..., seed=...) -> the run of a workdir made with these."""
    count = iter(range(100))

    def one(**wanted):
        folder = tmp_path / str(next(count))
        make(folder, images=8, steps=2, points=4, **wanted)
        return workdirs.read(str(folder))

    return one


def test_runs_that_differ_in_the_seed_share_a_row(read):
    settings = {"method.negative_weight": 0.5}
    paths = {"data.root": "elsewhere"}
    runs = [read(seed=0), read(seed=1, settings=paths), read(seed=0, settings=settings)]
    both, other = variants(runs)
    assert [run.config["seed"] for run in both.runs] == [0, 1]
    assert [run.label for run in both.runs] == [f"{both.name}, seed 0", f"{both.name}, seed 1"]
    assert (both.name, other.name) == (
        "dino (method.negative_weight=1.0)",
        "dino (method.negative_weight=0.5)",
    )
    stat = both.numbers["near"]["knn"]["auroc"]
    numbers = [run.results["near"]["knn"]["auroc"] for run in runs[:2]]
    assert stat["mean"] == pytest.approx(statistics.fmean(numbers))
    assert stat["std"] == pytest.approx(statistics.stdev(numbers))
    assert differing([both.runs[0], other.runs[0]]) == ["method.negative_weight"]


def test_the_same_seed_twice_is_no_spread(read):
    first, second = variants([read(seed=3), read(seed=3)])
    assert (first.name, second.name) == ("dino #1", "dino #2")
    assert len(first.runs) == len(second.runs) == 1


def test_a_run_that_is_half_trained_is_no_seed_of_the_other(read):
    half = read(seed=1)._replace(step=312)
    assert [v.name for v in variants([read(), half])] == ["dino, step 624", "dino, step 312"]


def test_settings_of_another_version_are_told_apart(read):
    old, new = read(), read()
    del old.config["score.feature"]
    assert differing([old, new]) == [] and partial([old, new]) == ["score.feature"]


def test_groups_come_from_the_results_then_from_the_config(read):
    run = read()
    assert workdirs.groups(run)["near"] == ["cifar100", "tin"]
    run.results["groups"] = {"near": ["svhn", "not scored"], "far": []}
    assert workdirs.groups(run) == {
        "near": ["svhn"],
        "far": [],
        "other": ["cifar100", "tin", "textures", "places365"],
    }


def test_only_the_first_scorer_is_read_per_image(read):
    run = read()
    assert run.primary == "exp_cosine"
    assert set(run.scores) == {"test", *run.results["sets"]}
    assert [len(scores.rows) for scores in run.scores.values()] == [8] * len(run.scores)


def test_folders_with_commas_as_a_sweep_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/seed0", "a,lr=1,b/seed0", "c"):
        (tmp_path / name).mkdir(parents=True)
    texts = ["a/seed0,a,lr=1,b/seed0,c", "gone,c"]
    assert split_folders(texts) == ["a/seed0", "a,lr=1,b/seed0", "c", "gone", "c"]


def test_the_fixture_is_plain_json(tmp_path):
    make(tmp_path)
    text = (tmp_path / "results.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(word))


def test_runs_that_differ_in_an_earlier_stage_are_two_variants(tmp_path):
    runs = []
    for seed, rate in ((0, 0.1), (1, 0.1), (0, 0.2)):
        folder = tmp_path / f"{rate},{seed}"
        found = make(folder, seed=seed, images=4, points=4, steps=2)
        earlier = {"seed": seed, "optim": {"lr": rate}, "data": {"root": f"{seed}"}}
        found["earlier_stages"] = {"pretrain": earlier | {"score": {"keep": seed}}}
        (folder / "results.json").write_text(json.dumps(found))
        runs.append(workdirs.read(str(folder)))
    assert [(v.name, len(v.runs)) for v in variants(runs)] == [
        ("dino (pretrain.optim.lr=0.1)", 2),
        ("dino (pretrain.optim.lr=0.2)", 1),
    ]
