"""What people read of a report: Markdown, CSV, LaTeX, figures and one HTML page that needs nothing else."""

import base64
import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.records import findings, metrics
from robustclip.records.prompts import as_csv
from robustclip.records.rows import CLEAN
from robustclip.results import answers, figures, sheets
from robustclip.results.report import Report
from robustclip.results.sheet import Sheet

HOW_TO_RANK = {
    findings.UNCHECKED: "run robustclip evaluate again: it checks what was not checked and does no finished work twice",
    findings.GREY_BOX: "compare models under a white-box protocol",
}
STYLE = """
body{max-width:980px;margin:3rem auto;padding:0 1.5rem;font:16px/1.5 system-ui,sans-serif;color:#1c1c1c;background:#fff}
h1{font-size:1.7rem;font-weight:600;margin:0}h2{font-size:1.15rem;font-weight:600;margin:2.6rem 0 .7rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;width:100%}
table{border-top:2px solid #1c1c1c;border-bottom:2px solid #1c1c1c}thead{border-bottom:1px solid #1c1c1c}
th{font-weight:600;vertical-align:bottom}th,td{text-align:right;padding:.34rem .6rem}
.left{text-align:left}th:first-child,td:first-child{padding-left:0}
tbody tr+tr{border-top:1px solid #ececec}td small{color:#6b6b6b;white-space:nowrap;font-size:.8em;display:block}
.caption,figcaption{color:#555;font-size:.86rem;margin:.6rem 0;overflow-wrap:anywhere}
figure{margin:2.4rem 0}img{width:100%;max-width:700px;display:block}
ul{padding-left:1.2rem}li{margin:.35rem 0;overflow-wrap:anywhere}code{font-size:.92em}
"""


@dataclass(frozen=True)
class Page:
    """A report as text, pictures and files."""

    report: Report

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Return the tables in the order in which they are read."""
        against = [sheets.paired(self.report)] if self.report.compared else []
        against += [sheets.luck(self.report)] if self.report.seeds else []
        against += [sheets.without_chance(self.report)] if 0 < len(self.report.at_chance) < len(self.report.classes) else []
        stages = [sheets.alone(self.report)] if self.report.alone else [sheets.stages(self.report)] if len(self.report.counted) > 1 else []
        rewritten = [sheets.prompts(self.report)] if self.report.prompts else []
        levels = [sheets.levels(self.report), sheets.cost_of_levels(self.report)] if self.report.levels else []
        shifted = [sheets.shifted(self.report)] if self.report.shifts else []
        held = [sheets.published(self.report)] if self.report.expected else []
        said = [*filter(None, [answers.words(self.report)]), answers.calibrated(self.report)]
        first, last = [sheets.main(self.report), *held, *levels, *against], [sheets.checks(self.report), sheets.per_set(self.report)]
        return [*first, *stages, *shifted, *rewritten, *said, *last]

    def comparison(self) -> str:
        """Return the paired difference as Markdown: the means, McNemar's test for every set, one sentence per column.

        Raises UserError when one of the two may not be ranked.
        """
        for model in (self.report.chosen, self.report.baseline):
            if model in self.report.unranked:
                why, protocol = self.report.unranked[model], self.report.protocol["name"]
                remedy = HOW_TO_RANK.get(why, "see the checks in its report")
                raise UserError(f"{self.report.name(model)} cannot be compared under protocol {protocol}: {why}; {remedy}")
        sentences = "".join(f"- {self.report.verdict(column)}\n" for column in self.report.columns)
        return f"{sheets.paired(self.report).markdown()}\n{sheets.set_by_set(self.report).markdown()}\n{sentences}"

    def markdown(self) -> str:
        """Return all tables and what they mean as Markdown."""
        meaning = "".join(f"- {line}\n" for line in self.report.meaning())
        return "\n".join(sheet.markdown() for sheet in self.sheets) + f"\n## What these numbers are\n\n{meaning}"

    def csv(self, per_set: bool = False) -> str:
        """Return one line per model and column with shares in [0, 1]: the means over sets, or the sets one by one."""
        lines: list[dict[str, Any]] = []
        for model in self.report.outcomes:
            for column in self.report.columns:
                line = {
                    "model": model,
                    "column": column if isinstance(column, str) else "robust",
                    "eps": 0.0 if isinstance(column, str) else column,
                }
                for name in self.report.classes if per_set else [None]:
                    found = self.report.mean(model, column) if name is None else metrics.accuracy(self.report.outcomes[model][name], column)
                    values = {key: value for key, value in vars(found).items() if key != "sets"}
                    where = {"set": name} if per_set else {"sets": len(self.report.classes)}
                    lines.append(
                        {**line, **where, **values, "protocol": self.report.protocol["name"], "protocol_hash": self.report.protocol_hash}
                    )
        writer = csv.DictWriter(text := io.StringIO(), list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def figures(self) -> dict[str, bytes]:
        """Return name -> PNG of the figures that records alone can give."""
        means = {c: {self.report.name(model): self.report.mean(model, c) for model in self.report.outcomes} for c in self.report.columns}
        clean, robust = means[CLEAN], {e: means[e] for e in self.report.eps}
        ranked = [self.report.name(model) for model in self.report.outcomes if model not in self.report.unranked]
        drawn = {"clean_against_robust": figures.curve(clean, robust, ranked)}
        if len(self.report.eps) > 1:  # of one radius it would say no more
            security = {name: {0.0: clean[name], **{e: robust[e][name] for e in self.report.eps}} for name in clean}
            drawn["security_curve"] = figures.security_curve(security)
        if self.report.levels:
            rungs = {rung.title: rung for rung in self.report.levels if rung.eps == self.report.eps[-1]}
            left = {
                title: {
                    self.report.name(model): metrics.macro(each, rung.eps, self.report.classes) for model, each in rung.outcomes.items()
                }
                for title, rung in rungs.items()
            }
            grey = {title for title, rung in rungs.items() if rung.grey}
            drawn["attacker_levels"] = figures.levels(clean, left, robust[self.report.eps[-1]], grey)
        return drawn

    def html(self, pictures: Mapping[str, bytes]) -> str:
        """Return one page that needs no other file, no script and no network; pictures are PNGs by name."""
        main, *rest = (sheet.html() for sheet in self.sheets)
        drawn = "".join(
            f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            f"<figcaption>{escape(figures.CAPTIONS.get(name, name))}</figcaption></figure>\n"
            for name, png in pictures.items()
        )
        meaning = "".join(f"<li>{escape(line)}</li>\n" for line in self.report.meaning())
        title = escape(f"Robustness under protocol {self.report.protocol['name']}")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
            f"<p class=caption>protocol hash <code>{escape(self.report.protocol_hash)}</code></p>\n{main}{drawn}{''.join(rest)}"
            f"<section><h2>What these numbers are</h2><ul>\n{meaning}</ul></section></body></html>\n"
        )

    def write(self, folder: str, pictures: Mapping[str, bytes] | None = None) -> str:
        """Write table.md, table.csv, per_set.csv, table.tex, every figure and report.html into a folder; return where the page lies."""
        drawn = {**self.figures(), **(pictures or {})}
        tables = {"table.md": self.markdown(), "table.csv": self.csv(), "per_set.csv": self.csv(per_set=True)}
        tables |= {sheets.PROMPTS: as_csv(self.report.prompts)} if self.report.prompts else {}
        texts = {**tables, "table.tex": self.sheets[0].latex(), "report.html": self.html(drawn)}
        for name, png in drawn.items():
            storage.write_bytes(storage.join(folder, f"{storage.safe_name(name)}.png"), png)
        for name, text in texts.items():
            storage.write_bytes(storage.join(folder, name), text.encode())
        return storage.join(folder, "report.html")
