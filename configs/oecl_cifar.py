"""OECL on CIFAR-10 (Le-Gia & Ahn): the norms of contrastive features, made small for outliers.

    python -m ood_jax.main --config=configs/oecl_cifar.py:BENCHMARK[,OUTLIERS][,PRESET][,small] \\
        --config.data.root=DIR

BENCHMARK  unlabelled (default; all of CIFAR-10 against CIFAR-100) | one_vs_rest,CLASS |
           leave_one_class_out,CLASS (CLASS 0 to 9); for all classes in turn, with seeds and a
           table: python -m ood_jax.benchmark one_vs_rest --config=THIS:unlabelled,small ...
OUTLIERS   tinyimagenet (default) | 80mti | svhn | textures | self (turned training images) | none
           (the paper's baseline, SimCLR)
PRESET     paper (default: LARS, decay 1e-6; self: CSI) | official (what the released code does:
           SGD, decay 5e-4; self: NT-Xent)
small      ResNet-10 of width 16 and 600 to 800 steps, for two CPU cores; otherwise the paper's
           ResNet-18, 256 images and 256 outliers a step, 500 epochs (self: 1,000)
DIR        holds cifar10-train.npz, cifar10-test.npz, cifar100-test.npz and the outliers, see below

The paper's AUROC: one-vs-rest, mean of the classes, OECL (80mti) 97.8, self-OECL 94.7, SimCLR 86.1;
leave-one-class-out 94.6, SimCLR 83.9; unlabelled against CIFAR-100 with 80mti 94.3, textures 90.3,
svhn 89.9, SimCLR 77.6, SupCLR with 80mti 95.2 (here: unlabelled with --config.method.base=supclr
--config.head.outputs=10). Ours: small in the README, at the paper's size not run.
The last 1,000 train images set thresholds, the first 1,000 of CIFAR-100 test are for validation.
"""

from simclr_joint_cifar import set_images, set_network

from ood_jax.cases import split_by_classes
from ood_jax.config import base

OUTLIERS = {
    "tinyimagenet": "npz:tinyimagenet-train.npz",
    "80mti": "npz:300K_random_images.npy",  # 80 Million Tiny Images, the debiased 300K of them
    "svhn": "tfds:svhn_cropped:train",
    "textures": "tfds:dtd:train",
    "self": "",
    "none": "",
}
PRESETS = ("paper", "official")


def get_config(argument: str = "unlabelled"):
    benchmark, number, outliers, preset, small = parsed(argument)
    c = base("oecl", preset)
    c.name = "oecl_" + argument.replace(",", "_")
    set_images(c, "cifar10")
    set_network(c, small)
    if not small:
        c.model.depth, c.model.width = 18, 64
    c.data.auxiliary = OUTLIERS[outliers]
    if outliers in ("self", "none"):
        c.method.outliers = outliers
    if outliers == "self" and preset == "paper":
        c.head.second_outputs = len(c.method.shifts)
    others = [other for other in range(10) if other != number]
    if benchmark == "one_vs_rest":
        c.update_from_flattened_dict(split_by_classes(c, [number], others, "rest"))
    if benchmark == "leave_one_class_out":
        c.update_from_flattened_dict(split_by_classes(c, others, [number], "left_out"))

    c.train.epochs = 1000.0 if outliers == "self" else 500.0
    if small:
        # Of self-OECL's images there are twice as many views.
        c.train.batch = 64 if outliers == "self" else 128
        c.train.epochs = 16.0 if benchmark == "one_vs_rest" else 2.0
        c.method.norm_warmup_epochs = c.train.epochs / 5
        c.method.crop_scale = (0.3, 1.0)
        c.train.checkpoint_every = c.train.keep_every = 100  # for python -m ood_jax.norms
        if preset == "paper":  # in so few steps LARS at the paper's rate hardly moves
            c.optim.name, c.optim.lr = "adamw", 0.004

    c.score.scorers = ("norm_mean", "norm", "norm_ensemble", "cosine_norm_mean")
    c.score.augmentations = 8 if small else 32
    return c


def parsed(argument: str) -> tuple[str, int, str, str, bool]:
    """The argument -> (benchmark, class or -1, outliers, preset, small?)."""
    benchmark, *rest = argument.split(",")
    number = -1
    if (
        benchmark in ("one_vs_rest", "leave_one_class_out")
        and rest
        and rest[0] in tuple("0123456789")
    ):
        number = int(rest.pop(0))
    elif benchmark != "unlabelled":
        raise ValueError(
            f"{argument!r}: use unlabelled, one_vs_rest,CLASS or leave_one_class_out,CLASS with"
            " CLASS 0 to 9"
        )
    outliers, preset, small = chosen(argument, rest, (tuple(OUTLIERS), PRESETS, ("small",)))
    return benchmark, number, outliers or "tinyimagenet", preset or "paper", bool(small)


def chosen(argument: str, words: list[str], options: tuple[tuple[str, ...], ...]) -> list[str]:
    """The word of `words` that stands in each of `options`; "" = none does."""
    found = [[word for word in words if word in known] for known in options]
    if sum(map(len, found)) < len(words) or any(len(one) > 1 for one in found):
        listed = ", ".join(" | ".join(known) for known in options if known)
        raise ValueError(f"{argument!r}: after the first word, use at most one each of {listed}")
    return [one[0] if one else "" for one in found]
