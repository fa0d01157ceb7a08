"""Rot. ImgN, the headline run of Rafiee et al. 2022: CIFAR-10 with rotated ImageNet as negatives.

    python -m ood_jax.main --config=configs/dino_rot_imgn.py --workdir=W

ViT-S/16, K 4096, 2 + 8 positive and 1 + 8 negative views, batch 256, 500 epochs. Hardware: the
paper used 4 A100; ours: not run at this size. AUROC in % of the paper: CIFAR-100 92.51, SVHN 99.69,
ImageNet-30 94.16, TinyImageNet 96.28, LSUN 98.08, STL-10 77.29, Places365 97.14, Textures 99.16.
"""

from dino_negatives import get_config as variant


def get_config():
    return variant("rot_imgn,cifar10")
