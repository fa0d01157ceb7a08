"""The ensemble of confusion log probability (Winkens et al. 2020, section 4 and appendix C).

    python -m ood_jax.sweep --config=configs/clp.py[:SIZE] --config.data.root=DIR \\
        --workdir=runs/clp --seeds=0,1,2,3,4
    python -m ood_jax.clp --workdir=runs/clp

SIZE  small (default: ResNet-10 of width 16, for two CPU cores) | paper (ResNet-34, 500 epochs, for
      accelerators)
DIR   holds cifar10-train.npz, cifar10-test.npz, cifar100-train.npz and cifar100-test.npz
      (`python -m ood_jax.prepare` writes them)

Classifiers of the union of CIFAR-10, CIFAR-100 and Gaussian noise (as one class), each class as
often in a batch; they differ in their seed alone. The paper's union has SVHN and Places365 as well:
add `+ svhn=npz:svhn-train.npz` to data.train and `+ svhn=npz:svhn-test.npz` to data.test, and to
head.outputs its 10 classes. Silent paper, chosen here: the crops, no warm-up.
Paper, range of class-wise CLP: CIFAR-10 in, CIFAR-100 out -7.4 to -0.8, SVHN out -12.1 to -7.6,
noise out -15.7; CIFAR-100 in, CIFAR-10 out -4.5 to -2.6. Here: small, 3 members of 26 % accuracy
over the 111 classes, 4 to 6 minutes each on 2 cores, 10,240 CIFAR-100 train images: CIFAR-10 in,
CIFAR-100 out -4.7 to -1.5, noise out -10.4; CIFAR-100 in, CIFAR-10 out -0.4 to -0.1.
"""

from simclr_joint_cifar import cifar

SIZES = ("small", "paper")
NOISE = "noise:gaussian/6000"  # one part to train on, another to test on


def get_config(size: str = "small"):
    if size not in SIZES:
        raise ValueError(f"size {size!r}: use {', '.join(SIZES)}")
    small = size == "small"
    c = cifar("supervised", "cifar10", small)
    c.name = f"clp_{size}"
    c.data.train = (
        "cifar10=npz:cifar10-train.npz[:-1000] + cifar100=npz:cifar100-train.npz"
        f" + noise={NOISE}[:5000]"
    )
    c.data.test = (
        f"cifar10=npz:cifar10-test.npz + cifar100=npz:cifar100-test.npz + noise={NOISE}[5000:]"
    )
    c.data.balanced = True
    if not small:
        c.model.depth, c.model.width = 34, 64
    c.head.name, c.head.outputs = "linear", 111

    c.optim.name, c.optim.lr = "sgd", 0.2
    c.optim.warmup_epochs = 0.0
    c.optim.no_decay = ""
    c.train.batch = 256 if small else 1024
    c.train.epochs = 5.0 if small else 500.0

    c.score.near, c.score.validation = (), ""
    c.score.scorers = ("msp",)
    return c
