"""OECL on the larger sets of its paper (Le-Gia & Ahn), each as one whole labelled set.

    python -m ood_jax.benchmark BENCHMARK --config.data.root=DIR --config.data.workers=16 \\
        --config=configs/oecl_sets.py:DATASET[,OUTLIERS][,PRESET]

BENCHMARK  one_vs_rest | leave_one_class_out | few_shot | diminishing: takes the classes of
           data.train and data.test apart
DATASET    imagenet30 (default) | imagenet30_tfds (cut from tfds:imagenet2012; needs --classes, some
           of SYNSETS) | dior | raabin_wbc | ham10000 | dtd. What DIR holds: README, "Sets of OECL"
OUTLIERS   imagenet22k (default, without ImageNet-1k) | imagenet1k (without ImageNet-30, what the
           released code has in its place) | self (turned training images)
PRESET     paper (default: LARS, decay 1e-6; self: CSI) | official (SGD, decay 5e-4; self: NT-Xent)

ResNet-18, 256 images and 256 outliers a step, 500 epochs (self: 1,000; so does the code's file for
one-vs-rest). The text gives no resolution, stem or normalisation: both presets have the code's,
crops of 224 px from 256. Hardware: the code takes 4 GPUs; ours: not run.
For imagenet30 and leave_one_class_out the paper has --classes=banjo,barn,dumbbell,forklift,nail,\\
parking_meter,pillow,schooner,tank,toaster

The paper's AUROC, SimCLR (--config.method.outliers=none --config.data.auxiliary=) / self / OECL,
Tables I, II, IV, VII:
one_vs_rest          imagenet30 64.8 / 87.3 / 97.7 · dior 72.8 / 40.4 / 91.1 ·
                     raabin_wbc 85.9 / 62.1 / 88.6 · dtd - / - / 65.6
leave_one_class_out  imagenet30 94.8 / - / 98.8 · dior 87.7 / - / 87.3 · raabin_wbc 83.6 / - / 82.2
few_shot             k = 0 / 1 / 10 / all: raabin_wbc 68.1 / 76.9 / 79.9 / 83.6 ·
                     ham10000 --obtainable=mel 63.2 / 65.6 / 69.4 / 83.9 ·
                     ham10000 --obtainable=bkl 59.3 / 61.6 / 69.4 / 85.7
diminishing          raabin_wbc (Fig. 3, curves only; its command is in the README)
Table V, norm_mean / norm_ensemble / norm of OECL, one_vs_rest: dior 91.1 / 90.7 / 90.8,
                     raabin_wbc 88.6 / 88.4 / 88.6, imagenet30 97.7 / 97.7 / 95.9
"""

from oecl_cifar import PRESETS, chosen
from simclr_joint_cifar import set_network

from ood_jax.cases import spans
from ood_jax.config import base

IMAGENET_30 = (  # the names of its folders, in order (Hendrycks et al. 2019)
    *("acorn", "airliner", "ambulance", "american_alligator", "banjo"),
    *("barn", "bikini", "digital_clock", "dragonfly", "dumbbell"),
    *("forklift", "goblet", "grand_piano", "hotdog", "hourglass"),
    *("manhole_cover", "mosque", "nail", "parking_meter", "pillow"),
    *("revolver", "rotary_dial_telephone", "schooner", "snowmobile", "soccer_ball"),
    *("stingray", "strawberry", "tank", "toaster", "volcano"),
)
SYNSETS = (  # of these classes, in order: their names in tfds:imagenet2012
    *("n12267677", "n02690373", "n02701002", "n01698640", "n02787622", "n02793495"),
    *("n02837789", "n03196217", "n02268443", "n03255030", "n03384352", "n03443371"),
    *("n03452741", "n07697537", "n03544143", "n03717622", "n03788195", "n03804744"),
    *("n03891332", "n03938244", "n04086273", "n03187595", "n04147183", "n04252077"),
    *("n04254680", "n01498041", "n07745940", "n04389033", "n04442312", "n09472597"),
)
NUMBERS = (  # in order: their numbers there, the same as among the folders of all 1,000 synsets
    *(988, 404, 407, 50, 420, 425, 445, 530, 319, 543, 561, 572, 579, 934, 604),
    *(640, 668, 677, 704, 721, 763, 528, 780, 802, 805, 6, 949, 847, 859, 980),
)
OTHERS = spans(set(range(1000)) - set(NUMBERS))
CLASSES = f"[classes={','.join(SYNSETS)}]"
DATASETS = {  # train and test
    "imagenet30": ("folder:imagenet30/one_class_train", "folder:imagenet30/one_class_test"),
    "imagenet30_tfds": (
        f"tfds:imagenet2012:train{CLASSES}",
        f"tfds:imagenet2012:validation{CLASSES}",
    ),
    "dior": ("folder:dior/train", "folder:dior/test"),
    "raabin_wbc": ("folder:raabin_wbc/Train", "folder:raabin_wbc/TestA"),
    "ham10000": ("folder:ham10000/train", "folder:ham10000/test"),
    "dtd": ("tfds:dtd:train", "tfds:dtd:test"),
}
OUTLIERS = {
    "imagenet22k": "folder:imagenet22k_without_1k",
    "imagenet1k": f"tfds:imagenet2012:train[classes={OTHERS}]",
    "self": "",
}
WEIGHTS = {"dior": 0.1, "raabin_wbc": 0.1, "ham10000": 0.1}  # alpha where it is not 1 (App. I)
CROPS = {"raabin_wbc": 0.5, "ham10000": 0.5}  # least share of a crop where it is not .08 (App. J)


def get_config(argument: str = "imagenet30"):
    dataset, outliers, preset = parsed(argument)
    c = base("oecl", preset)
    c.name = "oecl_" + argument.replace(",", "_")
    c.data.train, c.data.test = DATASETS[dataset]
    c.data.auxiliary = OUTLIERS[outliers]
    c.data.size = 256
    c.data.mean = c.data.std = (0.5, 0.5, 0.5)
    set_network(c, small=False)
    c.model.depth, c.model.width = 18, 64
    c.model.stem, c.model.image_size = "imagenet", 224

    c.method.norm_weight = WEIGHTS.get(dataset, 1.0)
    c.method.crop_scale = c.score.crop_scale = (CROPS.get(dataset, 0.08), 1.0)
    if outliers == "self":
        c.method.outliers = "self"
        c.head.second_outputs = len(c.method.shifts) if preset == "paper" else 0
    c.train.epochs = 1000.0 if outliers == "self" else 500.0

    c.score.scorers = ("norm_mean", "norm", "norm_ensemble", "cosine_norm_mean")
    c.score.augmentations = 32
    return c


def parsed(argument: str) -> tuple[str, str, str]:
    """DATASET[,OUTLIERS][,PRESET] -> (dataset, outliers, preset)."""
    dataset, *words = argument.split(",")
    if dataset not in DATASETS:
        raise ValueError(f"{argument!r}: no data set {dataset!r}; use {', '.join(DATASETS)}")
    outliers, preset = chosen(argument, words, (tuple(OUTLIERS), PRESETS))
    return dataset, outliers or "imagenet22k", preset or "paper"
