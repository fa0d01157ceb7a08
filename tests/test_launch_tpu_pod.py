"""launch/tpu_pod.sh with a gcloud that stands in for Google's: two machines, the real worker.sh."""

import shutil

import pytest
from fake_commands import HARD, Acting, Fakes, printed

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("git") is None, reason="needs bash and git"
)

WORKDIR = "--workdir=gs://bucket/run"
FLAGS = (
    "--name=ood",
    "--project=mine",
    "--zone=a-b",
    "--accelerator=v5litepod-8",
    "--runtime=v2-alpha-tpuv5-lite",
)

# `state`: the queued resource's, `queue`: those that a new request goes through. Where there is a
# file `codes`, it has what the machines of each attempt answer and no machine is there.
GCLOUD = """
verb = args[2:4] if args[0] == "compute" else args[:2]
command = next((a.split("=", 1)[1] for a in args if a.startswith("--command=")), "")
def on_both(command):
    import subprocess
    machines = [f"{home}machine{i}" for i in range(2)]
    running = [
        subprocess.Popen(["bash", "-c", command], cwd=m, env={**os.environ, "HOME": m})
        for m in machines
    ]
    return next((code for code in [p.wait() for p in running] if code), 0)
if verb == ["queued-resources", "list"]:
    print(take("state"))
elif verb == ["queued-resources", "create"]:
    put("state", open(home + "queue").read())
elif verb == ["queued-resources", "delete"]:
    put("state", "")
elif verb[0] == "tpu-vm" and not open(home + "state").read().startswith("ACTIVE"):
    sys.exit(255)
elif verb == ["tpu-vm", "scp"]:
    for i in range(2):
        os.makedirs(f"{home}machine{i}", exist_ok=True)
        with open(args[4], "rb") as code, open(f"{home}machine{i}/ood_jax.tgz", "wb") as there:
            there.write(code.read())
elif verb == ["tpu-vm", "ssh"]:
    if "follow" in command and take("connection") == "lost":
        sys.exit(255)
    if not os.path.exists(home + "codes"):
        sys.exit(on_both(command))
    if command.endswith("code"):
        answer = take("codes")
        if "gone" in answer:
            put("state", "ACTIVE\\nSUSPENDED")  # it takes a while to be known
        if answer == "gone":
            sys.exit(255)
        print(*answer.removesuffix(", gone").split(", "), sep="\\n")
    if command.endswith("follow"):
        sys.exit(1)
"""

# Python of a machine: makes its environment, and in that is the main job.
PYTHON = """
if args[:2] == ["-m", "venv"]:
    os.makedirs(args[2] + "/bin")
    os.symlink(home + "bin/python3.12", args[2] + "/bin/python")
elif args[:2] == ["-m", "ood_jax.main"]:
    print("main has", *sorted(os.listdir()), open("edited.py").read())
"""


@pytest.fixture
def pod(tmp_path, tree):
    fakes = Fakes(tmp_path / "fakes")
    fakes.add("gcloud", GCLOUD)
    fakes.add("python3.12", PYTHON)
    fakes.answers("state", "")
    fakes.answers("queue", "ACTIVE")
    fakes.answers("connection", "")

    def act(*words, arguments=(*HARD, WORKDIR), **environment):
        command = [tree / "launch" / "tpu_pod.sh", *words]
        return fakes.run(
            *command, *(("--", *arguments) if arguments else ()), cwd=tree, **environment
        )

    return Acting(act, fakes=fakes, tree=tree)


def _verbs(pod):
    """What was asked of gcloud, less the questions for the state."""
    verbs = [call[3:5] if call[1] == "compute" else call[1:3] for call in pod.fakes.calls("gcloud")]
    return [" ".join(v if v[0] != "tpu-vm" else v[1:]) for v in verbs if v[1] != "list"]


def _mains(pod):
    return [call for call in pod.fakes.calls("python") if call[2] == "ood_jax.main"]


ONCE = ["scp", "ssh", "ssh", "ssh", "ssh"]  # the code, install, start, follow, code
END = ["storage rsync", "queued-resources delete"]


def _attempts(pod):
    commands = [call[6] for call in pod.fakes.calls("gcloud") if call[4] == "ssh"]
    return sum("launch/worker.sh start" in command for command in commands)


def test_from_the_checkout_to_results(pod):
    pod.fakes.answers("queue", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = pod("all", *FLAGS, "--spot", "--create-flag=--network=n")
    assert done.returncode == 0, done.stderr
    assert _verbs(pod)[0] == "queued-resources create"
    assert _verbs(pod)[-2:] == ["storage rsync", "queued-resources delete"]
    create = next(call for call in pod.fakes.calls("gcloud") if call[4] == "create")
    assert set(create[5:]) == {
        "ood",
        "--node-id=ood",
        "--accelerator-type=v5litepod-8",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--network=n",
        "--project=mine",
        "--zone=a-b",
    }
    assert _mains(pod) == [["python", "-m", "ood_jax.main", *HARD, WORKDIR, "--distributed"]] * 2
    said = [line.partition("] ")[2] for line in done.stdout.splitlines()]
    assert said == ["main has .gitignore constraints.txt edited.py launch new.py edited", ""] * 2
    fetch = next(call for call in pod.fakes.calls("gcloud") if call[1] == "storage")
    assert fetch[-2:] == ["gs://bucket/run", "runs/ood"]
    assert "ood is WAITING_FOR_RESOURCES" in done.stderr
    index = pod.fakes.run("git", "status", "--short", cwd=pod.tree).stdout
    assert index.split() == ["D", "deleted.py", "M", "edited.py", "??", "new.py"]  # as it was


def test_a_dry_run_prints_what_a_run_does(pod):
    dry = pod("--dry-run", "all", *FLAGS, "--results=dry")
    assert dry.returncode == 0, dry.stderr
    assert pod.fakes.calls() == []
    assert not (pod.tree / "dry").exists()
    pod.fakes.answers("codes", "0, 0")
    assert pod("all", *FLAGS, "--results=dry").returncode == 0
    planned = [words[1:] for words in printed(dry.stdout) if words[0] == "gcloud"]
    calls = [call[1:] for call in pod.fakes.calls("gcloud")]
    for words, call in zip(planned, calls, strict=True):
        scratch = call[4] if "SCRATCH" in words[4] else words[4]
        assert [*words[:4], scratch, *words[5:]] == call


def test_machines_that_are_taken_away_are_asked_for_again(pod):
    pod.fakes.answers("codes", "143, 143, gone", "gone", "0, 0")
    done = pod("all", *FLAGS, "--retries=0")
    assert done.returncode == 0, done.stderr
    assert _attempts(pod) == 3
    assert _verbs(pod).count("queued-resources create") == 3
    assert _verbs(pod).count("queued-resources delete") == 3
    commands = [call[6] for call in pod.fakes.calls("gcloud") if "start" in " ".join(call[6:7])]
    assert len(set(commands)) == 1  # the same command


@pytest.mark.parametrize(
    ("codes", "attempts", "exit_code"),
    [
        (["1, 143", "0, 0"], 2, 0),  # it failed because the other one had stopped
        (["143, 2", "0, 0"], 2, 0),
        (["0, 1", "0, 0"], 2, 0),
        (["1, 0", "lost, 0", "0, 0"], 2, 1),
        (["2, 1"], 1, 2),
        (["0, 2"], 1, 2),
    ],
)
def test_what_exit_codes_lead_to(pod, codes, attempts, exit_code):
    pod.fakes.answers("codes", *codes)
    assert pod("all", *FLAGS, "--retries=1").returncode == exit_code
    assert _verbs(pod) == ["queued-resources create", *ONCE * attempts, *END]


def test_a_lost_connection_is_not_a_lost_run(pod):
    pod.fakes.answers("connection", "lost", "")
    pod.fakes.answers("codes", "running, 0", "0, 0")
    assert pod("all", *FLAGS, "--retries=0").returncode == 0
    assert _attempts(pod) == 1
    assert _verbs(pod)[1:] == [*ONCE, "ssh", "ssh", *END]


def test_machines_that_cannot_be_reached(pod):
    """They are asked three times; then it is a failure."""
    pod.fakes.add("gcloud", GCLOUD.replace('answer == "gone"', "True"))
    pod.fakes.answers("codes", "")
    assert pod("all", *FLAGS, "--retries=0").returncode == 1
    assert _verbs(pod)[1:] == [*ONCE, *["ssh"] * 4, *END]


def test_a_request_that_fails_ends_it(pod):
    pod.fakes.answers("queue", "FAILED")
    done = pod("all", *FLAGS)
    assert done.returncode == 1 and "describe ood" in done.stderr
    assert _verbs(pod) == ["queued-resources create", "queued-resources delete"]


def test_gcloud_that_is_not_set_up_ends_it(pod):
    pod.fakes.add("gcloud", "sys.exit(1)")
    done = pod("all", *FLAGS)
    assert done.returncode == 1
    assert len(pod.fakes.calls("gcloud")) == 1


def test_actions_one_by_one(pod):
    pod.fakes.answers("codes", "0, 0")
    for action in ("create", "install", "run", "fetch", "delete"):
        arguments = (*HARD, WORKDIR) if action in ("run", "fetch") else ()
        done = pod(action, *FLAGS, arguments=arguments)
        assert done.returncode == 0, (action, done.stderr)
    assert _verbs(pod) == [
        "queued-resources create",
        *ONCE,
        "storage rsync",
        "queued-resources delete",
    ]


def test_project_and_zone_from_the_environment(pod):
    done = pod(
        "delete", "--name=ood", arguments=(), CLOUDSDK_CORE_PROJECT="p", CLOUDSDK_COMPUTE_ZONE="z"
    )
    assert done.returncode == 0
    assert pod.fakes.calls("gcloud")[-1][-2:] == ["--project=p", "--zone=z"]


@pytest.mark.parametrize(
    ("words", "arguments", "says"),
    [
        ([], (), "choose one of create install run fetch delete all"),
        (["stop"], (), "action 'stop'"),
        (["all", *FLAGS[:4]], (WORKDIR,), "--runtime=... is missing"),
        (["delete", "--name=ood", "--zone=z"], (), "--project=... is missing"),
        (["create", "--name=Ood", *FLAGS[1:]], (), "--name=Ood: 2 to 40"),
        (["all", *FLAGS, "--retries=x"], (WORKDIR,), "--retries=x: a whole number"),
        (["all", *FLAGS, "--spots"], (WORKDIR,), "flag '--spots'"),
        (["all", *FLAGS, "--zone="], (WORKDIR,), "flag '--zone='"),
        (["all", *FLAGS], ("--config=x",), "gs://BUCKET/FOLDER"),
        (["all", *FLAGS], ("--workdir", "runs/x"), "--workdir=runs/x after --"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_runs(pod, words, arguments, says):
    done = pod(*words, arguments=arguments)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert pod.fakes.calls() == []


def test_help(pod):
    done = pod("--help", arguments=())
    assert done.stdout.startswith("One run on a slice") and "set -e" not in done.stdout
