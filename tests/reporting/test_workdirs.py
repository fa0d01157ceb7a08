"""What a workdir lacks is said and left out; one that was not scored is refused in a line."""

import json

import pytest
from scored_workdir import make

from ood_jax import report
from ood_jax.reporting import workdirs


def run(folder, out):
    return report.main([f"--workdirs={folder}", f"--out={out}"])


def words(out):
    return (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("examples.npz", "dino: no examples.npz."),
        ("metrics.jsonl", "dino: no metrics.jsonl."),
        ("scores.parquet", "dino: no scores.parquet."),
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_absent_or_broken_is_said_and_left_out(tmp_path, name, says, damaged):
    make(tmp_path / "w", images=10)
    (tmp_path / "w" / name).unlink()
    if damaged:
        (tmp_path / "w" / name).write_bytes(b"[1, 2]\nPK\x03\x04 nonsense\n")
        says = f"dino: {name} cannot be read"
    assert run(tmp_path / "w", tmp_path / "out") == 0
    assert says in words(tmp_path / "out")


def test_schema_1_without_far_sets_is_a_smaller_report(tmp_path):
    found = make(tmp_path / "w", far=(), bootstrap=False, images=12)
    found |= {"schema": 1}
    for key in ("scorers", "not_scored"):
        del found[key]
    for key in ("accuracy", "n_calibration"):
        del found["in_distribution"][key]
    for metrics in (m for by_scorer in found["sets"].values() for m in by_scorer.values()):
        del metrics["rejected"]
    for metrics in found["near"].values():
        del metrics["rejected"]
    (tmp_path / "w" / "results.json").write_text(json.dumps(found))
    assert run(tmp_path / "w", tmp_path / "out") == 0
    text = words(tmp_path / "out")
    for says in ("No far set", "No calibrated thresholds", "no facts", "Two runs or more"):
        assert says in text


def test_means_over_different_sets_are_said_not_to_compare(tmp_path):
    make(tmp_path / "a", images=8)
    make(tmp_path / "b", images=8, near=("cifar100",), name="other")
    assert run(f"{tmp_path}/a,{tmp_path}/b", tmp_path / "out") == 0
    assert words(tmp_path / "out").count("The runs differ in their near sets") == 2


def test_results_without_any_ood_set(tmp_path):
    make(tmp_path / "w", near=(), far=())
    assert run(tmp_path / "w", tmp_path / "out") == 0
    assert "No OOD set was scored" in words(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "has no results.json: score it first"),
        ("{", "cannot be read as JSON"),
        ('{"schema": 3}', "schema 3; this version reads 1 and 2"),
        ('{"schema": 2, "name": "x", "step": 1, "config": {}, "sets": {}}', "in_distribution"),
        (
            '{"schema": 2, "name": "x", "step": 1, "config": {}, "in_distribution": {},'
            ' "sets": {"a": {"s": 3}}}',
            "sets is absent or of another kind",
        ),
    ],
)
def test_a_workdir_that_was_not_scored_is_one_line_and_exit_2(tmp_path, capsys, text, says):
    (tmp_path / "w").mkdir()
    if text is not None:
        (tmp_path / "w" / "results.json").write_text(text)
    assert run(tmp_path / "w", tmp_path / "out") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and says in last
    assert not (tmp_path / "out").exists()


def test_other_mistakes_on_the_command_line(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert run(",", tmp_path) == 2
    make(tmp_path / "w", images=5)
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "w", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_curves_of_every_stage(tmp_path):
    make(tmp_path / "w", images=8, steps=3)
    lines = (tmp_path / "w/metrics.jsonl").read_text()
    (tmp_path / "w/config.json").write_text(json.dumps({"stages": ["pretrain", "joint"]}))
    for stage in ("pretrain", "joint"):
        (tmp_path / "w" / stage).mkdir()
        (tmp_path / "w" / stage / "metrics.jsonl").write_text(lines)
    found = workdirs.read(str(tmp_path / "w"))
    rows = [json.loads(line) for line in lines.splitlines()]
    assert list(found.missing) == ["norms"] and len(found.metrics) == 6
    assert found.metrics[0].keys() == {"step", "time", *(f"pretrain/{k}" for k in rows[0])} - {
        "pretrain/step",
        "pretrain/time",
    }
    assert [row["joint/loss"] for row in found.metrics[3:]] == [row["loss"] for row in rows]
    (tmp_path / "w/joint/metrics.jsonl").unlink()
    assert run(tmp_path / "w", tmp_path / "out") == 0
    text = words(tmp_path / "out")
    assert "no joint/metrics.jsonl" in text and "pretrain/loss over training steps" in text
    for name in ("pretrain/skipped", "joint/loss"):
        assert f"{name} over training steps" not in text


@pytest.mark.parametrize("config", ["{", "{}", '{"stages": []}', '{"stages": null}', "[]"])
def test_a_run_of_one_stage_has_its_metrics_beside_the_results(tmp_path, config):
    make(tmp_path / "w", images=8, steps=3)
    (tmp_path / "w/config.json").write_text(config)
    found = workdirs.read(str(tmp_path / "w"))
    assert len(found.metrics) == 3 and "loss" in found.metrics[0]


def test_sources_are_those_that_were_scored(tmp_path):
    found = make(tmp_path / "w", images=8)
    assert workdirs.sources(workdirs.read(str(tmp_path / "w"))) == {
        "test": "npz:test.npz",
        **{name: f"npz:{name}.npz" for name in found["sets"]},
    }
    found["config"]["score"] |= {"near": [], "far": [], "benchmark": "cifar10"}
    (tmp_path / "w/results.json").write_text(json.dumps(found))
    named = workdirs.sources(workdirs.read(str(tmp_path / "w")))
    assert named["test"].startswith("list:") and {"cifar100", "texture"} < named.keys()
    found["config"]["score"] |= {"near": ["no equals sign"], "benchmark": ""}
    (tmp_path / "w/results.json").write_text(json.dumps(found))
    assert workdirs.sources(workdirs.read(str(tmp_path / "w"))) == {"test": "npz:test.npz"}
