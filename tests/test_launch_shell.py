"""Every launcher is shell that parses, and that shellcheck has nothing to say about."""

import re
import shutil
import subprocess

import pytest
from fake_commands import LAUNCH

SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_parses(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name):
    done = subprocess.run(
        ["shellcheck", "-x", f"launch/{name}"],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == ""


def test_no_place_or_registry_is_named():
    """Neither HOST.TLD/PROJECT/IMAGE, a label of Kubernetes having one slash, nor anyone's home."""
    named = re.compile(r"[\w-]+\.(?:io|org|dev|com)/[\w.-]+/|(?<![\w$}])/(?:home|root|Users)/")
    assert named.search("image: host.example.com/project/image")
    assert not named.search("cloud.google.com/gke-tpu-topology: 4x4")
    for path in LAUNCH.iterdir():
        found = named.search(path.read_text())
        assert found is None, (path.name, found)
