"""All results in an S3-compatible store that hangs for 20 seconds in the middle: the weights and records are those of a local folder."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from one_process import cells_of, computed
from processes import free_port

from robustclip import names as models
from robustclip.base.values import override
from robustclip.evaluation import protocols
from robustclip.models.checkpoints import save
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.training.alone import finetune_alone
from robustclip.training.recipes import RECIPES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
HANGS = 20.0  # seconds
OUT = "s3://bucket/out"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Run moto's S3 server with an empty bucket; yield its process and the environment of who uses it."""
    pytest.importorskip("moto", reason="uv sync --group store")
    port = free_port()
    with (tmp_path / "server.log").open("wb") as log:
        process = psutil.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request"}
    bucket = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT", headers=signed)
    try:
        while True:
            try:
                urllib.request.urlopen(bucket, timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        here = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
        yield process, here | keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "HOME": str(tmp_path / "home")}
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture
def base(make_model: Callable[..., Model], tmp_path: Path) -> str:
    save(make_model(), str(tmp_path / "tiny"))
    return str(tmp_path / "tiny")


def run(server: tuple[psutil.Process, dict[str, str]], words: list[str], moment: str) -> str:
    """Run a command, at whose first line with `moment` the store hangs; return what it printed."""
    process, env = server
    said, hung = [], False
    command = [sys.executable, "-m", "robustclip", *words, "--out", OUT]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stderr:
            said.append(line)
            if moment in line and not hung:
                process.suspend()
                time.sleep(HANGS)
                process.resume()
                hung = True
        printed = running.stdout.read()
    assert running.returncode == 0, said
    assert hung, said
    return printed


def test_a_training_goes_on_when_its_store_answers_again(server: tuple[psutil.Process, dict[str, str]], base: str, tmp_path: Path) -> None:
    changes = {"model": base, "data.name": "shapes", "optim.epochs": 6, "checkpoint_every": 2}
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    printed = run(server, ["train", "smoke", *words], "step ")
    local, _ = finetune_alone(models.load(base), override(RECIPES["smoke"].config, changes), str(tmp_path / "local"))
    assert re.findall(r"weights sha256 (\w+)", printed) == [local.sha256]


READ = """
import sys
import pyarrow as pa
from robustclip.records import rows
print(rows.content_sha256(pa.concat_tables([rows.read(sys.argv[1], key) for key in sys.argv[2:]])))
"""


def test_an_evaluation_goes_on_when_its_store_answers_again(
    server: tuple[psutil.Process, dict[str, str]], base: str, tmp_path: Path
) -> None:
    sets = ("shapes", "digits", "tools", "faces", "letters", "weather")
    run(server, ["evaluate", base, "--protocol", "smoke", "--sets", *sets], "evaluated 1/")
    resolved = protocols.resolve(protocols.named("smoke").changed(sets=sets), str(tmp_path / "local"))
    reading = [sys.executable, "-c", READ, f"{OUT}/records", *(cell.key for cell in cells_of(resolved, base))]
    there = subprocess.run(reading, env=server[1], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == records.content_sha256(computed(resolved, base))
