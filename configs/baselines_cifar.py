"""Classifiers that are trained to be unsure of what they have not seen, on real CIFAR.

    python -m ood_jax.main --config=configs/baselines_cifar.py:METHOD[,ID][,SIZE][,tuned] \\
        --config.data.root=DIR

METHOD  supervised (default: cross-entropy) | label_smoothing (.1) | logit_norm | outlier_exposure |
        mix_oe | rotation
ID      cifar10 (default) | cifar100, the in-distribution set; the other one is near OOD
SIZE    small (default: ResNet-10 of width 16, AdamW, for two CPU cores) | resnet18 (ResNet-18, 100
        epochs of SGD, OpenOOD's CIFAR setting; not run)
tuned   outlier_exposure, mix_oe: in two stages, supervised and then a tenth of the epochs with
        outliers at a small rate, as MixOE's paper and one of outlier exposure's two settings
DIR     holds cifar10-train.npz, cifar10-test.npz, cifar100-train.npz, cifar100-test.npz (`python -m
        ood_jax.prepare` writes them) and tinyimagenet-train.npz, the auxiliary set with its labels

Data, network, optimiser and epochs are the same for all, so that a table compares methods. Outliers
are the images of 160 classes of Tiny ImageNet, far OOD those of its other 40, so that neither
images nor classes of the test are seen; the last 40 in WordNet's order, mostly things, food and
plants. Some of its classes are CIFAR's too (cats, dogs, sports cars). The last 1,000 train images
set thresholds, the first 1,000 of the other CIFAR's test set are for validation; neither is in a
number. --config.head.second_outputs=10 trains two classifiers, MCD's baselines (not of rotation,
whose second one tells turns apart). A step of rotation passes four times as many images, one of
the outliers' methods twice. Ours: small in the README.
"""

from oecl_cifar import chosen
from simclr_joint_cifar import CLASSES, set_images
from supervised_cifar import set_network, set_optimiser

from ood_jax.config import base, staged

METHODS = (
    "supervised",
    "label_smoothing",
    "logit_norm",
    "outlier_exposure",
    "mix_oe",
    "rotation",
)
WITH_OUTLIERS = ("outlier_exposure", "mix_oe")
SIZES = ("small", "resnet18")
SEEN = "npz:tinyimagenet-train.npz[classes=0-159]"
UNSEEN = "npz:tinyimagenet-train.npz[classes=160-199]"


def get_config(argument: str = "supervised"):
    method, dataset, small, tuned = parsed(argument)
    name = "baseline_" + argument.replace(",", "_")
    if not tuned:
        c = classifier(method, dataset, small)
        c.name = name
        return c
    before, after = classifier("supervised", dataset, small), classifier(method, dataset, small)
    after.model.weights = "stage:classify"
    after.train.epochs = before.train.epochs / 10
    after.optim.warmup_epochs = 0.0
    after.optim.lr = before.optim.lr / (10 if small else 100)
    return staged(name, classify=before, tune=after)


def parsed(argument: str) -> tuple[str, str, bool, bool]:
    """The argument -> (method, in-distribution set, small?, tuned?)."""
    method, *rest = argument.split(",")
    if method not in METHODS:
        raise ValueError(f"{argument!r}: begin with {', '.join(METHODS)}")
    tuned = ("tuned",) if method in WITH_OUTLIERS else ()
    dataset, size, tune = chosen(argument, rest, (tuple(CLASSES), SIZES, tuned))
    return method, dataset or "cifar10", size != "resnet18", bool(tune)


def classifier(method: str, dataset: str, small: bool):
    """The whole config of one stage."""
    c = base("supervised" if method == "label_smoothing" else method)
    set_images(c, dataset)
    c.score.far = (f"tinyimagenet={UNSEEN}",)
    set_network(c, small)
    set_optimiser(c, small)
    c.head.outputs = CLASSES[dataset]
    if method == "label_smoothing":
        c.method.label_smoothing = 0.1
    if method in WITH_OUTLIERS:
        c.data.auxiliary = SEEN
    if not small:  # OpenOOD's
        c.method.crop_pad = 4
        c.optim.name, c.optim.nesterov, c.optim.lr = "sgd", True, 0.1
        c.optim.weight_decay = c.optim.weight_decay_end = 5e-4
        c.optim.warmup_epochs, c.optim.clip, c.optim.no_decay = 0.0, 0.0, ""
    c.score.scorers = ("msp", "max_logit", "energy", "gen", "odin", "knn")
    if method == "rotation":
        c.head.second_outputs = 4
        c.score.scorers += ("rotation",)
    return c
