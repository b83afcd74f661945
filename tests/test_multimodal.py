"""Attacks on prompts and images together: what each leaves alone, what it raises and how its images are scored."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from faults_models import probed
from probes import NAMES, PROTOCOL, TEMPLATES
from toys import ids_of, only_loss

from robustclip.attacks import PGD, Example
from robustclip.attacks.modes import MODES, TEXTS, modes_of
from robustclip.attacks.multimodal import (
    CoAttack,
    GuidedCoAttack,
    OracleText,
    Seen,
    Separate,
    Text,
    away_from_both,
    class_means,
    climb,
    features_of,
)
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball, TextBudget
from robustclip.base.values import from_json, to_json
from robustclip.evaluation.cascade import outcome, run_cascade
from robustclip.models.classifier import Guides
from robustclip.models.combined import together

HOTFLIP = TEXTS["hotflip"]
NOTHING = TextAttack(RandomWords(), TextBudget(words=0))
BALL = Ball("Linf", 8.0)


@pytest.fixture
def cell(tiny_model, pictures):
    """Return a classifier, images, labels as it sees them, and ids."""
    x, _, ids = pictures(12)
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    with torch.no_grad():
        labels = classifier(x).argmax(1)
    classifier.guides = Guides(x[:6], labels[:6], ids[:6])
    return classifier, x, labels, ids


def scored(classifier, example, labels):
    return outcome(classifier, example, labels, ids_of(len(labels)), 8).classes


def test_a_reworded_classifier_is_the_same_model_under_other_prompts(cell):
    classifier, x, _, _ = cell
    same = classifier.reworded(classifier.texts)
    assert torch.equal(same(x), classifier(x))
    other = classifier.reworded([text + " again" for text in classifier.texts])
    assert other.clip is classifier.clip
    assert not torch.equal(other(x), classifier(x))
    with pytest.raises(UserError, match="4 prompts cannot take 1"):
        classifier.reworded(["one"])


def test_text_leaves_the_images_alone_and_is_scored_under_its_prompts(cell):
    classifier, x, labels, ids = cell
    example = Text(HOTFLIP)(classifier, x, labels, ids, BALL, 0, 8)
    assert torch.equal(example.images, x)
    assert example.class_texts == HOTFLIP(classifier).texts
    assert torch.equal(scored(classifier, example, labels), classifier.reworded(example.class_texts)(x).argmax(1))


def test_the_oracle_changes_the_logit_of_the_label_alone(cell):
    classifier, x, labels, ids = cell
    example = OracleText(HOTFLIP)(classifier, x, labels, ids, BALL, 0, 8)
    clean, reworded = classifier(x), classifier.reworded(example.class_texts)(x)
    expected = clean.clone()
    for i, label in enumerate(labels.tolist()):
        expected[i, label] = reworded[i, label]
    assert torch.equal(scored(classifier, example, labels), expected.argmax(1))


def test_separate_is_the_image_attack_and_the_text_attack(cell):
    classifier, x, labels, ids = cell
    example = Separate(HOTFLIP, PGD(5))(classifier, x, labels, ids, BALL, 0, 8)
    assert torch.equal(example.images, PGD(5)(classifier, x, labels, ids, BALL, 0, 8).images)
    assert example.class_texts == HOTFLIP(classifier).texts


def test_mmcoa_item_9_separate_without_budgets_is_clean(cell):
    classifier, x, labels, ids = cell
    example = Separate(NOTHING, PGD(5))(classifier, x, labels, ids, Ball("Linf", 0.0), 0, 8)
    assert torch.equal(example.images, x)
    assert torch.equal(scored(classifier, example, labels), classifier(x).argmax(1))


@pytest.mark.parametrize("attack", [CoAttack(HOTFLIP, 5), GuidedCoAttack(HOTFLIP, 3)], ids=lambda attack: attack.name)
def test_mmcoa_item_9_a_joint_attack_at_eps_0_leaves_the_images_alone(attack, cell):
    classifier, x, labels, ids = cell
    example = attack(classifier, x, labels, ids, Ball("Linf", 0.0), 0, 8)
    assert torch.equal(example.images, x)
    assert example.class_texts != classifier.texts
    if isinstance(attack, CoAttack):  # then it is the text attack
        text = Text(HOTFLIP)(classifier, x, labels, ids, BALL, 0, 8)
        assert torch.equal(scored(classifier, example, labels), scored(classifier, text, labels))


def test_mmcoa_item_10_co_attack_starts_on_both_sides_and_raises_its_objective(cell):
    classifier, x, labels, ids = cell
    # A step of no size: these are the starts, of images too far from 0 and 1 to be clipped.
    example = CoAttack(HOTFLIP, steps=1, alpha=0.0)(classifier, 0.3 + 0.4 * x, labels, ids, BALL, 0, 8)
    delta = example.images - (0.3 + 0.4 * x)
    assert abs(float(delta.mean())) < 0.02 * BALL.radius
    assert float(delta.min()) < -0.99 * BALL.radius < 0.99 * BALL.radius < float(delta.max())
    attacked = classifier.reworded(Text(HOTFLIP)(classifier, x, labels, ids, BALL, 0, 8).class_texts)
    clean = F.normalize(features_of(classifier, x, 8), dim=-1)
    values = []
    for steps in (0, 1, 5, 20):
        found = climbed(classifier, attacked, clean, x, labels, ids, steps)
        values.append(float(away_from_both(attacked, clean, labels)(found).loss.mean()))
    assert values == sorted(values)
    assert values[-1] > 1.05 * values[0]


def climbed(classifier, attacked, clean, x, labels, ids, steps):
    """Return images after so many steps on Co-Attack's objective without its verdict, so that none stops early."""

    def objective_of(places):
        return only_loss(away_from_both(attacked, clean[places], labels[places]))

    return climb(objective_of, Seen(x, labels, ids, BALL, 0, 8), "co-attack", steps, 0.1)[0]


def test_co_attack_is_the_formula(cell):
    """KL(softmax u(x) || softmax u(x')) + 3 KL(softmax t' || softmax u(x')) of unit features u and t', by hand."""
    classifier, x, labels, _ = cell
    with torch.no_grad():
        moved = (x + 0.03).clamp(0, 1)
        clean, now = classifier.features(x).double(), classifier.features(moved).double()
        text = classifier.class_embeddings[labels].double()
        p, q = ((each / each.norm(dim=1, keepdim=True)).softmax(1) for each in (clean, now))
        t = text.softmax(1)
        expected = (p * (p / q).log()).sum(1) + 3 * (t * (t / q).log()).sum(1)
        found = away_from_both(classifier, F.normalize(features_of(classifier, x, None), dim=-1), labels)(moved).loss
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_old_records_of_co_attack_are_not_found_again_and_others_are():
    """Its first term was of raw features: its JSON, which protocols hash, says so; that of other attacks has not changed."""
    assert to_json(CoAttack(HOTFLIP))["revision"] == 2
    assert from_json(CoAttack, to_json(CoAttack(HOTFLIP, 5))) == CoAttack(HOTFLIP, 5)
    others = (attack for attack in MODES.values() if not isinstance(attack, CoAttack))
    assert [attack.name for attack in others if "revision" in json.dumps(to_json(attack))] == []


def test_what_guides_is_the_mean_image_or_the_text(cell):
    classifier, x, labels, _ = cell
    missing = (int(labels[0]) + 1) % 4
    chosen = labels != missing
    means = class_means(classifier, x[chosen], labels[chosen], 8)
    assert torch.equal(means[missing], classifier.class_embeddings[missing])
    own = int(labels[0])
    expected = classifier.embed_images(x[labels == own]).sum(0)
    assert torch.allclose(means[own], expected / expected.norm(), atol=1e-5)


def test_the_guided_prompts_do_not_depend_on_which_images_are_attacked(cell):
    classifier, x, labels, ids = cell
    attack = GuidedCoAttack(HOTFLIP, 3)
    whole = attack(classifier, x, labels, ids, BALL, 0, 8)
    classifier.rewritten.clear()
    part = attack(classifier, x[4:], labels[4:], ids[4:], BALL, 0, 8)
    assert part.class_texts == whole.class_texts
    assert torch.equal(part.images, whole.images[4:])


def test_a_guided_attack_without_guides_says_so(cell):
    classifier, x, labels, ids = cell
    classifier.guides = None
    with pytest.raises(UserError, match="guided by images of the classes, and this classifier has none"):
        GuidedCoAttack(HOTFLIP, 1)(classifier, x, labels, ids, BALL, 0, 8)


def test_prompts_are_rewritten_once_for_all_attacks_that_ask_for_the_same(cell, monkeypatch):
    classifier, x, labels, ids = cell
    asked = []
    plain = TextAttack.__call__
    monkeypatch.setattr(TextAttack, "__call__", lambda self, *args: asked.append(self.name) or plain(self, *args))
    for attack in modes_of(TEXTS["random"]):
        for eps in (2.0, 8.0):
            attack(classifier, x, labels, ids, Ball("Linf", eps), 0, 8)
    assert sorted(asked) == ["random-1w", "random-1w+collisions", "random-1w-image", "random-1w-image", "random-1w-name"]


@pytest.mark.parametrize("kind", ["linear probe", "ensemble"])
def test_a_model_without_prompts_of_its_own_is_refused(kind, cell, make_model):
    _, x, labels, ids = cell
    if kind == "ensemble":
        classifier = together("ensemble:a,b", [make_model(seed=0), make_model(seed=1)]).classifier(NAMES, TEMPLATES)
    else:
        classifier = probed(make_model()).classifier(NAMES, TEMPLATES)
    with pytest.raises(UserError, match="leave the attacks on text out"):
        Text(HOTFLIP)(classifier, x, labels, ids, BALL, 0, 8)


def test_the_cascade_scores_a_label_it_cannot_know_only_when_told(cell):
    """An example without rewritten prompts is scored by the classifier that was attacked."""
    classifier, x, labels, _ = cell
    assert torch.equal(scored(classifier, Example(x), labels), classifier(x).argmax(1))
    rows = run_cascade(classifier, x, labels, [str(i) for i in range(len(x))], replace(PROTOCOL, attacks=(Text(HOTFLIP),), eps=(2.0,)))
    assert {row["attack"] for row in rows} == {"clean", "text:hotflip-1w"}
