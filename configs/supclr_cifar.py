"""Supervised contrastive learning on CIFAR (SupCon; SupCLR is CSI's form of it).

    python -m ood_jax.main --config=configs/supclr_cifar.py[:DATASET][,small] --config.data.root=DIR

DATASET  cifar10 (default) | cifar100, the in-distribution set; the other one is the OOD set
small    ResNet-10 of width 16 and 5 epochs, for two CPU cores; otherwise ResNet-18, batch 512 and
         700 epochs with LARS (not run)
DIR      see simclr_joint_cifar.py

--config.method.form=csi counts each anchor among its own positives, as CSI's code does.
"""

from simclr_joint_cifar import CLASSES, cifar, parsed


def get_config(argument: str = "cifar10"):
    dataset, small = parsed(argument)
    c = cifar("supclr", dataset, small)
    c.name = f"supclr_{dataset}{'_small' if small else ''}"
    c.head.outputs = CLASSES[dataset]
    if not small:
        c.model.depth, c.model.width = 18, 64
        c.optim.warmup_epochs = 10.0
        c.train.batch = 512
    c.train.epochs = 5.0 if small else 700.0
    c.score.scorers = ("mahalanobis", "mahalanobis_relative", "knn", "ssd", "energy", "msp")
    return c
