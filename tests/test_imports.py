"""Which part may import which (README, "How it is built"), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ood_jax"

# A part may import what stands left of it, and its own files; nothing beside or right of it.
LAYERS = (
    ("types", "config", "defaults"),
    ("views",),
    ("losses", "scorers", "metrics"),
    ("models", "data"),
    ("methods",),
    ("step",),
    ("train",),
    ("main",),
)
CHAIN = ("checkpoint", "features", "score")
SCORING = ("score", "eloc", "features", "scorers", "metrics", "results", "checkpoint")
TRAINING = ("train", "step", "stages", "loop", "methods", "losses", "main", "optim")
# Modules that can run code out of a data file.
UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}

Graph = dict[str, set[str]]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.AST) -> set[str]:
    """All dotted names that a file imports, wherever in it: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def import_graph(trees: dict[str, ast.Module]) -> Graph:
    """module -> modules of the package that importing it, or calling it, imports."""
    graph = {}
    for name, tree in trees.items():
        found = imported(tree)
        parents = {n.rsplit(".", i)[0] for n in found for i in range(n.count(".") + 1)}
        graph[name] = ((found | parents) & set(trees)) - {name, "ood_jax"}
    return graph


def part(module: str) -> str:
    """ood_jax.data.order -> data"""
    return module.split(".")[1] if "." in module else module


def reached(graph: Graph, start: str) -> set[str]:
    """The parts that all files of a part import, directly or through others."""
    waiting = [module for module in graph if part(module) == start]
    seen = set(waiting)
    while waiting:
        fresh = graph[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return {part(module) for module in seen} - {start}


def wrong_directions(graph: Graph) -> set[tuple[str, str]]:
    """(part, part that it must not import) of the layers and the chain."""
    wrong = set()
    for level, layer in enumerate(LAYERS):
        right = {name for later in LAYERS[level + 1 :] for name in later}
        for name in layer:
            beside = set(layer) - {name} if level else set()
            wrong |= {(name, other) for other in reached(graph, name) & (right | beside)}
    for level, name in enumerate(CHAIN):
        wrong |= {(name, other) for other in reached(graph, name) & set(CHAIN[level + 1 :])}
    return wrong


GRAPH = import_graph(TREES)


@pytest.mark.parametrize("name", sorted({*CHAIN, *SCORING, *(n for row in LAYERS for n in row)}))
def test_every_part_exists(name):
    """A part that was renamed would pass all tests below unseen."""
    assert name in {part(module) for module in GRAPH}


def test_imports_point_one_way():
    assert wrong_directions(GRAPH) == set()


@pytest.mark.parametrize("name", SCORING)
def test_scoring_imports_no_training(name):
    assert reached(GRAPH, name) & set(TRAINING) == set()


def test_norms_are_measured_with_no_training_but_what_losses_can_measure():
    assert reached(GRAPH, "norms") & set(TRAINING) == {"losses"}


def test_imports_are_absolute():
    relative = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_only_models_import_linen():
    users = {
        name
        for name, tree in TREES.items()
        if any(n == "flax" or n.startswith(("flax.linen", "flax.nnx")) for n in _spelt(tree))
    }
    assert users and {part(name) for name in users} == {"models"}


def _spelt(tree: ast.AST) -> set[str]:
    """As `imported`, without the `a` of `from a import b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("library", ["grain", "tensorflow_datasets"])
def test_only_data_imports_readers_and_only_inside_functions(library):
    def uses(tree: ast.AST) -> bool:
        return any(n.split(".")[0] == library for n in imported(tree))

    users = {name for name, tree in TREES.items() if uses(tree)}
    assert users and {part(name) for name in users} == {"data"}
    for name in users:
        top = ast.parse(FILES[name].read_text(encoding="utf-8"))
        for function in [n for n in ast.walk(top) if isinstance(n, ast.FunctionDef)]:
            function.body = []
        assert not uses(top), f"{name} imports {library} outside functions"


def test_everything_imports_without_grain_and_tensorflow_datasets():
    names = [name for name in FILES if not name.endswith("__main__")]
    script = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['grain', 'tensorflow_datasets', 'tensorflow']))\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def repository_files() -> list[Path]:
    folders = ("ood_jax", "configs", "benchmarks", "tests", "launch")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", repository_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_data_file_can_run_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert unsafe(tree) == []


def unsafe(tree: ast.AST) -> list[str]:
    found = [name for name in imported(tree) if name.split(".")[0] in UNSAFE]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if refused else [ast.unparse(node.value)]
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_are_short_and_have_a_purpose(name):
    path = FILES[name]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    assert path.name not in ("utils.py", "util.py", "helpers.py", "common.py", "misc.py")


def test_the_checks_above_can_fail():
    sources = {
        "ood_jax.types": "",
        "ood_jax.losses.a": "from ood_jax import tools",
        "ood_jax.tools": "def f():\n    import ood_jax.train.deep",
        "ood_jax.train.deep": "from ood_jax.types import Net",
        "ood_jax.views": "from ood_jax.data import order",
        "ood_jax.data.order": "",
        "ood_jax.checkpoint": "import ood_jax.score",
        "ood_jax.score": "",
    }
    graph = import_graph({name: ast.parse(text) for name, text in sources.items()})
    assert wrong_directions(graph) == {
        ("losses", "train"),
        ("views", "data"),
        ("checkpoint", "score"),
    }
    assert unsafe(ast.parse("import numpy as np\nnp.load(x, allow_pickle=False)")) == []
    assert unsafe(ast.parse("import pickle\nnp.load(x, allow_pickle=y)")) == ["pickle", "y"]
