"""What somebody else's machine needs: no trace of ours, two commands that work, imports that do nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis.internal.conjecture.providers import HypothesisProvider

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

FOREIGN = re.compile(
    r"""(pypi|pythonhosted|download\.pytorch|conda\.anaconda)\.org  # a package index: which one is the user's business
        | (?<![\w.~/-])/(work|root|home/\w+)(?![\w-])               # a folder of somebody's machine""",
    re.VERBOSE,
)


def run_python(code, folder):
    """Run code in a new interpreter, in a folder, and hand back what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_under(heading, text):
    """Return the one line of the first fenced block under a heading."""
    match = re.search(rf"^{heading}\n(?:(?!^#).*\n)*?```\w*\n(.*)\n```$", text, re.MULTILINE)
    assert match, f"no fenced block of exactly one line under {heading!r}"
    return match.group(1)


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("index-url = https://py" + "pi.org/simple", True),
        ("sys.path.insert(0, '/wo" + "rk/main')", True),
        ("/ho" + "me/ada/data", True),
        ("see https://example.com/work/x, ~/work, framework/root, ./home/x", False),
    ],
)
def test_the_pattern_finds_what_it_should(text, foreign):
    assert bool(FOREIGN.search(text)) == foreign


def test_no_committed_file_names_a_package_index_or_a_machine():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and (match := FOREIGN.search(path.read_text(encoding="utf-8", errors="ignore"))):
            found.append(f"{name}: {match.group()}")
    assert not found


def test_readme_carries_the_two_commands():
    text = README.read_text()
    run, test = command_under("## Run it", text), command_under("## Test it", text)
    assert run.endswith(" && .venv/bin/python pipelines/sweep.py")
    assert test.endswith(" && .venv/bin/python -m pytest -n 2 --dist loadgroup")
    prepare_run, prepare_test = run.rpartition(" && ")[0], test.rpartition(" && ")[0]
    assert prepare_run.replace(" --no-dev", "") == prepare_test
    assert "--compile-bytecode" in prepare_test
    assert "uv run" not in text.replace("`uv run`", "")


def test_the_command_is_found_only_as_a_single_line():
    assert command_under("## Run it", "## Run it\nWhy.\n\n```sh\ngo\n```\n") == "go"
    for wrong in ["## Run it\n```sh\ngo\nfurther\n```\n", "## Run it\n## Next\n```sh\ngo\n```\n", "## Run it\ngo\n"]:
        with pytest.raises(AssertionError):
            command_under("## Run it", wrong)


def test_importing_the_package_alone_imports_nothing_heavy(tmp_path):
    code = "import sys, robustclip; print(sorted({'ray', 'torch', 'mlflow', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    assert run_python(code, tmp_path).strip() == "[]"


def test_importing_every_module_changes_nothing(tmp_path):
    code = """
import importlib, logging, os, pathlib, random
import numpy, ray.tune, torch  # where rich is, Tune imports it, and it draws a number
import robustclip

def state():
    return (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads(),
            torch.get_default_dtype(), logging.root.level, list(logging.root.handlers), ray.is_initialized(), os.getcwd())

before = state()
root = pathlib.Path(robustclip.__path__[0])
for path in root.rglob("*.py"):
    importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"))
assert state() == before
"""
    assert run_python(code, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.xdist_group("together")
def test_tests_that_share_something_run_in_one_process(request):
    """Where tests are shared out, their group is part of their name: xdist goes by it, and without it says nothing."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the tests run in one process")
    assert request.node.nodeid.endswith("@together")


def test_what_hypothesis_tries_does_not_depend_on_what_is_loaded():
    """It would draw constants from the modules of ours that tests before this one loaded: examples would hang on the order of files."""
    assert len(HypothesisProvider(None)._local_constants) == 0
