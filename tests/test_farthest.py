"""The farthest candidates without all distances: against all distances."""

from functools import partial

import jax
import numpy as np
import pytest

from ood_jax.farthest import EVALUATED, Table, farthest, groups, merged

POINTS, DRAWS, BANK = 3, 50, 40


@pytest.fixture(scope="module")
def products():
    rng = np.random.default_rng(0)
    shapes = ((POINTS, BANK), (DRAWS, BANK), (POINTS, DRAWS))
    own, moved, norms = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    own[:, -2:] = -np.inf  # rows that do not count
    return own, moved, np.abs(norms) + 1


def all_cosines(own, moved, norms, k):
    """The k-th largest cosine of every candidate, float32 [P, L]."""
    return -np.sort(-(own[:, None] + moved[None]), 2)[:, :, k - 1] / norms


@partial(jax.jit, static_argnames=("k", "keep", "cells"))
def run(table, limit, **numbers):
    return farthest(Table(*table), limit, **numbers)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("k", "keep"), [(5, 2), (38, 20)])
@pytest.mark.parametrize("begin", [np.inf, -5.0, 5.0, 0.4])
def test_are_those_of_all_candidates(products, interleaved, k, keep, begin):
    members = groups(POINTS, DRAWS, DRAWS, interleaved=interleaved)[0]
    limit = np.full(POINTS, begin, np.float32)
    cosines, found, _ = run((*products, members), limit, k=k, keep=keep, cells=7 * BANK)
    every = all_cosines(*products, k).reshape(-1)
    table = every.reshape(DRAWS, POINTS).T if interleaved else every.reshape(POINTS, DRAWS)
    np.testing.assert_allclose(cosines, np.sort(table, 1)[:, :keep], rtol=1e-6)
    np.testing.assert_allclose(every[np.asarray(found)], cosines, rtol=1e-6)
    assert all(
        set(row) <= set(group) for row, group in zip(np.asarray(found), members, strict=True)
    )


def test_the_next_limit_leaves_half_of_those_evaluated(products):
    members = groups(POINTS, DRAWS, DRAWS, interleaved=False)[0]
    numbers = {"k": 5, "keep": 2, "cells": 1 << 20}
    found = run((*products, members), np.full(POINTS, np.inf, np.float32), **numbers)
    below = (all_cosines(*products, 5) < np.asarray(found.limit)[:, None]).sum(1)
    assert np.all(below >= 2) and np.all(below <= EVALUATED)
    again = run((*products, members), np.asarray(found.limit), **numbers)
    np.testing.assert_array_equal(again.candidates, found.candidates)


def test_candidates_that_are_all_the_same_end(products):
    own, moved, norms = products
    same = (own, np.zeros_like(moved), np.ones_like(norms))
    members = groups(POINTS, DRAWS, DRAWS, interleaved=False)[0]
    found = run((*same, members), np.full(POINTS, np.inf, "f"), k=5, keep=2, cells=1 << 20)
    np.testing.assert_allclose(found.cosines, all_cosines(*same, 5)[:, :2])
    assert len(set(np.asarray(found.candidates).ravel())) == 2 * POINTS


@pytest.mark.parametrize("interleaved", [False, True])
def test_parts_of_the_draws_are_as_good(products, interleaved):
    at_once = 16  # 50 = 3 * 16 + 2
    own, moved, norms = products
    parts = groups(POINTS, DRAWS, at_once, interleaved=interleaved)
    found = []
    for i, members in enumerate(parts):
        fill = ((0, 4 * at_once - DRAWS), (0, 0))
        some = slice(i * at_once, (i + 1) * at_once)
        padded = np.pad(moved, fill)[some], np.pad(norms.T, fill, constant_values=1)[some].T
        limit = np.full(POINTS, np.inf, np.float32)
        found.append(run((own, *padded, members), limit, k=5, keep=2, cells=1 << 20))
    found = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    cosines, _ = merged(found, 2)
    whole = groups(POINTS, DRAWS, DRAWS, interleaved=interleaved)[0]
    wanted = np.sort(all_cosines(*products, 5).reshape(-1)[whole], 1)[:, :2]
    np.testing.assert_allclose(cosines, wanted, rtol=1e-6)


def test_groups():
    np.testing.assert_array_equal(groups(2, 3, 3, interleaved=False), [[[0, 1, 2], [3, 4, 5]]])
    np.testing.assert_array_equal(groups(2, 3, 3, interleaved=True), [[[0, 2, 4], [1, 3, 5]]])
    # Of 2 draws at once, number 3 of the first part is draw 1 of point 1: 1 * 3 + 1 in all.
    np.testing.assert_array_equal(
        groups(2, 3, 2, interleaved=True), [[[0, 3], [1, 2]], [[0, 4], [2, 4]]]
    )
