"""Golden oaml_outliers: distances, boundary, candidates; what is kept, official and intended."""

import numpy as np
import pytest

from ood_jax.mine import Settings, farthest_of_round
from ood_jax.neighbours import boundary, kth_distances

SMALL = 1 << 12  # bytes: distances in many blocks, draws in several parts


def units(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("memory", [SMALL, 1 << 30])
def test_distances_and_boundary(golden, memory):
    g = golden("oaml_outliers")
    found = kth_distances(g["id_features"], g["id_features"], k=int(g["K"]), memory=memory)
    np.testing.assert_allclose(found, g["kth_sq_distance"], atol=1e-5)
    chosen = boundary(found, int(g["select"]))
    np.testing.assert_array_equal(chosen, g["boundary_index"])
    np.testing.assert_allclose(g["id_features"][chosen], g["boundary_points"], atol=1e-5)
    np.testing.assert_array_equal(chosen[g["pic_order"]], g["source_index"])


@pytest.mark.parametrize("memory", [16 * SMALL, 1 << 30])
@pytest.mark.parametrize(("selection", "which"), [("paper", "intended"), ("official", "official")])
def test_candidates_and_what_is_kept(golden, selection, which, memory):
    g = golden("oaml_outliers")
    settings = Settings(
        neighbour=int(g["K"]), points=int(g["pic_nums"]), draws=len(g["noise"]),
        sigma=float(g["sigma"]), keep=int(g["keep"]), selection=selection, memory=memory,
    )  # fmt: skip
    bank, source = units(g["id_features"]), g["source_index"]
    noise = (settings.sigma * g["noise"]).astype(np.float32)
    kept, _ = farthest_of_round(
        bank, bank[source] @ bank.T, source, noise, np.full(len(source), np.inf, np.float32),
        settings=settings, cells=SMALL,
    )  # fmt: skip
    kept = np.asarray(kept)
    np.testing.assert_array_equal(kept, g[f"{which}_kept_index"])
    candidates = units((g["id_features"][source][:, None] + noise[None]).reshape(-1, bank.shape[1]))
    np.testing.assert_allclose(candidates[kept], g[f"{which}_outliers"], atol=1e-5)
    distances = kth_distances(bank, candidates, k=settings.neighbour, memory=memory)
    table = g["candidate_kth_sq_distance"]
    np.testing.assert_allclose(distances.reshape(table.shape), table, atol=1e-5)
