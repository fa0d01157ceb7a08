"""launch/slurm.sbatch with srun, squeue and scontrol that stand in; JAX itself reads Slurm."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from fake_commands import HARD, LAUNCH, Acting, Fakes, printed

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

SCRIPT = LAUNCH / "slurm.sbatch"
ROOT = LAUNCH.parent
JOB = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(ROOT)}


SRUN = """
put("devices", os.environ.get("JAX_LOCAL_DEVICE_IDS", "none"))
sys.exit(int(take("codes")))
"""


@pytest.fixture
def job(tmp_path):
    fakes = Fakes(tmp_path / "fakes")
    fakes.add("srun", SRUN)
    fakes.add("squeue", "print(take('state'))")
    fakes.add("scontrol", "")
    fakes.answers("state", "RUNNING")
    workdir = tmp_path / "run"

    def act(*codes, arguments=(*HARD, f"--workdir={workdir}"), **environment):
        fakes.answers("codes", *codes)
        return fakes.run(SCRIPT, *arguments, cwd=tmp_path, **{**JOB, **environment})

    return Acting(act, fakes=fakes, workdir=workdir)


def test_one_task_a_node_with_all_its_gpus(job):
    assert job(0, SLURM_GPUS_ON_NODE="4", PYTHON="my python").returncode == 0
    (srun,) = job.fakes.calls("srun")
    split = srun.index("my python")
    assert srun[split:] == [
        *("my python", "-m", "ood_jax.main", *HARD),
        *(f"--workdir={job.workdir}", "--distributed"),
    ]
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} < set(srun[:split])
    assert f"--output={job.workdir}/logs/%t.log" in srun
    assert job.workdir.joinpath("logs").is_dir()
    assert job.fakes.folder.joinpath("devices").read_text() == "0,1,2,3"


def test_without_gpus(job):
    assert job(0).returncode == 0
    assert job.fakes.folder.joinpath("devices").read_text() == "none"


@pytest.mark.parametrize(
    ("state", "requeued"),
    [("RUNNING", True), ("COMPLETING", False), ("CANCELLED", False), ("", False)],
)
def test_stopped_and_saved(job, state, requeued):
    """By a signal to the steps; else Slurm has requeued the job, or somebody has cancelled it."""
    job.fakes.answers("state", state)
    done = job(143)
    assert done.returncode == 143
    assert len(job.fakes.calls("srun")) == 1
    expected = [["scontrol", "requeue", "4711"]] if requeued else []
    assert job.fakes.calls("scontrol") == expected


@pytest.mark.parametrize(
    ("codes", "retries", "runs", "code"),
    [((1, 137, 0), "3", 3, 0), ((1,), "2", 3, 1), ((7,), "0", 1, 7), ((2, 0), "3", 1, 2)],
)
def test_failures_are_answered_a_few_times(job, codes, retries, runs, code):
    done = job(*codes, RETRIES=retries)
    assert done.returncode == code
    assert len(job.fakes.calls("srun")) == runs
    assert len({str(call) for call in job.fakes.calls("srun")}) == 1
    assert job.fakes.calls("scontrol") == []


def test_a_signal_to_the_whole_job_is_waited_out(job):
    job.fakes.add("srun", "import time\nput('began', '')\ntime.sleep(.5)\nsys.exit(143)")
    process = subprocess.Popen(
        [SCRIPT, f"--workdir={job.workdir}"], env=job.fakes.environment(**JOB)
    )
    try:
        limit = time.monotonic() + 30
        while not (job.fakes.folder / "began").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
    assert job.fakes.calls("scontrol") == [["scontrol", "requeue", "4711"]]


def test_a_dry_run_prints_what_a_run_does(job):
    dry = job(0, arguments=("--dry-run", *HARD, "--workdir", "gs://b/run"))
    assert dry.returncode == 0 and job.fakes.calls() == []
    _, command = printed(dry.stdout)
    assert "--output=slurm-4711/%t.log" in command
    assert command[-len(HARD) - 3 :] == [*HARD, "--workdir", "gs://b/run", "--distributed"]


@pytest.mark.parametrize(
    ("environment", "arguments", "says"),
    [
        ({"SLURM_JOB_ID": ""}, ("--workdir=w",), "submit it: sbatch"),
        ({}, ("--config=x",), "--workdir=... is missing"),
        ({"RETRIES": "x"}, ("--workdir=w",), "RETRIES=x"),
        ({"SLURM_SUBMIT_DIR": "/"}, ("--workdir=w",), "submit it in the checkout"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_runs(job, environment, arguments, says):
    done = job(0, arguments=arguments, **environment)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert job.fakes.calls() == []


def test_directives():
    lines = SCRIPT.read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(directives)] == directives  # Slurm reads none after a command
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@120"} < set(directives)


TASKS = """
import subprocess
command = args[next(i for i, word in enumerate(args) if not word.startswith("-")):]
task = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0"}
(output,) = [word.split("=", 1)[1] for word in args if word.startswith("--output=")]
running = [
    subprocess.Popen(
        command,
        env={**os.environ, **task, "SLURM_PROCID": str(i)},
        stdout=open(output.replace("%t", str(i)), "a"),
        stderr=subprocess.STDOUT,
    )
    for i in range(2)
]
sys.exit(max([process.wait() for process in running]))
"""
SAYS = """
import logging, jax
logging.basicConfig(level=logging.INFO, format="%(message)s")
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize()
print(f"{jax.process_index()} of {jax.process_count()}", flush=True)
jax.distributed.shutdown()
"""


def test_jax_finds_the_processes_and_all_gpus_of_the_node(job):
    job.fakes.add("srun", TASKS)
    python = job.fakes.add(
        "python-of-job", f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {SAYS!r}])"
    )
    done = job(
        0,
        SLURM_GPUS_ON_NODE="8",
        RETRIES="0",
        PYTHON=str(python),
        SLURM_JOB_ID=str(time.time_ns() % 4096),
    )
    logs = [(job.workdir / "logs" / f"{i}.log").read_text() for i in range(2)]
    assert done.returncode == 0, (done.stderr, logs)
    for i, log in enumerate(logs):
        assert f"{i} of 2\n" in log
        assert "visible devices: 0,1,2,3,4,5,6,7\n" in log
