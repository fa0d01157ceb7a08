"""What runs leave behind, damaged or made to do harm: refused in one line, or as if it were not
there."""

import json
import sys

import numpy as np
import pytest
import scored_workdir
from hostile_files import archive, bomb, claimed, header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ood_jax import cache, calibration, gather, logs, ranks, report, untrusted
from ood_jax.checkpoint import stages_in
from ood_jax.config import base
from ood_jax.models.torch_file import read_weights
from ood_jax.norm_results import earlier
from ood_jax.reporting import clp_read, facts, workdirs
from ood_jax.results import read_results
from ood_jax.runs import WHOLE, Run, finished

PROPERTY = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DEEP = '{"schema": 2, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "more than 100 levels deep"),
        ("[" * 150 + "]" * 150, "more than 100 levels deep"),
        ('{"a":' * 102 + "1" + "}" * 102, "more than 100 levels deep"),
        ("1" * 400, "a whole number of 400 digits; 20 are read"),
        ("1" * 9_000, "9000 digits"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_is_too_much(text, says):
    with pytest.raises(ValueError, match=says):
        untrusted.parse_json(text)


@PROPERTY
@given(JSON)
def test_other_json_is_read_as_it_is(value):
    text = json.dumps(value)
    try:
        assert repr(untrusted.parse_json(text)) == repr(json.loads(text))
    except ValueError as error:
        assert "digits" in str(error)
    assert untrusted.parse_json("[" * 100 + "]" * 100)


def test_a_file_of_holes_and_a_device_are_not_read(tmp_path):
    with open(tmp_path / "results.json", "wb") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match="4,398,046,511,104 bytes"):
        read_results(tmp_path / "results.json")
    with pytest.raises(ValueError, match="no regular file"):
        untrusted.read_bytes("/dev/zero", 10)


def readers(folder):
    """File -> what reads it, which may raise ValueError alone."""
    where = str(folder)
    return {
        "results.json": lambda: (read_results(folder / "results.json"), workdirs.read(where)),
        "config.json": lambda: (stages_in(str(folder)), workdirs.read(where)),
        "norms.json": lambda: (
            workdirs.read(where),
            earlier(folder / "norms.json", {}, "", []),
        ),
        "metrics.jsonl": lambda: (workdirs.read(where), logs.read_metrics(folder)),
        "calibration.json": lambda: calibration.read(folder / "calibration.json"),
        "clp.json": lambda: clp_read.read(str(folder)),
        "examples.npz": lambda: workdirs.read(where),
        "scores.parquet": lambda: (
            workdirs.read(where),
            ranks.spread({0: folder, 1: folder}),
        ),
        "features.npz": lambda: cache.read(folder / "features.npz", lambda meta: True),
        "w.pth": lambda: read_weights(str(folder / "w.pth")),
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A scored workdir, and what its files hold."""
    folder = tmp_path_factory.mktemp("scored")
    scored_workdir.make(folder, images=4, steps=3, size=4, points=4)
    one = calibration.Calibration(3, {"knn": 0.5}, {"knn": np.arange(3.0)}, base())
    calibration.write(one, folder / "calibration.json")
    (folder / "config.json").write_text('{"stages": ["a"], "a": {"x": 1}}')
    cache.cached(folder / "features.npz", {"a": 1}, lambda: {"features": np.zeros((3, 4), "f4")})
    return folder, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read(scored, name, data):
    """Reads all that reads the file `name` when it holds `data`; the errors."""
    folder, before = scored
    errors = []
    try:
        (folder / name).write_bytes(data)
        readers(folder)[name]()
    except (ValueError, OSError) as error:
        errors.append(str(error))
    finally:
        if name in before:
            (folder / name).write_bytes(before[name])
        else:
            (folder / name).unlink()
    assert all(text and "\n" not in text for text in errors)
    return errors


@pytest.mark.parametrize(
    "name", ["results.json", "config.json", "norms.json", "calibration.json", "clp.json"]
)
def test_any_json_is_read_or_refused(scored, name):
    for text in (DEEP, "[]", "3", '{"schema": 1e999}', '{"schema": ' + "9" * 500 + "}", "\xff", ""):
        read(scored, name, text.encode("latin-1"))
    assert read(scored, "results.json", DEEP.encode())
    assert read(scored, "clp.json", DEEP.encode())


@PROPERTY
@given(name=st.sampled_from(["results.json", "config.json", "calibration.json"]), data=st.data())
def test_one_value_that_is_another(scored, name, data):
    tree = json.loads(scored[1][name])
    node = tree
    while True:
        parent, key = node, data.draw(st.sampled_from(sorted(node)))
        node = parent[key]
        if not isinstance(node, dict) or not node or data.draw(st.booleans()):
            break
    parent[key] = data.draw(JSON)
    read(scored, name, json.dumps(tree).encode())


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", "3", "{}", '{"step": "x"}', '{"step": 1, "nonfinite": 3}', '{"step": [1]}'),
        *(
            '{"step": 1, "nonfinite": {"a": [1]}}',
            '{"step": 1, "nonfinite": {"a": "x"}}',
            "[" * 9_000,
        ),
    ],
)
def test_a_line_of_the_log_that_is_another(tmp_path, line):
    (tmp_path / logs.FILE).write_text('{"step": 1, "loss": 2.0}\n' + line + "\n")
    for act in (logs.read_metrics, lambda folder: logs.MetricLog(folder, resume_step=3)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is .*: delete that line"):
            act(tmp_path)


def test_the_metrics_of_a_stage_may_lie_nowhere_else(scored):
    read(scored, "config.json", b'{"stages": ["x\\u0000", "../../..", 3, null]}')


@pytest.mark.parametrize("name", ["examples.npz", "features.npz"])
def test_arrays_are_held_against_their_file(scored, name):
    meta = header((), "<U2") + "{}".encode("utf-32-le")
    for data in (
        *(bomb(3 << 30), bomb(3 << 30, "meta"), claimed(10**12, 8), b"", b"PK\x03\x04"),
        *(archive(meta=meta, x=header((10**12,))), archive(meta=header((), "|O"))),
    ):
        read(scored, name, data)
    folder = scored[0]
    (folder / "x.npz").write_bytes(archive(meta=meta, x=header((10**12,))))
    assert cache.read(folder / "x.npz", lambda meta: meta == {}) is None


@PROPERTY
@given(
    name=st.sampled_from(["examples.npz", "features.npz", "metrics.jsonl", "scores.parquet"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.integers(0, 300),
)
def test_damaged_bytes_are_read_or_refused(scored, name, changes, end):
    data = bytearray(scored[1][name])
    for at, byte in changes:
        data[at % len(data)] = byte
    read(scored, name, bytes(data)[: -end or None])


def test_a_table_that_claims_too_much(scored, monkeypatch):
    monkeypatch.setattr(untrusted, "TABLE_ROWS", 3)
    found = workdirs.read(str(scored[0]))
    assert "says to hold" in found.missing["scores"] and found.scores == {}


def test_a_finished_run_of_another_shape_is_run_again(tmp_path):
    run = Run("v", 0, "r.py", {}, tmp_path, (), {"stages": ()}, WHOLE)
    for held in ({}, {"config": 3}, {"config": [1]}, {"config": {}, "earlier_stages": 3}):
        (tmp_path / "results.json").write_text(json.dumps({"schema": 2} | held))
        assert finished(run) is None


def test_a_table_of_results_that_hold_anything(scored, monkeypatch):
    """A sweep's table leaves out what is no number."""
    folder, before = scored
    for part, value in (
        *(("sets", {"x": 0.5}), ("sets", {"x": {"s": 0.5}}), ("sets", [1]), ("sets", {"x": []})),
        *(("near", {"auroc": 0.5}), ("near", 3), ("in_distribution", {"values": 1, "mean": 0.5})),
    ):
        found = json.loads(before["results.json"]) | {part: value}
        monkeypatch.setattr(gather, "finished", lambda _, found=found: found)
        run = Run("v", 0, "r.py", {}, folder, (), {"stages": ()}, WHOLE)
        assert gather.markdown(gather.tables(gather.gather([run])))


def test_a_report_of_results_of_another_shape_is_one_line(scored, monkeypatch):
    monkeypatch.setattr(facts, "compared", lambda found: found[0].runs[0].results["sets"]["gone"])
    with pytest.raises(
        ValueError, match=r"another shape than scoring gives them \(KeyError: 'gone'"
    ):
        report.report([str(scored[0])])


def test_nothing_here_takes_the_interpreter_along(scored):
    """Deep values are refused far below the limit that they would otherwise run into."""
    before = sys.getrecursionlimit()
    read(scored, "calibration.json", ('{"schema": 1, "config": ' + DEEP + "}").encode())
    assert sys.getrecursionlimit() == before > 5 * untrusted.DEPTH
