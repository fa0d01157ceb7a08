"""What fuzz.py feeds to the readers of what runs leave behind, and of published weights."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_changes import of_bytes, of_json, of_zip
from fuzz_targets import Target
from hostile_files import bomb

DEEP = b'{"schema": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def _workdir(
    file: str, change: Callable[..., bytes], hostile: list[bytes]
) -> Callable[..., Target]:
    """A scored workdir one of whose files is changed, as the report reads it."""

    def made(folder: Path) -> Target:
        import scored_workdir

        from ood_jax.report import _blocks
        from ood_jax.reporting import facts, tables
        from ood_jax.reporting.variants import variants
        from ood_jax.reporting.workdirs import read
        from ood_jax.results import read_results

        scored_workdir.make(folder, images=4, steps=3, size=4, points=4)
        (folder / "config.json").write_text('{"stages": ["", "."], "": {}, ".": {}}')
        if file == "norms.json":
            from reporting import test_norms_section

            test_norms_section.write(folder)
        seed = (folder / file).read_bytes()

        def run(data: bytes) -> None:
            (folder / file).write_bytes(data)
            if file == "results.json":
                read_results(folder / file)
            found = variants([read(str(folder))])
            if file == "results.json":
                for make in (tables.detection, facts.compared, facts.thresholds):
                    _blocks("x", functools.partial(make, found))

        return Target(run, [seed], hostile, change)

    return made


def _metrics(folder: Path) -> Target:
    from ood_jax.logs import FILE, _drop_after, read_metrics

    def run(data: bytes) -> None:
        (folder / FILE).write_bytes(data)
        read_metrics(folder)
        _drop_after(folder / FILE, 2)

    rows = [{"step": i, "time": 1.5, "loss": None, "nonfinite": {"loss": "nan"}} for i in (1, 2, 3)]
    seed = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return Target(run, [seed], [b"[1]\n", b'{"nonfinite": 3}\n', DEEP + b"\n", b"{}\n"], of_json)


def _config(folder: Path) -> Target:
    from ood_jax.checkpoint import stages_in
    from ood_jax.config import base, to_json

    def run(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        stages_in(str(folder))

    one = to_json(base())
    staged = json.dumps({"stages": ["a"], "a": json.loads(one)})
    return Target(run, [one.encode(), staged.encode()], [DEEP], of_json)


def _calibration(folder: Path) -> Target:
    from ood_jax import calibration
    from ood_jax.config import base

    def run(data: bytes) -> None:
        (folder / "x.json").write_bytes(data)
        calibration.read(folder / "x.json")

    one = calibration.Calibration(3, {"knn": 0.5}, {"knn": np.arange(3.0)}, base())
    calibration.write(one, folder / "x.json")
    return Target(run, [(folder / "x.json").read_bytes()], [DEEP], of_json)


def _features(folder: Path) -> Target:
    from ood_jax import cache, features

    path = folder / "x.npz"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        found = cache.read(path, lambda meta: meta["schema"] == cache.SCHEMA)
        if found is not None:
            features.unpack(found)

    held: dict[str, Any] = {"features": np.zeros((3, 4), np.float32), "rows": np.arange(3)}
    held |= {"labels": np.arange(3), "skipped": np.array(0), "total": np.array(3)}
    cache.cached(path, {"a": 1}, lambda: held)
    return Target(run, [path.read_bytes()], [bomb(3 * 1024**3)], of_zip)


def _clp(folder: Path) -> Target:
    from reporting import clp_folder

    from ood_jax.reporting import clp_read

    folder /= "clp"
    found = clp_folder.write_clp(folder)

    def run(data: bytes) -> None:
        (folder / clp_read.FILE).write_bytes(data)
        read = clp_read.read(str(folder))
        clp_read.match(read, "npz:x", "x")
        [one.class_name(0) for one in read.sets]

    slow = json.loads(json.dumps(found))
    slow["sets"][0]["source"] = "npz:a" + "[:5]" * 100_000 + "x"
    return Target(run, [json.dumps(found).encode()], [DEEP, json.dumps(slow).encode()], of_json)


def _gathered(folder: Path) -> Target:
    from scored_workdir import make

    from ood_jax import results
    from ood_jax.gather import gather, markdown, tables
    from ood_jax.runs import WHOLE, Run

    found = make(folder, images=4, steps=3, size=4, points=4)
    path = folder / "results.json"
    run_of = Run("v", 0, "r.py", {}, folder, (), {"stages": ()}, WHOLE)

    def run(data: bytes) -> None:
        import ood_jax.gather as module

        path.write_bytes(data)
        whole = results.read_results(path)
        setattr(module, "finished", lambda _: whole)  # noqa: B010, of any config
        markdown(tables(gather([run_of])))

    return Target(run, [json.dumps(found).encode()], [DEEP], of_json)


def _weights(kind: str) -> Callable[[Path], Target]:
    def made(folder: Path) -> Target:
        from safetensors.numpy import save
        from torch_writer import ordered, saved

        from ood_jax.models.torch_file import read_weights
        from ood_jax.models.torch_names import RESNET, from_torch

        arrays = {"fc.weight": np.ones((2, 3), "f4"), "bn1.bias": np.ones(3, "f2")}
        arrays["module.x"] = np.zeros((0, 3), "i8")

        def run(data: bytes) -> None:
            path = folder / f"x.{kind}"
            path.write_bytes(data)
            from_torch(read_weights(str(path)), RESNET)

        if kind == "safetensors":
            return Target(run, [save(arrays)], [], of_bytes)
        seed = saved(kind, lambda s: ordered({n: s.add(x) for n, x in arrays.items()}))
        nested = saved(kind, lambda s: b"]" * 3_000 + b"a" * 2_999 + b".")
        return Target(run, [seed], [nested], of_zip if kind == "zip" else of_bytes)

    return made


RESULTS: dict[str, Callable[[Path], Target]] = {
    "results": _workdir("results.json", of_json, [DEEP]),
    "stages": _workdir("config.json", of_json, [DEEP]),
    "examples": _workdir("examples.npz", of_zip, [bomb(3 * 1024**3)]),
    "scores": _workdir("scores.parquet", of_bytes, []),
    "norms": _workdir("norms.json", of_json, [DEEP]),
    "metrics": _metrics,
    "config": _config,
    "calibration": _calibration,
    "features": _features,
    "clp": _clp,
    "gathered": _gathered,
    "safetensors": _weights("safetensors"),
    "torch_zip": _weights("zip"),
    "torch_stream": _weights("stream"),
}
