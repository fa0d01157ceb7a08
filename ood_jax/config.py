"""Every key of a run with its default and unit, and how a command line becomes a config.

Order of precedence: `base` < the method module's DEFAULTS < its preset < the recipe in configs/ <
`--config.key=value`.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

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
    "train.devices",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.knn_every",
)


def base(method: str = "dino_negatives", preset: str = "paper") -> ConfigDict:
    """The whole config with every default; `method` is a name in ood_jax.methods or an import path.

    Raises:
      ValueError: no such method module, or a preset it does not have.
    """
    c = _defaults()
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


def complete(config: ConfigDict) -> ConfigDict:
    """`config`, of an earlier version perhaps, with the defaults of keys that it does not have."""
    config = config.copy_and_resolve_references()
    have = flat(config)
    with config.unlocked():
        for key, value in flat(_defaults()).items():
            if key not in have:
                put(config, key, value)
    return config


def _defaults() -> ConfigDict:
    """Every key that all methods share."""
    c = ConfigDict()
    c.name = ""  # what tables call this run; "" = the method's name
    c.seed = 0  # of parameters, data order and augmentation
    c.data = _data()
    c.model = _model()
    c.head = _head()
    c.optim = _optim()
    c.train = _train()
    c.score = _score()
    return c


def _data() -> ConfigDict:
    """Which images, and how large they are."""
    c = ConfigDict()
    c.train = "builtin:glyphs/train"  # in-distribution images, a source (README, "Sources")
    c.test = "builtin:glyphs/test"  # in-distribution test images, a source
    c.auxiliary = ""  # source of unlabelled other images; "" = none
    c.root = ""  # folder that relative paths and prepared TFDS sets lie in; "" = defaults
    c.size = 32  # px; every image is shrunk to size x size before any view
    c.mean = (0.485, 0.456, 0.406)  # per channel, of pixels in [0, 1]
    c.std = (0.229, 0.224, 0.225)
    c.workers = 0  # decoding processes of sets read image by image; 0 = in this one
    c.memory = 4 * 1024**3  # bytes; a decoded set up to this size lives in memory
    return c


def _model() -> ConfigDict:
    """The trunk."""
    c = ConfigDict()
    c.name = "vit"  # a module of ood_jax.models or an import path: vit | resnet
    c.width = 384  # ViT: token width; ResNet: channels of the first stage
    c.depth = 12  # ViT: blocks; ResNet: 10, 18, 34, 50, 101 or 152
    c.heads = 6  # ViT only
    c.patch = 16  # px, ViT only
    c.image_size = 256  # px of global views and of evaluation
    c.stem = "cifar"  # cifar (3x3) | imagenet (7x7 and a max-pool), ResNet only
    c.stride = 1  # of the CIFAR stem, ResNet only; 2 = a quarter of the work
    c.norm = "batch"  # batch | group, ResNet only
    c.drop_path = 0.1  # of the last block, linear from 0; ViT only
    c.layer_scale = 0.0  # what LayerScale begins with, ViT only; 0 = none
    c.weights = ""  # file of PyTorch weights to begin with (.safetensors or .pth); "" = none
    c.dtype = "float32"  # float32 | bfloat16: of activations; parameters and losses float32
    return c


def _head() -> ConfigDict:
    """What makes logits over K outputs of the trunk's features."""
    c = ConfigDict()
    c.name = "dino"  # dino (projections, then logits) | linear | none
    c.layers = 3  # of the MLP before the last layer
    c.hidden = 2048
    c.bottleneck = 256
    c.outputs = 4096  # K, soft-classes or classes
    c.train_gain = True  # False = the last layer's gain stays 1 (norm_last_layer)
    return c


def _optim() -> ConfigDict:
    """AdamW, its schedules, and what it leaves alone."""
    c = ConfigDict()
    c.name = "adamw"
    c.lr = 0.004  # peak, at batch lr_batch
    c.lr_batch = 256  # the peak is lr x train.batch / lr_batch; 0 = lr as it is
    c.min_lr = 1e-6  # at the end of the cosine
    c.warmup_epochs = 30.0  # linear from 0
    c.b1 = 0.9
    c.b2 = 0.999
    c.eps = 1e-8
    c.weight_decay = 0.04  # at the start of its cosine
    c.weight_decay_end = 0.4
    c.no_decay = r".*/(bias|scale)"  # parameter paths exempt from decay
    c.clip = 3.0  # largest gradient norm of each parameter tensor; 0 = none
    c.freeze = r"head/last/.*"  # parameter paths that do not move at first
    c.freeze_epochs = 1.0
    return c


def _train() -> ConfigDict:
    """How long, on what, and what is kept."""
    c = ConfigDict()
    c.batch = 256  # global, in-distribution images a step
    c.epochs = 500.0
    c.steps = 0  # > 0 = squeeze all epochs, schedules and warm-ups too, into this many
    c.steps_per_epoch = 0.0  # 0 = steps / epochs, else the train set's images / batch
    c.accumulate = 1  # micro-batches a step
    c.devices = 0  # 0 = all
    c.log_every = 50  # steps
    c.checkpoint_every = 1000  # steps; the last step is always kept
    c.keep_last = 2  # checkpoints
    c.keep_every = 0  # steps; checkpoints at multiples are kept for good; 0 = none
    c.knn_every = 0  # epochs between kNN accuracies on data.test; 0 = never
    return c


def _score() -> ConfigDict:
    """The scoring stage; keys below `scorers` are the scores' own (README, "Which score")."""
    c = ConfigDict()
    c.benchmark = ""  # an OpenOOD v1.5 benchmark of ood_jax.openood; "" = data.test, near and far
    c.near = ()  # OOD test sets, ("name=source", ...)
    c.far = ()
    c.calibration = ""  # source of ID images that set the threshold; "" = of data.train (README)
    c.keep = 0.95  # share of calibration images that the threshold keeps
    c.validation = ""  # source of OOD images that hyperparameters may be chosen on
    c.baselines = ()  # scored beside the checkpoint: pixels, untrained
    c.bootstrap = 1000  # resamples for the interval of each AUROC; 0 = none
    c.batch = 256  # images a forward pass
    c.block = 4096  # bank rows compared at once
    c.bank_memory = 1024**3  # bytes of a bank that stay on each device; a larger one is streamed
    c.knn = 20  # neighbours that vote for a label
    c.knn_temperature = 0.07
    c.scorers = ("exp_cosine",)  # names in ood_jax.scorers, all, or PKG.MODULE[:FUNCTION]
    c.feature = "features"  # features | projections | logits: what distances are measured in
    c.temperature = 0.04  # of exp-cosine
    c.neighbour = 50  # knn: the k-th nearest is what counts
    c.approximate = False  # knn: approximate top-k, fast on TPU
    c.shrinkage = "ledoit_wolf"  # of covariances: ledoit_wolf | trace | ridge | none
    c.shrinkage_strength = 1e-3  # trace: share of the mean variance added; ridge: added as it is
    c.clusters = 1  # ssd: k-means clusters
    c.energy_temperature = 1.0
    c.gen_gamma = 0.1
    c.gen_top = 100  # largest probabilities that count; all where there are fewer classes
    c.odin_temperature = 1000.0
    c.odin_epsilon = 0.0014  # step of the inputs, in units of pixels in [0, 1]
    c.react_percentile = 90.0  # of train activations, where features are cut off
    c.dice_percentile = 90.0  # of contributions; weights at or below it are dropped
    c.vim_dim = 0  # principal dimensions removed, vim and residual; 0 = by width
    c.nci_alpha = 1e-4
    c.nnguide_neighbours = 100
    c.nnguide_share = 0.01  # of the train set that is the bank
    c.she_metric = "inner_product"  # inner_product | euclidean | cosine
    c.gram_powers = (1, 2, 3, 4, 5)
    c.augmentations = 32  # random views of each image: norm_ensemble, norm_mean, csi
    c.shifts = 1  # csi: rotations by 90 degrees, 1 to 4
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
