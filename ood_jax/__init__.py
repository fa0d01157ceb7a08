"""ood_jax: image models that know what they do not know. `ood_jax.load(workdir)` is a detector."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ood_jax.detector import Detector, Verdicts, load

__all__ = ["Detector", "Verdicts", "load"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: a `--help` does not wait for jax."""
    if name in __all__:
        from ood_jax import detector

        return getattr(detector, name)
    raise AttributeError(f"module 'ood_jax' has no attribute {name!r}")
