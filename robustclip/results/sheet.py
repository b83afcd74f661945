"""A table as text: Markdown, HTML, LaTeX."""

import re
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Sheet:
    """One table of text; the first columns, as many as `left`, name the row and are set flush left."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    left: int = 1

    def markdown(self) -> str:
        """Return the sheet as a Markdown section."""
        lines = [self.header, ("---",) * self.left + ("---:",) * (len(self.header) - self.left), *self.rows]
        table = "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{table}\n\n{self.caption}\n"

    def html(self) -> str:
        """Return the sheet as an HTML section; intervals are set smaller than the numbers they belong to."""
        side = ["<{} class=left>"] * self.left + ["<{}>"] * (len(self.header) - self.left)
        head = "".join(f"{tag.format('th')}{escape(cell)}</th>" for tag, cell in zip(side, self.header, strict=True))
        lines = ("".join(f"{tag.format('td')}{_small_interval(escape(cell))}</td>" for tag, cell in zip(side, row)) for row in self.rows)
        body = "".join(f"<tr>{line}</tr>\n" for line in lines)
        table = f"<div class=wide><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        return f"<section><h2>{escape(self.title)}</h2>\n{table}\n<p class=caption>{escape(self.caption)}</p></section>\n"

    def latex(self) -> str:
        """Return the sheet as a booktabs table."""
        lines = [" & ".join(map(_tex, row)) + r" \\" for row in (self.header, *self.rows)]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        columns = "l" * self.left + "r" * (len(self.header) - self.left)
        caption = f"\\begin{{table}}\n\\centering\n\\caption{{{_tex(self.caption)}}}\n"
        return f"{caption}\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n"


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _small_interval(cell: str) -> str:
    return re.sub(r" (\[[^\]]*\])$", r" <small>\1</small>", cell)


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "ε": r"$\varepsilon$", "−": "--"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
