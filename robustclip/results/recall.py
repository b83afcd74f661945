"""Recall at k as people read it: a table for each direction, one CSV, and what the numbers are."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robustclip.records.metrics import Estimate
from robustclip.records.retrieval import DIRECTIONS, T2I, At, Retrieved
from robustclip.results.sheet import Sheet
from robustclip.results.sheets import percent

Found = Mapping[str, Mapping[str, Retrieved]]  # model -> direction -> its ranks
WORST = "worst case"


def sheets(found: Found, ks: Sequence[int]) -> list[Sheet]:
    """Return a table for each direction: recall at every k, clean and in the worst case at every eps, with the attack success rate."""
    return [_sheet({model: each[direction] for model, each in found.items()}, direction, ks) for direction in DIRECTIONS]


def _sheet(found: Mapping[str, Retrieved], direction: str, ks: Sequence[int]) -> Sheet:
    first = next(iter(found.values()))
    header, rows = ["model", "k", "clean"], []
    for title, _ in _shown(first):
        header += [f"recall, {title}", f"ASR, {title}"]
    for model, each in found.items():
        for k in ks:
            cells = [percent(each.at(k).recall)]
            for _, now in _shown(each):
                at = each.at(k, now)
                cells += [percent(at.recall), percent(at.asr) if at.asr else "–"]
            rows.append((model, str(k), *cells))
    return Sheet(f"Recall at k, {direction}", tuple(header), tuple(rows), _caption(first), left=2)


def _caption(found: Retrieved) -> str:
    queries, draws = len(found.queries), found.at(1).recall.n
    texts = f", the texts of one group counted as one ({draws})" if draws < queries else ""
    met = "Texts stay as they are."
    if found.direction == T2I:
        met = "All images of the gallery are attacked, each on its own; in the columns of an attack on texts they stay as they are."
    return (
        f"Percent of {queries} queries with a right answer among the first k of {found.gallery}, ties counted as wrong; 95 % Wilson "
        f"intervals{texts}. ε: per query the worst of clean and of all attacks on images up to this ε. {met} Success of an untargeted "
        "attack, no right answer among the first k, is 100 minus the recall. ASR, the attack success rate of Co-Attack and SGA: of queries "
        "with a right answer when clean, the percent without one under attack."
    )


def _shown(found: Retrieved) -> list[tuple[str, np.ndarray]]:
    """Return the conditions of a table with their ranks: the worst case at every eps, then every attack on texts."""
    texts = [(attack, ranks) for (attack, eps), ranks in found.attacked.items() if not eps]
    return [*((f"ε={eps:g}", found.worst(eps)) for eps in found.eps), *texts]


def as_csv(found: Found, ks: Sequence[int], protocol_hash: str) -> str:
    """Return one line per model, direction, attack, eps and k, shares in [0, 1]: each attack on its own, and the worst case."""
    lines = [
        {"model": model, "direction": direction, "attack": attack, "eps": eps, **_said(at), "protocol_hash": protocol_hash}
        for model, each in found.items()
        for direction, ranked in each.items()
        for attack, eps, now in _all(ranked)
        for at in (ranked.at(k, now) for k in ks)
    ]
    writer = csv.DictWriter(text := io.StringIO(), list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _all(found: Retrieved) -> Iterator[tuple[str, float, np.ndarray]]:
    yield "clean", 0.0, found.clean
    for (attack, eps), ranks in found.attacked.items():
        yield attack, eps, ranks
    for eps in found.eps:
        yield WORST, eps, found.worst(eps)


def _said(at: At) -> dict[str, Any]:
    values: dict[str, Any] = {"k": at.k}
    parts: dict[str, Estimate | None] = {"recall": at.recall, "untargeted": at.untargeted, "asr": at.asr}
    for name, each in parts.items():
        facts = ("", "", "", "") if each is None else (each.mean, each.low, each.high, each.n)
        values |= dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), facts, strict=True))
    return values


def meaning(described: Mapping[str, Any], protocol_hash: str, rendered: bool) -> list[str]:
    """Return sentences on what was run and what the numbers are not; `described` is what the protocol says of itself."""
    skipped, shared = described["skipped"], described["shared_texts"]
    return [
        f"Retrieval protocol, hash {protocol_hash}: {described['images']} images and {described['texts']} texts in {described['groups']} "
        "groups. Numbers under another hash must not be compared with these.",
        "What is right is what is of the query's group: any text of it for an image, any image of it for a text.",
        *([f"{skipped} images were left out, because nothing is said of them."] if skipped else []),
        *([f"{shared} texts are said of several groups: each is a tie for the others, which counts against the model."] if shared else []),
        "No checks were run on these numbers: those of docs/honest.md look at class scores. They are upper bounds, and never ranked.",
        *(["The pairs are rendered, not photographed: this is no benchmark of real CLIP."] if rendered else []),
    ]
