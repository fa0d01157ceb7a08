"""launch/jobset.yaml as jobset.sh fills it in: known fields only, and what exit codes lead to."""

import shutil
import subprocess

import pytest
import yaml
from fake_commands import LAUNCH

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("git") is None, reason="needs bash and git"
)

FLAGS = ("--name=ood", "--tpu=tpu-v5-lite-podslice", "--topology=4x8", "--chips=4")


def _filled(tree, *flags):
    script = tree / "launch" / "jobset.sh"
    command = [script, "--dry-run", "create", *FLAGS, *flags, "--", "--workdir=gs://bucket/run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    manifest = done.stdout.partition("jobset.yaml <<'EOF'\n")[2].partition("\nEOF\n")[0]
    return yaml.safe_load(manifest)


# What jobset.x-k8s.io/v1alpha2, batch/v1 and v1 say of the fields that are used: a type, a mapping
# of known fields, [of items], or a tuple of allowed values.
POD_FAILURE = {
    "action": ("FailJob", "FailIndex", "Ignore", "Count"),
    "onPodConditions": [{"type": str, "status": ("True", "False", "Unknown")}],
    "onExitCodes": {"containerName": str, "operator": ("In", "NotIn"), "values": [int]},
}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "resources": {"requests": {"google.com/tpu": int}, "limits": {"google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": ("Never",),  # the one that podFailurePolicy allows
    "terminationGracePeriodSeconds": int,
    "serviceAccountName": str,
    "nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": str,
        "cloud.google.com/gke-tpu-topology": str,
        "cloud.google.com/gke-spot": ("true",),
    },
    "tolerations": [{"key": str, "operator": ("Exists",), "effect": ("NoSchedule",)}],
    "containers": [CONTAINER],
    "volumes": [
        {"name": str, "configMap": {"name": str}, "emptyDir": {"medium": ("Memory",)}},
    ],
}
JOB = {
    "completionMode": ("Indexed", "NonIndexed"),
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [POD_FAILURE]},
    "template": {"spec": POD},
}
RULE = {
    "name": str,
    "action": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    "onJobFailureReasons": [
        (
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        )
    ],
    "onJobFailureMessagePatterns": [str],
}
JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",),
    "kind": ("JobSet",),
    "metadata": {
        "name": str,
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str},
    },
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "failurePolicy": {"maxRestarts": int, "rules": [RULE]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


def _check(value, schema, at="jobset"):
    if isinstance(schema, tuple):
        assert value in schema, f"{at}: {value!r}"
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, f"{at}: {value!r}"
        for i, item in enumerate(value):
            _check(item, schema[0], f"{at}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict) and value.keys() <= schema.keys(), f"{at}: {value!r}"
        for name, item in value.items():
            _check(item, schema[name], f"{at}.{name}")
    else:
        assert type(value) is schema, f"{at}: {value!r}"


@pytest.mark.parametrize("spot", [(), ("--spot",)])
def test_manifest(tree, spot):
    found = _filled(tree, *spot, "--retries=5", "--service-account=writer")
    _check(found, JOBSET)
    assert found["metadata"]["name"] == "ood"
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 5
    (workers,) = found["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 8  # 4x8 chips, 4 a machine
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == bool(spot)
    assert ("tolerations" in pod) == bool(spot)
    assert pod["serviceAccountName"] == "writer"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert "${" not in str(found)


def _job_failure(job, code, disrupted=False):
    """(reason, message) of a Job with a pod that ended so, as Kubernetes has them."""
    for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
        if disrupted and "onPodConditions" in rule:
            return (
                "PodFailurePolicy",
                f"Pod ns/p has condition DisruptionTarget matching FailJob rule at index {i}",
            )
        if code in rule.get("onExitCodes", {}).get("values", ()):
            return (
                "PodFailurePolicy",
                f"Container {rule['onExitCodes']['containerName']} for pod ns/p failed with exit"
                f" code {code} matching FailJob rule at index {i}",
            )
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (2, False, "FailJobSet"),
        (143, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, False, "RestartJobSet"),
        (137, False, "RestartJobSet"),
    ],
)
def test_what_exit_codes_lead_to(tree, code, disrupted, action):
    spec = _filled(tree)["spec"]
    reason, message = _job_failure(spec["replicatedJobs"][0]["template"]["spec"], code, disrupted)
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(p in message for p in patterns):
            assert rule["action"] == action
            return
    assert action == "RestartJobSet"  # what is done where no rule is met


def test_the_template_is_yaml_as_it_is():
    template = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert template["metadata"]["name"] == "${NAME}"
