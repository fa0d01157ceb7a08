"""The report's section on outliers: numbers, provenance, maps, pictures, and broken files."""

import json
import struct

import numpy as np
import pytest
from hostile_files import png
from PIL import Image
from scored_workdir import make

from ood_jax import report
from ood_jax.outlier_facts import outlier_facts
from ood_jax.reporting import outliers, outliers_read
from ood_jax.reporting.blocks import LeftOut, Panels, Picture, Table, Text
from ood_jax.reporting.variants import variants
from ood_jax.reporting.workdirs import read

RNG = np.random.default_rng(0)
TRAIN = RNG.normal(size=(60, 4)).astype(np.float32)
EVIL = '<script>alert("x")</script>'
PROVENANCE = {
    "seed": 3,
    "settings": {"k": 30, "sigma": 0.07, "classes": [0, EVIL]},
    "checkpoint": {"from": "stage:teacher", "step": 40, "arrays": "0123456789abcdef" * 2},
    "preset": "paper",
}


def content(kind="near", shift=4.0, width=4, **changes):
    shifted = TRAIN[:30, :1].repeat(width, 1) + np.float32(shift) * np.eye(width)[0]
    facts = outlier_facts(TRAIN, shifted if width != 4 else TRAIN[:30] + np.float32(shift))
    found = {"schema": 1, "kind": kind, "provenance": PROVENANCE, **facts}
    return {key: value for key, value in (found | changes).items() if value is not None}


def write(folder, stages, seed=0, **changes):
    """A scored workdir whose stages have these outliers.json; "" = the workdir itself."""
    make(folder, images=8, seed=seed, steps=3, **changes)
    if named := [stage for stage in stages if stage]:
        (folder / "config.json").write_text(json.dumps({"stages": ["teacher", *named]}))
    for stage, found in stages.items():
        (folder / stage).mkdir(exist_ok=True)
        (folder / stage / "outliers.json").write_text(json.dumps(found))
    return folder


def blocks(*folders):
    return outliers.outliers(variants([read(str(folder)) for folder in folders]))


def of(kind, found):
    return [block for block in found if isinstance(block, kind)]


def texts(table):
    return [[(cell.text, cell.spread) for cell in row] for b in table.bodies for row in b.rows]


def test_every_stages_outliers_are_in_the_tables_and_on_a_map(tmp_path):
    near, far = content(), content("far", 9.0)
    wide = content("far", width=6)
    folder = write(tmp_path / "a", {"mine": near, "generate": far, "latents": wide})
    found = blocks(folder)
    numbers, origins = of(Table, found)
    rows = texts(numbers)
    assert [row[0][0] for row in rows] == ["mine (near)", "generate (far)", "latents (far)"]
    assert [cell for cell, _ in rows[0][1:3]] == ["30", "4"]
    for row, facts in zip(rows, (near, far), strict=False):
        assert row[3][0] == f"{facts['gaussian_kl']:.4g}"
        assert row[4][0] == f"{facts['separability']:.4g}"
        for cell, side in zip(row[5:], ("outliers", "train"), strict=True):
            held = facts["distances"][side]
            assert cell == (f"{held['0.5']:.3g}", f"[{held['0.05']:.3g}, {held['0.95']:.3g}]")
    assert [cell for cell, _ in rows[2][1:]] == ["30", "6", "–", "–", "–", "–"]
    seed, settings, checkpoint, more = (cell for cell, _ in texts(origins)[0][1:])
    assert (seed, more) == ("3", "preset=paper")
    assert settings.startswith("k=30, sigma=0.07, classes=[0, ")
    assert checkpoint == f"from=stage:teacher, step=40, arrays={'0123456789abcdef' * 2}"
    (maps,) = of(Panels, found)
    assert len(maps.panels) == 2
    for panel, text in zip(maps.panels, ("near outliers", "far outliers"), strict=True):
        assert text in panel.svg and "train" in panel.svg and "axis 1, " in panel.svg


def test_runs_without_stages_and_seeds(tmp_path):
    folders = [write(tmp_path / f"{s}", {"": content(shift=1.0 + s)}, seed=s) for s in (0, 1)]
    found = blocks(*folders)
    assert [b.title for b in of(Table, found)[0].bodies] == ["dino, seed 0", "dino, seed 1"]
    assert texts(of(Table, found)[0])[0][0] == ("near", "")
    assert [b.title for b in of(Panels, found)] == ["dino, seed 0: map"]
    assert "first run of each row" in of(Text, found)[-1].text


def test_outliers_that_teach_nothing_are_said(tmp_path):
    fine = content()
    fine["distances"]["outliers"]["0.5"] = 1.1 * fine["distances"]["train"]["0.5"]
    found = blocks(write(tmp_path / "a", {"mine": content(shift=1e-3), "generate": fine}))
    (said,) = [b.text for b in of(Text, found)[1:]]
    assert said.startswith("dino, mine (near): overlap: half of the outliers")


def test_pictures_are_decoded_anew_and_shown(tmp_path):
    folder = write(tmp_path / "a", {"generate": content("far", width=6)})
    image = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "generate/pictures.png")
    (found,) = of(Picture, blocks(folder))
    np.testing.assert_array_equal(found.image, image)
    out = tmp_path / "out"
    assert report.main([f"--workdirs={folder}", f"--out={out}"]) == 0
    page, text = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert '<section id="outliers">' in page and "## Outliers" in text
    assert '<img class="picture" src="data:image/webp;base64,' in page
    assert "<script" not in page and "<script" not in text
    shown = Image.open(out / "figures" / f"{found.name}.png")
    np.testing.assert_array_equal(np.asarray(shown), image)
    assert f"](figures/{found.name}.png)" in text


def test_a_run_without_outliers_has_no_such_section(tmp_path):
    make(tmp_path / "a", images=8, steps=3)
    titles = [section.title for section in report.report([str(tmp_path / "a")]).sections]
    assert "Features" in titles and "Outliers" not in titles


@pytest.mark.parametrize(
    "broken",
    [
        "no JSON",
        "[" * 50_000,
        "[]",
        "null",
        '{"schema": 2}',
        json.dumps({"schema": 1, "kind": "near"}),
        json.dumps(content(kind="odd")),
        json.dumps(content(kind=["near"])),
        json.dumps(content(provenance=[1])),
        json.dumps(content(gaussian_kl="much")),
        json.dumps(content(separability=True)),
        json.dumps(content(outliers=float("nan"))),
        json.dumps(content(distances={"outliers": {"0.5": 1.0}})),
        json.dumps(content(distances=[])),
        json.dumps(content(map={"inside": [], "outliers": [], "explained": [1, 0]})),
        json.dumps(content(map={"inside": [[1, 2, 3]], "outliers": [], "explained": [1, 0]})),
        json.dumps(content(map={"inside": [[1, 1e300]], "outliers": [[1, 2]], "explained": [1]})),
        json.dumps(content(map={"inside": "ab", "outliers": [[1, 2]], "explained": [1, 0]})),
        json.dumps(content(map={"inside": [[0, 0]] * 401, "outliers": [], "explained": [1, 0]})),
    ],
)
def test_a_broken_file_is_said_and_the_others_are_shown(tmp_path, broken):
    folder = write(tmp_path / "a", {"mine": content(), "generate": content("far")})
    (folder / "mine/outliers.json").write_text(broken)
    run = read(str(folder))
    assert list(run.outliers) == ["generate"]
    found = outliers.outliers(variants([run]))
    (said,) = of(LeftOut, found)
    assert said.text.startswith("dino: mine/outliers.json cannot be read (")
    assert "\n" not in said.text and len(of(Table, found)) == 2


def test_edited_names_and_numbers_stay_text(tmp_path):
    odd = content(provenance={EVIL: {EVIL: [EVIL] * 999}, "seed": None, "checkpoint": {}})
    tight = {"inside": [[1e-12, 0.0]], "outliers": [[1e19, -1e19]], "explained": [1e300, -5]}
    folder = write(tmp_path / "a", {"mine": odd | {"map": tight, "gaussian_kl": 1e308}})
    out = tmp_path / "out"
    assert report.main([f"--workdirs={folder}", f"--out={out}"]) == 0
    assert "<script" not in (out / "report.html").read_text()
    assert "<script" not in (out / "report.md").read_text()
    assert max(map(len, (out / "report.md").read_text().splitlines())) < 4000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be decoded"),
        (png(30_000, 30_000), "pixels"),
        (png(8, 8, b"broken"), "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be decoded"),
        (b"\xff\xd8\xff" + bytes(99), "cannot be decoded"),
        (struct.pack("<I", 1) * (outliers_read.PICTURE_BYTES // 4 + 1), "bytes"),
    ],
)
def test_no_other_picture_than_a_small_png_is_shown(tmp_path, data, reason):
    folder = write(tmp_path / "a", {"generate": content("far")})
    (folder / "generate/pictures.png").write_bytes(data)
    found = blocks(folder)
    assert of(Picture, found) == []
    (said,) = of(LeftOut, found)
    assert "generate/pictures.png cannot be read (" in said.text and reason in said.text
