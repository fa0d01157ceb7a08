"""launch/jobset.sh with a kubectl that stands in."""

import shlex
import shutil

import numpy as np
import pytest
import yaml
from fake_commands import HARD, Acting, Fakes, printed

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("git") is None, reason="needs bash and git"
)

WORKDIR = "--workdir=gs://bucket/run"
FLAGS = ("--name=ood", "--tpu=tpu-v5-lite-podslice", "--topology=4x8", "--chips=4")

# Answers to `get jobset` are in `endings`: nothing = there is none, NAME = it goes on.
KUBECTL = """
asked = " ".join(args)
if "terminalState" in asked:
    print(take("endings"), end="")
elif "Failed" in asked:
    print(take("why"), end="")
elif "--output=name" in asked:
    print(take("there"), end="")
elif "logs" in args:
    sys.exit(int(take("logs")))
elif "create" in args:
    for word in args:
        if word.startswith("--from-file=") or word.endswith("jobset.yaml"):
            path = word.split("=")[-1]
            with open(path, "rb") as file, open(home + os.path.basename(path), "wb") as kept:
                kept.write(file.read())
"""


@pytest.fixture
def cluster(tmp_path, tree):
    fakes = Fakes(tmp_path / "fakes")
    fakes.add("kubectl", KUBECTL)
    fakes.add("gcloud", "")
    fakes.answers("there", "")
    fakes.answers("logs", 0)
    fakes.answers("endings", "ood ", "ood Completed")

    def act(*words, arguments=(*HARD, WORKDIR)):
        command = [tree / "launch" / "jobset.sh", *words]
        return fakes.run(*command, *(("--", *arguments) if arguments else ()), cwd=tree)

    return Acting(act, fakes=fakes, tree=tree)


def test_the_pod_runs_the_code_with_the_arguments(cluster, tmp_path):
    assert cluster("create", *FLAGS).returncode == 0
    (made,) = [
        call for call in cluster.fakes.calls("kubectl") if call[1:3] == ["create", "configmap"]
    ]
    assert made[3] == "ood-launch"
    # The pod's shell with a worker.sh that tells what it is called with.
    code, home = tmp_path / "code.tgz", tmp_path / "home"
    home.mkdir()
    shutil.copyfile(cluster.fakes.folder / "code.tgz", code)
    script = (cluster.fakes.folder / "run.sh").read_text().replace("/launch/code.tgz", str(code))
    script = script.replace("launch/worker.sh", str(cluster.fakes.add("worker.sh", "")))
    done = cluster.fakes.run("bash", "-c", script, cwd=tmp_path, HOME=str(home))
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (home / "ood_jax").iterdir()}
    assert files == {".gitignore", "constraints.txt", "edited.py", "launch", "new.py"}
    assert (home / "ood_jax" / "edited.py").read_text() == "edited\n"
    install, run = cluster.fakes.calls("worker.sh")
    assert install == ["worker.sh", "install"]
    assert run == ["worker.sh", "run", *HARD, WORKDIR]


def _verbs(cluster):
    calls = [
        " ".join([call[0], *[word for word in call[1:] if not word.startswith("-")][:2]])
        for call in cluster.fakes.calls()
    ]
    return [verb for verb in calls if verb != "kubectl get jobset"]


CREATED = ["kubectl delete configmap", "kubectl create configmap", "kubectl create"]
ENDED = ["gcloud storage rsync", "kubectl delete jobset", "kubectl delete configmap"]


def test_from_the_checkout_to_results(cluster):
    cluster.fakes.answers("logs", 1, 0, 0)  # the first time the pods are not there yet
    done = cluster("all", *FLAGS)
    assert done.returncode == 0, done.stderr
    verbs = [verb.split(" /")[0] for verb in _verbs(cluster)]
    followed = ["kubectl logs", "kubectl get pods", "kubectl logs"]
    assert verbs == [*CREATED, *followed, *ENDED]
    logs = [call for call in cluster.fakes.calls("kubectl") if "logs" in call]
    assert [any("since" in word for word in call) for call in logs] == [False, True]


def test_what_is_there_is_followed(cluster):
    cluster.fakes.answers("there", "jobset.jobset.x-k8s.io/ood")
    done = cluster("all", *FLAGS)
    assert done.returncode == 0 and "is there already" in done.stderr
    assert not any("create" in call for call in cluster.fakes.calls("kubectl"))


@pytest.mark.parametrize(
    ("why", "code"),
    [
        ("FailJobSetFailurePolicyAction: applying FailJobSet failure policy action", 2),
        ("ReachedMaxRestarts: jobset failed due to reaching max number of restarts", 1),
    ],
)
def test_a_failure_says_why(cluster, why, code):
    cluster.fakes.answers("endings", "ood Failed")
    cluster.fakes.answers("why", why)
    done = cluster("all", *FLAGS)
    assert done.returncode == code and f"failed: {why}" in done.stderr
    assert [verb.split(" /")[0] for verb in _verbs(cluster)][-3:] == ENDED


def test_one_that_was_deleted_is_not_waited_for(cluster):
    cluster.fakes.answers("endings", "")
    done = cluster("follow", "--name=ood", arguments=())
    assert done.returncode == 1 and "is gone" in done.stderr


def test_a_dry_run_runs_nothing(cluster):
    dry = cluster("--dry-run", "all", *FLAGS, "--namespace=mine", "--results=dry")
    assert dry.returncode == 0, dry.stderr
    assert cluster.fakes.calls() == []
    assert not (cluster.tree / "dry").exists()
    kubectl = [words for words in printed(dry.stdout) if words[0] == "kubectl"]
    assert all(words[1] == "--namespace=mine" for words in kubectl)
    _, script, manifest = dry.stdout.split("<<'EOF'\n")
    assert shlex.split(script.split("\nEOF\n")[0].splitlines()[-1])[3:] == [*HARD, WORKDIR]
    assert yaml.safe_load(manifest.split("\nEOF\n")[0])["metadata"]["name"] == "ood"


def test_a_tree_too_large_for_a_configmap_is_refused(cluster):
    large = cluster.tree / "large"
    large.write_bytes(np.random.default_rng(0).bytes(1_100_000))
    try:
        done = cluster("create", *FLAGS)
    finally:
        large.unlink()
    assert done.returncode == 2 and "a ConfigMap holds 1 MiB" in done.stderr
    assert cluster.fakes.calls() == []


@pytest.mark.parametrize(
    ("words", "arguments", "says"),
    [
        (["all", *FLAGS[:3]], (WORKDIR,), "--chips="),
        (["all", *FLAGS[:2], "--topology=4", "--chips=4"], (WORKDIR,), "like 4x4"),
        (["all", *FLAGS[:2], "--topology=4x4", "--chips=3"], (WORKDIR,), "--chips=3: the 16 of"),
        (["all", *FLAGS[:2], "--topology=4x4", "--chips=0"], (WORKDIR,), "--chips=0"),
        (["all", *FLAGS, "--image=a|b"], (WORKDIR,), "--image=a|b: letters"),
        (["all", "--name=ood", *FLAGS[2:]], (WORKDIR,), "--tpu=... is missing"),
        (["all", *FLAGS], (), "gs://BUCKET/FOLDER"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_runs(cluster, words, arguments, says):
    done = cluster(*words, arguments=arguments)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert cluster.fakes.calls() == []
