"""Out-of-distribution detection without training: published weights and the nearest good image.

    python -m ood_jax.main --config=configs/pretrained_knn.py:BACKBONE \\
        --config.model.weights=FILE --config.data.train=folder:GOOD \\
        --config.data.test=folder:MORE --config.score.far=NAME=folder:OTHERS --workdir=W

BACKBONE  dino_vits16 (default) | dino_vitb16 | dinov2_vits14 | resnet18 | resnet50 | ...: see
          ood_jax/models/backbones.py.
FILE      its PyTorch weights, downloaded by you: .safetensors, or .pth (no code in it is run).
GOOD      folder of images that are as they should be; MORE: good ones kept apart, for judging.
OTHERS    images that are not, if you have some.

Any score can be fitted: --config.score.scorers=mahalanobis_shared,knn; those of logits need a
resnet, whose classifier is of ImageNet-1K. Without data.train and data.test: built-in letters.
Images are cut to their central square and shrunk to 224 px. torchvision's and DINO's own
evaluations shrink the shorter side to 256 and cut out the central 224, and so show 77 % of the
area that is seen here; no key does that.
Hardware: one CPU core or more. Time: not measured. Numbers: not run with published weights.
"""

from ood_jax.config import base
from ood_jax.models.backbones import use_backbone


def get_config(backbone="dino_vits16"):
    c = base("frozen")
    c.name = f"pretrained_knn_{backbone}"
    use_backbone(c, backbone)
    c.score.scorers = ("knn",)
    c.score.neighbour = 1  # enough for a handful of good images; 50 is for tens of thousands
    c.score.batch = 32
    return c
