"""The commands the README shows, one after another, as a user types them: own images to a compared, robust model."""

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustclip import __main__
from robustclip.data import world
from robustclip.runtime import cli

ROOT = Path(__file__).resolve().parent.parent


def command(folder: Path, *words: str) -> str:
    """Run a pipeline and return what it printed; its failure is the test's."""
    env = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    run = [sys.executable, str(ROOT / "pipelines" / words[0]), *words[1:], "--out", str(folder / "out")]
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write class folders of JPEG files, one of them broken."""
    images, labels = world.images("shapes", 200, 5, "train")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        split = "test" if i % 5 == 0 else "train"
        folder = tmp_path / "photos" / split / world.SETS["shapes"].class_names[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.jpg", quality=95)
    next((tmp_path / "photos" / "train").glob("*/*.jpg")).write_bytes(b"\xff\xd8 not an image")
    return tmp_path / "photos"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_own_images_from_folder_to_comparison(photos: Path, tmp_path: Path) -> None:
    prepared = command(tmp_path, "prepare.py", str(photos), "--name", "mine")
    assert re.search(r"skipped.*1|1.*skipped", prepared), prepared
    trained = command(tmp_path, "train.py", "smoke", "--data.name", "mine", "--data.n", "64")
    checkpoint = re.search(r"^checkpoint +(\S+)$", trained, re.MULTILINE)
    assert checkpoint
    table = command(tmp_path, "evaluate.py", checkpoint[1], "--protocol", "smoke", "--sets", "mine", "--n", "30")
    assert "| tiny-vit8 |" in table
    records = [pq.read_table(path) for path in (tmp_path / "out" / "records").glob("*.parquet")]
    assert [sum(1 for attack in each["attack"].to_pylist() if attack == "clean") for each in records] == [30, 30]
    compared = command(tmp_path, "report.py", "--compare", checkpoint[1], "tiny-vit8")
    assert re.search(r"better|worse|not distinguishable", compared)


def test_log_lines_go_to_what_stderr_is_when_they_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ran inside another program leaves no line to a file that was closed since, and says each one once."""
    package = logging.getLogger("robustclip")
    before, level, propagate = list(package.handlers), package.level, package.propagate
    first, second = io.StringIO(), io.StringIO()
    try:
        monkeypatch.setattr("sys.stderr", first)
        cli.say_on_terminal()
        cli.say_on_terminal()
        first.close()
        monkeypatch.setattr("sys.stderr", second)
        package.info("ready")
    finally:
        package.handlers, package.propagate = before, propagate
        package.setLevel(level)
    assert second.getvalue().count("ready") == 1
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 0, "start here:  robustclip sweep"),
        (["--help"], 0, "usage: robustclip COMMAND"),
        (["--version"], 0, "robustclip 0."),
        (["list"], 0, "apgd-ce-20"),
        (["train", "--help"], 0, "usage: robustclip train"),
        (["swep"], 2, "no command 'swep' (did you mean sweep?)"),
        (["train", "demmo"], 2, "no recipe 'demmo'"),
    ],
    ids=str,
)
def test_one_word_says_which_command_runs(words: list[str], status: int, said: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["robustclip", *words])
    monkeypatch.setattr(cli, "say_on_terminal", lambda: None)
    try:
        __main__.main()
        left = 0
    except SystemExit as stopped:
        left = stopped.code
    out, err = capsys.readouterr()
    assert (left, said in out + err) == (status, True), out + err
    if words in ([], ["--help"]):
        assert len(out.splitlines()) <= 24, "one screen"


def test_every_command_is_a_script_and_listed() -> None:
    scripts = {path.stem for path in (ROOT / "pipelines").glob("*.py")}
    assert scripts == {path.stem for path in (ROOT / "robustclip" / "commands").glob("[!_]*.py")} == set(__main__.COMMANDS)
