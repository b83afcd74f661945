"""The wheel as somebody else installs it: with plain pip, in an empty folder, without the clone and without torchattacks."""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
API = """
import robustclip
model = robustclip.load("tiny-vit8")
result = robustclip.evaluate(model, "shapes", attacks=["apgd-ce-20"], eps=[1, 2, 4], n=20)
print(result)
"""
SPACE = """'''Does it run?'''
from ray import tune

RECIPE, SPACE, METRIC, MODE = "smoke", {"threat.image.eps": tune.grid_search([2.0])}, "val/robust", "max"
"""
ENV = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


def said(words: Sequence[str | Path], folder: Path, seconds: float) -> str:
    """Run a command in a folder and return what it said; it must succeed."""
    done = subprocess.run(words, cwd=folder, env=ENV, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def venv(folder: Path) -> Path:
    """Return the Python of a fresh virtual environment with pip."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel of this clone; skip where no registry is configured that has what builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [venv(folder / "env"), "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    made = subprocess.run(build, env=ENV, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no registry to build from: {made.stderr.strip().splitlines()[-1]}")
    return next(folder.glob("robustclip-*.whl"))


@pytest.mark.slow
def test_the_wheel_has_the_spaces_and_no_requirement_that_fits_nothing(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    spaces = {path.name for path in (ROOT / "tune_spaces").glob("*.py")}
    assert {name.rpartition("/")[2] for name in names if name.startswith("robustclip/tune_spaces/")} == spaces
    assert not [name for name in names if name.startswith(("tests/", "pipelines/", "tune_spaces/"))]
    hard = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert hard
    assert not [line for line in hard if "torchattacks" in line]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_plain_pip_installs_what_sweeps_and_answers_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    python = venv(tmp_path / "env")
    started = time.monotonic()
    said([python, "-m", "pip", "install", "-q", wheel], tmp_path, 2400)
    print(f"pip took {time.monotonic() - started:.0f} s")
    folder = tmp_path / "empty"
    folder.mkdir()
    command = python.with_name("robustclip")
    (folder / "own.py").write_text(SPACE)
    table = said([command, "sweep", "own.py", "--protocol", "smoke"], folder, 1200)
    assert "(chosen by val/strong) |" in table
    assert (folder / "outputs" / "mlflow.db").is_file()
    assert "robust eps=4" in said([python, "-c", API], folder, 600)
    refused = subprocess.run(
        [command, "evaluate", "tiny-vit8", "--protocol", "smoke", "--attacks", "torchattacks-fgsm"],
        cwd=folder, env=ENV, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert "pip install --no-deps torchattacks" in refused.stderr
