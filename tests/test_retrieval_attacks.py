"""Attacks on retrieval are attacks, and with the sign turned over, planted, they are none; ranks depend on ids and on nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustclip import names as models
from robustclip.attacks import PGD, Example, Scored, Square
from robustclip.attacks.multimodal import CoAttack, Text
from robustclip.attacks.pgd import random_start
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.evaluation import ranking
from robustclip.evaluation.ranking import Galleries, compute
from robustclip.evaluation.retrieval import Paired, RetrievalProtocol, resolve
from robustclip.models.combined import together
from robustclip.models.model import LinearReadout, Model
from robustclip.records.retrieval import I2T, T2I, ranks

BALL = Ball("Linf", 2.0)
KS = (1, 3, 5)


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Paired:
    """Return 40 pairs of the world, under an attack of few steps on images, and random words in texts."""
    attacks = (PGD(4), Text(TextAttack(RandomWords(k=4))))
    protocol = RetrievalProtocol(n=40, ks=KS, attacks=attacks, eps=(BALL.eps,), micro_batch=20)
    return resolve(protocol, str(tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def clip() -> Model:
    return models.load("tiny-vit8")


@pytest.fixture(scope="module")
def galleries(clip: Model, paired: Paired) -> Galleries:
    return Galleries(clip, paired)


def ranked(galleries: Galleries, direction: str, attack: str | None = None) -> np.ndarray:
    """Return the ranks of a unit of work: clean, or under the attack of that name."""
    cells = galleries.paired.cells("m", "0")
    (cell,) = (each for each in cells if each.direction == direction and (each.attack.name if each.attack else None) == attack)
    return np.array([row["rank"] for row in compute(galleries, cell)])


def weaker(clean: np.ndarray, attacked: np.ndarray) -> bool:
    """Return whether an attack took a tenth of all queries out of the first place."""
    return bool((attacked <= 1).mean() <= (clean <= 1).mean() - 0.1)


class Noise:
    """The control of an attack: a draw from the ball, whatever is raised."""

    name = "noise"

    def raising(self, objective_of: Any, classifier: Any, images: Tensor, ids: list[str], ball: Ball, seed: int, size: int) -> Example:
        return Example((images + random_start(ball, images, ids, seed, "noise")).clamp(0, 1))


# --- they are attacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "name"), [(I2T, "image_to_text"), (T2I, "text_to_image")])
def test_an_attack_takes_recall_and_with_the_wrong_sign_it_does_not(
    direction: str, name: str, galleries: Galleries, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = ranked(galleries, direction)
    assert weaker(clean, ranked(galleries, direction, "pgd-4"))
    right: Callable[..., Any] = getattr(ranking, name)

    def turned(*given: Any) -> Callable[[Tensor], Scored]:
        objective = right(*given)
        return lambda images: Scored(-objective(images).loss)

    monkeypatch.setattr(ranking, name, turned)
    assert not weaker(clean, ranked(galleries, direction, "pgd-4"))


@pytest.mark.parametrize("direction", [I2T, T2I])
def test_noise_of_the_same_size_is_no_attack(direction: str, galleries: Galleries) -> None:
    met, pairs = galleries.attacked(Noise(), BALL, direction), galleries.pairs  # type: ignore[arg-type]
    sides = [(met.images.numpy(), pairs.image_groups), (met.texts.numpy(), pairs.text_groups)]
    (queries, own), (answers, theirs) = sides if direction == I2T else sides[::-1]
    assert not weaker(ranked(galleries, direction), ranks(queries, answers, own, theirs))


def test_the_crowd_is_the_images_of_other_groups(galleries: Galleries) -> None:
    logits, own = galleries.classifier.scores(galleries.images), galleries.image_groups[:, None] == galleries.text_groups
    for text in (0, 7):
        assert galleries.crowd[text].item() == pytest.approx(logits[~own[:, text], text].logsumexp(0).item(), rel=1e-5)


def test_an_attack_that_leaves_its_ball_is_an_error(galleries: Galleries) -> None:
    class Far(Noise):
        def raising(self, *given: Any) -> Example:
            return super().raising(*given[:4], Ball("Linf", 3.0), *given[5:])

    with pytest.raises(RuntimeError, match="noise left its ball: Linf"):
        galleries.attacked(Far(), BALL, I2T)  # type: ignore[arg-type]


def test_what_counts_as_fooled_is_out_of_every_depth_when_scored(galleries: Galleries) -> None:
    """An attack may stop there, so its verdict, in fp32 and without room for rounding, must be the one that is counted."""
    made: list[Example] = []

    class Told(Noise):
        def raising(self, *given: Any) -> Example:
            made.append(PGD(6).raising(*given))
            return made[-1]

    met = galleries.attacked(Told(), Ball("Linf", 8.0), I2T)  # type: ignore[arg-type]
    found = ranks(met.images.numpy(), met.texts.numpy(), galleries.pairs.image_groups, galleries.pairs.text_groups)
    fooled = torch.cat([each.trace.first_success for each in made if each.trace]).numpy() >= 0
    assert 0 < fooled.sum() < len(fooled)
    assert (found[fooled] > max(KS)).all()
    assert (found[~fooled] <= max(KS)).all()


def test_words_in_the_queries_take_recall_and_leave_the_images(galleries: Galleries, paired: Paired) -> None:
    """One word of each, away from the images of its group; of the two directions only texts are queries."""
    cells = [cell for cell in paired.cells("m", "0") if isinstance(cell.attack, Text)]
    assert [cell.direction for cell in cells] == [T2I]
    (cell,) = cells
    rows = compute(galleries, cell)
    assert {(row["attack"], row["eps"], row["text_budget"]) for row in rows} == {("text:random-1w-image", 0.0, "1 words")}
    assert [row["query"] for row in rows] == list(paired.pairs.texts)
    changed = [sum(a != b for a, b in zip(row["query"].split(), row["rewritten"].split(), strict=True)) for row in rows]
    assert set(changed) <= {0, 1}
    assert sum(changed) > len(changed) / 2
    assert weaker(ranked(galleries, T2I), np.array([row["rank"] for row in rows]))


# --- the same every time ----------------------------------------------------------------------------------------------


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_ranks_depend_on_ids_and_on_no_order_or_batch(clip: Model, paired: Paired, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {(cell.direction, cell.attack is None): cell for cell in paired.cells("m", "0") if not isinstance(cell.attack, Text)}
    before = {name: without_time(compute(Galleries(clip, paired), cell)) for name, cell in cells.items()}
    monkeypatch.setattr(ranking, "CELL_IMAGES", 7)
    assert {name: without_time(compute(Galleries(clip, paired), cell)) for name, cell in cells.items()} == before
    order = np.random.default_rng(0).permutation(len(paired.pairs.ids))
    pairs = paired.pairs
    turned = replace(
        pairs,
        ids=tuple(pairs.ids[i] for i in order),
        image_groups=pairs.image_groups[order],
        images=replace(pairs.images, pixels=pairs.images.pixels[order]),  # type: ignore[union-attr]
    )
    for name, cell in cells.items():
        other = without_time(compute(Galleries(clip, replace(paired, pairs=turned)), cell))
        assert sorted(other, key=lambda row: row["query"]) == sorted(before[name], key=lambda row: row["query"])


def test_another_seed_is_another_start(clip: Model, paired: Paired) -> None:
    (cell,) = (each for each in paired.cells("m", "0") if each.direction == I2T and each.ball)
    found = [
        [row["l2"] for row in compute(Galleries(clip, replace(paired, protocol=replace(paired.protocol, seed=seed))), cell)]
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_texts_are_read_once(clip: Model, paired: Paired, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is attacked, and in both directions; so are the clean images."""
    read: list[int] = []
    encode = type(clip.clip).encode_text

    def counted(self: Any, tokens: Tensor, *given: Any, **more: Any) -> Tensor:
        read.append(len(tokens))
        return encode(self, tokens, *given, **more)

    monkeypatch.setattr(type(clip.clip), "encode_text", counted)
    one = Galleries(clip, paired)
    for cell in paired.cells("m", "0"):
        if not isinstance(cell.attack, Text):
            compute(one, cell)
    assert read == [len(paired.pairs.texts)]


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_model_without_features_of_texts_is_refused(clip: Model, paired: Paired) -> None:
    for model in (together("two", [clip, clip]), models.load("views:tiny-vit8"), replace(clip, readout=LinearReadout(128, ["a", "b"]))):
        with pytest.raises(UserError, match="retrieval needs one model with both towers"):
            Galleries(model, paired)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attacks": (PGD(10, loss="margin"),)}, "pgd-10-margin cannot be used: it takes PGD and APGD on cross-entropy"),
        ({"attacks": (Square(),)}, "square-.* cannot be used"),
        ({"attacks": (CoAttack(),)}, "co-attack-100:.* cannot be used"),
        ({"attacks": (PGD(10), PGD(10, alpha=0.5))}, "two attacks have one name"),
        ({"ks": (5, 1)}, "depths must be ascending"),
        ({"ks": ()}, "depths must be ascending"),
        ({"ks": (0, 1)}, "k is 0: it takes a whole number"),
        ({"eps": (2.0, 1.0)}, "eps must be positive and ascending"),
        ({"eps": ()}, "apgd-ce-20 needs an eps"),
        ({"data": "pets"}, "give both --data SET and --captions FILE"),
        ({"captions": "x.json"}, "give both --data SET and --captions FILE"),
        ({"n": 0}, "n is 0: it takes a whole number"),
    ],
)
def test_a_protocol_that_contradicts_itself_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(RetrievalProtocol(), **change)


def test_a_depth_that_the_galleries_are_too_small_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recall at 10 in a gallery of 6: k is from 1 to what the gallery holds"):
        resolve(RetrievalProtocol(n=6), str(tmp_path))


def test_a_key_is_of_all_that_decides_a_unit(paired: Paired) -> None:
    def keys(protocol: RetrievalProtocol, sha256: str = "0") -> set[str]:
        return {cell.key for cell in replace(paired, protocol=protocol).cells("m", sha256)}

    same = keys(paired.protocol)
    assert len(same) == 5
    assert keys(replace(paired.protocol)) == same
    changes: list[dict[str, Any]] = [{"ks": (1,)}, {"seed": 1}, {"micro_batch": 10}, {"norm": "L2"}, {"attacks": (PGD(5),)}]
    for change in changes:
        assert not keys(replace(paired.protocol, **change)) & same
    assert not keys(paired.protocol, "1") & same
