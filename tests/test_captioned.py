"""Training on captions: CLIP's loss by its definition, whose captions are drawn, an untrained start, and the command from set to model."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts import NAMES, TEMPLATES, config, learned, learner_of, pixels, step
from sourcing import as_folder, image

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.commands import pretrain
from robustclip.data.preparation import prepare
from robustclip.defenses import Batch, Captioned, Roles
from robustclip.defenses.captions import captions
from robustclip.models.checkpoints import save
from robustclip.models.class_texts import Descriptions
from robustclip.models.dress import JointTokens, LinearHead
from robustclip.training import captioned
from robustclip.training.alone import finetune_alone
from robustclip.training.config import Config
from robustclip.training.pretraining import contrastive_loss
from robustclip.training.trainables import Towers, VisualTower

BOTH = Towers(logit_scale="clamped")
OURS = Descriptions.said(
    {"red": ["like blood"], "green": ["like grass", "like a leaf"], "blue": ["like the sky"] * 3, "grey": ["like ash"]}
)


def learner(model, steps=15, texts=None, **settings):
    return learner_of(model, replace(config(Captioned(), BOTH, **settings), templates=texts), steps=steps)


# --- the loss -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [TEMPLATES, OURS], ids=["templates", "descriptions"])
def test_the_loss_is_clips_on_images_and_captions_of_their_own_classes(templates, make_model, pictures):
    student = make_model().classifier(NAMES, templates)
    batch = Batch(*pictures(12), seed=3, step=5)
    said = captions(student, batch)
    images, texts = student.embed_images(batch.images), student.embed_texts(said)
    scale = student.clip.logit_scale.exp()
    found = Captioned().loss(Roles(student, student), batch, None)["captions"]
    torch.testing.assert_close(found, contrastive_loss(images, texts, scale))
    moved = contrastive_loss(images, texts.roll(1, 0), scale)  # captions of other images
    assert abs(found - moved) > 1e-3


def test_a_caption_is_drawn_from_its_class_by_seed_step_and_id(make_model, pictures):
    student = make_model().classifier(NAMES, OURS)
    images, labels, ids = pictures(64)

    def said(rows=slice(None), **key):
        return captions(student, Batch(images[rows], labels[rows], ids[rows], **key))

    first = said(step=1)
    own = {name: set(OURS.texts[name]) for name in NAMES}
    assert all(text in own[NAMES[label]] for text, label in zip(first, labels.tolist(), strict=True))
    assert {text for text, label in zip(first, labels.tolist(), strict=True) if label == 1} == own["green"]
    assert said(slice(20, 30), step=1) == first[20:30]
    assert said(step=2) != first
    assert said(step=1, seed=1) != first
    swapped = captions(student, Batch(images, labels.flip(0), ids, step=1))
    assert any(text not in own[NAMES[label]] for text, label in zip(swapped, labels.tolist(), strict=True))


# --- training -------------------------------------------------------------------------------------------------------------------------


def test_both_towers_and_the_scale_learn_to_tell_captions_apart(make_model, pictures):
    learning, batch = learner(make_model(), batch=16, lr=3e-3), pictures(16)
    before = {name: p.detach().clone() for name, p in learning.student.clip.named_parameters()}
    losses = [step(learning, (pixels(batch[0]), *batch[1:]))["loss"] for _ in range(15)]
    assert losses[0] == pytest.approx(math.log(16), abs=0.5)
    assert losses[-1] < losses[0] - 0.3  # four classes of four images each: no lower than ln 4
    still = [name for name, p in learning.student.clip.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert float(learning.student.clip.logit_scale.detach()) <= math.log(100) + 1e-6


def test_classes_are_read_anew_where_they_are_scored_and_not_at_every_step(make_model, pictures, monkeypatch):
    learning, batch, asked = learner(make_model(), batch=16, texts=OURS), pictures(16), []
    embed = type(learning.student).embed_prompts
    monkeypatch.setattr(type(learning.student), "embed_prompts", lambda self: asked.append(1) or embed(self))
    for _ in range(3):
        step(learning, (pixels(batch[0]), *batch[1:]))
    assert asked == []
    scores = learning.validate(*pictures(16, seed=1))
    assert torch.equal(learning.student.class_embeddings, learning.model.classifier(NAMES, OURS).class_embeddings)
    stale = learner(make_model(), texts=OURS)
    stale.student.clip.load_state_dict(learning.student.clip.state_dict())
    assert not torch.equal(stale.student.class_embeddings, learning.student.class_embeddings)  # what a forgotten reading would score by
    assert stale.validate(*pictures(16, seed=1)) == scores


def test_a_resumed_run_takes_the_steps_it_would_have_taken(make_model, pictures):
    batches = [(pixels(x), y, ids) for x, y, ids in (pictures(16, seed=seed) for seed in range(4))]
    whole, first, second = (learner(make_model(), batch=16, texts=OURS, ema=0.9) for _ in range(3))
    for batch in batches:
        step(whole, batch, 8)
    for batch in batches[:2]:
        step(first, batch, 8)
    second.restore(first.state())
    for batch in batches[2:]:
        step(second, batch, 8)
    assert torch.equal(learned(whole), learned(second))


def test_in_bf16_it_takes_nearly_the_same_step(make_model, pictures):
    x, y, ids = pictures(16)
    losses = {kind: step(learner(make_model(), batch=16, precision=kind), (pixels(x), y, ids))["loss"] for kind in ("fp32", "bf16")}
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.03)


@pytest.mark.parametrize("trainable", [VisualTower(), LinearHead(), JointTokens()])
def test_it_trains_towers_and_nothing_else(trainable, make_model):
    with pytest.raises(UserError, match="Captioned is CLIP's own training, of images and texts together: choose Towers"):
        learner_of(make_model(), config(Captioned(), trainable))
    with pytest.raises(UserError, match="Captioned has no loss of single images that could be summed"):
        override(
            Config(), {"defense": {"type": "Mix"}} | {"defense": "Mix", "defense.parts": [{"type": "Captioned"}], "defense.weights": [1]}
        )


# --- captions of a file ---------------------------------------------------------------------------------------------------------------


def test_a_file_adds_captions_to_the_templates_and_what_it_lacks_is_counted(tmp_path, caplog):
    file = tmp_path / "said.json"
    file.write_text(json.dumps({"red": ["like blood"], "green": [], "cow": ["moos"]}))
    with caplog.at_level(logging.INFO, logger="robustclip"):
        found = captioned.with_captions(NAMES, TEMPLATES, str(file))
    assert found.texts["red"] == ("a photo of a red.", "a red thing.", "like blood")
    assert found.texts["green"] == ("a photo of a green.", "a green thing.")
    assert set(found.texts) == set(NAMES)
    assert "says nothing of 3 of 4 classes" in caplog.text
    file.write_text(json.dumps({"cow": ["moos"]}))
    with pytest.raises(UserError, match="says nothing of red, green, blue: its keys, such as 'cow', are no classes"):
        captioned.with_captions(NAMES, TEMPLATES, str(file))


# --- an untrained start ---------------------------------------------------------------------------------------------------------------


def test_an_untrained_clip_is_its_seeds_and_written_once(tmp_path):
    state = torch.get_rng_state()
    first, again, other = (captioned.untrained("photos", seed).sha256 for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())
    folder = captioned.start("photos", 0, str(tmp_path))
    written = Path(folder, "config.json").stat().st_mtime_ns
    assert captioned.start("photos", 0, str(tmp_path)) == folder
    assert Path(folder, "config.json").stat().st_mtime_ns == written
    assert models.load(folder).sha256 == first
    assert captioned.start("photos", 1, str(tmp_path)) != folder


@pytest.mark.parametrize("name", captioned.PRETRAINING)
def test_a_recipe_has_an_architecture_of_the_size_it_claims(name):
    model, recipe = captioned.untrained(name, 0), captioned.PRETRAINING[name].config
    assert 1e6 <= sum(p.numel() for p in model.clip.visual.parameters()) <= 3e6
    assert model.clip.visual.patch_size == (4, 4)
    assert recipe.optim.batch // recipe.optim.micro_batch == 2  # one for each of two cores
    assert all(len(model.tokenizer.encode(word)) == 1 for word in ("truck", "deer", "frog", "ship"))


# --- from a set to a model ------------------------------------------------------------------------------------------------------------

TINY = {"optim.epochs": 2, "optim.batch": 8, "optim.micro_batch": 4, "data.held_out": 4, "data.name": "pets", "optim.warmup": 1}
TINY |= {"validation.images": 4, "validation.steps": 1, "checkpoint_every": 2}


@pytest.fixture
def pets(tmp_path):
    """Return an output folder with a set `pets` of 3 x 8 training images, and a file of captions of two of its classes."""
    files = {f"train/{name}/{i}.png": image(32, 32) for name in ("cat", "dog", "tree_frog") for i in range(8)}
    prepare(str(tmp_path / "out"), "pets", [as_folder(tmp_path / "pets", files)])
    (tmp_path / "said.json").write_text(json.dumps({"cat": ["it purrs"], "tree frog": ["it is green", "it croaks"]}))
    return tmp_path


def test_the_recipe_trains_without_ray_and_its_model_is_a_base_of_its_own(pets):
    said = captioned.with_captions(("cat", "dog", "tree frog"), ("a {}",), str(pets / "said.json"))
    chosen = replace(override(captioned.PRETRAINING["photos"].config, TINY), templates=said)
    start = captioned.untrained("photos", 0)
    model, history = finetune_alone(start, chosen, str(pets / "out"))
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert {"val/clean", "val/robust"} <= set(history[-1])
    captioned.kept(model, str(pets / "photos"), pretraining={"recipe": "photos"})
    back = models.load(str(pets / "photos"))
    assert back.sha256 == model.sha256 != start.sha256
    assert models.base(back) is None
    assert back.card["pretraining"] == {"recipe": "photos"}
    save(model, str(pets / "run"), base={"name": "x", "sha256": "0"})  # as a run's checkpoint it would be somebody's
    assert "base" in models.load(str(pets / "run")).card


def asked(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["robustclip pretrain", *words])
    return pretrain.asked()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tiny-vit8", "--captions", "f"), "--captions is not for tiny-vit8: it is made as it ships; of photos"),
        (("tiny-vit8", "--workers", "2"), "--workers is not for tiny-vit8"),
        (("tiny-vit8", "--optim.lr", "1"), "--optim.lr is not for tiny-vit8"),
        (("photos", "--threads", "1"), "--threads is not for photos: threads follow from its workers' share"),
        (("photos", "--trainable", "VisualTower"), "Captioned is CLIP's own training"),
        (("photos", "--optim.lrr", "1"), "did you mean 'optim.lr'"),
    ],
)
def test_options_that_mean_nothing_are_refused(words, said, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        asked(monkeypatch, *words, "--to", str(tmp_path / "to"), "--out", str(tmp_path / "out"))


def test_keys_of_the_recipe_are_options_and_the_start_is_its_own_unless_named(monkeypatch, tmp_path):
    to = ("--to", str(tmp_path / "to"), "--out", str(tmp_path / "out"))
    _, config, _, folder = asked(monkeypatch, "photos", "--optim.lr", "2e-3", "--data.name", "pets", *to)
    assert (config.optim.lr, config.data.name, config.model, folder) == (2e-3, "pets", "", str(tmp_path / "to"))
    _, config, _, _ = asked(monkeypatch, "photos", "--model", "tiny-vit8", *to)
    assert config.model == "tiny-vit8"


@pytest.mark.slow
def test_the_command_goes_from_a_set_to_a_model_on_ray_train_and_finds_it_again(pets, ray_session, monkeypatch, capsys):
    keys = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    words = ["photos", *keys, "--captions", str(pets / "said.json"), "--to", str(pets / "photos"), "--out", str(pets / "out")]
    monkeypatch.setattr("sys.argv", ["robustclip pretrain", *words, "--workers", "2"])
    pretrain.run()
    said = capsys.readouterr().out
    model = models.load(str(pets / "photos"))
    assert "photos: 4 steps" in said
    assert model.card["pretraining"]["config"]["defense"]["type"] == "Captioned"
    assert len(models.selection(str(pets / "photos"))) == 24  # of which the held-out ones were chosen on
    storage.delete(str(pets / "photos"))
    pretrain.run()  # a finished run is not trained again, whatever the share
    assert models.load(str(pets / "photos")).sha256 == model.sha256
