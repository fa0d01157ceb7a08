"""Weight files that try to run code, or to take for ever: refused, and nothing of them is run."""

import numpy as np
import pytest
from torch_writer import Call, Name, saved, write

from ood_jax.models.torch_file import read_weights


def _run_by(marker, module, attribute):
    return Call(Name(module, attribute), (f"touch {marker}",))


@pytest.mark.parametrize("kind", ["zip", "stream"])
@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "load"),
        ("torch.hub", "FloatStorage"),
        ("numpy", "frombuffer"),
        ("collections", "OrderedDict.fromkeys"),
    ],
)
def test_code_is_refused_by_name(tmp_path, kind, module, attribute):
    marker = tmp_path / "marker"
    path = write(
        tmp_path,
        saved(
            kind,
            lambda s: {"a": s.add(np.ones(3, "f4")), "b": _run_by(marker, module, attribute)},
        ),
    )
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    assert f"names {module}.{attribute}," in str(caught.value)
    assert str(caught.value).startswith(path) and "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x07touch x\x85R.",  # STACK_GLOBAL
        b"(iposix\nsystem\n(tR.",  # INST
        b"(cposix\nsystem\n\x8c\x07touch xo.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"Pposix\n.",  # PERSID
        b"}}b.",  # attributes of a plain dictionary change nothing
        b"]}b.",  # and others have none
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a type is not called
        b"((tR.",
        b"\x8c\x05posix\x93.",
        b"]\x94\x8c\x01a\x93.",
    ],
)
@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_other_ways_to_code(tmp_path, monkeypatch, kind, code):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, saved(kind, lambda s: code))
    with pytest.raises(ValueError, match=r"w\.pth"):
        read_weights(path)
    assert not (tmp_path / "x").exists()


def test_no_end_of_time_or_memory(tmp_path):
    """Small pickles of exponential objects: as a key, as a message, as a list used twice."""
    doubled = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    key = b"}" + doubled + b"Ns."
    outside = doubled + b"Q."
    shape = b"ctorch._utils\n_rebuild_tensor_v2\n(" + doubled * 4 + b"tR."
    for code in (key, outside, shape, doubled + b"."):
        with pytest.raises(ValueError, match=r"w\.pth"):
            read_weights(write(tmp_path, saved("zip", lambda s, code=code: code)))
