"""All that is held against published code, as a table: `python tests/golden_methods.py` writes it into docs/honest.md."""

from pathlib import Path

from golden_attacks import METHODS as ATTACKS
from golden_case import Case, Method
from golden_leaf import METHODS as LEAF
from golden_peers import METHODS as PEERS
from golden_test_time import METHODS as TEST_TIME
from golden_towers import METHODS as TOWERS

METHODS: list[Method] = [*TOWERS, *PEERS, *LEAF, *ATTACKS, *TEST_TIME]
PAGE = Path(__file__).parent.parent / "docs" / "honest.md"
BEGIN, END = "<!-- made by tests/golden_methods.py -->\n", "<!-- end -->\n"


def row(method: Method) -> str:
    """Return a method's line of the table."""
    origin = Case(method.folder).about["origin"]
    repository, commit = origin["repository"], origin["commit"]
    where = f"[{repository.removeprefix('https://github.com/')}]({repository}/tree/{commit}) {commit[:7]}"
    arrays: dict[str, list[str]] = {}
    for name, why in {**method.differs, **method.missing}.items():
        arrays.setdefault(why, []).append(f"`{name}`")
    otherwise = [f"{', '.join(names)}: {why}." for why, names in arrays.items()]
    return f"| {method.name} | {where} | {method.equal} | {' '.join([*method.besides, *otherwise])} |\n"


def table() -> str:
    """Return the table."""
    head = "| method | held against | equal, to rounding | done otherwise on purpose |\n| --- | --- | --- | --- |\n"
    return BEGIN + head + "".join(map(row, METHODS)) + END


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(page[: page.index(BEGIN)] + table() + page[page.index(END) + len(END) :])
    print(f"{PAGE} has a table of {len(METHODS)} methods")
