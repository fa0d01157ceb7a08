"""CSI on CIFAR (Tack et al. 2020): turned images are other images, and a classifier of the turns.

    python -m ood_jax.main --config=configs/csi_cifar.py[:DATASET][,small] --config.data.root=DIR

DATASET  cifar10 (default) | cifar100, the in-distribution set; the other one is the OOD set
small    ResNet-10 of width 16 and 2 epochs, for two CPU cores; otherwise CSI's ResNet-18, 1,000
         epochs of torchlars' LARS, 128 images a step, turned four times (not run)
DIR      see simclr_joint_cifar.py

Peak rate 1: the released code's warm-up goes from .1 to 10 times that (here from 0). Published
(unlabelled CIFAR-10 vs CIFAR-100): 89.2. Scored by CSI's own score over 10 views of each turn; they
take most of the time on a CPU (--config.score.augmentations).
"""

from simclr_joint_cifar import cifar, parsed


def get_config(argument: str = "cifar10"):
    dataset, small = parsed(argument)
    c = cifar("csi", dataset, small)
    c.name = f"csi_{dataset}{'_small' if small else ''}"
    c.head.batch_norm = False
    c.head.second_outputs = c.method.shifts
    if not small:
        c.model.depth, c.model.width = 18, 64
        c.optim.lars_order = "torchlars"
        c.optim.no_decay = c.optim.no_adapt = ""  # nothing is exempt
        c.optim.warmup_epochs = 10.0
    c.train.batch = 128
    c.train.epochs = 2.0 if small else 1000.0
    c.score.scorers = ("csi", "norm_mean")
    c.score.shifts = c.method.shifts
    c.score.augmentations = 2 if small else 10
    return c
