"""Two CPU devices for every test, the golden arrays and the real images where they are."""

import os

# Most of the tests' time is compiling. With what users run (twice as long): XLA_FLAGS=\
# --xla_force_host_platform_device_count=2 python -m pytest tests/parity
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import numpy as np
import pytest
from fake_commands import checkout

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """A compilation cache for the module's tests, most of which wait for the same train step."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The repository that a module's launchers are called in."""
    return checkout(tmp_path_factory.mktemp("checkout") / "tree")


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> the arrays of one golden file; skips where there is none."""
    folder = Path(os.environ.get("OOD_JAX_GOLDEN", ROOT / "../shared/golden"))

    def read(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden arrays at {path}: set OOD_JAX_GOLDEN to their folder")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return read


@pytest.fixture(scope="session")
def real_images():
    """The folder of real image sets; skips where there is none."""
    folder = Path(os.environ.get("OOD_JAX_DATA", ROOT / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set OOD_JAX_DATA to their folder")
    return folder
