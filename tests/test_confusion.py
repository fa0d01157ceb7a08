"""Equations 3-6 of confusion log probability: closed forms, and what must not matter."""

import numpy as np
import pytest

from ood_jax import clp_figures, confusion


def test_an_ensemble_that_knows_nothing():
    """c = 1/C everywhere: CLP is log |C_in| / C, and all classes are as far from one another."""
    log_c = confusion.log_expected(confusion.log_softmax(np.zeros((8, 4))) for _ in range(3))
    labels = np.arange(8) % 4
    per_image = confusion.image_clp(log_c, range(3))
    np.testing.assert_allclose(per_image, np.log(3 / 4))
    assert confusion.dataset_clp(per_image[labels == 3]) == pytest.approx(np.log(3 / 4))
    distance = confusion.class_distance(confusion.log_class_confusion(log_c, labels))
    np.testing.assert_allclose(distance, np.sqrt(np.log(4)))


def test_confusions_below_the_smallest_float_are_numbers():
    logits = np.array([[3000.0, 0.0, 0.0], [0.0, 3000.0, 0.0], [0.0, 0.0, 300.0]])
    log_c = confusion.log_expected([confusion.log_softmax(logits)])
    assert confusion.dataset_clp(confusion.image_clp(log_c[:1], [1, 2])) == pytest.approx(
        np.log(2) - 3000
    )
    log_u = confusion.log_class_confusion(log_c, np.arange(3))
    distance = confusion.class_distance(log_u)
    assert distance[0, 1] == pytest.approx(np.sqrt(3000))
    assert np.isfinite(confusion.average_linkage(distance)).all()
    assert confusion.image_clp(log_c, range(3)).tolist() == [0.0, 0.0, 0.0]


def test_neither_images_nor_members_have_an_order():
    rng = np.random.default_rng(0)
    log_p = np.stack([confusion.log_softmax(rng.normal(0, 3, (30, 5))) for _ in range(4)])
    labels, order = np.arange(30) % 5, rng.permutation(30)
    one = confusion.log_expected(log_p)
    other = confusion.log_expected(log_p[::-1, order])
    np.testing.assert_allclose(other, one[order], rtol=1e-12)
    np.testing.assert_allclose(
        confusion.log_class_confusion(other, labels[order]),
        confusion.log_class_confusion(one, labels),
        rtol=1e-12,
    )


def test_average_linkage_joins_the_nearest_first():
    distance = np.array([[0.3, 1.0, 4.0], [1.0, 0.2, 2.0], [4.0, 2.0, 0.1]])
    expected = [[0, 1, 1.0, 2], [2, 3, 3.0, 3]]  # (4 + 2) / 2
    np.testing.assert_allclose(confusion.average_linkage(distance), expected)
    lines, owners, leaves = clp_figures.tree(np.array(expected), [0, 0, 1])
    assert owners == [0, -1] and sorted(leaves) == [0, 1, 2]
    assert lines[:, 1:3, 0].tolist() == [[1.0, 1.0], [3.0, 3.0]]
    assert lines[1, 0, 0] == 0.0 and lines[1, 3, 0] == 1.0


def test_what_has_no_value():
    with pytest.raises(ValueError, match="no members"):
        confusion.log_expected([])
    with pytest.raises(ValueError, match="no image"):
        confusion.dataset_clp(np.zeros(0))
    with pytest.raises(ValueError, match=r"class 2 \(of 3\) has no test image"):
        confusion.log_class_confusion(np.zeros((2, 3)), np.array([0, 1]))
