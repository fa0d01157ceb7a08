"""What a run's config is made of; every key with its default and unit is in defaults.py.

Order of precedence: `base` < the method module's DEFAULTS < its preset < the recipe in configs/ <
`--config.key=value`.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ood_jax.defaults import defaults
from ood_jax.untrusted import parse_json

VIT = {  # width, depth and heads of the named sizes (Dosovitskiy et al. 2021; Touvron et al. 2021)
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
}

INCIDENTAL = (  # keys that change no number of a run: where it lies, how its work is cut up
    "name",
    "data.root",
    "data.workers",
    "data.memory",
    "data.timeout",
    "train.devices",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.knn_every",
    "mesh.",
)


def base(method: str = "dino_negatives", preset: str = "paper") -> ConfigDict:
    """The whole config with every default; `method` is a name in ood_jax.methods or an import path.

    Raises:
      ValueError: no such method module, or a preset it does not have.
    """
    c = defaults()
    module = method_module(method)
    presets = {"paper": {}, **getattr(module, "PRESETS", {})}
    if preset not in presets:
        raise ValueError(
            f"preset {preset!r} of {method}: it has {', '.join(presets)}"
            " (no official code exists for other presets)"
        )
    c.method = ConfigDict({"name": method, "preset": preset, **module.DEFAULTS})
    for key, value in presets[preset].items():
        put(c, key, value)
    c.lock()
    return c


def staged(name: str, **stages: ConfigDict) -> ConfigDict:
    """A run of several stages, one after the other: each stage's name -> its whole config.

    A stage goes on from an earlier one by model.weights = "stage:NAME".
    """
    c = ConfigDict({"name": name, "stages": tuple(stages), **stages})
    for stage in stages:
        with c[stage].unlocked():
            c[stage].name = name
    c.lock()
    return c


def stages_of(config: ConfigDict) -> dict[str, ConfigDict]:
    """Stage -> its config, in order; {"": config} of a run that is one stage.

    Raises:
      ValueError: a stage that the config does not describe.
    """
    if not config.stages and "method" not in config:
        raise ValueError("stages is empty: name one or more, as in --config.stages=pretrain,joint")
    unknown = [stage for stage in config.stages if not isinstance(config.get(stage), ConfigDict)]
    if unknown:
        have = [key for key, value in config.items() if isinstance(value, ConfigDict)]
        raise ValueError(f"stages: no stage {unknown[0]!r}; there are {', '.join(have)}")
    return {stage: config[stage] for stage in config.stages} or {"": config}


def complete(config: ConfigDict) -> ConfigDict:
    """`config`, of an earlier version perhaps, with the defaults of keys that it does not have."""
    config = config.copy_and_resolve_references()
    have = flat(config)
    with config.unlocked():
        for key, value in flat(defaults()).items():
            if key not in have:
                put(config, key, value)
    return config


def method_module(name: str) -> ModuleType:
    """The method module `name`: in ood_jax.methods, or anywhere by its dotted import path.

    Raises:
      ValueError: it cannot be imported, or lacks DEFAULTS or build.
    """
    return import_part(name, "ood_jax.methods", ("DEFAULTS", "build"))


def import_part(name: str, package: str, attributes: tuple[str, ...]) -> ModuleType:
    """Imports a replaceable part: `package`.`name`, or `name` itself where it has a dot.

    Raises:
      ValueError: no such module (the message lists the package's own), or an attribute is missing.
    """
    path = name if "." in name else f"{package}.{name}"
    try:
        if not all(part.isidentifier() for part in path.split(".")):
            raise ModuleNotFoundError(name=path)
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
            raise  # the module exists; one of its own imports does not
        folder = Path(importlib.import_module(package).__path__[0])
        known = sorted(p.stem for p in folder.glob("[!_]*.py"))
        raise ValueError(
            f"{name!r} is not a module of {package} ({', '.join(known)}) nor an import path"
            " on PYTHONPATH"
        ) from None
    missing = [a for a in attributes if not hasattr(module, a)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return module


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"data.size": 32, ...}: every key with its dots."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the key "a.b" of an unlocked config."""
    *parents, leaf = key.split(".")
    for parent in parents:
        config = config[parent]
    config[leaf] = value


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, locked; imports no method."""

    def tuples(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return value

    config = ConfigDict(tuples(parse_json(text)))
    config.lock()
    return config


def named_sources(specs: tuple[str, ...]) -> dict[str, str]:
    """("name=source", ...) as a dictionary.

    Raises:
      ValueError: an entry without "=", or a name twice.
    """
    out: dict[str, str] = {}
    for spec in specs:
        name, equals, source = str(spec).partition("=")
        if not equals or not name or not source:
            raise ValueError(f"{spec!r}: write NAME=SOURCE, such as cifar100=tfds:cifar100:test")
        if name in out:
            raise ValueError(f"two test sets are called {name!r}; give each a name of its own")
        out[name] = source
    return out
