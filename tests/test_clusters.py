"""The cluster files are what Ray takes, and what we want of them where Ray takes too much."""

import copy
import re
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
        ("pinned install", ("setup_commands",), ["pip install ray"]),
    ],
)
def test_we_reject_what_ray_accepts(cloud, fault, path, value):
    planted = plant(load(cloud), path, value)
    check_with_ray(planted)
    assert fault in faults(planted)


def test_kuberay_job_has_the_shape_of_the_operator():
    job = yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
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
