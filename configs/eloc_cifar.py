"""ELOC on CIFAR: an ensemble of leave-out classifiers, margin-entropy loss (Vyas et al. 2018).

    python -m ood_jax.sweep --config=configs/eloc_cifar.py:ID,SIZE,{0,1,2,3,4}of5 \\
        --config.data.root=DIR --workdir=runs/eloc --seeds=0
    python -m ood_jax.eloc --workdir=runs/eloc

ID    cifar10 (default) | cifar100, the in-distribution set; the other one is the OOD set
SIZE  small (default: ResNet-10 of width 16, for two CPU cores) | densenet (DenseNet-BC-100-12) |
      wrn (WRN-28-10), both for accelerators and not run
0of5  (default) the first of 5 parts of the classes is left out; bash and zsh make five --config of
      the line above, elsewhere write them out: a run is one classifier, and all five are needed
DIR   holds cifar10-train.npz, cifar10-test.npz, cifar100-train.npz, cifar100-test.npz
      (`python -m ood_jax.prepare` writes them)

A step sees train.batch images of the classes that are learnt and as many of those left out, which
are data.auxiliary. The last 1,000 train images set thresholds; the first 1,000 OOD test images are
for validation. With --config.head.second_outputs=8 (cifar100: 80) there are two classifiers on one
trunk, averaged, as Yu & Aizawa 2019 compare with. Rates and the partition are the public
reproduction's (YU1ut). Paper, DenseNet-BC, CIFAR-10 vs TinyImageNet-crop: FPR95 1.2, AUROC 99.7.
"""

from simclr_joint_cifar import CLASSES, set_images

from ood_jax.config import base
from ood_jax.leave_out import cut

SIZES = {"small": "resnet", "densenet": "densenet", "wrn": "wide_resnet"}


def get_config(argument: str = "cifar10"):
    dataset, size, split, splits = parsed(argument)
    c = base("leave_out")
    c.name = f"eloc_{dataset}_{size}"
    set_images(c, dataset)
    small = size == "small"
    c.model.name = SIZES[size]
    c.model.depth = {"small": 10, "densenet": 100, "wrn": 28}[size]
    c.model.width = {"small": 16, "densenet": 12, "wrn": 160}[size]
    c.model.stride = 2 if small else 1
    c.model.norm = "batch"
    c.model.image_size = 32
    c.head.name = "linear"

    c.method.classes = CLASSES[dataset]
    c.method.splits, c.method.split = splits, split
    c.update_from_flattened_dict(cut(c))
    if not small:
        c.method.crop_pad = 4

    c.optim.name = "adamw" if small else "sgd"
    c.optim.lr = 0.004 if small else 0.1
    c.optim.lr_batch = 0
    c.optim.warmup_epochs = 0.5 if small else 0.0
    c.optim.weight_decay = c.optim.weight_decay_end = 0.05 if small else 5e-4
    if not small:
        c.optim.schedule, c.optim.drops = "step", (0.5, 0.75)
        c.optim.no_decay, c.optim.clip = "", 0.0
    c.optim.freeze_epochs = 0.0
    c.train.batch = 128 if small else 100
    c.train.epochs = 6.0 if small else 100.0

    c.score.scorers = ("msp", "odin", "energy")
    c.score.odin_epsilon = 0.002
    return c


def parsed(argument: str) -> tuple[str, str, int, int]:
    """ID[,SIZE][,IofK] -> (ID, SIZE, I, K)."""
    dataset, *rest = argument.split(",")
    size = rest.pop(0) if rest and rest[0] in SIZES else "small"
    split, of, splits = (rest.pop(0) if rest else "0of5").partition("of")
    if dataset not in CLASSES or rest or not (of and split.isdecimal() and splits.isdecimal()):
        raise ValueError(
            f"{argument!r}: use {' or '.join(CLASSES)}, then one of {', '.join(SIZES)} or nothing,"
            " then 0of5 to 4of5 or nothing"
        )
    return dataset, size, int(split), int(splits)
