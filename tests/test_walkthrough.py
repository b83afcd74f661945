"""The cluster of several nodes that docs/clusters.md starts on one machine, by its own commands as they are written."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from docs_pages import ROOT, Block, blocks

PAGE, HEADING, MARK = ROOT / "docs" / "clusters.md", "Several nodes on this machine", "ROBUSTCLIP_WALKTHROUGH"


def walkthrough() -> Block:
    (block,) = (block for block in blocks(PAGE) if block.heading == HEADING)
    return block


def test_the_commands_start_a_head_that_works_on_nothing_and_two_nodes() -> None:
    starts = re.findall(r"^ray start (.*)$", walkthrough().text, re.MULTILINE)
    assert [("--head" in start, re.findall(r"--num-cpus (\d)", start)) for start in starts] == [
        (True, ["0"]),
        (False, ["2"]),
        (False, ["2"]),
    ]
    assert set(re.findall(r"127.0.0.1:(\d+)", walkthrough().text)) == set(re.findall(r"--port (\d+)", starts[0])) != set()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a shell in a clone, and end all that was started in it."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # short: Ray puts sockets below it
    away = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    here = {name: value for name, value in os.environ.items() if name not in away}
    yield here | {"RAY_TMPDIR": str(folder), MARK: str(tmp_path)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(tmp_path) and process.pid != os.getpid():
                process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_run_as_they_are_written(environment: dict[str, str], tmp_path: Path) -> None:
    """In a folder that has the clone's commands and environment, so that its `outputs` are its own."""
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    done = subprocess.run(
        ["bash", "-e", "-c", walkthrough().text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"weights sha256 \w{16}", done.stdout)
    assert "/4.0 CPU" in done.stdout  # what `ray status` says of both nodes
    assert list((tmp_path / "outputs" / "nodes" / "runs").glob("*/result.json"))
