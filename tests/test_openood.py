"""The benchmarks of OpenOOD v1.5: every list opens as its own split, names are its own."""

import numpy as np
import pytest
from PIL import Image

from ood_jax.cache import stamp
from ood_jax.config import named_sources
from ood_jax.data.sources import open_source
from ood_jax.openood import BENCHMARKS, benchmark

# benchmark -> (near, far, set that OOD validation images are of)
GROUPS = {
    "cifar10": ("cifar100 tin", "mnist svhn texture places365", "tin"),
    "cifar100": ("cifar10 tin", "mnist svhn texture places365", "tin"),
    "imagenet200": ("ssb_hard ninco", "inaturalist textures openimage_o", "openimage_o"),
    "imagenet1k": ("ssb_hard ninco", "inaturalist textures openimage_o", "openimage_o"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_sets_open_from_its_folders(name, tmp_path):
    """On a tree as OpenOOD's download has it, one image a list."""
    near, far, validation = GROUPS[name]
    inside = {"imagenet1k": "imagenet"}.get(name, name)
    large = inside.startswith("imagenet")
    splits = [f"train_{inside}", f"val_{inside}", f"test_{inside}", f"val_{validation}"]
    splits += [f"test_{out}" for out in (near + " " + far).split()]
    lists = tmp_path / "benchmark_imglist" / inside
    lists.mkdir(parents=True)
    for i, split in enumerate(splits):
        classic = not large or split == "test_textures"
        folder = tmp_path / ("images_classic" if classic else "images_largescale")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (i, 0, 0)).save(folder / f"{split}.png")
        (lists / f"{split}.txt").write_text(f"{split}.png {3 if inside in split else -1}\n")

    found = benchmark(name)
    assert tuple(named_sources(found.near)) == tuple(near.split())
    assert tuple(named_sources(found.far)) == tuple(far.split())
    specs = [found.train, found.calibration, found.test, found.validation]
    specs += [*named_sources(found.near).values(), *named_sources(found.far).values()]
    for i, spec in enumerate(specs):
        source = open_source(spec, root=str(tmp_path))
        assert source.name(0) == f"{splits[i]}.png" and source.image(0)[0, 0, 0] == i
        if i < 3:
            np.testing.assert_array_equal(source.labels, [3])


def test_names_are_told():
    assert set(BENCHMARKS) == set(GROUPS)
    with pytest.raises(ValueError, match="'imagenet': did you mean imagenet1k"):
        benchmark("imagenet")
    with pytest.raises(ValueError, match="'svhn': there are cifar10, cifar100, imagenet200"):
        benchmark("svhn")


def test_kept_features_follow_the_list(tmp_path):
    """Its change is seen through the folder behind the @, and through filters."""
    (tmp_path / "x.txt").write_text("a.png 1\n")
    before = stamp("list:x.txt@images[:1000]", str(tmp_path))
    assert before == stamp("list:x.txt", str(tmp_path)) is not None
    (tmp_path / "x.txt").write_text("a.png 1\nb.png 1\n")
    assert stamp("list:x.txt@images[:1000]", str(tmp_path)) != before
