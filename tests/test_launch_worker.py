"""launch/worker.sh: one machine's part, with a python that stands in for the installed one."""

import shutil
import subprocess
import time

import pytest
from fake_commands import HARD, LAUNCH, Acting, Fakes

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

WORKER = LAUNCH / "worker.sh"

# In the place of ~/.ood_jax/venv/bin/python: the main job, and the copying of its log.
PYTHON = """
if args[:2] == ["-m", "ood_jax.main"]:
    print("at work", flush=True)
    exec(open(home + "main").read())
elif args[0] == "-c":
    target = args[3].replace("gs://", "bucket/")
    os.makedirs(os.path.dirname(home + target), exist_ok=True)
    put(target, open(args[2]).read())
"""
ARGUMENTS = (*HARD, "--workdir=gs://b/run")


@pytest.fixture
def worker(tmp_path):
    """worker(main, *words) -> what worker.sh WORDS did; main: Python that is the main job."""
    fakes = Fakes(tmp_path / "fakes")
    venv = tmp_path / "home" / ".ood_jax" / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(fakes.add("venv-python", PYTHON))

    def act(main, *words):
        fakes.answers("main", main)
        return fakes.run(WORKER, *words, cwd=tmp_path, HOME=str(tmp_path / "home"))

    return Acting(act, fakes=fakes, home=tmp_path / "home")


def _logs(worker):
    return list((worker.fakes.folder / "bucket" / "b" / "run" / "logs").iterdir())


def test_run_passes_arguments_exit_code_and_log(worker):
    done = worker("print('broken', file=sys.stderr); sys.exit(7)", "run", *ARGUMENTS)
    assert done.returncode == 7
    assert done.stdout == "at work\nbroken\n"
    main, _ = worker.fakes.calls("python")
    assert main == ["python", "-m", "ood_jax.main", *ARGUMENTS, "--distributed"]
    (log,) = _logs(worker)
    assert log.read_text() == "at work\nbroken\n"
    assert worker("", "code").stdout == "7\n"


def test_started_in_the_background_and_followed(worker):
    go = worker.fakes.folder / "go"
    main = f"import time\nwhile not os.path.exists({str(go)!r}): time.sleep(.02)\nsys.exit(143)"
    assert worker(main, "start", *ARGUMENTS).returncode == 0
    assert worker(main, "code").stdout == "running\n"
    assert worker(main, "start", *ARGUMENTS).returncode == 0
    assert len(worker.fakes.calls("python")) <= 1  # the second start left the first alone
    other = worker(main, "start", "--workdir=gs://b/other")
    assert other.returncode == 2 and "another run is under way" in other.stderr
    go.touch()
    done = worker(main, "follow")
    assert done.returncode == 143
    assert done.stdout.startswith("[") and done.stdout.endswith("] at work\n")
    assert worker(main, "code").stdout == "143\n"
    assert worker(main, "follow").stdout == done.stdout  # what ended early can still be read


def test_a_killed_run_is_lost_and_starts_again(worker):
    main = "import signal\nos.killpg(0, signal.SIGKILL)"  # with all that belongs to it
    assert worker(main, "start", *ARGUMENTS).returncode == 0
    assert worker(main, "follow").returncode == 1
    assert worker("", "code").stdout == "lost\n"
    assert worker("", "start", *ARGUMENTS).returncode == 0
    assert worker("", "follow").returncode == 0


SAVES = """
import signal, time
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
{send}
limit = time.monotonic() + {seconds}
while not caught and time.monotonic() < limit: time.sleep(.02)
print("signals:", len(caught), flush=True)
sys.exit(143)
"""


def test_a_signal_to_the_machine_is_not_doubled(worker):
    """All its processes get SIGTERM when it shuts down; this one has only to wait for the job."""
    main = SAVES.format(send="os.kill(os.getppid(), signal.SIGTERM)", seconds=0.3)
    done = worker(main, "run", *ARGUMENTS)
    assert done.returncode == 143
    assert done.stdout == "at work\nsignals: 0\n"


def test_the_log_is_whole_when_the_machine_shuts_down(worker):
    main = SAVES.format(send="os.killpg(0, signal.SIGTERM)\ntime.sleep(.3)", seconds=20)
    assert worker(main, "start", *ARGUMENTS).returncode == 0
    assert worker(main, "follow").returncode == 143
    (log,) = _logs(worker)
    assert log.read_text() == "at work\nsignals: 1\n"


def test_as_process_1_of_a_pod_it_passes_the_signal_on(worker):
    isolated = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*isolated, "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare --pid is not allowed here")
    worker.fakes.answers("main", SAVES.format(send="os.kill(1, signal.SIGTERM)", seconds=20))
    began = time.monotonic()
    done = worker.fakes.run(
        *isolated, WORKER, "run", *ARGUMENTS, cwd=worker.home, HOME=str(worker.home)
    )
    assert done.returncode == 143
    assert done.stdout == "at work\nsignals: 1\n"
    assert time.monotonic() - began < 15


INSTALLS = """
if args[0] == "-c":
    sys.exit({old})
if args[1:2] in (["venv"], ["uv"]):
    os.makedirs(args[-1] + "/bin")
    os.symlink(home + "bin/venv-python", args[-1] + "/bin/python")
"""


@pytest.mark.parametrize("old", [0, 1])
def test_install(worker, old):
    """With Python 3.11 or newer there, and with an older one."""
    shutil.rmtree(worker.home / ".ood_jax")
    for name in ("python3.12", "python3.11", "python3.13", "python3"):
        worker.fakes.add(name, INSTALLS.format(old=old))
    assert worker("", "install").returncode == 0
    venv = str(worker.home / ".ood_jax" / "venv")
    calls = [call for call in worker.fakes.calls() if call[1] != "-c"]
    *made, last = calls
    assert " ".join(last) == (
        "python -m pip install --quiet --constraint constraints.txt --editable .[tpu,gcs]"
    )
    uv = f"python3 -m uv venv --quiet --seed --python 3.12 {venv}"
    pip = "python3 -m pip install --quiet --user uv"
    assert list(map(" ".join, made)) == ([pip, uv] if old else [f"python3.12 -m venv {venv}"])
    worker("", "install")
    assert [call[0] for call in worker.fakes.calls() if call[1] != "-c"][len(calls) :] == ["python"]


@pytest.mark.parametrize("words", [[], ["stop"], ["run", "--config=x"]])
def test_usage(worker, words):
    done = worker("", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
