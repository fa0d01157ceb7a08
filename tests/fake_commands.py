"""Executables that stand in for a cluster's: they record how they are called and answer as told."""

import ast
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

LAUNCH = Path(__file__).resolve().parent.parent / "launch"

# What the quoting must carry to the other side as it is.
HARD = (
    "--config=configs/my recipe.py:combined,cifar100",
    "--config.data.train=tfds:cifar10:train[classes=0-4,7]",
    "--config.score.near=(mine=folder:a b + noise:gaussian)[:1000]",
    "--config.score.scorers=('knn', \"vim\")",
    "--config.name=$HOME `whoami` \\ 'it''s' * ; & | # !",
    "--config.method.name=",
)
HEAD = """
import os, sys
args = sys.argv[1:]
home = os.environ["FAKES"] + "/"
with open(home + "calls", "a") as file:
    file.write(repr([os.path.basename(sys.argv[0]), *args]) + "\\n")
def take(name):  # the next line of a file of answers, the last one for ever
    first, _, others = open(home + name).read().partition("\\n")
    if others:
        put(name, others)
    return first
def put(name, text):
    with open(home + name, "w") as file:
        file.write(text)
"""


class Fakes:
    """A folder of executables; what they were called with is in `calls`."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "calls").touch()

    def add(self, name: str, body: str) -> Path:
        """An executable `name` in Python; has `args`, `home` (this folder), take() and put()."""
        path = self.folder / "bin" / name
        path.write_text(f"#!{sys.executable} -SE\n{HEAD}\n{body}")
        path.chmod(0o755)
        return path

    def answers(self, name: str, *lines: object) -> None:
        (self.folder / name).write_text("\n".join(map(str, lines)))

    def calls(self, name: str = "") -> list[list[str]]:
        rows = [ast.literal_eval(line) for line in (self.folder / "calls").read_text().splitlines()]
        return [row for row in rows if name in ("", row[0])]

    def run(self, *command: str | Path, cwd: Path, **environment: str):
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CLOUDSDK_"))}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**kept, "PATH": path, "FAKES": str(self.folder), "POLL": "0", **more}


class Acting(SimpleNamespace):
    """A fixture that is called, with what its tests look at afterwards."""

    def __init__(self, act, **seen):
        super().__init__(act=act, **seen)

    def __call__(self, *words, **more):
        return self.act(*words, **more)


def checkout(folder: Path) -> Path:
    """A git repository with the launchers, and what a working tree may hold."""
    folder.mkdir()
    shutil.copytree(LAUNCH, folder / "launch")
    for name in ("constraints.txt", "edited.py", "deleted.py", "tests/test_it.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("committed\n")
    (folder / ".gitignore").write_text("/runs/\n")
    for command in (
        "git init --quiet",
        "git add --all",
        "git -c user.name=T -c user.email=t@example.org commit --quiet --message=all",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, timeout=30)
    (folder / "edited.py").write_text("edited\n")
    (folder / "deleted.py").unlink()
    (folder / "new.py").write_text("new\n")
    (folder / "runs").mkdir()
    (folder / "runs" / "ignored").write_text("ignored\n")
    return folder


def printed(out: str) -> list[list[str]]:
    """The commands of a dry run, as a shell would split them."""
    return [shlex.split(line[2:]) for line in out.splitlines() if line.startswith("+ ")]
