"""Golden clp: Winkens Eqs. 3-6 in float64."""

import numpy as np
import pytest

from ood_jax import confusion


@pytest.fixture
def g(golden):
    return golden("clp")


@pytest.fixture
def log_c(g):
    with np.errstate(divide="ignore"):  # float32 has a probability of 0
        return confusion.log_expected(np.log(g["probs"].astype(np.float64)))


def close(found, expected, atol=0.0):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=atol)


def test_equation_3(g, log_c):
    close(np.exp(log_c), g["c_k"])


def test_equation_4_of_images_classes_and_the_set(g, log_c):
    inside = int(g["num_in_classes"])
    per_image = confusion.image_clp(log_c, range(inside))
    # Sums of float32 probabilities may be 1 + 1e-7, and the log of a sum near 1 is known to 1e-15.
    close(per_image, np.minimum(g["sample_clp"], 0.0), atol=1e-14)
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
