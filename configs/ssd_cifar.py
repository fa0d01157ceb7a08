"""SSD on CIFAR (Sehwag et al. 2021): Mahalanobis distance on SimCLR's features, without labels.

    python -m ood_jax.main --config=configs/ssd_cifar.py[:DATASET][,small] --config.data.root=DIR

DATASET  cifar10 (default) | cifar100, the in-distribution set; the other one is the OOD set
small    ResNet-10 of width 16 and 5 epochs, for two CPU cores; otherwise the released code's
         ResNet-50, batch 512, 500 epochs of SGD at rate .5 (not run)
DIR      see simclr_joint_cifar.py

Published: CIFAR-10 vs CIFAR-100 90.6 (SSD), 93.4 with labels (SSD+: supclr_cifar.py has the loss).
"""

from simclr_joint_cifar import cifar, parsed


def get_config(argument: str = "cifar10"):
    dataset, small = parsed(argument)
    c = cifar("simclr", dataset, small)
    c.name = f"ssd_{dataset}{'_small' if small else ''}"
    c.method.crop_scale = (0.2, 1.0)
    if not small:
        c.model.width = 64
        scale = 0.5 / 0.07  # of the code's loss: temperature / base temperature
        c.optim.name, c.optim.lr = "sgd", 0.5 * scale
        c.optim.no_decay = ""  # all parameters decay
        c.optim.weight_decay = c.optim.weight_decay_end = 1e-4 / scale
        c.optim.warmup_epochs = 10.0
        c.train.batch = 512
    c.train.epochs = 5.0 if small else 500.0
    c.score.scorers = ("ssd", "knn")
    c.score.shrinkage = "none"
    return c
