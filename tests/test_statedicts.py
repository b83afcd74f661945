"""Files of weights in the forms that papers' authors and training scripts write them: which are read, to the bit, and which are refused."""

import argparse
import logging
from collections import OrderedDict

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.models import hugging_face, statedicts, weights, zoo

TEXT = {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
VIT = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}  # both towers of one width: only names tell them apart
APART = {"embed_dim": 16, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT}
WORDS = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
RESNET = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}, "text_cfg": WORDS}
CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
SIGLIP = {"embed_dim": 16, "custom_text": True, "init_logit_bias": -10, "vision_cfg": VISION}
SIGLIP |= {"text_cfg": WORDS | {"hf_tokenizer_name": "nobody/nothing", "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}}
KINDS = {"Tiny": VIT, "Apart": APART, "ResNet": RESNET, "ConvNeXt": RESNET | {"vision_cfg": CONVNEXT}, "SigLIP": SIGLIP}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, config in KINDS.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    zoo._identity.cache_clear()
    weights.warn.cache_clear()


@pytest.fixture
def state():
    """Return the weights that a file of each test holds."""
    return models.load("open_clip:Tiny/random[seed=3]").clip.state_dict()


def tower_of(state):
    return {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}


def beside(**entries):
    """Return what training scripts keep beside a model: an optimizer's state, an epoch, numbers of numpy."""
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    return {"epoch": 9, "best_acc1": np.float64(41.5), "share": np.float32(0.5), "optimizer": optimizer, **entries}


def tecoa(state, prompter=(), tokens=0):
    """Return TeCoA's form: the tower beside a pixel prompt and as many tokens, of which fine-tuned models have none."""
    add = {"module.prompt": torch.ones(1, tokens, 16)}
    return beside(state_dict=OrderedDict(prompter), add_prompter=add, vision_encoder_state_dict=tower_of(state))


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


WHOLE = {
    "plain": lambda state: state,
    "of DataParallel": lambda state: {f"module.{name}": t for name, t in state.items()},
    "compiled in DDP": lambda state: {"state_dict": {f"module._orig_mod.{name}": t for name, t in state.items()}},
    "open_clip's trainer": lambda state: beside(state_dict={f"module.{name}": t for name, t in state.items()}, name="run"),
    "under model": lambda state: beside(model=state),
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "under a name of its own": lambda state: beside(clip=state),
    "inside a module": lambda state: {f"clip_model.{name}": t for name, t in state.items()},
    "transformers' names": lambda state: hugging_face.to_transformers(state) | {"vision_model.embeddings.position_ids": torch.arange(5)},
    "OpenAI's numbers": lambda state: state | {name: torch.tensor(16) for name in statedicts.OPENAI},
}
TOWERS = {
    "FARE": tower_of,
    "with its prefix": lambda state: {f"visual.{name}": t for name, t in tower_of(state).items()},
    "of DataParallel": lambda state: {f"module.{name}": t for name, t in tower_of(state).items()},
    "TeCoA": tecoa,
    "transformers' names": lambda state: {
        name: t for name, t in hugging_face.to_transformers(state).items() if name.startswith(("vision_model.", "visual_"))
    },
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_whole_model_is_read_from_any_form(form, state, tmp_path):
    path = tmp_path / "weights.pth.tar"
    torch.save(WHOLE[form](state), path)
    same(models.load(f"open_clip:Tiny/{path}").clip.state_dict(), state)


@pytest.mark.parametrize("form", TOWERS)
def test_a_tower_is_put_on_the_text_tower_that_the_name_says(form, state, tmp_path, caplog):
    path = tmp_path / "tower.pt"
    torch.save(TOWERS[form](state), path)
    name, base = f"open_clip:Tiny/random[seed=07]/{path}", models.load("open_clip:Tiny/random[seed=7]").clip.state_dict()
    with caplog.at_level(logging.WARNING, "robustclip"):
        found = models.load(name)
    same(found.clip.state_dict(), base | {each: t for each, t in state.items() if each.startswith("visual.")})
    said = [record.getMessage() for record in caplog.records if "are those of" in record.getMessage()]
    assert len(said) == 1
    assert f"32 tensors are those of {path}; text tower (29 tensors) and scale (1 tensors): as in Tiny/random[seed=7]" in said[0]
    assert found.name == models.absolute(name) == f"open_clip:Tiny/random[seed=7]/{path}"
    models.load_exactly(name, models.identity(name))
    assert models.identity(name) != models.identity(f"open_clip:Tiny/random[seed=8]/{path}")


def test_a_tag_gives_the_other_tower_and_tells_the_activation(state, tmp_path, monkeypatch, caplog):
    tag, tower = tmp_path / "tag.safetensors", tmp_path / "tower.pt"
    text = models.load("open_clip:Tiny/random[seed=5]").clip.state_dict()
    save_file(text, tag)
    torch.save(tower_of(state), tower)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"mine": {"quick_gelu": True}})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *args, **kwargs: str(tag))
    with caplog.at_level(logging.WARNING, "robustclip"):
        same(models.load(f"open_clip:Tiny/mine/{tower}").clip.state_dict(), text | {f"visual.{n}": t for n, t in tower_of(state).items()})
    assert [record for record in caplog.records if "does not say with which activation" in record.getMessage()] == []
    with pytest.raises(UserError, match=r"no weights 'min' \(did you mean mine\?\)"):
        models.load(f"open_clip:Tiny/min/{tower}")
    with pytest.raises(UserError, match=r"no text tower .*open_clip:Tiny/TAG//.*fine-tuned from \(mine\), or random"):
        models.load(f"open_clip:Tiny/{tower}")


def test_an_entry_that_is_not_read_is_named(state, tmp_path, caplog):
    torch.save(beside(model=state, model_ema=state), tmp_path / "both.pt")
    with caplog.at_level(logging.WARNING, "robustclip"):
        models.load(f"open_clip:Tiny/{tmp_path}/both.pt")
    assert [m for r in caplog.records if "entry model is read; tensors of others are not: model_ema" in (m := r.getMessage())]


def test_the_form_is_told_by_what_is_in_the_file(state, tmp_path):
    save_file(state, tmp_path / "weights.bin")
    torch.save(state, tmp_path / "weights.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        same(models.load(f"open_clip:Tiny/{tmp_path}/{name}").clip.state_dict(), state)


def test_a_text_tower_that_stands_apart_is_found_under_the_old_names(state, tmp_path):
    torch.save(state, tmp_path / "whole.pt")
    found = models.load(f"open_clip:Apart/{tmp_path}/whole.pt").clip.state_dict()
    assert torch.equal(found["text.token_embedding.weight"], state["token_embedding.weight"])
    same({name: t for name, t in found.items() if name.startswith("visual.")}, {f"visual.{n}": t for n, t in tower_of(state).items()})


REFUSED = {
    "a tower alone": (tower_of, "/{path}", r"holds 32 tensors of Tiny and no text tower \(29 tensors\) and scale .*open_clip:Tiny/TAG//"),
    "a whole model on another": (dict, "/random[seed=0]/{path}", "holds a whole model and needs no other part: load open_clip:Tiny//"),
    "half a tower": (
        lambda state: dict(list(tower_of(state).items())[:9]),
        "/random[seed=0]/{path}",
        r"does not fit Tiny: 9 of 62 tensors match; missing: .* \(53\)",
    ),
    "another width": (
        lambda state: state | {"visual.proj": torch.zeros(16, 8)},
        "/{path}",
        "61 of 62 tensors match; missing: visual.proj; left over: visual.proj 16x8, not 16x16",
    ),
    "a head": (lambda state: state | {"head.weight": torch.zeros(4, 16)}, "/{path}", "62 of 62 tensors match; left over: head.weight 4x16"),
    "another model": (lambda state: {"fc.weight": torch.zeros(2)}, "/{path}", "does not fit Tiny: 0 of 62 tensors match"),
    "TeCoA's pixels": (
        lambda s: tecoa(s, {"module.pad_up": torch.ones(1, 3, 2, 8)}),
        "/{path}",
        r"visual prompt .*state_dict.module.pad_up",
    ),
    "TeCoA's tokens": (lambda s: tecoa(s, tokens=5), "/{path}", r"visual prompt beside its tower \(add_prompter.module.prompt\)"),
    "objects of a program": (
        lambda state: beside(state_dict=state, args=argparse.Namespace(lr=1)),
        "/{path}",
        "holds argparse.Namespace, an obj",
    ),
    "two models": (
        lambda state: beside(student=state, teacher=state),
        "/{path}",
        r"several entries that may be the model \(student, teacher\)",
    ),
    "no model": (lambda state: beside(), "/{path}", r"no tensors by name \(epoch, best_acc1, share \.\.\. \(4\)\)"),
    "a list": (lambda state: list(state.values()), "/{path}", "holds a list and no tensors by name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_says_what_matched_and_what_did_not(what, state, tmp_path):
    made, name, said = REFUSED[what]
    path = tmp_path / "weights.pt"
    torch.save(made(state), path)
    with pytest.raises(UserError, match=said) as error:
        models.load("open_clip:Tiny" + name.format(path=path))
    assert "\n" not in str(error.value)


def test_what_open_clip_makes_fit_is_loaded_and_said(state, tmp_path, caplog):
    grown = torch.randn(1 + 9, 16)  # of images half as wide again
    torch.save(state | {"visual.positional_embedding": grown}, tmp_path / "large.pt")
    with caplog.at_level(logging.WARNING, "robustclip"):
        found = models.load(f"open_clip:Tiny/{tmp_path}/large.pt").clip.state_dict()
    assert torch.equal(found["visual.positional_embedding"][0], grown[0])
    assert [record for record in caplog.records if "left over: visual.positional_embedding 10x16, not 5x16" in record.getMessage()]


# --- architectures that are no ViT of CLIP's ------------------------------------------------------------------------------------------


class Reader:
    """Stands in for a tokenizer of transformers."""

    def __call__(self, texts):
        return torch.tensor([[len(text), *range(1, 8)] for text in texts])


@pytest.mark.parametrize("kind", ["ResNet", "ConvNeXt", "SigLIP"])
def test_other_architectures_classify_and_are_attacked(kind, monkeypatch, tmp_path):
    if kind == "SigLIP":
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: Reader())
    drawn = models.load(f"open_clip:{kind}/random[seed=0]")
    torch.save({"state_dict": {f"module.{name}": t for name, t in drawn.clip.state_dict().items()}}, tmp_path / "again.pt")
    model = models.load(f"open_clip:{kind}/{tmp_path}/again.pt")
    same(model.clip.state_dict(), drawn.clip.state_dict())
    classifier = model.classifier(("red", "a green thing"), ("a photo of a {}.",))
    images, labels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    attacked = PGD(2)(classifier, images, labels, ["a", "b"], Ball("Linf", 4), 0).images
    assert torch.isfinite(classifier(attacked)).all()
    assert ((attacked - images).abs().amax((1, 2, 3)) > 1 / 255).all()


def test_a_tokenizer_of_transformers_that_is_not_here_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"^SigLIP has a tokenizer of the package transformers, which is not here: pip install 'robustclip\[hf\]'$"
    ):
        models.load("open_clip:SigLIP/random[seed=0]")
