"""Which scored images a run was trained with, by source and row, and the sign in every table."""

import json

import numpy as np
import pytest
import scored_workdir
from small_run import write_images

from ood_jax import gather, report, results, transductive
from ood_jax.benchmark_table import in_words
from ood_jax.data.sources import open_source
from ood_jax.reporting.markdown import markdown
from ood_jax.reporting.page import page
from ood_jax.transductive import Common, in_common, origins, over_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("transductive")
    for name in "abc":
        write_images(found, name, 20, labels=np.arange(20) % 4)
    return found


@pytest.mark.parametrize(
    ("trained", "scored", "count"),
    [
        (["npz:a.npz"], "npz:a.npz", 20),
        (["npz:a.npz[:15]"], "npz:a.npz[10:]", 5),
        (["npz:a.npz[:10]"], "npz:a.npz[10:]", 0),
        (["npz:a.npz"], "npz:b.npz", 0),
        (["npz:b.npz", "npz:a.npz[18:]"], "npz:a.npz", 2),
        (["npz:a.npz[:5]", "npz:a.npz[3:8]"], "npz:a.npz", 8),  # each image once
        (["in=npz:b.npz[5:] + out=npz:a.npz[:7]"], "npz:a.npz", 7),
        (["(npz:b.npz + npz:a.npz)[15:25]"], "npz:a.npz[3:]", 2),
        (["(npz:b.npz + npz:a.npz)[:20]"], "npz:a.npz", 0),
        (["npz:c.npz + (npz:b.npz + npz:a.npz)[38:]"], "npz:b.npz + npz:a.npz", 2),
        (["npz:a.npz[classes=1]"], "npz:a.npz[classes=1,2][:4]", 2),
        (["npz:a.npz[sample=6@3]"], "npz:a.npz", 6),
        (["npz:./a.npz"], "npz:a.npz", 20),
        (["npz:{folder}/a.npz"], "npz:a.npz", 20),
        (["noise:gaussian[:9]"], "noise:gaussian[5:20]", 4),
        ([], "npz:a.npz", 0),
    ],
)
def test_images_in_common(folder, trained, scored, count):
    specs = [spec.format(folder=folder) for spec in trained]
    found = in_common(specs, {"set": open_source(scored, root=str(folder))}, root=str(folder))
    assert found == Common({"set": count} if count else {}, {})


def test_sets_are_counted_one_by_one_and_others_left_out(folder):
    sets = {name: open_source(f"npz:{name}.npz[10:]", root=str(folder)) for name in "abc"}
    found = in_common(["npz:a.npz + npz:b.npz[:12]"], sets, root=str(folder))
    assert found.counts == {"a": 10, "b": 2}


def test_a_scored_set_may_lie_elsewhere(folder):
    scored = {"set": open_source(f"npz:{folder}/a.npz")}
    assert in_common(["npz:a.npz"], scored, root=str(folder), scored_root="").counts == {"set": 20}


def test_what_cannot_be_opened_any_more_counts_whole_and_says_so(folder):
    sets = {"a": open_source("npz:a.npz[10:]", root=str(folder))}
    found = in_common(["npz:a.npz[:5] + npz:gone.npz"], sets, root=str(folder))
    assert found.counts == {"a": 10} and "gone.npz" in found.unopened[next(iter(found.unopened))]
    assert in_common(["npz:gone.npz"], sets, root=str(folder)) == Common({}, {})  # it shares none


def test_origins_of_a_cut_union(folder):
    spec = "((npz:a.npz + npz:b.npz)[15:30] + npz:a.npz[:3])[4:]"
    found = origins(open_source(spec, root=str(folder)))
    assert {base: rows.tolist() for base, rows in found.items()} == {
        "npz:a.npz": [0, 1, 2, 19],
        "npz:b.npz": list(range(10)),
    }


def test_sources_of_all_stages():
    first = {"data": {"train": "npz:a", "auxiliary": ""}}
    second = {"data": {"train": "npz:a", "auxiliary": "npz:t"}}
    assert transductive.sources_of([first, second, {}]) == ["npz:a", "npz:t"]


METRICS = {"auroc": 0.9, "fpr95_id_positive": 0.1, "fpr95_ood_positive": 0.2}


def scored(**more):
    """A results.json with the sets a (near), b (far) and c (far)."""
    return {
        "schema": results.SCHEMA,
        "name": "run",
        "step": 3,
        "in_distribution": {
            **dict.fromkeys(("knn_accuracy", "accuracy", "sensitivity_auroc", "occupied_classes")),
            **{"n_train": 20, "n_test": 20, "n_calibration": 200},
        },
        "scorers": {"msp": {"threshold": 0.5, "kept_test": 0.95}},
        "sets": {name: {"msp": METRICS} for name in "abc"},
        "near": {"msp": METRICS},
        "far": {"msp": METRICS},
        "groups": {"near": ["a"], "far": ["b", "c"]},
        "not_scored": {},
        "skipped": {},
        **more,
    }


def test_results_mark_sets_and_means(capsys):
    found = scored(transductive={"test": 5, "b": 1200}, unopened={"npz:b.npz": "it is gone"})
    names = [name for name, _, _ in results.table_rows(found)]
    assert names == ["a (near)", "mean of near", "b† (far)", "c (far)", "mean of far†"]
    results.show(found)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "†: transductive, images of the set were among those of training: test 5, b 1,200" in said
    )
    assert "without opening npz:b.npz, as if all of it were shared: it is gone" in said


@pytest.mark.parametrize("more", [{}, {"transductive": {}}, {"transductive": ["b"]}])
def test_results_without_the_flag_are_as_before(more, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(scored(**more)))
    found = results.read_results(path)
    results.show(found)
    assert transductive.SIGN not in capsys.readouterr().out
    assert over_runs([found]) == {}


def test_over_runs():
    one, two = scored(transductive={"b": 3, "test": 2}), scored(transductive={"b": 5})
    assert over_runs([one, two]) == {"sets": {"b": 5, "test": 2}, "groups": ["far"]}


def test_tables_of_a_sweep_mark_a_variants_sets():
    stats = {name: {"msp": {"auroc": gather.statistic({"0": 0.9})}} for name in "abc"}
    parts = {"sets": stats, "near": stats["a"], "far": stats["b"]}
    seen = over_runs([scored(transductive={"b": 3})])
    whole = {
        "deviation": "x",
        "variants": {"mcd": parts | {"transductive": seen}, "supervised": parts},
    }
    table = gather.tables(whole)[0]
    assert {(row[0], row[1]) for row in table.rows if "†" in row[1]} == {
        ("mcd", "b†"),
        ("mcd", "mean of far†"),
    }
    assert f"{transductive.MEANING}." in gather.markdown([table])
    plain = gather.tables({"deviation": "x", "variants": {"supervised": parts}})[0]
    assert transductive.SIGN not in gather.markdown([plain])


def test_tables_of_a_benchmark_mark_cells():
    stat = gather.statistic({"0": 0.9})

    def row(case, seen):
        auroc = {"mcd": {"rest": stat}, "simclr": {"rest": stat}}
        seen_by = {"mcd": seen, "simclr": []}
        return {"case": case, "auroc": auroc, "accuracy": {}, "transductive": seen_by}

    table = {
        "benchmark": "one_vs_rest",
        "seeds": [0],
        "runs": 4,
        "missing": 0,
        "scorers": {"mcd": "msp", "simclr": "msp"},
        "sets": {"mcd": ["rest"], "simclr": ["rest"]},
        "rows": [row("cat", ["rest"]), row("dog", [])],
        "mean": {"mcd": {"rest": stat}, "simclr": {"rest": stat}},
        "mean_accuracy": {},
    }
    found = in_words(table, "d")
    assert [r[1:] for r in found.rows] == [
        ("90.00†", "90.00"),
        ("90.00", "90.00"),
        ("90.00†", "90.00"),
    ]
    assert f"{transductive.MEANING}." in found.notes


def test_a_report_marks_cells(tmp_path):
    for name, seen in (("mcd", {"svhn": 60}), ("plain", {})):
        found = scored_workdir.make(tmp_path / name, name=name, points=12, images=20, steps=2)
        found |= {"transductive": seen}
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    made = report.report([str(tmp_path / name) for name in ("mcd", "plain")])
    text = markdown(made)[0]
    start = text.index("AUROC, %")
    table = text[start : text.index("FPR@95", start)].splitlines()
    rows = [line.split("|")[1:-1] for line in table if line.startswith("|")]
    header = next(cells for cells in rows if any("svhn" in cell for cell in cells))
    marked = [[transductive.SIGN in cell for cell in cells] for cells in rows]
    column, mean = (i for i, cell in enumerate(header) if "svhn" in cell or "mean (far)" in cell)
    told = [cells for cells in marked if any(cells)]
    assert told and all(
        {i for i, one in enumerate(cells) if one} <= {column, mean} for cells in told
    )
    assert transductive.MEANING in text and transductive.MEANING in page(made)
