"""The command line: one word says which command runs, and every command is a script."""

import io
import logging
from pathlib import Path

import pytest

from robustclip import __main__
from robustclip.runtime import cli

ROOT = Path(__file__).resolve().parent.parent


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
