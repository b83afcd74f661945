"""The house keeps its plan: arrows one way, no circle, Ray and MLflow where they belong, nothing larger than a screen or two."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT, circles, forbidden, functions, graph_of, imported, modules, picture, room_of, table_of

DESIGN = (ROOT / "docs" / "design.md").read_text()
FILE, FUNCTION = 300, 60  # lines
RAY = {"training", "evaluation", "sweeps", "runtime"}  # the rooms that move work about
MLFLOW = {"runtime"}
TABLE = "| room | holds | may import |\n|---|---|---|\n| `low` | x | nothing of ours |\n| `high` | y | `low` |\n\n"
LOW, HIGH = "robustclip.low.a", "robustclip.high.b"


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {module: path.read_text() for module, path in modules().items()}


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).is_file()]


def test_arrows_go_one_way(sources: dict[str, str]) -> None:
    assert forbidden(graph_of(sources), table_of(DESIGN)) == []


def test_there_is_no_circle(sources: dict[str, str]) -> None:
    assert circles(graph_of(sources)) == []


def test_the_plan_itself_has_no_circle() -> None:
    assert circles(table_of(DESIGN)) == []
    assert {room_of(module) for module in modules()} == table_of(DESIGN).keys(), "rooms that were planned and not built, or the reverse"


@pytest.mark.parametrize(
    "planted",
    [
        "import robustclip.high.b",
        "from robustclip.high.b import anything",
        "from robustclip.high import b",
        "def late():\n    from robustclip.high import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from robustclip.high.b import Kind",
    ],
)
def test_a_planted_arrow_is_seen(planted: str) -> None:
    honest = graph_of({LOW: "", HIGH: f"from {LOW} import x"})
    assert forbidden(honest, table_of(TABLE)) == []
    assert circles(honest) == []
    wrong = graph_of({LOW: planted, HIGH: f"from {LOW} import x"})
    assert forbidden(wrong, table_of(TABLE)) == [f"{LOW} imports {HIGH}: low may import nothing of ours"]
    assert circles(wrong) == [[HIGH, LOW]]


def test_a_long_circle_and_a_room_without_a_plan_are_seen() -> None:
    ring = {f"robustclip.low.{a}": f"from robustclip.low import {b}" for a, b in ("xy", "yz", "zx")}
    assert circles(graph_of(ring)) == [[f"robustclip.low.{a}" for a in "xyz"]]
    assert forbidden(graph_of({"robustclip.cellar.a": ""}), table_of(TABLE)) == ["cellar is no room of docs/design.md"]


def test_ray_and_mlflow_are_where_they_belong(sources: dict[str, str]) -> None:
    for module, source in sources.items():
        brought = {name.partition(".")[0] for name in imported(ast.parse(source))}
        assert "ray" not in brought or room_of(module) in RAY, module
        assert "mlflow" not in brought or room_of(module) in MLFLOW, module


def test_nothing_is_larger_than_it_should_be() -> None:
    long = [f"{path.name}: {n} lines" for path in python_files() if (n := len(path.read_text().splitlines())) > FILE]
    long += [f"{piece.name}: {piece.lines} lines" for path in python_files() for piece in functions(path) if piece.lines > FUNCTION]
    assert long == []


def test_the_picture_is_a_command() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "house.py")], capture_output=True, text=True, check=True)
    assert done.stdout == f"{picture()}\n"
    assert re.search(r"^0 circles\n0 forbidden arrows$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^\| \w+ \|", done.stdout, re.MULTILINE)) == 1 + len(table_of(DESIGN))
