"""The report: what it shows, what it leaves out, and that no name from a file is ever markup."""

import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from scored_workdir import make

from ood_jax import report

ROOT = Path(__file__).resolve().parent.parent
EVIL = '<script>alert("x")</script>'


def run(*folders, out, extra=()):
    return report.main(["--workdirs", ",".join(map(str, folders)), f"--out={out}", *extra])


def written(out):
    return (out / "report.html").read_text(), (out / "report.md").read_text()


class Page(HTMLParser):
    """Tags and text of a page; refuses what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two seeds of one config, one run of another, one without a seed's twin; and their report."""
    root = tmp_path_factory.mktemp("four")
    found = [
        make(root / "a,lr=1" / "seed0", seed=0),
        make(root / "a,lr=1" / "seed1", seed=1),
        make(root / "b", name="strong", quality=2, settings={"method.negative_weight": 3.0}),
    ]
    out = root / "out"
    assert run(root / "a,lr=1/seed0", root / "a,lr=1/seed1", root / "b", out=out) == 0
    return out, found


def rows(markdown, title):
    """The rows of the table called `title`, first cell -> cells."""
    part = markdown.split(f"**{title}.**", 1)[1].split("\n\n", 2)[1]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in part.splitlines()]
    return cells[0], cells[2:]


def test_the_main_table_has_means_over_seeds_intervals_and_bold(four):
    out, (first, second, strong) = four
    header, found = rows(written(out)[1], "AUROC, %")
    assert [re.sub(r"\\", "", cell) for cell in header] == [
        "",
        *("cifar100 (near)", "tin (near)", "mean (near)"),
        *("svhn (far)", "textures (far)", "places365 (far)", "mean (far)"),
    ]
    titles = [row[0].replace("\\", "") for row in found]
    assert titles == [
        *("*dino (2 seeds)*", "exp_cosine", "knn", "*strong*", "exp_cosine", "knn"),
        *("*Baselines*", "dino: exp_cosine@pixels", "strong: exp_cosine@pixels"),
    ]
    pair = [100 * r["sets"]["cifar100"]["exp_cosine"]["auroc"] for r in (first, second)]
    assert found[1][1] == f"{np.mean(pair):.2f} ± {np.std(pair, ddof=1):.2f}"
    near = [100 * r["near"]["exp_cosine"]["auroc"] for r in (first, second)]
    assert found[1][3] == f"{np.mean(near):.2f} ± {np.std(near, ddof=1):.2f}"
    for column, of_scorer in ((1, strong["sets"]["cifar100"]), (3, strong["near"])):
        one = {k: 100 * v for k, v in of_scorer["exp_cosine"].items()}
        low, high = one["auroc_low"], one["auroc_high"]
        assert found[4][column] == f"**{one['auroc']:.2f}** \\[{low:.2f}, {high:.2f}\\]"


def test_the_best_is_the_lowest_where_lower_is_better(four):
    out, found = four
    _, table = rows(written(out)[1], "FPR@95, ID positive, %")
    means = [
        np.mean([r["sets"]["tin"][s]["fpr95_id_positive"] for r in runs])
        for runs in (found[:2], found[2:])
        for s in ("exp_cosine", "knn")
    ]
    numbers = [row[2] for row in table if row[2]][:4]
    assert [n.startswith("**") for n in numbers] == [m == min(means) for m in means]


def test_both_conventions_say_what_they_mean(four):
    for text in written(four[0]):
        assert "Share of OOD images accepted by the threshold that accepts 95 % of in-" in text
        assert "Share of in-distribution test images rejected by the threshold that" in text


def test_the_page_stands_alone_and_is_well_formed(four):
    html, _ = written(four[0])
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    links = [a[k] for _, a in page.tags for k in ("src", "href", "xlink:href") if k in a]
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"url\((?!#)", html) and "@import" not in html
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for words in ("cifar100 (near), AUROC", "far OOD", "OOD rank", "sensitivity, %", "ρ = "):
        assert words in page.words()
    for words in ("method.negative_weight", "needs logits of a classifier", "shrinkage 0.125"):
        assert words in page.words()


def test_every_picture_of_the_markdown_is_there(four):
    out, _ = four
    named = re.findall(r"\]\((figures/[^)]+)\)", written(out)[1])
    assert sorted(named) == sorted(f"figures/{p.name}" for p in (out / "figures").iterdir())
    kinds = {re.sub(r"-.*", "", Path(name).name) for name in named}
    assert kinds == {"scores", "roc", "features", "mistakes", "across", "curve"}


def test_the_same_results_give_the_same_bytes(four, tmp_path):
    make(tmp_path / "w")
    for name in ("one", "two"):
        assert run(tmp_path / "w", out=tmp_path / name) == 0
    assert written(tmp_path / "one") == written(tmp_path / "two")


def test_names_are_never_markup(tmp_path):
    evil = ("<b>near</b>", "$x_{1}$", "_hidden", "a|b", "`c`", "\u202etxt\n# title")
    make(
        tmp_path / "w",
        name=EVIL,
        near=evil,
        far=(EVIL.replace("/", "&"),),
        scorers=("<i>scorer</i>",),
        settings={"data.train": f"npz:{EVIL}"},
        images=20,
    )
    make(tmp_path / "v", name=EVIL + "2", near=evil, far=(), scorers=("<i>scorer</i>",), images=9)
    assert run(tmp_path / "w", tmp_path / "v", out=tmp_path / "out") == 0
    html, markdown = written(tmp_path / "out")
    page = Page(html)
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    for name in (EVIL, "<b>near</b>", "$x_{1}$", "_hidden", "<i>scorer</i>"):
        assert name in page.words()
    assert "\u202e" not in html + markdown
    assert "<" not in markdown.replace("&lt;", "")
    assert [line for line in markdown.splitlines() if line.startswith("# ")] == [
        markdown.splitlines()[0]
    ]
    names = {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png)", name) for name in names)


def test_tsne_of_the_features(tmp_path):
    make(tmp_path / "w", near=("cifar100",), far=(), images=20, points=20)
    for name in ("pca", "tsne"):
        assert run(tmp_path / "w", out=tmp_path / name, extra=[f"--projection={name}"]) == 0
    pictures = [(tmp_path / n / "figures/features-1-near.svg").read_text() for n in ("pca", "tsne")]
    assert pictures[0] != pictures[1]
    assert "t-SNE of the features" in written(tmp_path / "tsne")[1]


def test_help_does_not_wait_for_jax():
    script = "import sys, ood_jax.report; print(sorted({'jax', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_runs_of_seven_sets_of_ten_thousand_images_take_seconds(tmp_path):
    far = ("svhn", "textures", "places365", "mnist", "d")
    folders = [tmp_path / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        make(folder, seed=seed, far=far, images=10_000, steps=3000)
    began = time.monotonic()
    assert run(*folders, out=tmp_path / "out") == 0
    assert time.monotonic() - began < 20  # a third of the runs in a third of a minute


def test_the_spread_of_ranks_is_of_variants_with_seeds(four, tmp_path):
    out, _ = four
    header, found = rows(written(out)[1], "Spread of OOD ranks between seeds, points")
    assert len(header) == 6 and "mean" not in "".join(header)
    assert [row[0].replace("\\", "") for row in found] == [
        *("*dino (2 seeds)*", "exp_cosine", "knn", "*Baselines*", "exp_cosine@pixels")
    ]
    root = out.parent / "a,lr=1"
    ranks = [
        {row["image"]: row["ood_rank"] for row in rows_of(root / f"seed{seed}", "tin", "knn")}
        for seed in (0, 1)
    ]
    spread = np.mean([abs(ranks[0][i] - ranks[1][i]) / 2**0.5 for i in ranks[0]])
    assert found[2][2] == f"{spread:.1f}"
    for seed, images in ((0, 10), (1, 11)):
        make(tmp_path / str(seed), seed=seed, images=images, near=("tin",), far=())
    assert run(tmp_path / "0", tmp_path / "1", out=tmp_path / "out") == 0
    text = written(tmp_path / "out")[1]
    assert "No spread of OOD ranks of dino: tin: its images differ between seeds." in text
    assert run(tmp_path / "0", out=tmp_path / "out") == 0
    assert "No setting has two seeds" in written(tmp_path / "out")[1]


def rows_of(folder, name, scorer):
    filters = [("set", "=", name), ("scorer", "=", scorer)]
    return parquet.read_table(folder / "scores.parquet", filters=filters).to_pylist()
