"""LEAF and two towers as one model: the loss by hand, what learns, who is refused, whose tower is whose."""

from dataclasses import replace

import pytest
import torch
from parts import NAMES, TEMPLATES, config, learner_of, pixels, step

from robustclip import names as models
from robustclip.attacks.base import Example
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import LETTERS, Characters, RandomWords
from robustclip.attacks.text.words import prompts_of
from robustclip.base.errors import UserError
from robustclip.base.threat import TextBudget
from robustclip.base.values import from_json, to_json
from robustclip.defenses import FARE, LEAF, Batch, Roles
from robustclip.models import checkpoints
from robustclip.models.dress import LinearHead, TokenPrompt
from robustclip.training.config import Config
from robustclip.training.trainables import Towers, VisualTower

QUICK = LEAF(text=TextAttack(RandomWords()), refresh=2)


def batch_of(pictures, n=16):
    x, y, ids = pictures(n)
    return pixels(x), y, ids


def run(**optim):
    return config(QUICK, Towers("text"), batch=16, **optim)


def test_the_loss_is_the_squared_distance_of_raw_features(make_model, pictures):
    teacher, student = (make_model(seed=seed).classifier(NAMES, TEMPLATES) for seed in (0, 1))
    x, _, ids = pictures(3)
    labels = torch.tensor([2, 0, 2])
    rewritten = tuple(f"{text} indeed" for text in student.texts)
    loss = LEAF().loss(Roles(student, teacher), Batch(x, labels, ids, rewritten=rewritten), Example(x))["leaf"]
    squares = []
    for label in labels.tolist():
        for t in range(2):
            now, clean = (
                classifier.clip.encode_text(classifier.tokenizer([texts[2 * label + t]]))
                for classifier, texts in ((student, rewritten), (teacher, teacher.texts))
            )
            squares.append((now - clean).square().sum())
    assert float(loss) == pytest.approx(float(sum(squares) / len(squares)), rel=1e-5)


@pytest.mark.parametrize("refresh", [1, 2])
def test_the_prompts_go_as_far_as_they_can_from_what_the_original_said_of_them(refresh, make_model, pictures):
    """Not from what the student says of them, nor by the angle: of all edits the one with the largest loss."""
    attack = TextAttack(Characters(), TextBudget(edits=1), score="distance", collisions=True)
    learner = learner_of(make_model(), replace(run(), defense=LEAF(attack, refresh)))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in learner.parameters:
            p += 0.1 * torch.randn(p.shape, generator=g)
    pixels, labels, ids = batch_of(pictures, 4)
    learner.accumulate(pixels, labels, ids)
    student, teacher, texts = learner.student, learner.teacher, learner.rewritten
    original = teacher.text_features(list(teacher.texts))
    others = 0
    for row, clean in enumerate(prompts_of(NAMES, TEMPLATES)):
        edits = list(dict.fromkeys(new.text for place in range(len(clean.text) + 1) for new in clean.edits("any word", place, LETTERS)))
        with torch.no_grad():
            now, before = student.text_features(edits), student.text_features([clean.text])
        assert texts[row] == edits[int((now - original[row]).square().sum(1).argmax())]
        others += texts[row] != edits[int(torch.cosine_similarity(now, before).argmin())]
    assert others > 0


def test_nothing_rewritten_and_nothing_learned_is_no_loss(tiny_model, pictures):
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, y, ids = pictures(4)
    assert float(LEAF().loss(Roles(classifier, classifier), Batch(x, y, ids), Example(x))["leaf"]) == 0


def test_the_text_tower_learns_alone_and_moves_less_under_the_attack(make_model, pictures):
    batch, model = batch_of(pictures), make_model()
    learner = learner_of(model, run())
    visual = model.clip.visual.proj.clone()
    losses = [step(learner, batch, 8)["loss"] for _ in range(10)]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(model.clip.visual.proj, visual)
    assert torch.equal(learner.student.class_embeddings, learner.student.embed_prompts())
    teacher = learner.teacher
    with torch.no_grad():
        wanted = teacher.text_features(list(teacher.texts))
        moved = {
            name: (c.text_features(list(learner.rewritten)) - wanted).square().sum()
            for name, c in (("student", learner.student), ("teacher", teacher))
        }
    assert moved["student"] < moved["teacher"]


@pytest.mark.parametrize("trainable", [VisualTower(), Towers(), LinearHead(), TokenPrompt(2)], ids=str)
def test_what_has_no_text_tower_alone_is_refused(trainable, tiny_model):
    with pytest.raises(UserError, match="LEAF trains the text tower alone: choose Towers with which=text"):
        learner_of(tiny_model, replace(run(), trainable=trainable))


def test_a_config_reads_back():
    settings = Config(defense=LEAF(), trainable=Towers("text"))
    assert from_json(Config, to_json(settings)) == settings
    assert LEAF().text.name == "char-1e-top2-distance"
    with pytest.raises(UserError, match=r"defense\.refresh is 0"):
        LEAF(refresh=0)


@pytest.fixture
def trained(make_model, tmp_path, pictures):
    """Return the folders of the original, of a FARE run and of a LEAF run of it."""
    original = str(tmp_path / "original")
    checkpoints.save(make_model(), original)
    folders = [original]
    for name, settings in (("fare", config(FARE(), batch=16)), ("leaf", run())):
        learner = learner_of(models.load(original), settings)
        for _ in range(2):
            step(learner, batch_of(pictures))
        learner.finish()
        folders.append(str(tmp_path / name))
        checkpoints.save(
            learner.model, folders[-1], base={"name": original, "sha256": models.identity(original)}, run=name, class_names=NAMES
        )
    return folders


def test_two_towers_are_one_model(trained, pictures):
    original, fare, leaf = trained
    both = models.load(f"towers:{fare},{leaf}")
    x, _, _ = pictures(4)
    image, text, found = (
        models.load(name).classifier(NAMES, TEMPLATES) if isinstance(name, str) else name.classifier(NAMES, TEMPLATES)
        for name in (fare, leaf, both)
    )
    assert torch.equal(found.features(x), image.features(x))
    assert torch.equal(found.class_embeddings, text.class_embeddings)
    assert not torch.equal(found.class_embeddings, image.class_embeddings)
    assert models.display_name(f"towers:{fare},{leaf}") == "towers-run-fare+run-leaf"
    assert models.identity(f"towers:{fare},{leaf}") != models.identity(f"towers:{leaf},{fare}")
    assert models.input_size(f"towers:{fare},{leaf}") == 16
    # The original's own tower is a tower of that origin too.
    plain = models.load(f"towers:{original},{leaf}").classifier(NAMES, TEMPLATES)
    assert torch.equal(plain.features(x), models.load(original).classifier(NAMES, TEMPLATES).features(x))
    assert models.load(f"towers:{original},{leaf}").card["base"]["name"] == original


def test_towers_of_two_origins_are_refused(trained, make_model, tmp_path):
    other = str(tmp_path / "other")
    checkpoints.save(make_model(seed=1), other)
    with pytest.raises(UserError, match="understand each other only if one model was before both"):
        models.load(f"towers:{trained[1]},{other}")


@pytest.mark.parametrize("name", ["towers:", "towers:a", "towers:a,a", "towers:a,b,c"])
def test_a_name_cut_short_is_refused(name):
    with pytest.raises(UserError, match=r"it is of two different models, written towers:A,B"):
        models.load(name)
