"""DINO with negatives, every variant of Rafiee et al. 2022, Tables 1 and 2.

    python -m ood_jax.main --config=configs/dino_negatives.py:VARIANT,DATASET[,PRESET] --workdir=W

VARIANT  dino | imgn | rot_imgn | rot360_imgn | dti | rot_dti | perm16_imgn | perm4_imgn | pixperm |
         rot_indist | combined
DATASET  cifar10 | cifar100
PRESET   paper (default: what the text says) | official (what the released code does, bugs included)

Hardware: the paper used 4 A100; ours: not run at this size. Data: TFDS sets prepared once as
array_record (README, "Sources"); the rest as folders below data.root, see OOD below.
The paper's AUROC in %, CIFAR-10 against CIFAR-100 / SVHN, where it gives them:
dino 90.29 / 99.38 · imgn 90.46 / 99.50 · rot_imgn 92.51 / 99.69 · rot360_imgn 88.62 / 99.42 ·
dti 93.77 / 99.86 · rot_dti 93.77 / 99.86 · perm16_imgn 88.32 / 99.59 · perm4_imgn 89.57 / 99.13 ·
pixperm 87.67 / 99.62 · rot_indist 93.96 / 99.92 · combined 94.20 / 99.92.
CIFAR-100 against CIFAR-10: rot_imgn 69.96, combined 67.63.
"""

from ood_jax.config import VIT, base

IMAGENET = "tfds:imagenet_resized/32x32:train"
TINY_IMAGES = "npz:300K_random_images.npy"  # Debiased 300K Tiny Images (Hendrycks et al. 2019)

# variant: (sources of negatives, auxiliary set, shift of the auxiliary set)
VARIANTS = {
    "dino": ((), "", "none"),
    "imgn": (("auxiliary",), IMAGENET, "none"),
    "rot_imgn": (("auxiliary",), IMAGENET, "rot"),
    "rot360_imgn": (("auxiliary",), IMAGENET, "rot360"),
    "dti": (("auxiliary",), TINY_IMAGES, "none"),
    "rot_dti": (("auxiliary",), TINY_IMAGES, "rot"),
    "perm16_imgn": (("auxiliary",), IMAGENET, "perm16"),
    "perm4_imgn": (("auxiliary",), IMAGENET, "perm4"),
    "pixperm": (("auxiliary",), IMAGENET, "pixperm"),
    "rot_indist": (("in_distribution",), "", "none"),
    "combined": (("in_distribution", "auxiliary"), IMAGENET, "rot"),
}
OOD = (  # CIFAR of the other kind comes first
    "svhn=tfds:svhn_cropped:test",
    "imagenet30=folder:imagenet30/test",
    "tinyimagenet=folder:tiny-imagenet-200/val",
    "lsun=folder:LSUN",
    "stl10=tfds:stl10:test",
    "places365=tfds:places365_small:validation",
    "textures=tfds:dtd:test",
)


def get_config(argument: str = "rot_imgn,cifar10"):
    variant, dataset, preset = (*argument.split(","), "", "paper")[:3]
    if len(argument.split(",")) == 2:
        preset = "paper"
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: use {', '.join(VARIANTS)}")
    if dataset not in ("cifar10", "cifar100"):
        raise ValueError(f"data set {dataset!r}: use cifar10 or cifar100, as in {variant},cifar10")
    negatives, auxiliary, shift = VARIANTS[variant]

    c = base("dino_negatives", preset)
    c.name = f"dino_{variant}_{dataset}" + ("" if preset == "paper" else f"_{preset}")
    c.data.train = f"tfds:{dataset}:train"
    c.data.test = f"tfds:{dataset}:test"
    c.data.auxiliary = auxiliary
    c.model.update(VIT["small"])
    c.method.negatives = negatives
    c.method.shift_auxiliary = shift
    if preset == "paper":
        c.method.teacher_temperature = 0.055 if dataset == "cifar10" else 0.050
    elif variant == "rot360_imgn":
        c.method.shift_auxiliary = "rot_angle"  # the released code turns by any angle
    other = "cifar100" if dataset == "cifar10" else "cifar10"
    c.score.near = (f"{other}=tfds:{other}:test", OOD[2])
    c.score.far = tuple(spec for spec in OOD if spec != OOD[2])
    return c
