"""Every key of a run with its default and unit, and how a command line becomes a config.

Order of precedence: `base` < the method module's DEFAULTS < its preset < the recipe in configs/ <
`--config.key=value`.
"""

import difflib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ood_jax import overrides

VIT = {  # width, depth and heads of the named sizes (Dosovitskiy et al. 2021; Touvron et al. 2021)
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
}


def base(method: str = "dino_negatives", preset: str = "paper") -> ConfigDict:
    """The whole config with every default; `method` is a name in ood_jax.methods or an import path.

    Raises:
      ValueError: no such method module, or a preset it does not have.
    """
    c = ConfigDict()
    c.name = ""  # what tables call this run; "" = the method's name
    c.seed = 0  # of parameters, data order and augmentation

    c.data = ConfigDict()
    c.data.train = "builtin:glyphs/train"  # in-distribution images, a source (README, "Sources")
    c.data.test = "builtin:glyphs/test"  # in-distribution test images, a source
    c.data.auxiliary = ""  # source of unlabelled other images; "" = none
    c.data.root = ""  # folder that relative paths and prepared TFDS sets lie in; "" = defaults
    c.data.size = 32  # px; every image is shrunk to size x size before any view
    c.data.mean = (0.485, 0.456, 0.406)  # per channel, of pixels in [0, 1]
    c.data.std = (0.229, 0.224, 0.225)
    c.data.workers = 0  # decoding processes of sets read image by image; 0 = in this one
    c.data.memory = 4 * 1024**3  # bytes; a decoded set up to this size lives in memory

    c.model = ConfigDict()
    c.model.name = "vit"  # a module of ood_jax.models or an import path: vit | resnet
    c.model.width = 384  # ViT: token width; ResNet: channels of the first stage
    c.model.depth = 12  # ViT: blocks; ResNet: 10, 18 or 34
    c.model.heads = 6  # ViT only
    c.model.patch = 16  # px, ViT only
    c.model.image_size = 256  # px of global views and of evaluation
    c.model.stride = 1  # of the stem, ResNet only; 2 = a quarter of the work
    c.model.norm = "batch"  # batch | group, ResNet only
    c.model.drop_path = 0.1  # of the last block, linear from 0; ViT only
    c.model.dtype = "float32"  # float32 | bfloat16: of activations; parameters and losses float32

    c.head = ConfigDict()  # projection head and its last layer to K outputs
    c.head.name = "dino"  # dino | none
    c.head.layers = 3  # of the MLP before the last layer
    c.head.hidden = 2048
    c.head.bottleneck = 256
    c.head.outputs = 4096  # K, soft-classes or classes
    c.head.train_gain = True  # False = the last layer's gain stays 1 (norm_last_layer)

    c.optim = ConfigDict()
    c.optim.name = "adamw"
    c.optim.lr = 0.004  # peak, at batch lr_batch
    c.optim.lr_batch = 256  # the peak is lr x train.batch / lr_batch; 0 = lr as it is
    c.optim.min_lr = 1e-6  # at the end of the cosine
    c.optim.warmup_epochs = 30.0  # linear from 0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.04  # at the start of its cosine
    c.optim.weight_decay_end = 0.4
    c.optim.no_decay = r".*/(bias|scale)"  # parameter paths exempt from decay
    c.optim.clip = 3.0  # largest gradient norm of each parameter tensor; 0 = none
    c.optim.freeze = r"head/last/.*"  # parameter paths that do not move at first
    c.optim.freeze_epochs = 1.0

    c.train = ConfigDict()
    c.train.batch = 256  # global, in-distribution images a step
    c.train.epochs = 500.0
    c.train.steps = 0  # > 0 = squeeze all epochs, schedules and warm-ups too, into this many
    c.train.steps_per_epoch = 0.0  # 0 = steps / epochs, else the train set's images / batch
    c.train.accumulate = 1  # micro-batches a step
    c.train.devices = 0  # 0 = all
    c.train.log_every = 50  # steps
    c.train.checkpoint_every = 1000  # steps; the last step is always kept
    c.train.keep_last = 2  # checkpoints
    c.train.keep_every = 0  # steps; checkpoints at multiples are kept for good; 0 = none
    c.train.knn_every = 0  # epochs between kNN accuracies on data.test; 0 = never

    c.score = ConfigDict()
    c.score.near = ()  # OOD test sets, ("name=source", ...)
    c.score.far = ()
    c.score.scorers = ("exp_cosine",)  # names in ood_jax.scorers, or PKG.MODULE[:FUNCTION]
    c.score.feature = "features"  # features | projections | logits
    c.score.temperature = 0.04  # of exp-cosine
    c.score.knn = 20  # neighbours that vote for a label
    c.score.knn_temperature = 0.07
    c.score.baselines = ()  # scored beside the checkpoint: pixels, untrained
    c.score.batch = 256  # images a forward pass
    c.score.block = 4096  # bank rows compared at once

    module = method_module(method)
    presets = {"paper": {}, **getattr(module, "PRESETS", {})}
    if preset not in presets:
        raise ValueError(
            f"preset {preset!r} of {method}: it has {', '.join(presets)}"
            " (no official code exists for other presets)"
        )
    c.method = ConfigDict({"name": method, "preset": preset, **module.DEFAULTS})
    for key, value in presets[preset].items():
        _set(c, key, value)
    c.lock()
    return c


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
    for name in [text for key, text in given if key == "method.name"]:
        config = _with_method(config, str(name))
    known = flat(config)
    texts: dict[str, list[str | bool]] = {}
    for key, text in given:
        if key == "method.preset":
            raise ValueError(
                "method.preset is chosen by the recipe's argument, such as"
                " --config=configs/dino_negatives.py:rot_imgn,cifar10,official"
            )
        if key != "method.name":
            overrides.check_key(key, known)
            texts.setdefault(key, []).append(text)
    for key, values in texts.items():
        _set(config, key, overrides.parse(key, values, known[key]))
    config.lock()
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
            _set(config, key, own[key] if chosen else value)
    return config


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"data.size": 32, ...}: every key with its dots."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def _set(config: ConfigDict, key: str, value: Any) -> None:
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

    config = ConfigDict(tuples(json.loads(text)))
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
