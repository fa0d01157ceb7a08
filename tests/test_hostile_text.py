"""Text made to do harm: overrides, settings, sources, lists, names; no trap, no end of time."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ood_jax import command, recipe
from ood_jax.cache import stamp
from ood_jax.config import base, import_part
from ood_jax.data.sources import open_source
from ood_jax.data.union import singles, uncut
from ood_jax.scorers.knn import knn_accuracy
from ood_jax.sweep import parse_setting

PROPERTY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CONFIG = base()
PIECES = st.sampled_from(
    [
        *("npz:a.npz", "list:e.txt", "noise:gaussian/2", "folder:.", "x=", " + ", "(", ")", "~"),
        *("[:2]", "[", "]", "[classes=0-1]", "[sample=2@1]", "..", ",", "'", '"', "-", "\n"),
        *("\x1b[2J", "\x00", "9" * 20),
    ]
)


@pytest.mark.parametrize(
    "text",
    [
        "train.steps=" + "9" * 400,
        "train.steps=" + "9" * 9_000,
        "train.steps=" + "-" * 9_000 + "1",
        "train.steps=1" + "+1" * 9_000,
        "train.steps={[]: 1}",
        "train.steps=1\x00",
        "data.mean=" + "(" * 9_000,
        "data.mean=(1e999j, 2, 3)",
    ],
)
def test_values_that_are_no_numbers(text):
    with pytest.raises(ValueError, match="--config"):
        recipe.override(CONFIG, [f"--config.{text}"], ("",))


def test_a_value_of_several_lines_is_one_value():
    found = recipe.override(CONFIG, ["--config.score.near=a=npz:x\ny,b=npz:z"], ("",))
    assert found.score.near == ("a=npz:x\ny", "b=npz:z")


@PROPERTY
@given(
    key=st.sampled_from(["train.steps", "optim.lr", "data.mean", "score.near", "data.train", "x"]),
    text=st.text(st.sampled_from("0123456789eE+-.,()[]{}'\"=:\\ \n_jx"), max_size=24),
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_override_is_taken_or_refused(key, text):
    try:
        found = recipe.override(CONFIG, [f"--config.{key}={text}"], ("",))
    except ValueError as error:
        assert key in str(error)
    else:
        assert type(found.train.steps) is int and type(found.score.near) is tuple


@pytest.mark.parametrize("name", ["..x", "a..b", ".", "", "os;x", "a b.c", "x\x00.y", "a/../b.c"])
def test_a_method_is_a_name_or_an_import_path(name):
    with pytest.raises(ValueError, match=r"is not a module of ood_jax\.methods"):
        import_part(name, "ood_jax.methods", ("build",))


@pytest.mark.parametrize("text", ["a=" + "[" * 100_000, "a=[" + "9" * 9_000 + "]", 'a=["\x00'])
def test_settings_that_are_no_list(text):
    with pytest.raises(ValueError, match="not a JSON list"):
        parse_setting(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.npz of three classes, b.npz with a label as large as there is, d.png, e.txt."""
    root = tmp_path_factory.mktemp("sources")
    pixels = np.zeros((6, 4, 4, 3), np.uint8)
    np.savez(root / "a.npz", images=pixels, labels=np.arange(6) % 3, classes=["x", "y", "z"])
    np.savez(root / "b.npz", images=pixels, labels=[0, 1, 2, 0, 2**31 - 1, 0])
    Image.fromarray(pixels[0]).save(root / "d.png")
    (root / "e.txt").write_text("d.png 0\nd.png 7\n")
    return str(root)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("(" * 5_000 + "npz:a.npz" + ")" * 5_000, "parentheses"),
        ("npz:a.npz" + "[:5]" * 30_000, "30000 filters"),
        ("npz:a.npz" + "[:5]" * 30_000 + "x", "is not a file"),
        ("npz:a.npz" + " + npz:(" * 9_000, "parentheses"),
        ("npz:a.npz" + " + npz:a.npz" * 9_000, "two parts are called"),
        ("npz:a.npz + npz:b.npz", "the label 2147483647"),
        ("npz:~nobody-at-all/x.npz", "is nobody's home here"),
        ("npz:a\x00b.npz", "is not a file"),
        ("noise:gaussian/1000000000000", "from 1 to 100000"),
        ("npz:a.npz[:" + "9" * 5_000 + "]", "no filter"),
        ("npz:a.npz[sample=2@" + "9" * 5_000 + "]", "no filter"),
        ("npz:a.npz[classes=" + "9" * 5_000 + "]", "no class"),
    ],
)
def test_sources_that_would_take_for_ever(folder, spec, says):
    start = time.process_time()
    with pytest.raises(ValueError, match=says):
        open_source(spec, root=folder)
    assert time.process_time() - start < 2


def test_a_span_of_labels_is_of_those_there_are(folder):
    source = open_source("npz:b.npz[classes=1-2147483647]", root=folder)
    assert source.labels.tolist() == [1, 2, 2**31 - 1]


def test_large_labels_take_no_room_for_votes():
    bank = np.eye(3, dtype=np.float32)
    labels = np.array([5, 2**31 - 1, 7], np.int32)
    found = {"neighbours": 1, "temperature": 0.1}
    assert knn_accuracy(bank, labels, bank, labels, **found) == 1
    assert knn_accuracy(bank, labels, bank, labels[::-1], **found) == pytest.approx(1 / 3)


@PROPERTY
@given(st.lists(PIECES, min_size=1, max_size=9).map("".join))
def test_any_source_is_opened_or_refused(folder, spec):
    try:
        source = open_source(spec, root=folder)
        stamp(spec, folder)
    except (ValueError, OSError) as error:
        assert str(error)
    else:
        assert len(source) and source.image(0).dtype == np.uint8
        assert singles(spec)


@PROPERTY
@given(st.text(st.sampled_from("a[]: "), max_size=12))
def test_filters_are_cut_off_as_the_regex_did(text):
    import re

    found = re.fullmatch(r"(?P<base>.*?)(?P<filters>(\[[^\[\]]*\])*)", text, re.DOTALL)
    assert uncut(text) == (found["base"], found["filters"])


def test_the_filters_of_a_read_source_take_no_time():
    start = time.process_time()
    long = "npz:a" + "[:5]" * 200_000
    assert uncut(long)[0] == "npz:a" and uncut(long + "x")[0] == long + "x"
    assert time.process_time() - start < 2


@pytest.mark.parametrize("line", ["../d.png 0", "x/../../d.png", "/d.png 1", "x/.."])
def test_a_list_stays_in_its_folder(folder, tmp_path, line):
    (tmp_path / "l.txt").write_text(f"d.png 0\n{line}\n")
    with pytest.raises(ValueError, match="leads out of the list's folder"):
        open_source(f"list:{tmp_path}/l.txt@{folder}")


@pytest.mark.parametrize("size", [2**40, 5])
def test_a_list_that_is_large_or_no_text(tmp_path, size):
    with open(tmp_path / "l.txt", "wb") as file:
        file.write(b"\xff\xfe")
        file.truncate(size)
    with pytest.raises(ValueError, match=r"are read at most|not text in UTF-8"):
        open_source(f"list:{tmp_path}/l.txt")


def test_no_message_reaches_the_terminal_as_a_command(tmp_path, capsys):
    name = "a\x1b[2J\x07\u202ez\n.png"
    (tmp_path / "l.txt").write_text(f"{name.strip()} 0\n" + "y" * 50_000 + "}\n")

    def act():
        open_source(f"list:{tmp_path}/l.txt")

    assert command.answered(act, "") == 2
    out = capsys.readouterr().err
    assert out.count("\n") == 1 and out.rstrip("\n").isprintable() and len(out) < 2_100
    assert command.said(OSError(f"{name}: gone")) == "a\ufffd[2J\ufffd\ufffdz .png: gone"
