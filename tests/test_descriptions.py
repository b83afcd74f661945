"""Descriptions of classes in the place of templates: what they say, whom they reach, what names them, and who refuses them."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import NAMES, TEMPLATES
from parts import config, learner_of, made, pixels, step
from probes import changed, healthy, make_set

from robustclip.api import evaluate as evaluate_in_python
from robustclip.attacks import APGD, PGD
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.multimodal import Text
from robustclip.base import values
from robustclip.base.errors import UserError
from robustclip.base.values import flatten, key, to_json
from robustclip.commands import evaluate, train
from robustclip.data.rendering import COLOUR_NAMES, PATTERNS
from robustclip.data.world import SETS
from robustclip.defenses import DEFENSES, PAIRED, TeCoA
from robustclip.evaluation import protocols
from robustclip.evaluation.checks import run_check
from robustclip.evaluation.protocols import Resolved
from robustclip.evaluation.rules import Protocol, SetRule
from robustclip.models.class_names import reading
from robustclip.models.class_texts import Descriptions, as_json, texts_of
from robustclip.models.dress import JointTokens, LinearHead
from robustclip.models.tokenizers import clip_tokenizer
from robustclip.training import job
from robustclip.training.config import Config
from robustclip.training.recipes import BACKGROUNDS, CAPTIONS, RECIPES

SAID = {
    "red": ["the colour of blood", "a warm thing.", "red"],
    "green": ["leaves are so"],
    "blue": ["a cold thing.", "the sky at noon"],
    "grey": ["neither black nor white"],
    "more": ["of no class here"],
}
OURS = Descriptions.said(SAID)
SAME = Descriptions.said({name: [template.format(name) for template in TEMPLATES] for name in NAMES})  # what the templates say


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


# --- what they say ------------------------------------------------------------------------------------------------------------------


def test_a_class_is_the_normalised_mean_of_its_descriptions(tiny_model):
    classifier = tiny_model.classifier(NAMES, OURS)
    for place, name in enumerate(NAMES):
        mean = classifier.embed_texts(SAID[name]).mean(0)
        assert torch.allclose(classifier.class_embeddings[place], F.normalize(mean, dim=-1), atol=1e-6)
    assert classifier.counts == (3, 1, 2, 1)
    assert not torch.allclose(classifier.class_embeddings, tiny_model.classifier(NAMES, TEMPLATES).class_embeddings, atol=1e-3)
    other = tiny_model.classifier(NAMES, Descriptions.said({**SAID, "red": SAID["red"][:2]}))
    assert (classifier.class_embeddings != other.class_embeddings).any(1).tolist() == [True, False, False, False]


def test_descriptions_that_say_what_templates_say_are_they_to_the_bit(tiny_model):
    described, templated = (tiny_model.classifier(NAMES, texts) for texts in (SAME, TEMPLATES))
    assert described.texts == templated.texts
    assert torch.equal(described.class_embeddings, templated.class_embeddings)


def test_one_file_serves_many_sets_by_name():
    assert OURS.of(("blue", "red")) == (tuple(SAID["blue"]), tuple(SAID["red"]))
    assert as_json(("green",), OURS) == [["leaves are so"]]
    assert texts_of(("green",), ("a {}.", "{}!")) == (("a green.", "green!"),)


def test_a_file_is_what_it_says_wherever_it_lies(tmp_path):
    first = Descriptions.read(written(tmp_path / "a.json", SAID))
    second = Descriptions.read(written(tmp_path / "b.json", json.dumps(dict(reversed(SAID.items())), indent=4)))
    assert first == second == OURS
    assert {first: 1}[second] == 1
    assert first != Descriptions.read(written(tmp_path / "a.json", {**SAID, "more": ["of no class here!"]}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "it is no JSON"),
        (b"\xff".decode("latin-1"), "it is no JSON"),
        ([["a"]], r"write JSON \{class name: \[texts\]\}"),
        ({}, "holds no descriptions"),
        ({"red": "a warm thing"}, "what it says of 'red' is no list of texts"),
        ({"red": ["a"], "blue": ["", "b"]}, "what it says of 'blue' is no list of texts"),
        ({"red": [3]}, "what it says of 'red' is no list of texts"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        Descriptions.read(written(tmp_path / "a.json", content))
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        Descriptions.read(str(tmp_path / "none.json"))


def test_classes_without_a_description_are_named(tiny_model, tmp_path):
    some = Descriptions.read(written(tmp_path / "few.json", {"red": ["a"], "blue": []}))
    said = r"few\.json describes 1 of 4 classes; it has no text of 'green', 'blue', 'grey': add one or more under exactly this name"
    with pytest.raises(UserError, match=said):
        tiny_model.classifier(NAMES, some)
    with pytest.raises(UserError, match=r"set x: few\.json .* 'c0', 'c1', 'c2', 'c3', 'c4' and 3 more"):
        some.of([f"c{i}" for i in range(8)], "set x")


def test_the_names_that_a_tokenizer_reads_as_one_are_those_whose_every_text_it_does():
    texts = {"a": ["A thing", "one"], "b": ["a  thing ", "two"], "c": ["a thing", "ONE"], "d": ["a thing"], "e": ["x " * 90]}
    found = reading(clip_tokenizer(), tuple(texts), Descriptions.said(texts))
    assert (found.same, found.empty, found.full) == (((0, 2),), (), (4,))


# --- training -----------------------------------------------------------------------------------------------------------------------

ON_SCORES = [kind for kind in DEFENSES if kind().reads == "logits" and kind.__name__ != "Mix"]


@pytest.mark.parametrize("kind", ON_SCORES, ids=lambda kind: kind.__name__)
def test_attack_and_loss_meet_the_descriptions(kind, make_model, pictures):
    """Bit for bit the run of the templates where they say the same, another one where they say something else."""
    images, labels, ids = pictures(16)
    batch, runs = (pixels(images), labels, ids), []
    for texts in (None, SAME, OURS):
        learner = learner_of(make_model(), replace(config(made(kind), batch=16), templates=texts))
        wanted = learner.model.classifier(NAMES, texts or TEMPLATES).class_embeddings
        assert torch.equal(learner.student.class_embeddings, wanted)
        assert torch.equal(learner.teacher.class_embeddings, wanted)
        runs.append(step(learner, batch)["loss"])
    assert runs[0] == runs[1] != runs[2]


def test_the_training_attack_goes_up_the_loss_of_the_descriptions(make_model, pictures):
    from robustclip.defenses import Batch

    images, labels, ids = pictures(16)
    found = []
    for texts in (None, SAME, OURS):
        learner = learner_of(make_model(), replace(config(TeCoA(), batch=16), templates=texts))
        found.append(learner.attacked(Batch(images, labels, ids)).images)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    described = make_model().classifier(NAMES, OURS)
    clean, templated, meant = (F.cross_entropy(described(x), labels) for x in (images, found[0], found[2]))
    assert clean < meant
    assert templated < meant


@pytest.mark.parametrize("kind", [kind for kind in (*DEFENSES, *PAIRED) if kind not in ON_SCORES and kind.__name__ != "Mix"])
def test_what_does_not_learn_from_scores_refuses_them(kind):
    with pytest.raises(UserError, match=f"{kind.__name__} does not learn from scores of classes, which is what descriptions change"):
        Config(defense=kind(), templates=OURS)


@pytest.mark.parametrize("trainable", [LinearHead(), JointTokens("text"), JointTokens("independent")])
def test_what_brings_its_own_words_refuses_them(trainable):
    with pytest.raises(UserError, match="brings words or scores of its own in the place of class texts"):
        Config(trainable=trainable, templates=OURS)
    Config(trainable=JointTokens("visual"), templates=OURS)


def test_a_run_is_named_by_what_the_descriptions_say_and_old_runs_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "RESULT_VERSION", 2)
    a, b = (Descriptions.read(written(tmp_path / name, SAID)) for name in ("a.json", "b.json"))
    assert key(Config(templates=a)) == key(Config(templates=b)) != key(Config(templates=SAME))
    assert to_json(Config(templates=a))["templates"] == {"type": "Descriptions", "sha256": OURS.sha256}
    assert flatten(Config(templates=a))["templates.sha256"] == OURS.sha256
    before = {
        "demo": "d657169a0df98437",
        "tecoa-b32": "e763d4a8ae8ea1c0",
        "demo-fare": "e48d2329c257ec40",
        "demo-mmcoa": "764a2be946ba22a3",
    }
    assert {name: key(RECIPES[name].config) for name in before} == before


def test_training_finds_out_first_which_classes_have_none_and_its_card_says_them(tmp_path):
    names = SETS["shapes"].class_names
    smoke = replace(RECIPES["smoke"].config, data=replace(RECIPES["smoke"].config.data, name="shapes"))
    whole = Descriptions.said({name: [f"the shape of a {name}", f"a {name}"] for name in names})
    with pytest.raises(UserError, match="data set shapes: descriptions describes 11 of 12 classes; it has no text of 'circle'"):
        job.prepare(replace(smoke, templates=Descriptions.said({**whole.texts, "circle": []})), str(tmp_path))
    ready, plain = (job.prepare(replace(smoke, templates=texts), str(tmp_path)) for texts in (whole, None))
    assert ready.key != plain.key
    said = ready.about("base", "0")
    assert said["templates"][:2] == [["the shape of a circle", "a circle"], ["the shape of a square", "a square"]]
    assert plain.about("base", "0")["templates"] == list(SETS["shapes"].templates)


def test_the_recipe_of_saft_calls_a_class_by_captions_of_the_world():
    recipe = RECIPES["demo-saft"].config
    assert recipe == replace(RECIPES["demo"].config, templates=CAPTIONS)
    assert len(set(CAPTIONS)) == 10
    patterns, colours = {*PATTERNS}, {*COLOUR_NAMES}
    assert all({*said.split()[:-1]} <= patterns and said.split()[-1] in colours for said in BACKGROUNDS)


# --- evaluation ---------------------------------------------------------------------------------------------------------------------


def described(subject, descriptions=OURS, **card):
    """Return a subject that is scored under descriptions, which its protocol and its set say."""
    protocol = replace(subject.protocol, rules=(SetRule("pictures", templates=descriptions),))
    sets = {"pictures": replace(subject.resolved.sets["pictures"], descriptions=descriptions)}
    classifier = subject.model.classifier(NAMES, descriptions)
    model = replace(subject.model, card={**subject.model.card, **card})
    settings = {"classifier": classifier, "attacked": classifier, "baseline": classifier, "model": model, "records": None}
    return changed(subject, protocol=protocol, resolved=Resolved(protocol, sets), **settings)


def test_checks_know_descriptions(tiny_model, pictures):
    card = {"run": "1", "class_names": ["x", "y"], "templates": [["a thing", "an x"], ["another"]]}
    subject = described(healthy(tiny_model, pictures), **card)
    for number in ("18", "22", "G8", "G10", "G11"):
        found = run_check(subject, number)
        assert found.passed is not False, found
    assert run_check(subject, "G8").figures == {"trained with": ["2 descriptions", "1 descriptions"]}
    other = changed(subject, attacked=tiny_model.classifier(NAMES, SAME))
    assert run_check(other, "18").passed is False
    scored = changed(subject, classifier=tiny_model.classifier(NAMES, SAME), attacked=tiny_model.classifier(NAMES, SAME))
    assert [run_check(scored, number).passed for number in ("18", "G8")] == [False, False]


def test_a_protocol_is_named_by_the_texts_of_its_classes_and_old_ones_as_before(monkeypatch):
    monkeypatch.setattr(values, "RESULT_VERSION", 2)
    test_set = make_set("pictures", [0, 1, 2, 3] * 4, [f"p/{i}" for i in range(16)])
    protocol = Protocol("probe", ("pictures",), (PGD(10), APGD(10)), (2.0, 6.0), n=16, micro_batch=8)
    plain = Resolved(protocol, {"pictures": test_set})
    assert (plain.hash, test_set.prompts_hash) == ("a846fa69d29190f4", "bcf963cf78db44c2")
    assert [cell.key for cell in plain.cells("m", "0" * 64)] == ["299e76b74909bd35"]
    rules = replace(protocol, rules=(SetRule("pictures", templates=("a photo of a {}.",)),))
    assert Resolved(rules, {"pictures": test_set}).hash == "10226585a600816f"
    found = replace(test_set, descriptions=OURS)
    assert found.prompts_hash != test_set.prompts_hash
    assert Resolved(protocol, {"pictures": found}).describe()["sets"]["pictures"]["templates"] == [SAID[name] for name in NAMES]


def test_a_set_is_scored_under_its_descriptions(tmp_path):
    names = SETS["shapes"].class_names
    whole = Descriptions.said({name: [f"a picture of a {name}", f"the shape {name}."] for name in names})
    protocol = replace(protocols.named("smoke"), sets=("shapes",), rules=(SetRule("shapes", templates=whole),))
    resolved = protocols.resolve(protocol, str(tmp_path))
    assert resolved.sets["shapes"].templates == whole
    assert resolved.describe()["sets"]["shapes"]["templates"][0] == ["a picture of a circle", "the shape circle."]
    with pytest.raises(UserError, match="data set 'shapes': descriptions describes 0 of 12 classes"):
        protocols.resolve(replace(protocol, rules=(SetRule("shapes", templates=OURS),)), str(tmp_path))


def test_images_in_memory_are_scored_under_them_too(tiny_model, pictures):
    images, labels, _ = pictures(8)
    settings = {"attacks": ["noise-10"], "eps": 1, "class_names": NAMES}
    found = [evaluate_in_python(tiny_model, (images, labels), templates=texts, **settings) for texts in (OURS, SAME, TEMPLATES)]
    clean = [each.records.filter(each.records["eps"].to_numpy() == 0)["prediction"].to_pylist() for each in found]
    with torch.no_grad():
        assert clean[0] == tiny_model.classifier(NAMES, OURS)(images).argmax(1).tolist()
    assert clean[1] == clean[2] != clean[0]


def test_attacks_on_prompts_refuse_descriptions(tiny_model):
    with pytest.raises(UserError, match=r"text:hotflip-1w rewrites names in templates, and the classes of 'x' are described"):
        Protocol("p", ("x",), (PGD(2), Text(TEXTS["hotflip"])), (2.0,), rules=(SetRule("x", templates=OURS),))
    with pytest.raises(UserError, match="rewrite names in templates, and these classes are described"):
        TEXTS["random"](tiny_model.classifier(NAMES, OURS))


# --- commands -----------------------------------------------------------------------------------------------------------------------


def asked(monkeypatch, command, *words):
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, words)])
    return command.asked()


def test_commands_take_a_file(monkeypatch, tmp_path):
    file, out = written(tmp_path / "said.json", SAID), ("--out", tmp_path)
    _, found, _ = asked(monkeypatch, train, "demo", "--descriptions", file, *out)
    assert found.templates == OURS
    with pytest.raises(UserError, match="--descriptions take the place of --templates: give one of the two"):
        asked(monkeypatch, train, "demo", "--descriptions", file, "--templates", '["a {}"]', *out)
    with pytest.raises(UserError, match="FARE does not learn from scores"):
        asked(monkeypatch, train, "demo-fare", "--descriptions", file, *out)
    _, found, _ = asked(monkeypatch, evaluate, "tiny-vit8", "--sets", "shapes", "digits", "--descriptions", file, *out)
    assert found.rules == (SetRule("shapes", templates=OURS), SetRule("digits", templates=OURS))
    _, found, _ = asked(monkeypatch, evaluate, "tiny-vit8", *out)
    assert found == protocols.named("demo")
    _, found, _ = asked(monkeypatch, evaluate, "tiny-vit8", "--protocol", "fare-13", "--descriptions", file, *out)
    before = protocols.named("fare-13")
    assert {rule.name: replace(rule, templates=()) for rule in found.rules} == {
        name: replace(before.rule(name), templates=()) for name in before.sets
    }
