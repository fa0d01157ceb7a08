from ood_jax.config import base


def get_config(variant: str = "rot_imgn"):
    c = base("dino_negatives")
    c.name = f"dino_cifar_small_{variant}"
    c.data.train = "npz:cifar10-train.npz"
    c.data.test = "npz:cifar10-test.npz"
    if variant in ("rot_imgn", "combined"):
        c.data.auxiliary = "npz:tinyimagenet-train.npz"
    c.model.name = "resnet"
    c.model.depth = 10
    c.model.width = 16
    c.model.stride = 2
    c.model.norm = "group"
    c.model.image_size = 32
    c.head.hidden = 512
    c.head.bottleneck = 64
    c.head.outputs = 256
    c.head.layers = 2
    m = c.method
    m.negatives = {
        "dino": (),
        "rot_imgn": ("auxiliary",),
        "rot_indist": ("in_distribution",),
        "combined": ("in_distribution", "auxiliary"),
    }[variant]
    m.local_size = 16
    m.positive_local = 2
    m.negative_local = 0
    m.negative_global = 1
    m.blur = 0.0
    m.global_scale = (0.4, 1.0)
    m.local_scale = (0.15, 0.4)
    m.teacher_momentum = 0.99
    m.teacher_temperature = 0.03
    m.teacher_temperature_end = 0.02
    m.negative_warmup_epochs = 1.0
    c.optim.lr = 0.001
    c.optim.lr_batch = 0
    c.optim.warmup_epochs = 0.5
    c.optim.freeze_epochs = 0.0
    c.optim.weight_decay_end = 0.04
    c.train.batch = 128
    c.train.steps = 1500
    c.score.near = ("cifar100=npz:cifar100-test.npz[1000:]",)
    return c
