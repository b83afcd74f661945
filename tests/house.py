"""The house as it is built: its rooms, the arrows between them, circles, and how large its pieces are.

    python tests/house.py [ROOT]

prints a line per room: files, lines, the longest file and function, and which rooms it imports; then circles and forbidden arrows. The
table of what may import what stands in docs/design.md. Imports inside functions and under TYPE_CHECKING count like all others.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "robustclip"
TOP = ("names", "api", "listing")  # files beside the rooms; what starts the package is "top"
Graph = Mapping[str, set[str]]  # module -> the modules it imports


@dataclass(frozen=True)
class Piece:
    """A file or a function with its lines."""

    name: str
    lines: int


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that code imports, wherever the import stands; a name out of a module also with the module before it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which modules each of some modules, given by their source, imports: a submodule where the name is one, else its package."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = (name if name in sources else name.rpartition(".")[0] for name in imported(ast.parse(source)))
        graph[module] = {name for name in names if name in sources and name != module}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def room_of(module: str) -> str:
    """Return the room of a module: its package below the root's, `api` for the files of the Python API, `top` for what starts it."""
    first = module.split(".")[1] if "." in module else "top"
    return {"listing": "api", "__main__": "top"}.get(first, first)


def table_of(design: str) -> dict[str, set[str]]:
    """Return room -> what it may import, from the table `| room | holds | may import |` of docs/design.md."""
    _, head, below = design.partition("| room | holds | may import |\n")
    assert head, "docs/design.md has no table | room | holds | may import |"
    rows = [line.split("|") for line in below.partition("\n\n")[0].splitlines()[1:]]
    return {row[1].strip().strip("`"): set(re.findall(r"`([\w.]+)`", row[3])) for row in rows}


def forbidden(graph: Graph, table: Mapping[str, set[str]]) -> list[str]:
    """Return the arrows that the table does not allow, and the rooms that it does not know."""
    found = [f"{room} is no room of docs/design.md" for room in sorted({room_of(module) for module in graph} - table.keys())]
    for module, others in graph.items():
        for other in sorted(others):
            mine, theirs = room_of(module), room_of(other)
            if mine != theirs and theirs not in table.get(mine, set()):
                found.append(f"{module} imports {other}: {mine} may import {', '.join(sorted(table.get(mine, ()))) or 'nothing of ours'}")
    return found


def functions(path: Path) -> Iterator[Piece]:
    """Yield every function of a file with its lines, its decorators left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Piece(f"{path.name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)


def longest(pieces: Iterator[Piece]) -> str:
    """Return the longest of some pieces with its lines."""
    found = max(pieces, key=lambda piece: piece.lines, default=None)
    return f"{found.name} {found.lines}" if found else "none"


def picture(root: Path = ROOT) -> str:
    """Return the table of rooms as they are, circles and forbidden arrows."""
    paths = modules(root)
    graph = graph_of({module: path.read_text() for module, path in paths.items()})
    rooms: dict[str, list[str]] = {}
    for module in graph:
        rooms.setdefault(room_of(module), []).append(module)
    said = ["| room | files | lines | longest file | longest function | imports |", "|---|---:|---:|---|---|---|"]
    for room, inside in sorted(rooms.items()):
        files = [Piece(paths[module].name, len(paths[module].read_text().splitlines())) for module in inside]
        others = sorted({room_of(other) for module in inside for other in graph[module]} - {room})
        deepest = longest(piece for module in inside for piece in functions(paths[module]))
        lines = sum(file.lines for file in files)
        said.append(f"| {room} | {len(files)} | {lines} | {longest(iter(files))} | {deepest} | {', '.join(others) or 'nothing of ours'} |")
    rings, design = circles(graph), root / "docs" / "design.md"
    said += ["", f"{len(rings)} circles" + "".join(f"\n  {len(ring)} files: {', '.join(ring)}" for ring in rings)]
    wrong = forbidden(graph, table_of(design.read_text())) if design.is_file() else ["docs/design.md is missing: no arrow is checked"]
    return "\n".join([*said, f"{len(wrong)} forbidden arrows", *(f"  {each}" for each in wrong)])


if __name__ == "__main__":
    print(picture(Path(sys.argv[1]) if sys.argv[1:] else ROOT))
