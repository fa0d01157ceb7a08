"""MCD on CIFAR (Yu & Aizawa 2019): two classifiers that agree on the classes and on nothing else.

    python -m ood_jax.main --config=configs/mcd_cifar.py:ID[,OOD][,SETTING][,SIZE][,KEY=VALUE...] \\
        --config.data.root=DIR

ID       cifar10 (default) | cifar100
OOD      of the unlabelled mixture, joined by +: the other CIFAR (default) | tinyimagenet | of
         ODIN's release (github.com/facebookresearch/odin) tin_crop, tin_resize, lsun_crop,
         lsun_resize, isun
SETTING  transductive (default, the paper's): the mixture is the test images themselves, less the
         first 1,000 of each set, which the paper holds out; every table marks it | inductive: 5,000
         last train images, not trained on with labels, and 5,000 of the OOD set that are in no
         number (of ODIN's sets, which have test images alone, the 1,000 held out)
SIZE     densenet (default, DenseNet-BC-100-12, 300 epochs) | wrn (WRN-28-10, 200 epochs) | small
         (ResNet-10 of width 16, for two CPU cores)
KEY      n_in=N, n_out=N: a sample of so many images of each kind (Table 3; n_out of every OOD set)
         test=OOD: what is scored, where it is not what the mixture has (Table 4)
DIR      holds cifar10-train.npz, cifar10-test.npz, cifar100-test.npz (`python -m ood_jax.prepare`
         writes them) and cifar100-train.npz, tinyimagenet-train.npz or ODIN's folders where used

Stage pretrain trains both classifiers with labels, stage finetune goes on for 10 epochs at LR .1;
a public reproduction needed --config.finetune.optim.lr=.001. The rest of the optimiser is chosen:
momentum .9, 64 images a step, decay 1e-4 as the DenseNet code that ODIN used, wrn 5e-4 as its own
paper. small has AdamW. No OOD image is used with a label: nothing is tuned on one.
The paper, dense, CIFAR-100 against TIN-resize: FPR95 1.9, AUROC 99.6; CIFAR-10 99.6 (wrn 99.6 and
99.7). With a balanced mixture of CIFAR-10 the margin 1.2 is above (ln 10) / 2, so that Eq. 5 pushes
images of the classes too. Ours: small in the README, at the paper's size not run.
"""

from baselines_cifar import SEEN, UNSEEN
from simclr_joint_cifar import CLASSES, OTHER, set_images

from ood_jax.config import base, staged

SETTINGS = ("transductive", "inductive")
SIZES = ("densenet", "wrn", "small")
HELD_OUT = 5000  # images of each kind, inductive
RELEASED = {  # of ODIN, by their folders
    "tin_crop": "Imagenet",
    "tin_resize": "Imagenet_resize",
    "lsun_crop": "LSUN",
    "lsun_resize": "LSUN_resize",
    "isun": "iSUN",
}
TESTED = {  # images that are scored
    **{name: f"npz:{name}-test.npz[1000:]" for name in CLASSES},
    "tinyimagenet": UNSEEN,
    **{name: f"folder:{folder}[1000:]" for name, folder in RELEASED.items()},
}
UNTESTED = {  # others of the same sets
    **{name: f"npz:{name}-train.npz[:{HELD_OUT}]" for name in CLASSES},
    "tinyimagenet": f"{SEEN}[:{HELD_OUT}]",
    **{name: f"folder:{folder}[:1000]" for name, folder in RELEASED.items()},
}


def get_config(argument: str = "cifar10"):
    given = parsed(argument)
    dataset, size = given["id"], given["size"] or SIZES[0]
    mixed = given["ood"] or OTHER[dataset]
    sets = {one: f"{one}={TESTED[one]}" for one in (given["test"] or mixed).split("+")}
    inductive = given["setting"] == "inductive"
    pretrain, finetune = two_stages(CLASSES[dataset], size)
    for c in (pretrain, finetune):
        set_images(c, dataset)
        c.score.near = tuple(text for one, text in sets.items() if one in CLASSES)
        c.score.far = tuple(text for one, text in sets.items() if one not in CLASSES)
        if inductive:
            c.data.train = f"npz:{dataset}-train.npz[:-{HELD_OUT + 1000}]"
    inside = f"npz:{dataset}-train.npz[-{HELD_OUT + 1000}:-1000]"
    parts = {dataset: (inside if inductive else TESTED[dataset]) + _sample(given["n_in"])}
    for one in mixed.split("+"):
        parts[one] = (UNTESTED if inductive else TESTED)[one] + _sample(given["n_out"])
    finetune.data.auxiliary = " + ".join(f"{one}={source}" for one, source in parts.items())
    name = "mcd_" + argument.replace(",", "_").replace("=", "_")
    return staged(name, pretrain=pretrain, finetune=finetune)


def _sample(count: str) -> str:
    return f"[sample={count}]" if count else ""


def two_stages(classes: int, size: str):
    """Pre-training and fine-tuning: networks, optimisers, epochs and scores; no images."""
    pretrain, finetune = (_stage(method, classes, size) for method in ("supervised", "mcd"))
    finetune.model.weights = "stage:pretrain"
    if size == "small":
        pretrain.train.epochs, pretrain.optim.warmup_epochs = 6.0, 0.5
        finetune.train.epochs, finetune.optim.lr = 3.0, 0.001
    else:
        pretrain.train.epochs = 300.0 if size == "densenet" else 200.0
        pretrain.optim.drops, finetune.optim.drops = (0.5, 0.75), ()
        finetune.train.epochs = 10.0
    return pretrain, finetune


def _stage(method: str, classes: int, size: str):
    c = base(method)
    c.model.name = {"densenet": "densenet", "wrn": "wide_resnet", "small": "resnet"}[size]
    c.model.depth = {"densenet": 100, "wrn": 28, "small": 10}[size]
    c.model.width = {"densenet": 12, "wrn": 160, "small": 16}[size]
    c.model.stride = 2 if size == "small" else 1
    c.model.image_size = 32
    c.head.name = "linear"
    c.head.outputs = c.head.second_outputs = classes
    c.method.crop_pad = 4
    c.optim.lr_batch, c.optim.min_lr, c.optim.clip = 0, 0.0, 0.0
    c.optim.warmup_epochs = c.optim.freeze_epochs = 0.0
    c.score.scorers = ("l1_discrepancy", "msp", "odin", "energy")
    if size == "small":
        c.optim.lr, c.optim.weight_decay, c.optim.weight_decay_end = 0.004, 0.05, 0.05
        c.train.batch = 128
        return c
    c.optim.name, c.optim.schedule, c.optim.lr, c.optim.no_decay = "sgd", "step", 0.1, ""
    c.optim.weight_decay = c.optim.weight_decay_end = 1e-4 if size == "densenet" else 5e-4
    c.train.batch = 64
    return c


def parsed(argument: str) -> dict[str, str]:
    """The argument as {KEY: text}, its words under id, ood, setting and size; "" = not given."""
    dataset, *words = argument.split(",")
    keys = dict.fromkeys(SETTINGS, "setting") | dict.fromkeys(SIZES, "size")
    pairs = [word.split("=", 1) if "=" in word else [keys.get(word, "ood"), word] for word in words]
    given = dict.fromkeys(("ood", "setting", "size", "n_in", "n_out", "test"), "")
    if dataset not in CLASSES or len(dict(pairs)) < len(pairs) or not {*dict(pairs)} <= {*given}:
        raise ValueError(
            f"{argument!r}: write ID[,OOD][,SETTING][,SIZE][,n_in=N][,n_out=N][,test=OOD], each"
            f" once, with ID {' or '.join(CLASSES)}"
        )
    given |= dict(pairs)
    others = [name for name in TESTED if name != dataset]
    for name in filter(None, given["ood"].split("+") + given["test"].split("+")):
        if name not in others:
            raise ValueError(
                f"{argument!r}: {name!r} is no OOD set ({', '.join(others)}), SETTING"
                f" ({', '.join(SETTINGS)}) or SIZE ({', '.join(SIZES)})"
            )
    return given | {"id": dataset}
