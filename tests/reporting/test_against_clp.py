"""AUROC against CLP: the numbers behind the points, what matches what, and what is left out."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from clp_folder import CLASSES, clp_of, labels_of, source, write_clp, write_run
from pyarrow import compute, parquet

from ood_jax import metrics, report
from ood_jax.reporting import clp_read, workdirs
from ood_jax.reporting.clp_figures import extremes
from ood_jax.reporting.clp_points import Notes, judge
from ood_jax.reporting.variants import variants

TITLE = "AUROC against CLP"


def section(root, *folders):
    """The Markdown of the section, backslashes gone."""
    out = root / "out"
    named = ",".join(str(root / folder) for folder in folders)
    assert report.main([f"--workdirs={named}", f"--clp={root / 'clp'}", f"--out={out}"]) == 0
    assert f'<section id="auroc-against-clp"><h2>{TITLE}</h2>' in (out / "report.html").read_text()
    return (
        (out / "report.md")
        .read_text()
        .split(f"## {TITLE}\n")[1]
        .split("\n## ")[0]
        .replace("\\", "")
    )


def judged(root, *folders):
    """(what CLP says of each variant, the notes)."""
    clp, notes = clp_read.read(str(root / "clp")), Notes()
    found = variants([workdirs.read(str(root / folder)) for folder in folders])
    tables = {"c10": clp_read.images(clp, "c10")}
    return [judge(i, one, clp, tables, notes) for i, one in enumerate(found)], notes


def rewrite(path, change):
    parquet.write_table(change(parquet.read_table(path)), path)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two seeds of two variants; what CLP says, their scores, and the section on them."""
    root = tmp_path_factory.mktemp("four")
    found = write_clp(root / "clp")
    runs: list[dict[str, Any]] = [
        {"name": name, "seed": seed, "gain": gain}
        for name, gain in (("supervised", 0.6), ("contrastive", 1.0))
        for seed in (0, 1)
    ]
    scores = [write_run(root / str(i), **run) for i, run in enumerate(runs)]
    return root, found, scores, section(root, *"0123")


def test_points_are_means_over_seeds_of_exact_aurocs(four):
    root, found, scores, _ = four
    (first, second), notes = judged(root, *"0123")
    assert notes == {} and len(first.points) == len(second.points) == 31
    for one, pair in ((first, scores[:2]), (second, scores[2:])):
        for (outside, label), point in one.points.items():
            areas = [
                100 * metrics.auroc(s["test"], s[outside][labels_of(outside) == label])
                for s in pair
            ]
            assert point.auroc == pytest.approx(np.mean(areas))
            assert point.clp == found["classwise"]["c10"][outside][label]
            assert point.group == ("near" if outside == "c100" else "far")
            assert point.images == (labels_of(outside) == label).sum()
    both = np.concatenate([clp_of(name) for name in ("c100", "svhn", "noise")])
    for sample in (*first.samples, *second.samples):
        np.testing.assert_array_equal(sample.clp, both)
        assert sample.near.sum() == 400


def test_the_table_has_clp_its_range_auroc_and_spearman(four):
    _, found, scores, text = four
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("|"))
    }
    of_class = found["classwise"]["c10"]["c100"]
    low, high = min(of_class.values()), max(of_class.values())
    near = rows["c100 (near)"]
    assert near[:2] == [
        f"{found['dataset']['c10']['c100']:.1f}".replace("-", "−"),
        f"{low:.1f} to {high:.1f}".replace("-", "−"),
    ]
    own = [
        np.mean([metrics.auroc(s["test"], s["c100"][labels_of("c100") == c]) for s in scores[:2]])
        for c in range(20)
    ]
    rho = scipy.stats.spearmanr(list(of_class.values()), own).statistic
    assert near[4] == f"{rho:.2f}".replace("-", "−")
    assert rows["noise (far)"][1] == rows["noise (far)"][4] == "–"
    assert rows["all classes"][:4] == ["–"] * 4 and rows["all classes"][5].startswith("−0.9")
    assert "an ensemble of classifiers (2 here)" in text and "± sample standard" in text


def test_the_pictures_name_extreme_classes_and_mark_near_and_far(four):
    root, _, _, text = four
    assert re.findall(r"figures/(clp[^)]*)", text) == ["clp-1-classes.svg", "clp-1-bins.svg"]
    classes, bins = (
        (root / "out/figures" / f"clp-1-{name}.svg").read_text() for name in ("classes", "bins")
    )
    (first, second), _ = judged(root, *"0123")
    keys = extremes([first, second])
    assert keys[:2] == [("c100", 19), ("noise", 0)] and 5 <= len(keys) <= 6
    gain = {k: abs(second.points[k].auroc - p.auroc) for k, p in first.points.items()}
    assert keys[2] == max(gain, key=lambda key: gain[key])
    named = ["thing19", "gaussian", "thing18", "svhn 0"]
    for picture, words in ((classes, named), (bins, [])):
        for word in [*words, "supervised", "contrastive", "near OOD", "far OOD"]:
            assert f">{word}" in picture or f"> {word}" in picture, word


def test_runs_without_a_match_are_said_and_not_drawn(tmp_path):
    write_clp(tmp_path / "clp")
    write_run(tmp_path / "a", test="npz:other.npz")
    write_run(tmp_path / "b", name="b", sets=("svhn", "textures"))
    text = section(tmp_path, "a")
    assert "figures/" not in text and "there is nothing to draw" in text
    assert "the in-distribution test set npz:other.npz is none of c10, c100, svhn, noise" in text
    text = section(tmp_path, "a", "b")
    assert "*supervised: the in-distribution test set npz:other.npz" in text
    assert "*b: the OOD set textures is none of c10, c100, svhn, noise.*" in text
    assert "| svhn (far) |" in text and "| textures" not in text


def test_sets_match_by_source_then_by_name():
    def one(name, spec):
        return clp_read.ClpSet(name, spec, ())

    def match(spec, name, *sets):
        found = clp_read.match(clp_read.Clp(Path(), 1, sets, {}, {}), spec, name)
        return found and found.name

    whole, other = one("c10", "npz:a.npz"), one("b", "npz:b.npz[:9]")
    assert match("npz:a.npz[:5][classes=1]", "b", whole, other) == "c10"
    assert match("npz:b.npz", "c10", whole, other) == "b"
    assert match("npz:c.npz", "b", whole, other) == "b"
    assert match("npz:c.npz", "c", whole, other) is None
    halves = one("low", "npz:a.npz[classes=0-4]"), one("high", "npz:a.npz[classes=5-9]")
    assert match("npz:a.npz[classes=5-9]", "x", *halves) == "high"
    assert match("npz:a.npz[:7]", "low", *halves) == "low"
    assert match("npz:a.npz[:7]", "x", *halves) is None


def test_without_labels_anywhere_there_are_bins_alone(tmp_path):
    write_clp(tmp_path / "clp")
    write_run(tmp_path / "a", labelled=False)
    nothing = pa.nulls(len(clp_of("c100")) + len(clp_of("svhn")) + len(clp_of("noise")), pa.int32())
    rewrite(tmp_path / "clp/clp_images.parquet", lambda t: t.set_column(3, "label", nothing))
    text = section(tmp_path, "a")
    assert "clp-1-bins.svg" in text and "clp-1-classes.svg" not in text
    assert "no class-wise points of c100" in text and "95 % bootstrap interval" in text


def test_classes_are_counted_as_clp_counts_them(tmp_path):
    """A run whose labels are others than those of CLP's sets has the same points."""
    write_clp(tmp_path / "clp")
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", labelled=False)
    write_run(tmp_path / "c")
    shift = lambda t: t.set_column(2, "label", compute.add(t["label"], 7))  # noqa: E731
    rewrite(tmp_path / "c/scores.parquet", shift)
    first, unlabelled, shifted = (judged(tmp_path, folder)[0][0].points for folder in "abc")
    assert first == unlabelled == shifted


def test_images_match_by_name_within_the_same_source(tmp_path):
    write_clp(tmp_path / "clp")
    write_run(tmp_path / "a")
    rewrite(
        tmp_path / "clp/clp_images.parquet",
        lambda t: t.filter(
            compute.or_(compute.not_equal(t["set"], "c100"), compute.less(t["label"], 2))
        ),
    )
    (one,), notes = judged(tmp_path, "a")
    assert list(notes) == ["360 of 400 images of c100 have no image-wise CLP"]
    assert one.samples[0].near.sum() == 40 and len(one.points) == 31
    results = json.loads((tmp_path / "a/results.json").read_text())
    results["config"]["score"]["near"] = ["c100=folder:elsewhere"]
    (tmp_path / "a/results.json").write_text(json.dumps(results))
    (one,), notes = judged(tmp_path, "a")
    assert list(notes) == [f"no image-wise CLP of c100: its source is not {source('c100')}"]
    assert one.samples[0].near.sum() == 0 and len(one.points) == 31


def test_what_else_is_missing_is_said(tmp_path):
    write_clp(tmp_path / "clp")
    for folder in "ab":
        write_run(tmp_path / folder, name=folder)
    (tmp_path / "clp/clp_images.parquet").unlink()
    (tmp_path / "a/scores.parquet").unlink()
    text = section(tmp_path, "a", "b")
    assert "has no clp_images.parquet" in text and "*a: no scores.parquet.*" in text
    assert "clp-1-classes.svg" in text and "clp-1-bins.svg" not in text
    assert "no two bins of image-wise CLP" in text


def test_a_folder_without_clp_is_one_line_before_anything_is_read(tmp_path, capsys):
    out = tmp_path / "out"

    def refused():
        flags = [f"--workdirs={tmp_path}/no", f"--clp={tmp_path}/clp", f"--out={out}"]
        assert report.main(flags) == 2 and not out.exists()
        return capsys.readouterr().err

    said = refused()
    assert said.count("\n") == 1 and f"python -m ood_jax.clp --workdir={tmp_path}/clp" in said
    write_clp(tmp_path / "clp")
    path = tmp_path / "clp/clp.json"
    found = json.loads(path.read_text())
    for text in ("{", "[]", json.dumps(found | {"schema": 2}), json.dumps(found | {"sets": [1]})):
        path.write_text(text)
        assert "clp.json cannot be read" in refused()


def test_without_the_flag_there_is_no_section(tmp_path):
    write_run(tmp_path / "a")
    assert report.main([f"--workdirs={tmp_path}/a", f"--out={tmp_path}/out"]) == 0
    assert TITLE not in (tmp_path / "out/report.html").read_text()


def test_names_of_classes_are_never_markup(tmp_path):
    found = write_clp(tmp_path / "clp")
    write_run(tmp_path / "a")
    found["sets"][1]["classes"] = ["<script>x</script>", *CLASSES["c100"][1:19], "$a_1$<b>"]
    (tmp_path / "clp/clp.json").write_text(json.dumps(found))
    section(tmp_path, "a")
    html = (tmp_path / "out/report.html").read_text()
    assert "<script" not in html and "$a_1$&lt;b&gt;" in html
