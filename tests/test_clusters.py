"""The cluster files are what Ray takes, and what we want of them where Ray takes too much."""

import copy
import os
import re
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from robustclip.runtime import growth

ROOT = Path(__file__).parents[1]
LAUNCHED = {"aws": ROOT / "cluster.yaml", "gcp": ROOT / "clusters" / "gcp.yaml"}
AMI = re.compile(r"ami-[0-9a-f]{17}")


def load(cloud):
    """Read one launcher file."""
    return yaml.safe_load(LAUNCHED[cloud].read_text())


def check_with_ray(config):
    """Raise what `ray up` would raise before it calls the cloud."""
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray moved its private validator")
    config = util.prepare_config(copy.deepcopy(config))
    util.validate_config(config)
    return config


def faults(config):
    """Name what Ray accepts though it is wrong for us."""
    nodes = config["available_node_types"]
    head = nodes[config["head_node_type"]]
    workers = [node for name, node in nodes.items() if name != config["head_node_type"]]
    head_start = " ".join(config.get("head_start_ray_commands", []))
    starts = [line for key in ("head", "worker") for line in config.get(f"{key}_start_ray_commands", []) if "ray start" in line]
    setup = " ".join(config.get("setup_commands", []))
    provider = config["provider"]
    checks = {
        "region": re.fullmatch(r"[a-z]+-[a-z]+-?\d", provider.get("region", "")),
        "zone": provider["type"] != "gcp" or provider.get("availability_zone", "").startswith(provider.get("region", "?")),
        "project": provider["type"] != "gcp" or re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", provider.get("project_id", "")),
        "image": provider["type"] != "aws" or all(AMI.fullmatch(node["node_config"].get("ImageId", "")) for node in nodes.values()),
        "machine": all({"InstanceType", "machineType"} & set(node["node_config"]) for node in nodes.values()),
        "idle head": head["resources"] == {"CPU": 0},
        "scale to nothing": all(node.get("min_workers") == 0 and node.get("max_workers", 0) > 0 for node in workers),
        "spot GPU": all(is_spot(node["node_config"]) for node in workers if node["resources"].get("GPU")),
        "dashboard": re.findall(r"--dashboard-host[= ](\S+)", head_start) == ["127.0.0.1"],
        "token mode": len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in line for line in starts),
        "token file": config.get("file_mounts", {}).get("~/.ray/auth_token") == "~/.ray/auth_token",
        "usage stats": all("--disable-usage-stats" in line for line in starts),
        "spot notice": any("ray drain-node" in line for line in config.get("worker_start_ray_commands", [])),
        "pinned install": "uv sync" in setup and config.get("file_mounts", {}).get("~/robustclip/pyproject.toml") == "pyproject.toml",
    }
    return {name for name, passed in checks.items() if not passed}


def is_spot(node_config):
    """Say whether a node may be taken back by its cloud, at a lower price."""
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or any(entry.get("preemptible") for entry in node_config.get("scheduling", []))


def plant(config, path, value=None):
    """Set the value at a path of keys, or delete it when none is given."""
    config = copy.deepcopy(config)
    *parents, last = path
    inner = config
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return config


@pytest.mark.parametrize("cloud", LAUNCHED)
def test_ray_takes_the_file_and_so_do_we(cloud):
    config = load(cloud)
    assert set(check_with_ray(config)["available_node_types"]) == {"head", "cpu_worker", "gpu_worker"}
    assert faults(config) == set()


GPU = ("available_node_types", "gpu_worker")


@pytest.mark.parametrize("cloud", LAUNCHED)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("max_workers",), "many"),
        (("head_node_type",), "nope"),
        (("provider", "type"), "nowhere"),
        ((*GPU, "typo"), 1),
        ((*GPU, "min_workers"), 99),
        ((*GPU, "resources", "GPU"), 0.5),
        ((*GPU, "node_config"), None),
    ],
)
def test_ray_rejects_a_planted_fault(cloud, path, value):
    planted = plant(load(cloud), path, value)
    with pytest.raises((ValueError, NotImplementedError, jsonschema.ValidationError)):
        check_with_ray(planted)


@pytest.mark.parametrize("cloud", LAUNCHED)
@pytest.mark.parametrize(
    ("fault", "path", "value"),
    [
        ("region", ("provider", "region"), None),
        ("machine", (*GPU, "node_config"), {"InstanceTyp": "g5.2xlarge"}),
        ("spot GPU", (*GPU, "node_config"), {"InstanceType": "g5.2xlarge"}),
        ("scale to nothing", (*GPU, "min_workers"), 1),
        ("idle head", ("available_node_types", "head", "resources"), {}),
        ("dashboard", ("head_start_ray_commands",), ["ray start --head"]),
        ("dashboard", ("head_start_ray_commands",), ["ray start --head --dashboard-host=0.0.0.0"]),
        ("token mode", ("worker_start_ray_commands",), ["ray start --address=$RAY_HEAD_IP:6379"]),
        ("token file", ("file_mounts", "~/.ray/auth_token"), None),
        ("usage stats", ("worker_start_ray_commands",), ["RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379"]),
        ("spot notice", ("worker_start_ray_commands",), ["RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379"]),
        ("pinned install", ("setup_commands",), ["pip install ray"]),
    ],
)
def test_we_reject_what_ray_accepts(cloud, fault, path, value):
    planted = plant(load(cloud), path, value)
    check_with_ray(planted)
    assert fault in faults(planted)


SAYS = {"aws": '{"action": "terminate"}', "gcp": "TRUE"}  # what the cloud tells a spot node that goes, told by the third answer
STUBS = {
    "sleep": "",
    "ray": 'echo "$RAY_AUTH_MODE" "$@" > told.part; mv told.part told',
    "curl": """case "$*" in *api/token*) echo secret; exit;; esac
echo "$@" >> asked; [ $(wc -l < asked) -ge 3 ] && echo '{says}' && exit; {before}""",
}


@pytest.mark.parametrize(("cloud", "before"), [("aws", "exit 22"), ("gcp", "echo FALSE")])
def test_a_spot_node_that_goes_tells_ray(cloud, before, tmp_path):
    """The command as the launcher runs it, its three programs replaced: nothing here has asked a cloud."""
    (command,) = [line for line in load(cloud)["worker_start_ray_commands"] if "drain-node" in line]
    for name, body in STUBS.items():
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f"#!/bin/sh\n{body.replace('{says}', SAYS[cloud]).replace('{before}', before)}\n")
        stub.chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", f"export RAY_HEAD_IP=10.0.0.1; {command}"], cwd=tmp_path, env=env, check=True, timeout=60)
    end = time.monotonic() + 60
    while not (tmp_path / "told").exists() and time.monotonic() < end:
        time.sleep(0.05)
    mode, verb, *options = (tmp_path / "told").read_text().split()
    assert (mode, verb) == ("token", "drain-node")
    assert {"--address=10.0.0.1:6379", "--reason=DRAIN_NODE_REASON_PREEMPTION"} <= set(options)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 3
    assert all("X-aws-ec2-metadata-token: secret" in line if cloud == "aws" else "Metadata-Flavor: Google" in line for line in asked)


def test_ray_knows_what_a_spot_node_tells_it():
    scripts = pytest.importorskip("ray.scripts.scripts")
    names = {option for param in scripts.drain_node.params for option in param.opts}
    (reason,) = [param for param in scripts.drain_node.params if param.name == "reason"]
    for cloud in LAUNCHED:
        (command,) = [line for line in load(cloud)["worker_start_ray_commands"] if "drain-node" in line]
        assert set(re.findall(r"--[a-z-]+(?==)", command)) <= names
        assert re.findall(r"--reason=(\w+)", command)[0] in reason.type.choices


def kuberay():
    """Read the job for the KubeRay operator."""
    return yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())


def check_with_kuberay(job):
    """Raise what the operator's CRD would make Kubernetes say of a job."""
    schema = yaml.safe_load((ROOT / "tests" / "kuberay.schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(job, schema, jsonschema.Draft202012Validator)


def test_kuberay_takes_the_job():
    check_with_kuberay(kuberay())


CLUSTER = ("spec", "rayClusterSpec")
GROUP = (*CLUSTER, "workerGroupSpecs", 1)
POD = (*GROUP, "template", "spec")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "ray.io/v1alpha2"),
        (("metadata", "name"), "Robustclip_Sweep"),
        (("spec", "entryPoint"), "robustclip sweep"),
        (("spec", "ttlSecondsAfterFinished"), "600"),
        ((*CLUSTER, "headGroupSpec"), None),
        ((*CLUSTER, "authOptions", "mode"), "tokens"),
        ((*CLUSTER, "autoscalerOptions", "idleTimeoutMinutes"), 5),
        ((*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ((*CLUSTER, "headGroupSpec", "replicas"), 1),
        ((*GROUP, "maxReplicas"), None),
        ((*GROUP, "groupname"), "gpu"),
        ((*POD, "nodeselector"), {}),
        ((*POD, "tolerations", 0, "effect"), "NoScheduling"),
        ((*POD, "containers", 0, "resources", "limits", "memory"), "32 GB"),
        ((*POD, "containers", 0, "env", 0, "value"), 0),
        ((*POD, "containers", 0, "img"), "robustclip"),
    ],
)
def test_kuberay_rejects_a_planted_fault(path, value):
    with pytest.raises(jsonschema.ValidationError):
        check_with_kuberay(plant(kuberay(), path, value))


def test_kuberay_job_has_the_shape_of_the_operator():
    job = kuberay()
    spec = job["spec"]
    assert spec["entrypoint"].startswith("robustclip sweep --out s3://")
    (head,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    said = yaml.safe_load({each["name"]: each["value"] for each in head["env"]}[growth.TYPES])
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert [kind["max_workers"] for kind in said.values()] == [group["maxReplicas"] for group in groups]
    assert [kind["resources"]["CPU"] for kind in said.values()] == [int(limit["cpu"]) for limit in limits]
    assert [kind["resources"].get("GPU") for kind in said.values()] == [limit.get("nvidia.com/gpu") for limit in limits]
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    pin = re.search(r'"ray\[[^\]]*\]>=([\d.]+),', (ROOT / "pyproject.toml").read_text()).group(1)
    assert cluster["rayVersion"].startswith(f"{pin}.")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert all(group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"] for group in workers)
    for group in [head, *workers]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # the operator takes no other type
        assert group["rayStartParams"]["disable-usage-stats"] == "true"
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["resources"].keys() == {"requests", "limits"}
    gpu = workers[-1]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nodeSelector" in gpu
