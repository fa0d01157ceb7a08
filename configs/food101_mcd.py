"""MCD on food, the paper's simulation of real use (Yu & Aizawa 2019, section 4.2, Table 5).

    python -m ood_jax.main --config=configs/food101_mcd.py[:OOD][,SIZE] --config.data.root=DIR

OOD   tin_crop (default) | lsun_crop, of ODIN's release (github.com/facebookresearch/odin)
SIZE  densenet (default, DenseNet-BC-100-12, 300 epochs) | wrn | small (for two CPU cores)
DIR   holds food101 as TFDS prepares it (README, "Sources") and ODIN's folders Imagenet or LSUN

FOOD-101 shrunk to 32 px, the whole train split with labels. Of its test images, which TFDS calls
validation, 1,000 are held out, here for the thresholds; the others and the OOD images are the
unlabelled mixture and are scored, so the results are transductive. All else as mcd_cifar.py.
Hardware: one GPU; not run.

The paper, FPR95 / AUROC: tin_crop .1 / 100.0, lsun_crop .1 / 100.0 (ODIN 48.2 / 85.3, 30.6 / 90.9).
"""

from mcd_cifar import SIZES, TESTED, two_stages

from ood_jax.config import staged

TEST = "tfds:food101:validation"
OOD = ("tin_crop", "lsun_crop")


def get_config(argument: str = OOD[0]):
    words = argument.split(",")
    ood = next((word for word in words if word in OOD), OOD[0])
    size = next((word for word in words if word in SIZES), SIZES[0])
    if set(words) - {ood, size}:
        raise ValueError(f"{argument!r}: use {' or '.join(OOD)}, and {' or '.join(SIZES)}")
    pretrain, finetune = two_stages(101, size)
    for c in (pretrain, finetune):
        c.data.train, c.data.test = "tfds:food101:train", f"{TEST}[1000:]"
        c.score.calibration = f"{TEST}[:1000]"
        c.score.far = (f"{ood}={TESTED[ood]}",)
    finetune.data.auxiliary = f"food={TEST}[1000:] + {ood}={TESTED[ood]}"
    name = "mcd_food101_" + argument.replace(",", "_")
    return staged(name, pretrain=pretrain, finetune=finetune)
