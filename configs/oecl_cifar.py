"""OECL on CIFAR-10 (Le-Gia & Ahn): the norms of contrastive features, made small for outliers.

    python -m ood_jax.main --config=configs/oecl_cifar.py:BENCHMARK[,OUTLIERS][,PRESET][,small] \\
        --config.data.root=DIR

BENCHMARK  unlabelled (default; all of CIFAR-10 against CIFAR-100) | one_vs_rest,CLASS (CLASS 0 to 9
           against the other nine)
OUTLIERS   tinyimagenet (default) | 80mti | svhn | textures | self (turned training images)
PRESET     paper (default: LARS, decay 1e-6; self: CSI) | official (what the released code does:
           SGD, decay 5e-4; self: NT-Xent)
small      ResNet-10 of width 16 and about 800 steps, for two CPU cores; otherwise the paper's
           ResNet-18, 256 images and 256 outliers a step, 500 epochs (self: 1,000)
DIR        holds cifar10-train.npz, cifar10-test.npz, cifar100-test.npz and the outliers, see below

The paper's AUROC: one-vs-rest, mean of the classes, OECL (80mti) 97.8, self-OECL 94.7, SimCLR 86.1;
unlabelled against CIFAR-100 with 80mti 94.3, textures 90.3, svhn 89.9, SimCLR 77.6, SupCLR with
80mti 95.2 (here: unlabelled with --config.method.base=supclr --config.head.outputs=10). Ours: not
run. SimCLR is --config.method.norm_weight=0; without outliers in its BatchNorm, simclr_cifar.py.
The last 1,000 train images set thresholds, the first 1,000 of CIFAR-100 test are for validation.
"""

from simclr_joint_cifar import set_images, set_network

from ood_jax.config import base

OUTLIERS = {
    "tinyimagenet": "npz:tinyimagenet-train.npz",
    "80mti": "npz:300K_random_images.npy",  # 80 Million Tiny Images, the debiased 300K of them
    "svhn": "tfds:svhn_cropped:train",
    "textures": "tfds:dtd:train",
    "self": "",
}
PRESETS = ("paper", "official")


def get_config(argument: str = "unlabelled"):
    number, outliers, preset, small = parsed(argument)
    c = base("oecl", preset)
    c.name = "oecl_" + argument.replace(",", "_")
    set_images(c, "cifar10")
    set_network(c, small)
    if not small:
        c.model.depth, c.model.width = 18, 64
    c.data.auxiliary = OUTLIERS[outliers]
    if number is not None:
        own = f"[classes={number}]"
        rest = ",".join(str(other) for other in range(10) if other != number)
        c.data.train, c.data.test = c.data.train + own, c.data.test + own
        c.score.calibration, c.score.validation = c.score.calibration + own, ""
        c.score.near = (f"rest=npz:cifar10-test.npz[classes={rest}]",)
    if outliers == "self":
        c.method.outliers = "self"
        c.head.second_outputs = len(c.method.shifts) if preset == "paper" else 0

    c.train.epochs = 1000.0 if outliers == "self" else 500.0
    if small:
        c.train.batch = 128
        c.train.epochs = 2.0 if number is None else 20.0
        c.method.norm_warmup_epochs = c.train.epochs / 10
        if preset == "paper":  # in so few steps LARS at the paper's rate hardly moves
            c.optim.name, c.optim.lr = "adamw", 0.004

    c.score.scorers = ("norm_mean", "norm", "norm_ensemble", "cosine_norm_mean")
    c.score.augmentations = 8 if small else 32
    return c


def parsed(argument: str) -> tuple[int | None, str, str, bool]:
    """BENCHMARK[,OUTLIERS][,PRESET][,small] -> (class or None, outliers, preset, small?)."""
    benchmark, *rest = argument.split(",")
    number = None
    if benchmark == "one_vs_rest" and rest and rest[0] in tuple("0123456789"):
        number = int(rest.pop(0))
    elif benchmark != "unlabelled":
        raise ValueError(f"{argument!r}: use unlabelled or one_vs_rest,CLASS with CLASS 0 to 9")
    options = (tuple(OUTLIERS), PRESETS, ("small",))
    chosen = [[word for word in rest if word in known] for known in options]
    if sum(map(len, chosen)) < len(rest) or any(len(words) > 1 for words in chosen):
        known = ", ".join(" | ".join(words) for words in options)
        raise ValueError(f"{argument!r}: after the benchmark, use at most one each of {known}")
    outliers, preset, small = chosen
    return number, (outliers or ["tinyimagenet"])[0], (preset or ["paper"])[0], bool(small)
