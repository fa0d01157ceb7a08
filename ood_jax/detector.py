"""A trained run as a detector: one's own images in, scores and verdicts out."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ood_jax import calibration, features, kept, metrics, needs, scorers, sharding
from ood_jax.checkpoint import Restored, restore_for_scoring
from ood_jax.data.decode import DAMAGED, as_rgb, fit, pillow_rgb, read_file
from ood_jax.data.source import Source
from ood_jax.features import Extracted
from ood_jax.place import place
from ood_jax.plan import CALIBRATION, TRAIN, fitted_sets
from ood_jax.results import places
from ood_jax.scorers import knn
from ood_jax.types import Features, PyTree, Scorer


class Verdicts(NamedTuple):
    """Of N images.

    scores: float64 [N], higher = more OOD. ood_rank: float64 [N], percent of the calibration images
    that look more in-distribution. ood: bool [N], is the score above the threshold?
    """

    scores: np.ndarray
    ood_rank: np.ndarray
    ood: np.ndarray


class Detector:
    """One score of one checkpoint, fitted on its train set and calibrated; `load` makes it.

    name: of the score. size: px that images are shrunk to. threshold: scores above it are OOD.
    state: what the score was fitted to.
    """

    def __init__(
        self,
        network: kept.Network,
        name: str,
        scorer: Scorer,
        fitted: dict[str, Extracted],
        sources: dict[str, Source],
    ):
        self.name, self.size = name, network.config.data.size
        self.network, self.scorer = network, scorer
        try:
            self.state: PyTree = scorer.fit(fitted[TRAIN].features)
            self.calibration = np.sort(self._scores(fitted[CALIBRATION].features))
        except ValueError as error:
            raise ValueError(f"scorer {name}: {error}") from error
        self.threshold = metrics.threshold(self.calibration, network.config.score.keep)
        self._bank, self._source = fitted[TRAIN], sources.get(TRAIN)
        self._arrays = sharding.replicate(network.mesh, (network.params, network.stats))
        self._step = features.jitted_fields(
            network.net, network.config, network.mesh, network.fields, network.extras
        )

    def score(self, images: Any) -> np.ndarray:
        """How far each image is out of distribution: float64 [N], higher = more OOD.

        Args:
          images: uint8 [N, H, W, C] or float [N, H, W, C] of pixels in [0, 1], C = 1, 3 or 4; or a
            sequence of such images of any sizes, PIL images or paths. Any N, without compiling for
            each.

        Raises:
          ValueError: no images, another type, shape or range.
          OSError: a path that cannot be read.
        """
        return self._scores(self.features(self.prepare(images)))

    def verdicts(self, images: Any) -> Verdicts:
        """Scores, OOD ranks and verdicts of images as `score` takes them.

        Raises:
          ValueError, OSError: as `score`.
        """
        return self.judge(self.features(self.prepare(images)))

    def prepare(self, images: Any) -> np.ndarray:
        """Images as `score` takes them -> uint8 [N, size, size, 3]."""
        _check_several(images)
        return np.stack(
            [fit(_rgb(image, f"image {i}"), self.size) for i, image in enumerate(images)]
        )

    def features(self, images: np.ndarray, index: np.ndarray | None = None) -> Features:
        """What the network says of images uint8 [N, size, size, 3], on the host.

        index: int32 [N], what the random views of each come from; None = 0 to N - 1.
        """
        index = np.arange(len(images), dtype=np.int32) if index is None else index
        largest = _up(self.network.config.score.batch, self.network.mesh.size)
        parts = [
            self._forward(images[start : start + largest], index[start : start + largest], largest)
            for start in range(0, len(images), largest)
        ]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def judge(self, found: Features) -> Verdicts:
        """Verdicts on features that `features` gave."""
        scores = self._scores(found)
        rank = 100.0 * np.searchsorted(self.calibration, scores, "left") / len(self.calibration)
        return Verdicts(scores, rank, scores > self.threshold)

    def nearest(self, found: Features, count: int) -> tuple[np.ndarray, list[list[str]]]:
        """The nearest train images: cosines float32 [N, count], and their paths or numbers."""
        if count == 0:
            return np.zeros((len(found.features), 0), np.float32), [[] for _ in found.features]
        feature = self.network.config.score.feature
        cosines, near = knn.nearest(
            knn.pick(self._bank.features, feature),
            knn.pick(found, feature),
            neighbours=min(count, len(self._bank.rows)),
            block=self.network.config.score.block,
        )
        name = str if self._source is None else self._source.name
        return cosines, [[name(int(row)) for row in rows] for rows in self._bank.rows[near]]

    def _scores(self, found: Features) -> np.ndarray:
        return scorers.run(self.scorer, self.state, found, self.network.mesh)

    def _forward(self, images: np.ndarray, index: np.ndarray, largest: int) -> Features:
        """One batch, filled up to a power of two, so that few sizes are compiled."""
        count = len(images)
        size = min(largest, _up(1 << (count - 1).bit_length(), self.network.mesh.size))
        rows = np.minimum(np.arange(size), count - 1)
        batch = {"image": images[rows], "index": index[rows].astype(np.int32)}
        found = self._step(*self._arrays, sharding.global_batch(self.network.mesh, batch))
        held = features.as_features(jax.device_get(found))
        return jax.tree.map(lambda rows: rows[:count], held)


def load(workdir: str, *, scorer: str | None = None, step: int | None = None) -> Detector:
    """The detector that the run in `workdir` is.

    Args:
      scorer: a name of ood_jax.scorers or an import path; None = the first of the last scoring.
        step: of the checkpoint; None = the newest.

    The train features come from W/features where scoring left them, else from the train set. What
    the scores are fitted with is what W/calibration.json was written with, else the checkpoint's
    config.

    Raises:
      ValueError: no checkpoint, no such scorer, or what it needs is not there.
    """
    if scorer is not None and (scorer == scorers.ALL or "," in scorer):
        raise ValueError(f"scorer {scorer!r}: verdicts come from one score, name one")
    restored = restore_for_scoring(workdir, step)
    folder = place(workdir)
    held = calibration.read(places(folder / "results.json")["calibration"])
    config = restored.config if held is None or held.step != restored.step else held.config
    name = scorer or scorers.expand(tuple(config.score.scorers))[0]
    network, built = _network(config, restored, name, workdir)
    network = network._replace(folder=folder / "features")
    sources = _open(config)
    fitted = {part: kept.stored(network, part) for part in (TRAIN, CALIBRATION)}
    if None in fitted.values():
        fitted |= kept.extract(network, fitted_sets(config) if sources is None else sources)
    return Detector(network, name, built, fitted, sources or {})  # type: ignore[arg-type]


def _network(
    config: ConfigDict, restored: Restored, name: str, workdir: str
) -> tuple[kept.Network, Scorer]:
    """The checkpoint's network and the scorer `name`, checked against each other."""
    network = kept.of_checkpoint(restored, workdir, config=config)
    scorer = scorers.build(name, config.score, network.mesh)
    described = needs.Network(config, network.net, (network.params, network.stats))
    if reason := needs.lacking(described, scorer, labelled=True):  # fit says if labels are missing
        raise ValueError(f"scorer {name} needs {reason}")
    extras = () if scorer.extra is None else (scorer.extra,)
    return network._replace(fields=needs.fields(described, [scorer]), extras=extras), scorer


def _open(config: ConfigDict) -> dict[str, Source] | None:
    """The train and calibration sets; None where they are not there (any more)."""
    try:
        return fitted_sets(config)
    except ValueError:
        return None


def _check_several(images: Any) -> None:
    if isinstance(images, str | os.PathLike) or not hasattr(images, "__len__"):
        kind = type(images).__name__
        raise ValueError(f"a {kind} is not several images: give [image], a list or an array")
    if len(images) == 0:
        raise ValueError("no images: give one or more")
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) == 3 and shape[2] in (1, 3, 4):  # not grey images so narrow
        raise ValueError(f"an array {list(shape)} is one image: give image[None] for a batch of it")


def _rgb(image: Any, name: str) -> np.ndarray:
    """One image of any kind that `Detector.score` takes -> uint8 [H, W, 3]."""
    if isinstance(image, str | os.PathLike):
        return read_file(place(image))
    if not isinstance(image, np.ndarray | jax.Array):
        if not hasattr(image, "convert"):
            raise ValueError(
                f"{name} is a {type(image).__name__}: give an array, PIL image or path"
            )
        try:
            return pillow_rgb(image)
        except DAMAGED as error:  # a file that Pillow reads only now
            raise ValueError(f"{name}: cannot be decoded ({error})") from None
    pixels = np.asarray(image)
    if pixels.size and jax.numpy.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name} has floats from {low:g} to {high:g}: give pixels in [0, 1], or uint8"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    return as_rgb(pixels, name)


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
