"""A config from its defaults, a method, a recipe and a command line; typos answered in one line."""

import sys

import pytest

from ood_jax import overrides
from ood_jax.config import base, flat, from_json, method_module, named_sources, to_json
from ood_jax.recipe import load

METHOD = """
DEFAULTS = {"weight": 1.0, "views": 2, "layers": ("a",), "deep": {"on": True}}
PRESETS = {"paper": {}, "official": {"method.weight": 3.0, "optim.lr": 0.5}}
build = None
"""
FORK = """
DEFAULTS = {"weight": 2.0, "views": 7, "own": 5}
build = None
"""
RECIPE = """
from ood_jax.config import base

def get_config(views="4", preset="paper"):
    config = base("tests_config.method", preset)
    config.method.views = int(views)
    config.optim.b2 = 0.95
    return config
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a recipe, and an importable package with a method and a fork of it."""
    package = tmp_path / "path" / "tests_config"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text(METHOD)
    (package / "fork.py").write_text(FORK)
    (package / "broken.py").write_text("import no_such_library\n")
    (package / "lacking.py").write_text("DEFAULTS = {}\n")
    (tmp_path / "recipe.py").write_text(RECIPE)
    monkeypatch.syspath_prepend(str(package.parent))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("tests_config")]:
        del sys.modules[name]


@pytest.fixture
def ask(folder):
    """ask(*overrides) -> the recipe's config with them."""
    return lambda *flags: load(["main", f"--config={folder / 'recipe.py'}", *flags, "--workdir=w"])


def test_order_of_precedence(ask):
    config = ask("--config.optim.b1=0.8")
    assert config.optim.eps == 1e-8  # base
    assert config.method.weight == 1.0  # method
    assert config.method.views == 4 and config.optim.b2 == 0.95  # recipe
    assert config.optim.b1 == 0.8  # command line
    assert config.is_locked


def test_recipe_argument(folder):
    assert load([f"--config={folder / 'recipe.py'}:9"]).method.views == 9


def test_recipes_may_build_on_each_other(folder):
    (folder / "second.py").write_text(
        "import recipe\n\ndef get_config():\n    return recipe.get_config('11')\n"
    )
    before = list(sys.path)
    assert load([f"--config={folder / 'second.py'}"]).method.views == 11
    assert sys.path == before
    del sys.modules["recipe"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("optim.lr=1", 1.0),
        ("optim.lr=1e-4", 1e-4),
        ("train.batch=1e3", 1000),
        ("train.batch=64", 64),
        ("head.train_gain=false", False),
        ("head.train_gain=0", False),
        ("head.train_gain=True", True),
        ("method.deep.on=false", False),
        ("data.train=npz:a,b.npz[classes=0,1]", "npz:a,b.npz[classes=0,1]"),
        ("data.train=a=b", "a=b"),
        ("name=3", "3"),
        ("optim.freeze=", ""),
        ("score.near=('cifar100=tfds:cifar100:test',)", ("cifar100=tfds:cifar100:test",)),
        ("score.near=('a=x','b=y')", ("a=x", "b=y")),
        ('score.near=["a=x", "b=y"]', ("a=x", "b=y")),
        ("score.near=a=x", ("a=x",)),
        ("score.near=a=x,b=y", ("a=x", "b=y")),
        ("score.near=(a=x, b=y)", ("a=x", "b=y")),
        ("score.near=a=x[classes=0,1][:9],b=y", ("a=x[classes=0,1][:9]", "b=y")),
        ("score.near='a=x,1',b=y", ("a=x,1", "b=y")),
        ("score.near=()", ()),
        ("score.near=", ()),
        ("score.scorers=3", ("3",)),
        ("data.mean=(1,.5,0)", (1.0, 0.5, 0.0)),
        ("data.mean=1,.5,0", (1.0, 0.5, 0.0)),
        ("data.mean=.5", (0.5,)),
    ],
)
def test_override(ask, flag, value):
    found = flat(ask(f"--config.{flag}"))[flag.split("=")[0]]
    assert found == value and type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in found] == [type(x) for x in value]


def test_flags_without_a_value(ask):
    assert ask("--noconfig.head.train_gain").head.train_gain is False
    assert ask("--noconfig.head.train_gain", "--config.head.train_gain").head.train_gain is True
    with pytest.raises(ValueError, match=r"has no value: write --config\.optim\.lr=0\.004"):
        ask("--config.optim.lr", "3")
    with pytest.raises(ValueError, match="has no value"):
        ask("--noconfig.name")


def test_repeated_flags_add_up_for_tuples_and_the_last_wins_elsewhere(ask):
    config = ask("--config.score.near=a=x", "--config.score.near=b=y,c=z", "--config.name=p")
    assert config.score.near == ("a=x", "b=y", "c=z")
    assert ask("--config.name=p", "--config.name=q").name == "q"
    assert ask("--config.score.scorers=knn").score.scorers == ("knn",)  # in place of the default


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("optm.lr=1", "optim.lr"),
        ("lr=1", "optim.lr"),
        ("method.wieght=1", "method.weight"),
        ("trian.batch=1", "train.batch"),
    ],
)
def test_unknown_key_names_the_nearest(ask, flag, nearest):
    with pytest.raises(ValueError) as caught:
        ask(f"--config.{flag}")
    message = str(caught.value)
    assert message.endswith(f"Did you mean --config.{nearest}?") and "\n" not in message


def test_a_key_like_no_other_lists_all(ask):
    with pytest.raises(ValueError, match=r"unknown config key 'zzz'\. Keys: data.*, seed, "):
        ask("--config.zzz=1")


def test_a_group_is_not_a_key(ask):
    with pytest.raises(ValueError, match="unknown config key 'optim'"):
        ask("--config.optim=3")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("train.batch=1.5", "a whole number is needed, such as 256"),
        ("train.batch=inf", "a whole number is needed"),
        ("train.batch=True", "a whole number is needed"),
        ("train.batch=", "a whole number is needed"),
        ("optim.lr=fast", "a number is needed, such as 0.004"),
        ("optim.lr=(1,2)", "a number is needed"),
        ("head.train_gain=maybe", "true or false is needed, such as True"),
        ("data.mean=('a','b','c')", "a number is needed"),
        ("data.mean=.5,grey", "a number is needed"),
        ("method.layers=(1,)", "a str is needed"),
    ],
)
def test_wrong_type_is_one_line_with_an_example(ask, flag, words):
    with pytest.raises(ValueError) as caught:
        ask(f"--config.{flag}")
    message = str(caught.value)
    assert message.startswith(f"--config.{flag}: {words}") and "\n" not in message


def test_recipe_cannot_invent_a_key(folder):
    (folder / "typo.py").write_text(RECIPE.replace("optim.b2", "optim.beta"))
    with pytest.raises(ValueError, match="beta"):
        load([f"--config={folder / 'typo.py'}"])


def test_missing_recipe_names_the_nearest(folder, monkeypatch):
    (folder / "configs").mkdir()
    for name in ("quickstart.py", "other.py"):
        (folder / "configs" / name).write_text(RECIPE)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"no such file; did you mean configs/quickstart\.py\?"):
        load(["--config=configs/quikstart.py"])
    with pytest.raises(ValueError, match=r"configs here: configs/other\.py, configs/quickstart"):
        load(["--config=zzz"])


def test_recipe_and_argument_must_fit(folder):
    (folder / "none.py").write_text("x = 1\n")
    (folder / "plain.py").write_text("def get_config():\n    return None\n")
    (folder / "needs.py").write_text("def get_config(variant):\n    return None\n")
    with pytest.raises(ValueError, match=r"has no get_config\(\)"):
        load([f"--config={folder / 'none.py'}"])
    with pytest.raises(ValueError, match="takes no argument"):
        load([f"--config={folder / 'plain.py'}:x"])
    with pytest.raises(ValueError, match="needs one"):
        load([f"--config={folder / 'needs.py'}"])


def test_exactly_one_recipe(folder):
    recipe = f"--config={folder / 'recipe.py'}"
    for argv in ([], [recipe, recipe]):
        with pytest.raises(ValueError, match="give one --config=FILE"):
            load(argv)


def test_a_fork_brings_its_defaults_and_keeps_the_recipes_settings(ask):
    config = ask("--config.method.own=6", "--config.method.name=tests_config.fork")
    assert config.method.to_dict() == {
        "name": "tests_config.fork",
        "preset": "paper",
        "weight": 2.0,  # the fork's, since the recipe did not choose one
        "views": 4,  # the recipe's
        "own": 6,  # the command line's
    }
    assert config.optim.b2 == 0.95 and config.is_locked


def test_a_fork_follows_the_recipes_preset_or_says_that_it_cannot(folder):
    (folder / "official.py").write_text(RECIPE.replace('"paper"', '"official"'))
    argv = [f"--config={folder / 'official.py'}", "--config.method.name=tests_config.fork"]
    with pytest.raises(ValueError, match=r"preset 'official' of tests_config\.fork: it has paper"):
        load(argv)
    fork = folder / "path" / "tests_config" / "fork.py"
    fork.write_text(FORK + 'PRESETS = {"official": {"method.own": 8, "optim.b1": 0.7}}\n')
    del sys.modules["tests_config.fork"]
    config = load(argv)
    assert (config.method.own, config.method.preset) == (8, "official")
    assert config.optim.b1 == 0.7 and config.optim.lr == base("tests_config.fork").optim.lr


def test_presets(folder):
    assert base("tests_config.method").method.preset == "paper"
    official = base("tests_config.method", "official")
    assert (official.method.weight, official.optim.lr) == (3.0, 0.5)
    with pytest.raises(ValueError, match=r"preset 'offical' of .*: it has paper, official"):
        base("tests_config.method", "offical")


def test_preset_is_the_recipes_choice(ask):
    with pytest.raises(ValueError, match="chosen by the recipe's argument"):
        ask("--config.method.preset=official")


def test_unknown_method_lists_those_there_are(ask):
    with pytest.raises(ValueError, match=r"not a module of ood_jax\.methods \(.*dino_negatives"):
        ask("--config.method.name=dino_negativs")
    with pytest.raises(ValueError, match="nor an import path"):
        ask("--config.method.name=tests_config.no_such")


def test_a_method_that_lacks_a_part_or_an_import(folder):
    with pytest.raises(ValueError, match=r"tests_config\.lacking lacks build"):
        method_module("tests_config.lacking")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        method_module("tests_config.broken")


def test_json_round_trip_keeps_types(ask):
    config = ask("--config.score.near=a=x,b=y")
    again = from_json(to_json(config))
    assert again == config and again.is_locked
    assert {k: type(v) for k, v in flat(again).items()} == {
        k: type(v) for k, v in flat(config).items()
    }
    assert again.score.near == ("a=x", "b=y") and to_json(again) == to_json(config)


def test_json_needs_no_method(folder):
    text = to_json(base("tests_config.method")).replace("tests_config.method", "gone.method")
    assert from_json(text).method.name == "gone.method"


def test_named_sources():
    assert named_sources(("a=npz:x.npz[classes=1]", "b=y=z")) == {
        "a": "npz:x.npz[classes=1]",
        "b": "y=z",
    }
    for bad, words in [(("a",), "write NAME=SOURCE"), (("=x",), "NAME"), (("a=",), "NAME")]:
        with pytest.raises(ValueError, match=words):
            named_sources(bad)
    with pytest.raises(ValueError, match="two test sets are called 'a'"):
        named_sources(("a=x", "a=y"))


def test_every_default_can_be_said_on_the_command_line(folder):
    """No None and no list among the defaults, and each default's text gives the default back."""
    for key, value in flat(base()).items():
        assert isinstance(value, bool | int | float | str | tuple), key
        assert overrides.parse(key, [str(value)], value) == value, key


def test_a_typo_in_a_recipe_is_one_line(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from ood_jax.config import base\n\n"
        "def get_config():\n    c = base()\n    c.train.bach = 3\n    return c\n"
    )
    with pytest.raises(ValueError, match=r'recipe\.py: .*Did you mean "batch" instead of "bach"'):
        load([f"--config={recipe}"])
