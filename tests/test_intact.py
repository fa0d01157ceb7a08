"""A checkpoint that lost or changed a byte is known, and the newest whole one is used instead."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from small_run import abstract_state, tiny_config

from ood_jax import intact
from ood_jax.checkpoint import Checkpoints, restore_for_scoring
from ood_jax.train import init_state, prepare

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepare(tiny_config(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """A workdir with checkpoints of the steps 2, 4 and 6."""
    workdir, state = tmp_path_factory.mktemp("saved"), init_state(run)
    checkpoints = Checkpoints(str(workdir), keep_last=9)
    for step in (2, 4, 6):
        checkpoints.save(state.replace(step=np.int32(step)), run.config)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "w")


def _array_files(folder):
    return list((folder / "state").glob("ocdbt.*/d/*"))


def _array_file(folder):
    return max(_array_files(folder), key=lambda path: path.stat().st_size)


def _cut(folder):
    path = _array_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def _flip(folder):
    path = _array_file(folder)
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def _unseal(folder):
    (folder / intact.SEAL).unlink()


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "an array file cut": (_cut, "bytes of"),
    "an array file lost": (lambda folder: _array_file(folder).unlink(), "is missing"),
    "one bit of an array": (_flip, "other bytes than were written"),
    "the config lost": (lambda folder: shutil.rmtree(folder / "config"), "config/.* is missing"),
    "garbage for a config": (
        lambda folder: (folder / "config" / "metadata").write_bytes(b"\xff{"),
        "config/metadata has 2 bytes of",
    ),
    "garbage for the arrays' names": (
        lambda folder: (folder / "state" / "_METADATA").write_text("[" * 100_000),
        "state/_METADATA has 100,000 bytes of",
    ),
    "all lost": (_empty, r"no seal\.json, and .*No such file"),
    "garbage for a seal": (
        lambda folder: (folder / intact.SEAL).write_bytes(os.urandom(99)),
        r"seal\.json: ",
    ),
    "another seal": (lambda folder: (folder / intact.SEAL).write_text("[[[1]]]"), r"seal\.json: "),
    "a deep seal": (lambda folder: (folder / intact.SEAL).write_text("[" * 99_999), "seal"),
    "no seal, arrays cut": (
        lambda f: (_unseal(f), [os.truncate(path, 50) for path in _array_files(f)]),
        r"no seal\.json, and ",
    ),
    "no seal, arrays lost": (
        lambda f: (_unseal(f), [path.unlink() for path in _array_files(f)]),
        r"no seal\.json, and .* is lost",
    ),
    "no seal, garbage for a config": (
        lambda f: (_unseal(f), (f / "config" / "metadata").write_text("{")),
        r"no seal\.json, and ",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_the_one_before_is_used(damage, says, run, workdir, capsys):
    """By scoring, which changes nothing, and by training, which can save that step again."""
    damage(workdir / "checkpoints" / "6")
    assert restore_for_scoring(str(workdir)).step == 4
    checkpoints = Checkpoints(str(workdir), keep_last=9)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith("warning: corrupt checkpoints in ") and "step 6 (" in lines[0]
    assert lines[0].endswith("; that of step 4 is used")
    assert re.search(says, lines[0])
    assert checkpoints.latest_step() == 4
    state = checkpoints.restore(abstract_state(run))
    checkpoints.save(state.replace(step=np.int32(6)), run.config)
    checkpoints.close()
    assert restore_for_scoring(str(workdir)).step == 6
    assert (workdir / "corrupt" / "6").is_dir() and capsys.readouterr().err == ""


def test_several_corrupt_ones_in_a_row(workdir, capsys):
    _cut(workdir / "checkpoints" / "6")
    _flip(workdir / "checkpoints" / "4")
    assert restore_for_scoring(str(workdir)).step == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"step 6 \(.*\), step 4 \(.*\); that of step 2 is used", line)
    Checkpoints(str(workdir), keep_last=9).close()
    assert sorted(path.name for path in (workdir / "corrupt").iterdir()) == ["4", "6"]


def test_none_whole_is_refused_and_none_is_touched(workdir):
    """Training must not begin anew over a run that has checkpoints."""
    for step in (2, 4, 6):
        _cut(workdir / "checkpoints" / str(step))
    for open_it in (restore_for_scoring, lambda place: Checkpoints(place, keep_last=9)):
        with pytest.raises(ValueError, match=r"is whole: step 6 .*, step 2 .*delete them") as said:
            open_it(str(workdir))
        assert "\n" not in str(said.value)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


def test_a_step_that_is_asked_for_is_not_replaced_by_another(workdir):
    _cut(workdir / "checkpoints" / "4")
    with pytest.raises(ValueError, match=r"step 4 \(state/.*name another --step"):
        restore_for_scoring(str(workdir), 4)


def test_corrupt_twice(workdir):
    """What was moved aside before gives way."""
    for damage in (_cut, _empty):
        shutil.copytree(workdir / "checkpoints" / "4", workdir / "x")
        damage(workdir / "checkpoints" / "6")
        Checkpoints(str(workdir), keep_last=9).close()
        os.rename(workdir / "x", workdir / "checkpoints" / "6")
    assert not list((workdir / "corrupt" / "6").iterdir())


def test_a_checkpoint_of_before_there_were_seals(run, workdir, capsys):
    _unseal(workdir / "checkpoints" / "6")
    checkpoints = Checkpoints(str(workdir), keep_last=9)
    assert checkpoints.latest_step() == restore_for_scoring(str(workdir)).step == 6
    found = checkpoints.restore(abstract_state(run))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found.params, init_state(run).params)
    assert capsys.readouterr().err == ""


def test_a_seal_has_every_file_that_is_read(workdir):
    folder = workdir / "checkpoints" / "6"
    sealed = json.loads((folder / intact.SEAL).read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    rest = files - set(sealed)
    assert set(sealed) <= files and {name for name in rest if "/" in name} == set()


def test_what_may_not_be_read_is_not_called_corrupt(workdir, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(intact, "_facts", refuse)
    with pytest.raises(PermissionError):
        intact.newest_whole(epath.Path(workdir / "checkpoints"), [4, 6])
