"""Who does pieces of work: this process where they are few, Ray Data on this machine, or on all machines where these see all there is."""

import subprocess
import sys
from pathlib import Path

import pytest

from robustclip.runtime import mapping
from robustclip.runtime.mapping import mapped


def test_for_a_few_pieces_ray_is_not_started(monkeypatch):
    monkeypatch.setattr(mapping, "connect", lambda: pytest.fail("Ray was started"))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert [*mapped(abs, [*range(mapping.PAYS - 1)], False)] == [*range(mapping.PAYS - 1)]
    with pytest.raises(BaseException, match="Ray was started"):
        mapped(abs, [*range(mapping.PAYS)], False)


PLACES = """
import time


def place(number):
    import ray

    time.sleep(0.5)
    return number, ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
"""
TWO_NODES = """
import sys, warnings
import places, ray
from ray.cluster_utils import Cluster
from robustclip.runtime.mapping import mapped
warnings.filterwarnings("error", module="robustclip")
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1]), "include_dashboard": False})
cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
mine = ray.get_runtime_context().get_node_id()
for anywhere in (False, True):
    found = dict(mapped(places.place, range(12), anywhere))
    assert sorted(found) == list(range(12)), found
    print(anywhere, sorted(node == mine for node in set(found.values())))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("cpus", "anywhere"), [(2, "[False, True]"), (0, "[False]")])
def test_of_two_machines_both_are_used_only_where_they_see_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, anywhere: str
) -> None:
    (tmp_path / "places.py").write_text(PLACES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    done = subprocess.run([sys.executable, "-c", TWO_NODES, str(cpus)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["False [True]", f"True {anywhere}"], done.stderr[-2000:]
