"""SimCLR on CIFAR: contrastive features without labels, scored by norms and by neighbours.

    python -m ood_jax.main --config=configs/simclr_cifar.py[:DATASET][,small] --config.data.root=DIR

DATASET  cifar10 (default) | cifar100, the in-distribution set; the other one is the OOD set
small    ResNet-10 of width 16 and 5 epochs, for two CPU cores; otherwise ResNet-18, batch 512 and
         1,000 epochs with LARS, as the baseline of CSI and OECL (not run)
DIR      see simclr_joint_cifar.py

Published: unlabelled CIFAR-10 vs CIFAR-100 77.6 (OECL's table).
"""

from simclr_joint_cifar import cifar, parsed


def get_config(argument: str = "cifar10"):
    dataset, small = parsed(argument)
    c = cifar("simclr", dataset, small)
    c.name = f"simclr_{dataset}{'_small' if small else ''}"
    if not small:
        c.model.depth, c.model.width = 18, 64
        c.optim.warmup_epochs = 10.0
        c.train.batch = 512
    c.train.epochs = 5.0 if small else 1000.0
    c.score.scorers = ("norm_mean", "norm", "cosine_norm_mean", "knn", "ssd")
    c.score.augmentations = 8 if small else 32
    return c
