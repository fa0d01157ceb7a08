"""Golden clp: Winkens Eqs. 3-6 in float64."""

import numpy as np
import pytest

from ood_jax import confusion


@pytest.fixture
def g(golden):
    return golden("clp")


@pytest.fixture
def log_c(g):
    return confusion.log_expected(np.log(g["probs"].astype(np.float64)))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equation_3(g, log_c):
    close(np.exp(log_c), g["c_k"])


def test_equation_4_of_images_classes_and_the_set(g, log_c):
    inside = int(g["num_in_classes"])
    per_image = confusion.image_clp(log_c, range(inside))
    close(per_image, g["sample_clp"])
    outside = g["labels"] >= inside
    close(confusion.dataset_clp(per_image[outside]), g["dataset_clp"])
    by_class = confusion.classwise_clp(per_image[outside], g["labels"][outside])
    assert list(by_class) == list(range(inside, g["probs"].shape[2]))
    close(list(by_class.values()), g["classwise_clp"])


def test_equation_5(g, log_c):
    inside = int(g["num_in_classes"])
    log_u = confusion.log_class_confusion(log_c, g["labels"])
    close(np.exp(log_u), g["u"])
    close(log_u[:inside, inside:], g["log_confusion_in_out"])


def test_equation_6(g, log_c):
    log_u = confusion.log_class_confusion(log_c, g["labels"])
    close(confusion.class_distance(log_u), g["class_distance"])
