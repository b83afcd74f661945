"""Models out: the same logits wherever others load them, nothing dropped without a word, and a card with what was measured."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

import robustclip
from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.commands import export
from robustclip.models import checkpoints, dress, exporting, hugging_face, tokenizers
from robustclip.models.model import Model
from robustclip.results import model_card

TEXTS = ["a photo of a red fox.", "two papillons", "Cloud-9 isn't blue"]


def exported(monkeypatch: pytest.MonkeyPatch, model: str, form: str, folder: Path, out: Path) -> Path:
    """Run the command and return the folder."""
    monkeypatch.setattr(sys, "argv", ["robustclip export", model, "--as", form, "--to", str(folder), "--out", str(out)])
    export.run()
    return folder


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    return lambda model, form, to="sent": exported(monkeypatch, model, form, tmp_path / to, tmp_path / "out")


def logits(clip: Any, tokens: Tensor) -> Tensor:
    side = torch.tensor(clip.visual.image_size).flatten()[0].item()
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    image, text, scale, *bias = clip.eval().requires_grad_(False)(images, tokens)
    return scale * image @ text.T + (bias[0] if bias else 0)


# --- open_clip ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip", "timm"])
def test_what_open_clip_loads_gives_the_same_logits(kind: str, make_model: Callable[..., Model], tmp_path: Path) -> None:
    model = make_model(kind)
    exporting.write(model, "open_clip", str(tmp_path))
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = model.tokenizer(TEXTS)
    assert torch.equal(logits(clip, tokens), logits(model.clip, tokens))
    assert tuple(preprocess.transforms[-1].mean) == model.preprocess.mean
    back = models.load(str(tmp_path))
    assert back.sha256 == model.sha256
    assert back.preprocess == model.preprocess
    assert torch.equal(back.tokenizer(TEXTS), tokens)


def test_clips_whole_tokenizer_needs_no_file(tiny_model: Model, tmp_path: Path) -> None:
    config = json.loads(json.dumps(tiny_model.open_clip_config))
    config["model_cfg"]["text_cfg"] |= {"vocab_size": tokenizers.WORDS, "hf_tokenizer_name": "some/where"}
    whole = replace(
        tiny_model, clip=checkpoints.build(config), tokenizer=tokenizers.cut_tokenizer(tokenizers.MERGES, 24), open_clip_config=config
    )
    exporting.write(whole, "open_clip", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS), whole.tokenizer(TEXTS))
    assert torch.equal(open_clip.get_tokenizer("ViT-B-32")(TEXTS)[:, :24], whole.tokenizer(TEXTS))


# --- transformers, by our own names of its tensors; test_hugging_face.py has its own models -------------------------------------------


def test_names_and_configs_come_back_as_they_went(tiny_model: Model, tmp_path: Path) -> None:
    state = tiny_model.clip.state_dict()
    sent = hugging_face.to_transformers(state)
    back = hugging_face.to_open_clip(sent)
    assert sent.keys() & state.keys() == {"logit_scale"}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    exporting.write(tiny_model, "hf", str(tmp_path))
    found = models.load(str(tmp_path))
    assert found.sha256 == tiny_model.sha256
    assert found.preprocess == tiny_model.preprocess
    assert torch.equal(found.tokenizer(TEXTS), tiny_model.tokenizer(TEXTS))


def test_a_text_tower_that_stands_apart_is_transformers_as_well(tiny_model: Model, tmp_path: Path) -> None:
    config = json.loads(json.dumps(tiny_model.open_clip_config))
    config["model_cfg"]["custom_text"] = True
    apart = replace(tiny_model, clip=checkpoints.build(config).eval(), open_clip_config=config)
    exporting.write(apart, "hf", str(tmp_path))
    tokens = apart.tokenizer(TEXTS)
    assert torch.equal(logits(models.load(str(tmp_path)).clip, tokens), logits(apart.clip, tokens))


@pytest.mark.parametrize(
    ("kind", "said"), [("resnet", "has no ResNet"), ("siglip", "has no init_logit_bias"), ("timm", "has no init_logit_bias")]
)
def test_what_transformers_has_no_place_for_is_refused(kind: str, said: str, make_model: Callable[..., Model], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"CLIPModel is CLIP's own ViT and text tower, and {said}: export it --as open_clip"):
        exporting.write(make_model(kind), "hf", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- the tower alone ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_the_tower_alone_is_what_loaders_of_fares_files_take(kind: str, make_model: Callable[..., Model], tmp_path: Path) -> None:
    model, other = make_model(kind), make_model(kind, seed=1).copy()
    exporting.write(model, "visual", str(tmp_path))
    state = torch.load(tmp_path / "visual.pt", weights_only=True)
    other.clip.visual.load_state_dict(state)
    assert {f"visual.{name}" for name in state} == {name for name in model.clip.state_dict() if name.startswith("visual.")}
    assert all(torch.equal(state[name], tensor) for name, tensor in model.clip.visual.state_dict().items())


def test_a_tower_goes_out_and_comes_in(monkeypatch: pytest.MonkeyPatch, send: Callable[..., Path], tmp_path: Path) -> None:
    config = checkpoints.storage.read_json(f"{checkpoints.embedded()['tiny-vit8']}/open_clip_config.json")["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Vit8", config)
    path = send("tiny-vit8", "visual") / "visual.pt"
    base = models.load("open_clip:Vit8/random[seed=0]").clip.state_dict()
    found = models.load(f"open_clip:Vit8/random[seed=0]/{path}").clip.state_dict()
    tiny = models.load("tiny-vit8").clip.state_dict()
    assert all(torch.equal(tensor, (tiny if name.startswith("visual.") else base)[name]) for name, tensor in found.items())


# --- what has no place ----------------------------------------------------------------------------------------------------------------


def worn(model: Model, part: dress.Dress) -> Model:
    return dress.worn_by(model, part.build(model, 0, ("red", "blue")), part)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (dress.PixelPrompt(), "wears PixelPrompt, which has no place in CLIP's weights"),
        (dress.TokenPrompt(2), "wears TokenPrompt"),
        (dress.FramedTokens(2, 2), "wears FramedTokens"),
        (dress.JointTokens(depth=1), "wears JointTokens"),
        (dress.InputFilter(3), "wears InputFilter, which has no place in CLIP's weights, and is the undefended base without it"),
        (dress.LinearHead(), "is a linear probe, whose readout has no place"),
    ],
)
@pytest.mark.parametrize("form", exporting.FORMS)
def test_what_a_model_wears_is_never_dropped(part: Any, said: str, form: str, tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        exporting.write(worn(tiny_model, part), form, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tpt:tiny-vit8", "tpt:tiny-vit8 is defended at test time.*export the model behind the colon"),
        ("ensemble:tiny-vit8,{folder}", "ensemble:tiny-vit8,.* is several models, whose logits are averaged: export each of them"),
    ],
)
def test_what_is_no_single_clip_is_refused(name: str, said: str, send: Callable[..., Path], tiny_checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        send(name.format(folder=tiny_checkpoint), "open_clip")
    assert not (tmp_path / "sent").exists()


# --- the folder -----------------------------------------------------------------------------------------------------------------------


def test_only_an_export_of_the_same_weights_is_written_over(send: Callable[..., Path], tiny_checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    folder = send(tiny_checkpoint, "hf")
    assert not list(tmp_path.glob(".sent*"))
    (folder / "README.md").unlink()
    assert (send(tiny_checkpoint, "open_clip") / "README.md").exists()
    assert not (folder / "vocab.json.old").exists()
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(UserError, match="is there already and no export of this model"):
        send("tiny-vit8", "open_clip")
    (folder / ".git").mkdir()
    with pytest.raises(UserError, match=r"holds what no export wrote \(\.git\), which would be gone"):
        send(tiny_checkpoint, "open_clip")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is there already and no export"):
        send(tiny_checkpoint, "open_clip", "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- the card -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tuned(tiny_model: Model, tiny_checkpoint: str, tmp_path: Path) -> str:
    """Return the folder of a run's checkpoint, fine-tuned from that of the tests' tiny CLIP."""
    folder = str(tmp_path / "out" / "runs" / "0123" / "model")
    config = {"model": tiny_checkpoint, "defense": {"type": "TeCoA"}, "trainable": {"type": "VisualTower"}, "data": {"name": "cifar10"}}
    base = {"name": tiny_checkpoint, "sha256": models.identity(tiny_checkpoint)}
    checkpoints.save(tiny_model, folder, run="0123", base=base, config=config | {"table": str(tmp_path / "words.json")})
    return folder


def test_the_card_has_the_numbers_of_the_records_and_no_path_of_this_machine(tuned: str, send: Callable[..., Path], tmp_path: Path) -> None:
    found = robustclip.evaluate(tuned, "shapes", attacks=["fgsm"], eps=[1, 4], n=6, out=str(tmp_path / "out"))
    robustclip.evaluate("tiny-vit8", "shapes", attacks=["fgsm"], eps=[2], n=6, out=str(tmp_path / "out"))  # another model's
    data = {"name": "cifar10", "class_names": [], "templates": [], "splits": {}, "native_size": 32, "licence": "as it says", "source": "x"}
    (tmp_path / "out" / "data" / "cifar10").mkdir()
    (tmp_path / "out" / "data" / "cifar10" / "dataset.json").write_text(json.dumps(data | {"shards": {}, "schema_version": 1}))
    card = (send(tuned, "open_clip") / "README.md").read_text()
    for estimate in (found.clean, *found.robust.values()):
        assert f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]" in card
    assert found.records["protocol_hash"][0].as_py() in card
    assert card.count("## What it withstands") == 1
    assert "checks: none were run, so it is not ranked" in card
    assert f"Fine-tuned from tiny (sha256 {models.identity(str(tmp_path / 'tiny'))})" in card
    assert "- training images, cifar10: as it says" in card
    assert '"model": "tiny"' in card
    assert '"table": "words.json"' in card
    assert str(tmp_path) not in card
    for gap in ("L2 at any eps", "eps above 4/255", "attacks on the class prompts", "photographs: no set above has any"):
        assert f"- {gap}\n" in card


def test_a_card_without_records_says_that_it_knows_nothing(send: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    card = (send("tiny-vit8", "visual") / "README.md").read_text()
    assert "Not known: there is no record of these weights" in card
    assert "- anything: no attack at any eps on any images" in card
    assert card.startswith("---\nlibrary_name: pytorch\npipeline_tag: zero-shot-image-classification\ntags:\n")
    assert "\nlicense: apache-2.0\n---\n" in card
    assert "next: robustclip evaluate tiny-vit8 --out " in capsys.readouterr().out


def test_an_unfinished_evaluation_gives_no_number(tuned: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    robustclip.evaluate(tuned, "shapes", attacks=["fgsm"], eps=[1], n=6, out=out)
    (protocol,) = (tmp_path / "out" / "protocols").iterdir()
    said = json.loads(protocol.read_text())
    said["sets"]["shapes"]["n"] = 7
    protocol.write_text(json.dumps(said))
    reports, unfinished = model_card.measured(out, models.identity(tuned))
    assert reports == []
    assert len(unfinished) == 1
    assert "6 of 7 images of set 'shapes'" in unfinished[0]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("open_clip:ViT-B-32-quickgelu/openai", ("timm/vit_base_patch32_clip_224.openai", "mit")),
        ("open_clip:ViT-B-32-quickgelu/openai//secret/tower.pt", ("timm/vit_base_patch32_clip_224.openai", "mit")),
        ("open_clip:ViT-B-32//secret/whole.pt", ("", "")),
        ("open_clip:hf-hub:some/model", ("some/model", "")),
        ("tiny-vit8", ("", "apache-2.0")),
        ("/secret/run", ("", "")),
    ],
)
def test_where_a_model_comes_from_is_said_without_paths(name: str, found: tuple[str, str]) -> None:
    assert export.origin_of(name) == found
    assert "secret" not in export.shown(name)
