"""From a command line to a config: a recipe file, its argument, and --config.key=value over it.

Of a run in stages --config.STAGE.key=value is of one stage, --config.key=value of every one.
"""

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from ood_jax import overrides
from ood_jax.config import base, flat, put, stages_of

METHOD = r"--?config\.(\w+\.)?method\.name="


def load(argv: list[str]) -> ConfigDict:
    """The config that `--config=FILE[:ARGUMENT] [--config.key=value ...]` asks for, locked.

    Raises:
      ValueError: no such file, unknown key (with the nearest one, in the recipe too), or a value of
        another type.
    """
    paths = [a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)]
    if len(paths) != 1:
        raise ValueError("give one --config=FILE, such as --config=configs/quickstart.py")
    config = _recipe(paths[0])
    given = overrides.split(argv)
    for key, name in given:
        if key.endswith("method.name"):
            config = _with_methods(config, key.removesuffix("method.name").rstrip("."), str(name))
    if any(key.endswith("method.preset") for key, _ in given):
        raise ValueError(
            "method.preset is chosen by the recipe's argument, such as"
            " --config=configs/dino_negatives.py:rot_imgn,cifar10,official"
        )
    rest = [argument for argument in argv if not re.match(METHOD, argument)]
    config = override(config, rest, ("",))
    with config.unlocked():
        for stage in stages_of(config) if config.stages else ():
            config[stage].name = config.name
    config.lock()
    return config


def is_override(argument: str) -> bool:
    """Is a command-line argument of the form --config.key...?"""
    return re.match(overrides.PATTERN, argument) is not None


def override(config: ConfigDict, argv: Iterable[str], keys: tuple[str, ...]) -> ConfigDict:
    """`config` with the `--config.key=value` of `argv`; only keys that begin with one of `keys`.

    Raises:
      ValueError: unknown key (with the nearest one), one that may not change, or a value of another
        type.
    """
    config = config.copy_and_resolve_references()
    whole = flat(config)
    known = {key: value for key, value in whole.items() if key.startswith(keys)}
    texts: dict[str, list[str | bool]] = {}
    for given, text in overrides.split(argv):
        of_stages = [f"{stage}.{given}" for stage in config.stages]
        for key in [key for key in of_stages if key in whole and given not in whole] or [given]:
            if key in whole and key not in known:
                raise ValueError(f"{key} is the checkpoint's; what may change: {', '.join(keys)}")
            overrides.check_key(key, known)
            texts.setdefault(key, []).append(text)
    with config.unlocked():
        for key, values in texts.items():
            put(config, key, overrides.parse(key, values, known[key]))
    return config


def _recipe(spec: str) -> ConfigDict:
    path, _, argument = spec.partition(":")
    if not Path(path).is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py"))
        close = difflib.get_close_matches(path, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"configs here: {', '.join(known)}"
        raise ValueError(f"--config={path}: no such file; {hint}")
    loaded = importlib.util.spec_from_file_location("ood_jax_recipe", path)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)  # recipes may build on each other
    try:
        loaded.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path} has no get_config(): see another recipe in configs/")
    arguments = [argument] if argument else []
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        raise ValueError(
            f"--config={spec}: this recipe "
            + ("takes no argument after a colon" if argument else "needs one, as in FILE:ARGUMENT")
        ) from None
    try:
        return module.get_config(*arguments)
    except (AttributeError, KeyError, TypeError) as error:  # a locked config's answers to a typo
        text = re.sub(r"Other fields present: .*}\W*", "", " ".join(str(error).split()))
        raise ValueError(f"--config={spec}: {text}") from error


def _with_methods(config: ConfigDict, stage: str, name: str) -> ConfigDict:
    """`config` with another method, in the stage `stage` of a run that has several."""
    if not config.stages and not stage:
        return _with_method(config, name)
    if stage not in config.stages:
        asked = ", ".join(f"--config.{stage}.method.name" for stage in config.stages)
        raise ValueError(f"method.name is of one stage: use {asked or '--config.method.name'}")
    changed = _with_method(config[stage], name)
    with config.unlocked():
        config[stage] = changed
    return config


def _with_method(config: ConfigDict, name: str) -> ConfigDict:
    """`config` with another method and its defaults, the recipe's own settings kept.

    The recipe's own: what differs from the defaults of the method that it was written for.
    """
    preset = config.method.preset
    before, new = flat(base(config.method.name, preset)), base(name, preset)
    after, own = flat(new), flat(config)
    with config.unlocked():
        config.method = new.method
        for key, value in after.items():
            if key in ("method.name", "method.preset"):
                continue
            # What the preset says beside `method` follows the method too.
            chosen = key in own and own[key] != before.get(key)
            put(config, key, own[key] if chosen else value)
    return config
