"""The report's section on norms: whose it is, its lines and paths, its tables, what is absent."""

import json

import numpy as np
import pytest
from scored_workdir import make

from ood_jax import report
from ood_jax.reporting import norms, norms_figures
from ood_jax.reporting.blocks import LeftOut, Panels, Table
from ood_jax.reporting.variants import variants
from ood_jax.reporting.workdirs import read

ROLES = {"train": "train", "test": "test", "tin": "near", "svhn": "far", "more": "other"}
OUTLIERS = "train outliers"
STEPS = (100, 900, 1000)


def one_set(rng, auroc, scale):
    level = scale * rng.uniform(1, 2)
    own = {"mu": level, "sigma": 0.1, "sigma_v": 0.5, "mu_over_sigma_v": level / 0.5}
    own |= {"norm": {"mean": level, "q05": level / 2, "q50": level, "q95": level * 2}}
    own |= {"alignment": rng.uniform(0, 1), "uniformity": -rng.uniform(1, 2)}
    return own | ({"auroc": {"norm": rng.uniform(), "norm_mean": rng.uniform()}} if auroc else {})


def write(folder, seed=0, steps=STEPS, roles=None, scale=1.0, **changes):
    """A scored workdir with a norms.json; returns what it holds."""
    make(folder, images=8, seed=seed, steps=3, **changes)
    roles = ROLES | {OUTLIERS: "outliers"} if roles is None else roles
    rng = np.random.default_rng(seed)
    found = {
        "schema": 1,
        "settings": {"images": 50, "augmentations": 4, "f": "projections, else features"},
        "sets": {name: {"role": role} for name, role in roles.items()},
        "steps": {
            str(step): {
                "arrays": "",
                "sets": {
                    n: one_set(rng, r not in ("train", "test"), scale) for n, r in roles.items()
                },
            }
            for step in steps[::-1]
        },
    }
    (folder / "norms.json").write_text(json.dumps(found))
    return found


def blocks(*folders):
    return norms.norms(variants([read(str(folder)) for folder in folders]))


def of(kind, found):
    return [block for block in found if isinstance(block, kind)]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two seeds of one setting and another setting; their folders and norms.json's."""
    root = tmp_path_factory.mktemp("seeds")
    held = [write(root / "a0", 0), write(root / "a1", 1)]
    held.append(write(root / "b", 2, settings={"method.negative_weight": 3.0}))
    return [root / name for name in ("a0", "a1", "b")], held


def test_each_setting_has_its_lines_and_each_run_its_path(seeds, monkeypatch):
    drawn = []
    real = norms_figures.trade_off
    monkeypatch.setattr(norms, "trade_off", lambda paths: drawn.extend(paths) or real(paths))
    panels = of(Panels, blocks(*seeds[0]))
    assert len(panels) == 3
    for block in panels[:2]:
        names = [panel.name.split("-")[-1] for panel in block.panels]
        assert names == ["key", "1", "2", "3", "4", "5"]
        assert all("<svg" in panel.svg for panel in block.panels)
        key = block.panels[0].svg
        assert "logarithmic" not in block.panels[1].svg
        for text in ("tin (near)", "svhn (far)", "more<", OUTLIERS):
            assert text in key
    assert [path.number for path in drawn] == [0, 0, 1]
    for path, held in zip(drawn, seeds[1], strict=True):
        inside = [held["steps"][str(step)]["sets"] for step in STEPS]
        assert path.alignment.tolist() == [one["test"]["alignment"] for one in inside]
        mean = np.mean(
            [[one[n]["auroc"]["norm_mean"] for n in ("tin", "svhn", "more")] for one in inside], 1
        )
        np.testing.assert_allclose(path.auroc, 100 * mean)


def test_the_table_of_runs_has_deviations_over_seeds(seeds):
    runs, sets = of(Table, blocks(*seeds[0]))
    own = [held["steps"]["1000"]["sets"] for held in seeds[1]]
    first, second = runs.bodies[0].rows
    assert "2 seeds" in first[0].text and second[0].text == sets.bodies[1].title.split(", step")[0]
    values = [one["test"]["norm"]["mean"] for one in own[:2]]
    assert first[1] == (f"{np.mean(values):.4g}", f"± {np.std(values, ddof=1):.2g}", False)
    assert second[4].text == f"{np.exp(own[2]['test']['uniformity']):.4g}"
    area = np.mean([own[2][name]["auroc"]["norm"] for name in ("tin", "svhn", "more")])
    assert second[5] == (f"{100 * area:.2f}", "", False)


def test_the_table_of_sets_is_of_the_last_checkpoint(seeds):
    table = of(Table, blocks(seeds[0][0]))[-1]
    (body,) = table.bodies
    assert body.title.endswith("step 1,000")
    rows = {row[0].text: row[1:] for row in body.rows}
    assert list(rows) == ["train", "test", "tin (near)", "svhn (far)", "more", OUTLIERS]
    own = seeds[1][0]["steps"]["1000"]["sets"]
    low, high = (own["tin"]["norm"][key] for key in ("q05", "q95"))
    assert rows["tin (near)"][0][1] == f"[{low:.4g}, {high:.4g}]"
    assert rows[OUTLIERS][-1].text == f"{100 * own[OUTLIERS]['auroc']['norm_mean']:.2f}"
    assert rows["test"][-1].text == rows["train"][-2].text == "–"


def test_norms_that_lie_far_apart_are_drawn_on_a_logarithmic_axis(tmp_path):
    found = write(tmp_path / "w")
    for of_set in found["steps"]["1000"]["sets"].values():
        of_set["norm"]["mean"] /= 1000
    (tmp_path / "w" / "norms.json").write_text(json.dumps(found))
    norm = of(Panels, blocks(tmp_path / "w"))[0].panels[1]
    assert "logarithmic" in norm.svg and "mathdefault" not in norm.svg and "0.01" in norm.svg


def test_numbers_that_are_not_there(tmp_path):
    """A diverged run, one checkpoint, no OOD set."""
    found = write(tmp_path / "w", steps=(5,), roles={"train": "train", "test": "test"})
    found["steps"]["5"]["sets"]["test"]["norm"] = dict.fromkeys(("mean", "q05", "q50", "q95"))
    (tmp_path / "w" / "norms.json").write_text(json.dumps(found))
    made = blocks(tmp_path / "w")
    assert any("one checkpoint" in block.text for block in of(LeftOut, made))
    names = [panel.name for block in of(Panels, made) for panel in block.panels]
    assert names == [
        *(f"norms-1-{n}" for n in ("key", 1, 2, 3)),
        *("norms-paths-key", "norms-paths-alignment"),
    ]
    assert of(Table, made)[-1].bodies[0].rows[1][1].text == "–"


def test_the_section_is_there_for_runs_that_have_or_could_have_norms(tmp_path):
    make(tmp_path / "plain", images=8, steps=3)
    plain = read(str(tmp_path / "plain"))
    assert plain.norms is None and plain.missing == {"norms": "no norms.json"}
    assert not norms.wanted([plain])
    contrastive = plain._replace(metrics=[{"step": 1, "joint/projection_norm": 2.0}])
    assert norms.wanted([plain, contrastive])
    (absent,) = norms.norms(variants([contrastive]))
    assert "no norms.json; python -m ood_jax.norms --workdir=" in absent.text
    (tmp_path / "plain" / "norms.json").write_text('{"schema": 2}')
    broken = read(str(tmp_path / "plain"))
    assert norms.wanted([broken])
    assert "schema 2; this version reads 1" in broken.missing["norms"]


@pytest.mark.parametrize("damage", ["[]", "{", '{"schema": 1, "steps": {}, "sets": {}}'])
def test_a_damaged_file_is_said(tmp_path, damage):
    make(tmp_path / "w", images=8, steps=3)
    (tmp_path / "w" / "norms.json").write_text(damage)
    assert "norms.json cannot be read" in blocks(tmp_path / "w")[0].text


def test_the_page(tmp_path, capsys):
    evil = "<b>tin</b>"
    write(tmp_path / "w", roles={"train": "train", "test": "test", evil: "other"})
    make(tmp_path / "v", images=8, steps=3, name="other")
    out = tmp_path / "out"
    assert report.main([f"--workdirs={tmp_path}/w,{tmp_path}/v", f"--out={out}"]) == 0
    html, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "Norms of features</h2>" in html and "## Norms of features" in text
    assert "other: no norms.json" in html and evil not in html + text
    assert (out / "figures" / "norms-paths-alignment.svg").is_file()
    assert report.main([f"--workdirs={tmp_path}/v", f"--out={out}"]) == 0
    assert "Norms of features" not in (out / "report.html").read_text()
