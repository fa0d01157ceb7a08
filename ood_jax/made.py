"""The outliers that a stage leaves when it is done: their file, and what tells whether they serve.

WORKDIR/outliers.npz is `outliers.write`'s. Beside it outliers.json has the checks of
`outlier_facts`, for the report, and pictures.png the first of them where they are images.
"""

import json
import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ood_jax import outliers, sharding
from ood_jax.atomic import replaced
from ood_jax.cache import digest
from ood_jax.config import to_json
from ood_jax.outlier_facts import lines, outlier_facts
from ood_jax.place import kind, place
from ood_jax.train import Run
from ood_jax.types import PyTree
from ood_jax.vectors import OUTLIERS

FACTS = "outliers.json"
PICTURES = "pictures.png"
SCHEMA = 1  # of FACTS


def make_outliers(run: Run, params: PyTree, workdir: str, *, label: str) -> None:
    """Makes WORKDIR/outliers.npz of a stage that is done, unless it is there and of this run.

    label: what the screen calls the stage.

    Raises:
      ValueError: embeddings or outliers that nothing can be made of; OSError: a full disk.
    """
    maker = run.method.maker
    assert maker is not None
    path = place(workdir) / OUTLIERS
    params = jax.device_get(sharding.replicate(run.mesh, params))
    provenance = _provenance(run, params)
    serves = _serve(path, provenance) and bool(kind(place(workdir) / FACTS))
    if jax.process_count() > 1:  # one may look when another has already written
        serves = bool(multihost_utils.broadcast_one_to_all(np.array(serves, np.int32)))
    if serves:
        return
    vectors = run.vectors
    # Several processes make all of it each: what is made is small, and all read the same file.
    mesh = run.mesh if jax.process_count() == 1 else sharding.local_mesh()
    features, arrays = maker.make(params, vectors, run.train.labels, mesh)
    if jax.process_index() == 0:
        outliers.write(path, outliers.Outliers(features, maker.kind, provenance, arrays))
        facts = outlier_facts(vectors.embeddings[vectors.known], features)
        for line in lines(facts):
            print(f"{label}: {line}", file=sys.stderr, flush=True)
        if maker.picture is not None:
            maker.picture(features, place(workdir) / PICTURES)
        written = {"schema": SCHEMA, "kind": maker.kind, "provenance": provenance, **facts}
        with replaced(place(workdir) / FACTS) as fresh:
            fresh.write_text(json.dumps(written, indent=1, allow_nan=False) + "\n")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(OUTLIERS)  # the next stage reads it everywhere


def _provenance(run: Run, params: PyTree) -> dict[str, Any]:
    """Where outliers came from: seed, settings, embeddings, near outliers, the stage's network."""
    settings = json.loads(to_json(run.config))["method"]
    origins = {key: value for key, value in run.vectors.origins.items() if key != "embeddings"}
    if jax.tree.leaves(params):
        origins |= {"network": {"step": run.config.train.steps, "arrays": digest(params)}}
    return {
        "seed": run.config.seed,
        "settings": settings,
        "checkpoint": run.vectors.origins["embeddings"],
        **origins,
    }


def _serve(path: epath.Path, provenance: dict[str, Any]) -> bool:
    """Is there a whole file, made of the same embeddings in the same way?"""
    if not kind(path):
        return False
    try:
        found = outliers.read(path).provenance
    except ValueError:
        return False
    return found == json.loads(json.dumps(provenance))
