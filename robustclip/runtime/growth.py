"""What an autoscaling cluster may grow to: the node types of its launcher's file, since Ray does not say."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustclip.base.errors import UserError

LAUNCHED = "~/ray_bootstrap_config.yaml"  # where `ray up` puts its file on the head
TYPES = "ROBUSTCLIP_NODE_TYPES"  # what that file says under available_node_types, as YAML or JSON, for a cluster without one


@dataclass(frozen=True)
class NodeType:
    """A kind of node: its CPUs and GPUs, and how many of it there may be."""

    cpus: float
    gpus: float
    most: int


def node_types() -> list[NodeType]:
    """Return the kinds of nodes that an autoscaler may add, none where nothing tells of one; raises UserError for what cannot be read."""
    import yaml

    file = Path(LAUNCHED).expanduser()
    where, text = (TYPES, os.environ[TYPES]) if TYPES in os.environ else (str(file), file.read_text() if file.is_file() else "")
    try:
        said: Any = yaml.safe_load(text) or {}
        found = said.get("available_node_types", {}) if where != TYPES else said
        head = said.get("head_node_type") if where != TYPES else None
        return [_kind(each) for name, each in found.items() if name != head]
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, KeyError) as error:
        form = "{gpu_worker: {max_workers: 4, resources: {CPU: 8, GPU: 1}}}"
        raise UserError(
            f"{where}: cannot be read ({' '.join(str(error).split())}); node types are written as in cluster.yaml: {form}"
        ) from error


def _kind(said: Mapping[str, Any]) -> NodeType:
    resources = said.get("resources") or {}
    return NodeType(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)), int(said["max_workers"]))
