"""The pages that people read, taken apart: fenced blocks, commands, links, headings."""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# What a code span begins with that is a command: a span that only names a file, or a command as part of a sentence, is none.
RUNS = re.compile(
    r"(?:\.venv/bin/)?(?:(?:python|pytest|ray|kubectl|uv|mlflow)\s+\S|robustclip\s+(?:\S+\s+\S|list$|sweep$))"
    r"|(?:pipelines|benchmarks)/\w+\.py\s+\S"
)
COMMENT = re.compile(r"(?:^|\s)#.*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, the last line before it and the heading above it."""

    page: Path
    line: int
    language: str
    text: str
    before: str
    heading: str


@dataclass(frozen=True)
class Command:
    """A shell command as a reader copies it, with its page and line."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Link:
    """A link or an image, with its page and line."""

    page: Path
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    opened: Block | None = None
    before = heading = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened = Block(page, number + 1, line[3:].strip(), "", before, heading)
            else:
                found.append(opened)
                opened = None
        elif opened is not None:
            opened = replace(opened, text=f"{opened.text}{line}\n")
        elif line.strip():
            before, heading = line, line.lstrip("# ") if line.startswith("#") else heading
    if opened is not None:
        raise ValueError(f"{page.name}:{opened.line}: a block is not closed")
    return found


def prose(page: Path) -> str:
    """Return a page with its fenced blocks as empty lines, so that places in it stay what they are."""
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block.group().count("\n"), page.read_text(), flags=re.DOTALL | re.MULTILINE)


def lines_of(block: Block) -> Iterator[Command]:
    """Yield the commands of a block of shell: comments away, lines that go on joined."""
    begun, text = block.line, ""
    for number, line in enumerate(block.text.splitlines(), block.line):
        line = COMMENT.sub("", line)
        text, begun = (text + line.strip(), begun) if text else (line.strip(), number)
        if text.endswith("\\"):
            text = f"{text[:-1].strip()} "
            continue
        if text:
            yield Command(block.page.name, begun, text)
        text = ""


def spans(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the code spans of a page's prose with their lines."""
    text = prose(page)
    for found in re.finditer(r"`([^`]+)`", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found.group(1).split())


def commands(page: Path) -> list[Command]:
    """Return every command of a page: the lines of its shell blocks, and the code spans that are commands."""
    found = [command for block in blocks(page) if block.language in ("sh", "bash") for command in lines_of(block)]
    return [*found, *(Command(page.name, line, span) for line, span in spans(page) if RUNS.match(span))]


def links(page: Path) -> list[Link]:
    """Return the links and images of a page's prose that lead into the repository."""
    text = re.sub(r"`[^`\n]*`", lambda code: " " * len(code.group()), prose(page))
    found = [(text.count("\n", 0, each.start()) + 1, each.group(1)) for each in re.finditer(r"\]\(([^)\s]+)\)", text)]
    return [Link(page, line, target) for line, target in found if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    kept = set(string.punctuation) - set("-_")
    titles = [line.lstrip("#").strip() for line in prose(page).splitlines() if re.match(r"#+ ", line)]
    return {"".join(c for c in title.lower() if c not in kept).replace(" ", "-") for title in titles}


def dead(link: Link) -> str | None:
    """Return what is wrong with a link, None for one that leads somewhere."""
    path, _, anchor = link.target.partition("#")
    target = (link.page.parent / path).resolve() if path else link.page
    if not target.exists() or ROOT not in (target, *target.parents):
        return f"{link}: there is no {link.target}"
    return f"{link}: {target.name} has no heading #{anchor}" if anchor and anchor not in anchors(target) else None
