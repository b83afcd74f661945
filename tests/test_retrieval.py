"""Ranks and recall by hand and by brute force, success of an attack by both definitions, and a fault for every refusal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustclip.base.errors import UserError
from robustclip.records import retrieval
from robustclip.records import rows as records
from robustclip.records.metrics import of_share
from robustclip.records.retrieval import I2T, T2I, Retrieved, as_metrics, check_depths, ranks, retrieved_of
from robustclip.results import recall as pages


def unit(rows: Any) -> np.ndarray:
    found = np.asarray(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def hits(query: np.ndarray, group: int, gallery: np.ndarray, groups: Sequence[int], k: int) -> bool:
    """Return whether a right answer is among the first k, by the definition: all answers sorted, of equal ones the wrong first."""
    scores = [float(np.dot(query.astype(float), answer.astype(float))) for answer in gallery]
    order = sorted(range(len(gallery)), key=lambda j: (-scores[j], groups[j] == group))
    return any(groups[j] == group for j in order[:k])


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 12))
def test_recall_is_that_of_the_definition(seed: int, kinds: int, k: int) -> None:
    """On vectors of few whole numbers, among which many scores are equal, and exactly so."""
    draw = np.random.default_rng(seed)
    queries, gallery = (draw.integers(-1, 2, (n, 3)).astype(np.float32) for n in (9, 14))
    own = np.arange(9) % kinds
    theirs = np.concatenate([np.arange(kinds), draw.integers(0, kinds, 14 - kinds)])
    found = ranks(queries, gallery, own, theirs) <= k
    assert found.tolist() == [hits(query, group, gallery, theirs, k) for query, group in zip(queries, own, strict=True)]


def test_a_tie_counts_against_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    query, other = unit([[1, 0]]), unit([[0, 1]])
    gallery, own, theirs = np.concatenate([other, query, query]), np.array([0]), np.array([1, 0, 2])
    assert ranks(query, gallery, own, theirs).tolist() == [2]
    rounded = gallery.copy()
    rounded[1] *= 1 + 3e-7  # the right answer is ahead by less than what rounding makes of one text in two places
    assert ranks(query, rounded, own, theirs).tolist() == [2]
    monkeypatch.setattr(retrieval, "TIE", -retrieval.TIE)  # planted: ties count for it
    assert ranks(query, gallery, own, theirs).tolist() == [1]


def test_scores_that_are_not_finite_count_against_the_model() -> None:
    queries, gallery = unit([[1, 0], [1, 0]]), unit([[1, 0], [0, 1], [0, 1]])
    queries[0], own, theirs = np.nan, np.array([0, 0]), np.array([0, 1, 2])
    assert ranks(queries, gallery, own, theirs).tolist() == [3, 1]
    gallery[2] = np.nan
    assert ranks(queries, gallery, own, theirs).tolist() == [3, 2]


def test_what_is_right_is_what_is_of_the_group() -> None:
    """Another text of an image's own group is no mistake: by places alone the same scores would be a miss."""
    image, texts = unit([[1, 0]]), unit([[1, 1], [1, 0.1], [0, 1]])
    assert ranks(image, texts, np.array([0]), np.array([0, 0, 1])).tolist() == [1]
    assert ranks(image, texts, np.array([0]), np.arange(3)).tolist() == [2]  # planted: each text a group of its own
    with pytest.raises(UserError, match="query 0 is of group 7, of which nothing is in the gallery"):
        ranks(image, texts, np.array([7]), np.arange(3))


def test_many_queries_are_ranked_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    queries, gallery = unit(draw.normal(size=(40, 8))), unit(draw.normal(size=(30, 8)))
    own, theirs = np.arange(40) % 10, np.arange(30) % 10
    whole = ranks(queries, gallery, own, theirs)
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    assert (ranks(queries, gallery, own, theirs) == whole).all()
    order = draw.permutation(40)
    assert (ranks(queries[order], gallery, own[order], theirs) == whole[order]).all()


def rows_of(model: str, direction: str, found: dict[tuple[str, float], list[int]], groups: Sequence[str] = "") -> list[dict[str, Any]]:
    return [
        {
            "protocol_hash": "h", "model": model, "model_sha256": model, "dataset": "captions", "direction": direction, "query": f"{i:03d}",
            "query_group": groups[i] if groups else f"{i:03d}", "attack": attack, "eps": eps, "rank": rank, "gallery": 20,
        }
        for (attack, eps), ranked in found.items()
        for i, rank in enumerate(ranked)
    ]  # fmt: skip


RANKED = {
    ("clean", 0.0): [1, 1, 1, 3, 12],
    ("pgd-10", 1.0): [1, 2, 1, 2, 12],
    ("pgd-10", 2.0): [1, 1, 6, 9, 1],
    ("apgd-ce-20", 2.0): [1, 11, 1, 3, 3],
    ("text:char-1e-image", 0.0): [4, 1, 1, 1, 20],
}


def found_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Retrieved]]:
    return retrieved_of(records.table(rows, retrieval.SCHEMA))


def test_success_by_both_definitions() -> None:
    """By hand, and the attack success rate as the published code counts it: who was right before and is not in the set of after."""
    one = found_of(rows_of("m", I2T, RANKED))["m"][I2T]
    assert one.eps == (1.0, 2.0)
    now = one.attacked["apgd-ce-20", 2.0]
    at = one.at(1, now)
    assert (one.at(1).recall, at.recall, at.untargeted) == (of_share(0.6, 5), of_share(0.4, 5), of_share(0.6, 5))
    before, after = np.flatnonzero(one.clean <= 1), np.flatnonzero(now <= 1)
    assert at.asr is not None
    assert (at.asr.mean, at.asr.n) == (len(np.setdiff1d(before, after)) / len(before), 3)
    assert at.untargeted.mean != at.asr.mean  # two definitions, two numbers
    assert one.at(5, now).untargeted.mean == 0.2
    assert one.at(5).recall.mean == 0.8
    assert Retrieved(I2T, one.queries, 20, one.clean + 1, {}).at(1).asr is None  # nothing was right before


def test_the_worst_case_is_per_query_over_attacks_and_smaller_eps() -> None:
    one = found_of(rows_of("m", I2T, RANKED))["m"][I2T]
    assert one.worst(1.0).tolist() == [1, 2, 1, 3, 12]
    assert one.worst(2.0).tolist() == [1, 11, 6, 9, 12]  # without the attack on texts, whose eps is none
    values = as_metrics({I2T: one}, (1, 10))
    wanted = {"recall_1": 0.6, "recall_10": 0.8, "recall_1_eps_2": 0.2, "asr_1_eps_2": 2 / 3, "recall_10_eps_2": 0.6, "asr_10_eps_2": 0.25}
    assert {name: values[f"test/i2t/{name}"] for name in wanted} == pytest.approx(wanted)


def test_texts_of_one_group_are_one_draw() -> None:
    """Five captions of one image are no five images: the interval is that of the groups."""
    groups = ["a", "a", "b", "b", "b"]
    texts = found_of(rows_of("m", T2I, RANKED, groups))["m"][T2I]
    assert texts.at(1).recall == of_share(0.6, 2)
    asr = texts.at(1, texts.attacked["pgd-10", 1.0]).asr
    assert asr == of_share(1 / 3, 2)
    images = found_of(rows_of("m", I2T, RANKED, groups))["m"][I2T]
    assert images.at(1).recall == of_share(0.6, 5)


@pytest.mark.parametrize("k", [0, -1, 21])
def test_a_k_that_is_no_place_in_the_gallery_is_refused(k: int) -> None:
    one = found_of(rows_of("m", I2T, RANKED))["m"][I2T]
    assert one.at(20).recall.mean == 1.0
    with pytest.raises(UserError, match=f"recall at {k} in a gallery of 20: k is from 1 to what the gallery holds"):
        one.at(k)


def test_a_k_at_which_nothing_can_fail_is_refused() -> None:
    check_depths([1, 15], 20, 5)
    with pytest.raises(UserError, match="recall at 16 in a gallery of 20 cannot fail for a query to which 5 answers are right"):
        check_depths([1, 16], 20, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], r"'004' has a row clean or under 'text:char-1e-image' at eps 0, not both"),
        (lambda rows: rows[1:], r"'000' has a row clean or under 'pgd-10' at eps 1, not both"),
        (lambda rows: [*rows, rows[7]], r"'002' has two rows under 'pgd-10' at eps 1"),
        (lambda rows: [*rows[:-1], rows[-1] | {"protocol_hash": "i"}], "different protocols cannot be compared: h, i"),
        (lambda rows: [*rows[:-1], rows[-1] | {"dataset": "other"}], "different sets cannot be compared"),
        (lambda rows: [*rows[:-1], rows[-1] | {"model_sha256": "n"}], "model 'm' stands for different weights"),
        (lambda rows: [*rows[:-1], rows[-1] | {"gallery": 21}], "rows are of galleries of 20, 21"),
        (lambda rows: [row for row in rows if row["attack"] != "clean"], "there are no clean rows|not both"),
        (lambda rows: [], "there are no records to count"),
    ],
)
def test_records_that_cannot_be_counted_are_refused(change: Any, said: str) -> None:
    rows = rows_of("m", I2T, RANKED)
    assert found_of(rows)["m"][I2T].clean.tolist() == RANKED["clean", 0.0]
    with pytest.raises(UserError, match=said):
        found_of(change(rows))


def test_the_page_has_every_number() -> None:
    both = {**RANKED, ("pgd-10", 2.0): [20] * 5}
    found = found_of([row for model, ranked in (("m", RANKED), ("n", both)) for each in (I2T, T2I) for row in rows_of(model, each, ranked)])
    first, second = pages.sheets(found, (1, 5))
    assert first.header == ("model", "k", "clean", "recall, ε=1", "ASR, ε=1", "recall, ε=2", "ASR, ε=2", *first.header[7:])
    assert first.header[7:] == ("recall, text:char-1e-image", "ASR, text:char-1e-image")
    assert [row[:2] for row in first.rows] == [("m", "1"), ("m", "5"), ("n", "1"), ("n", "5")]
    assert first.rows[0][2] == "60.0 [23.1, 88.2]"
    assert first.rows[3][5:7] == ("0.0 [0.0, 43.4]", "100.0 [51.0, 100.0]")
    assert "All images of the gallery are attacked" in second.caption
    lines = list(csv.DictReader(io.StringIO(pages.as_csv(found, (1, 5), "h"))))
    worst = [line for line in lines if (line["model"], line["direction"], line["attack"], line["eps"]) == ("m", I2T, "worst case", "2.0")]
    assert [(line["k"], float(line["recall"]), float(line["untargeted"])) for line in worst] == [("1", 0.2, 0.8), ("5", 0.2, 0.8)]
    assert len(lines) == 2 * 2 * (1 + 4 + 2) * 2
    facts = {"images": 5, "texts": 5, "groups": 5, "skipped": 2, "shared_texts": 3}
    said = "\n".join(pages.meaning(facts, "h", rendered=False))
    assert "2 images were left out" in said
    assert "3 texts are said of several groups" in said
    assert "rendered" not in said
