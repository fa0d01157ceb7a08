"""configs/oecl_sets.py: its sources, its numbers and what it refuses."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ood_jax.data.sources import cut, open_source
from ood_jax.recipe import load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def recipe():
    folder = str(ROOT / "configs")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("oecl_sets")
    finally:
        sys.path.remove(folder)


def loaded(argument: str):
    return load([f"--config={ROOT / 'configs' / 'oecl_sets.py'}:{argument}"])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """An image of each class of ImageNet-1k, in its order."""
    path = tmp_path_factory.mktemp("imagenet") / "all.npz"
    images = np.zeros((1000, 1, 1, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(1000), classes=synsets())
    return open_source(f"npz:{path}")


def synsets() -> np.ndarray:
    """ImageNet-1k's, as TFDS ships them: the classes of tfds:imagenet2012."""
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or found.origin is None:
        pytest.skip("tensorflow_datasets is not installed")
    path = Path(found.origin).parent / "datasets" / "imagenet2012" / "labels.txt"
    return np.array(path.read_text().split())


def filtered(source, spec: str):
    return cut(source, spec[spec.index("[") :])


def test_imagenet_30_is_cut_from_imagenet_1k(recipe, imagenet):
    inside = [imagenet.classes[number] for number in recipe.NUMBERS]
    assert inside == list(recipe.SYNSETS)
    assert len(set(recipe.IMAGENET_30)) == len(recipe.IMAGENET_30) == len(inside) == 30
    assert sorted(recipe.IMAGENET_30) == list(recipe.IMAGENET_30)  # as `folder:` numbers them
    for split in recipe.DATASETS["imagenet30_tfds"]:
        assert sorted(filtered(imagenet, split).labels) == sorted(recipe.NUMBERS)


def test_outliers_of_imagenet_1k_have_no_class_of_imagenet_30(recipe, imagenet):
    outliers = filtered(imagenet, recipe.OUTLIERS["imagenet1k"]).labels
    assert len(outliers) == 970
    assert not set(outliers) & set(recipe.NUMBERS)


@pytest.mark.parametrize(
    ("argument", "weight", "least"),
    [
        ("imagenet30", 1.0, 0.08),
        ("dior", 0.1, 0.08),
        ("raabin_wbc", 0.1, 0.5),
        ("ham10000", 0.1, 0.5),
    ],
)
def test_numbers_of_the_appendix(argument, weight, least):
    config = loaded(argument)
    assert config.method.norm_weight == weight
    assert config.method.crop_scale == (least, 1.0)
    assert (config.train.epochs, config.train.batch) == (500, 256)
    assert loaded(argument + ",self").train.epochs == 1000


def test_presets_differ_where_text_and_code_do():
    paper, official = loaded("dior,self"), loaded("dior,official,self")
    assert (paper.optim.name, official.optim.name) == ("lars", "sgd")
    assert (paper.head.second_outputs, official.head.second_outputs) == (2, 0)
    assert paper.data.auxiliary == official.data.auxiliary == ""
    assert official.name == "oecl_dior_official_self"


def test_folders_open_with_their_classes(tmp_path):
    for split in ("Train", "TestA"):
        for cell in ("Basophil", "Neutrophil"):
            folder = tmp_path / "raabin_wbc" / split / cell
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "1.jpg")
    config = loaded("raabin_wbc")
    for source in (config.data.train, config.data.test):
        opened = open_source(source + "[classes=Neutrophil]", root=str(tmp_path))
        assert opened.classes == ("Basophil", "Neutrophil")
        assert [opened.name(i) for i in range(len(opened))] == ["Neutrophil/1.jpg"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("imagenet", "no data set 'imagenet'; use imagenet30, imagenet30_tfds, dior,"),
        ("dior,self,imagenet22k", "at most one each of imagenet22k | imagenet1k | self, paper |"),
        ("dior,svhn", "'dior,svhn': after the first word, use at most one each of imagenet22k"),
        ("dior,paper,official", "paper | official"),
        ("dior,", "at most one each"),
    ],
)
def test_what_cannot_be_meant_is_answered_in_one_line(argument, message):
    with pytest.raises(ValueError) as error:
        loaded(argument)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
