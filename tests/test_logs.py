"""The metric log survives kills and resumes without a step twice."""

import json
import math

import pytest

from ood_jax.logs import FILE, MetricLog, read_metrics


def write(workdir, steps, resume_step=None):
    with MetricLog(workdir, resume_step=resume_step) as log:
        for step in steps:
            log.write(step, {"loss": step / 10})


def steps(workdir):
    return [row["step"] for row in read_metrics(workdir)]


def strict(text):
    """JSON as the standard has it: NaN and Infinity refused."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def board_scalars(workdir):
    """[(step, tag, value)] of the TensorBoard files, and the steps from which they purge."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    scalars, purges = [], []
    for path in sorted((workdir / "tensorboard").glob("events*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.HasField("session_log"):
                purges.append(event.step)
    return scalars, purges


def test_what_is_written_is_read(tmp_path):
    with MetricLog(tmp_path / "new") as log:
        log.write(3, {"loss": 0.5, "images/s": 7})
    (row,) = read_metrics(tmp_path / "new")
    assert row.pop("time") > 1.7e9
    assert row == {"step": 3, "loss": 0.5, "images/s": 7.0}
    scalars, purges = board_scalars(tmp_path / "new")
    assert scalars == [(3, "loss", 0.5), (3, "images/s", 7.0)] and not purges


def test_array_scalars(tmp_path):
    import jax.numpy as jnp
    import numpy as np

    with MetricLog(tmp_path) as log:
        log.write(np.int32(1), {"a": jnp.float32(0.25), "b": np.float32(0.5)})
    (row,) = read_metrics(tmp_path)
    assert (row["step"], row["a"], row["b"]) == (1, 0.25, 0.5)


def test_nonfinite_values_stay_valid_json_and_come_back(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(1, {"loss": math.nan, "up": math.inf, "down": -math.inf, "fine": 1.0})
    raw = strict((tmp_path / FILE).read_text())
    assert raw["loss"] is None and raw["nonfinite"]["down"] == "-inf"
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"]) and row["up"] == math.inf and row["down"] == -math.inf
    assert row["fine"] == 1.0 and "nonfinite" not in row


def test_resume_drops_what_will_be_done_again(tmp_path):
    write(tmp_path, [10, 20, 30, 40])
    write(tmp_path, [30, 40, 50], resume_step=20)
    assert steps(tmp_path) == [10, 20, 30, 40, 50]
    assert board_scalars(tmp_path)[1] == [21]
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_a_run_from_the_start_drops_all(tmp_path):
    write(tmp_path, [10, 20])
    write(tmp_path, [10], resume_step=0)
    assert steps(tmp_path) == [10]


def test_a_torn_last_line_is_left_out_and_then_dropped(tmp_path):
    write(tmp_path, [10, 20])
    with open(tmp_path / FILE, "a") as file:
        file.write('{"step": 30, "lo')
    assert steps(tmp_path) == [10, 20]
    write(tmp_path, [30])
    assert steps(tmp_path) == [10, 20, 30]


def test_lines_are_there_without_close(tmp_path):
    log = MetricLog(tmp_path)
    log.write(5, {"loss": 1.0})
    assert steps(tmp_path) == [5]
    log.close()
    log.close()


def test_a_kill_while_dropping_leaves_the_old_log(tmp_path, monkeypatch):
    write(tmp_path, [10, 20])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ood_jax.logs.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricLog(tmp_path, resume_step=10)
    assert steps(tmp_path) == [10, 20]


def test_disabled_writes_nothing(tmp_path):
    with MetricLog(tmp_path / "none", enabled=False) as log:
        log.write(1, {"loss": 1.0})
    assert not (tmp_path / "none").exists() and read_metrics(tmp_path / "none") == []


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is not JSON"):
        read_metrics(tmp_path)


def test_reserved_names_are_refused(tmp_path):
    with MetricLog(tmp_path) as log, pytest.raises(ValueError, match="cannot be called step"):
        log.write(1, {"step": 3.0})
