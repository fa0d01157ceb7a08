"""Cases: what each benchmark sets, for which recipes, and what it refuses."""

from collections import Counter

import numpy as np
import pytest
from labelled_sets import TRAIN, write_sets

from ood_jax import cases
from ood_jax.cases import spans, split_by_classes
from ood_jax.data.sources import open_source
from ood_jax.recipe import load
from ood_jax.subject import subject


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def read(recipe):
    """read("METHOD[,outliers]", key=value, ...) -> the recipe as a benchmark sees it."""

    def of(argument, labels=True, **settings):
        flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
        return subject(load([f"--config={recipe}:{argument}", *flags]), labels=labels)

    return of


def opened(subject, settings):
    """key -> the set that it names, by class: {"data.train": {1: 16}, ...}; {seed} is 5."""
    out = {}
    for key, value in settings.items():
        for text in value if isinstance(value, tuple) else (value,):
            spec = text.partition("=")[2] if isinstance(value, tuple) else text
            if ":" in spec:
                source = open_source(spec.replace("{seed}", "5"), root=subject.config.data.root)
                out[key] = dict(Counter(source.labels.tolist()))
    return out


def test_spans():
    assert spans([7, 0, 2, 1, 2, 4, 9, 8]) == "0-2,4,7-9"
    assert spans(range(3)) == "0-2" and spans([5]) == "5" and spans([]) == ""


def test_a_split_cuts_unions_as_a_whole_and_keeps_validation(recipe):
    config = load(
        [f"--config={recipe}", "--config.data.train=a=npz:train.npz + b=npz:test.npz[:5]"]
    )
    keys = split_by_classes(config, (1, 4), (0,), "rest")
    assert keys == {
        "data.train": "(a=npz:train.npz + b=npz:test.npz[:5])[classes=1,4]",
        "data.test": "npz:test.npz[classes=1,4]",
        "score.near": ("rest=npz:test.npz[classes=0]",),
        "score.far": (),
    }
    config.score.calibration = "npz:calibration.npz"
    more = split_by_classes(config, (1,), (0,), "rest")
    assert more["score.calibration"] == "npz:calibration.npz[classes=1]"


def test_one_vs_rest(read):
    found = cases.one_vs_rest(read("simclr"))
    assert [case.name for case in found] == ["cat", "dog", "owl", "great white"]
    assert found[1].settings == {
        "data.train": "npz:train.npz[classes=1]",
        "data.test": "npz:test.npz[classes=1]",
        "score.near": ("rest=npz:test.npz[classes=0,2-3]",),
        "score.far": (),
    }
    some = cases.one_vs_rest(read("simclr"), "great white,0-1")
    assert [case.name for case in some] == ["great white", "cat", "dog"]
    assert some[2] == found[1]  # the rest stays whole


def test_leave_one_class_out_reverses_the_roles(read):
    subject = read("simclr", score__calibration="npz:calibration.npz")
    (case,) = cases.leave_one_class_out(subject, "owl")
    assert case.name == "owl" and case.settings["score.near"][0].startswith("left_out=")
    assert opened(subject, case.settings) == {
        "data.train": {0: 12, 1: 16, 3: 10},
        "data.test": {0: 4, 1: 3, 3: 2},
        "score.near": {2: 3},
        "score.calibration": {0: 2, 1: 2, 3: 2},
    }


def test_few_shot_draws_outliers_of_the_obtainable_class(read):
    subject = read("oecl,outliers")
    found = cases.few_shot(subject)
    names = ["dog + 0 cat", "dog + 1 cat", "dog + 10 cat", "dog + all cat"]
    assert [case.name for case in found] == names
    assert [(case.curve, case.at) for case in found] == [("cat", n) for n in (0, 1, 10, 12)]
    split = {"data.train": {1: 16}, "data.test": {1: 3}, "score.near": {2: 3, 3: 2}}
    assert opened(subject, found[0].settings) == split
    for case, count in zip(found[1:], (1, 10, 12), strict=True):
        assert opened(subject, case.settings) == {**split, "data.auxiliary": {0: count}}
    assert found[0].settings["data.auxiliary"] == ""
    assert found[0].settings["method.outliers"] == "none"
    assert "method.outliers" not in found[1].settings
    assert "sample=10@{seed}" in found[2].settings["data.auxiliary"]
    assert found[3].settings["data.auxiliary"] == "npz:train.npz[classes=0]"
    assert found[0].settings["score.near"][0].startswith("unseen=")


def test_few_shot_of_several_obtainable_classes(read):
    found = cases.few_shot(read("oecl,outliers"), "1", "3", ["owl", "0"])
    assert [case.name for case in found] == ["great white + 1 owl", "great white + 1 cat"]
    assert found[0].settings["score.near"] == ("unseen=npz:test.npz[classes=0-1]",)
    assert found[1].settings["score.near"] == ("unseen=npz:test.npz[classes=1-2]",)


def test_few_shot_runs_what_reads_no_outliers_once(read):
    (case,) = cases.few_shot(read("simclr"), "1,all")
    assert case.name == "dog + 0 cat" and "data.auxiliary" not in case.settings


def test_unlabelled(read):
    own = read("oecl,outliers", labels=False)
    assert [(c.name, c.settings) for c in cases.unlabelled(own)] == [("all classes", {})]
    sources = ["near=npz:near.npz", "both=npz:near.npz + npz:far.npz"]
    assert [(c.name, c.settings) for c in cases.unlabelled(own, sources)] == [
        ("near", {"data.auxiliary": "npz:near.npz"}),
        ("both", {"data.auxiliary": "npz:near.npz + npz:far.npz"}),
    ]
    without = cases.unlabelled(read("simclr", labels=False), sources)
    assert [(c.name, c.settings) for c in without] == [("no outliers", {})]


def test_diminishing_is_sizes_times_outliers(read):
    sources = ["near=npz:near.npz", "far=npz:far.npz"]
    found = cases.diminishing(read("oecl,outliers", labels=False), "10,all", sources)
    assert [(c.name, c.curve, c.at) for c in found] == [
        ("10 images, near", "near", 10),
        ("all images, near", "near", sum(TRAIN)),
        ("10 images, far", "far", 10),
        ("all images, far", "far", sum(TRAIN)),
    ]
    ten = "npz:train.npz[sample=10@{seed}]"
    assert found[2].settings == {"data.train": ten, "data.auxiliary": "npz:far.npz"}
    assert found[1].settings == {"data.auxiliary": "npz:near.npz"}
    own = cases.diminishing(read("oecl,outliers", labels=False), "10")
    assert [(c.name, c.settings) for c in own] == [("10 images", {"data.train": ten})]
    none = cases.diminishing(read("simclr", labels=False), "10", sources)
    assert [(c.name, c.settings) for c in none] == [("10 images, no outliers", {"data.train": ten})]


def test_a_run_in_stages_reads_outliers_where_it_did(read):
    subject = read("staged")
    zero, one = cases.few_shot(subject, "0,1")
    assert one.settings["data.train"] == "npz:train.npz[classes=1]"  # of every stage
    assert {k: v for k, v in zero.settings.items() if "." in k and k[:6] == "second"} == {
        "second.data.auxiliary": "",
        "second.method.outliers": "none",
    }
    assert "second.data.auxiliary" in one.settings and "data.auxiliary" not in one.settings


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda read: cases.one_vs_rest(read("simclr"), "cats"), "did you mean cat?"),
        (lambda read: cases.one_vs_rest(read("simclr"), "0-4"), "--classes=0-4"),
        (lambda read: cases.few_shot(read("oecl,outliers"), "0,13"), "'cat' has 12 images"),
        (
            lambda read: cases.few_shot(read("oecl,outliers"), "12,all"),
            "two of these are 12 of the class 'cat'",
        ),
        (lambda read: cases.few_shot(read("oecl,outliers"), "few"), "whole numbers and all"),
        (lambda read: cases.few_shot(read("oecl,outliers"), "1", "dog", ["dog"]), "another one"),
        (lambda read: cases.few_shot(read("oecl,outliers"), "1", "0-1"), "name one class"),
        (lambda read: cases.few_shot(read("oecl,outliers"), "1", "wolf"), "no class 'wolf'"),
        (lambda read: cases.few_shot(read("supclr,outliers"), "0,1"), "WITHOUT_OUTLIERS"),
        (lambda read: cases.diminishing(read("simclr"), "47"), "has 46 images; use 1 to 46"),
        (lambda read: cases.diminishing(read("simclr"), "0"), "use 1 to 46"),
        (
            lambda read: cases.unlabelled(read("oecl,outliers"), ["a=npz:far.npz", "a=npz:x.npz"]),
            "a name of its own",
        ),
        (lambda read: cases.unlabelled(read("oecl,outliers"), ["npz:far.npz"]), "NAME=SOURCE"),
        (
            lambda read: cases.unlabelled(read("simclr", score__near="()", score__far="()")),
            "no OOD test set",
        ),
        (
            lambda read: cases.one_vs_rest(read("simclr", data__test="npz:test.npz[classes=0-2]")),
            "the class 'great white' has no image in data.test",
        ),
        (
            lambda read: cases.one_vs_rest(
                read("simclr", score__calibration="npz:calibration.npz[classes=0]"), "1"
            ),
            "the class 'dog' has no image in score.calibration",
        ),
        (
            lambda read: cases.one_vs_rest(
                read("simclr", data__test="npz:test.npz[classes=0]"), "0"
            ),
            "too few classes",
        ),
        (lambda read: read("simclr", data__train="npz:near.npz"), "data.train = 'npz:near.npz'"),
        (lambda read: read("simclr", data__train="npz:gone.npz"), "is not a file"),
        (lambda read: read("simclr", data__auxiliary="npz:gone.npz"), "is not a file"),
        (lambda read: read("simclr", score__near="x=npz:gone.npz"), "is not a file"),
        (lambda read: read("simclr", score__benchmark="cifar10"), "brings its own sets"),
        (lambda read: read("staged", first__data__train="npz:test.npz"), "between stages"),
        (
            lambda read: read("simclr", data__test="a=npz:test.npz + b=npz:test.npz"),
            "('cat' and 'a/cat')",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(read, ask, words):
    with pytest.raises(ValueError) as error:
        ask(read)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_classes_that_share_a_name_and_classes_without_names(read):
    root = read("simclr").config.data.root
    for name in ("train", "test"):
        with np.load(f"{root}/{name}.npz") as file:
            arrays = dict(file)
        np.savez(f"{root}/twins_{name}.npz", **{**arrays, "classes": ["cat", "owl", "owl", "dog"]})
        del arrays["classes"]
        np.savez(f"{root}/numbers_{name}.npz", **arrays)

    def titles(kind):
        sets = {f"data__{name}": f"npz:{kind}_{name}.npz" for name in ("train", "test")}
        return [case.name for case in cases.one_vs_rest(read("simclr", **sets))]

    assert titles("twins") == ["cat", "1 owl", "2 owl", "dog"]
    assert titles("numbers") == ["0", "1", "2", "3"]
