"""Folders that other programs write are models by their path: open_clip's local-dir, transformers' CLIPModel, whole or in parts."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.commands import report
from robustclip.models import checkpoints, folders, hugging_face, tokenizers
from robustclip.models.model import Model

TEXTS = ["a photo of a red fox.", "two papillons", "Cloud-9 isn't blue"]
SMALL = 200  # merges


@pytest.fixture
def hf(tiny_model: Model, tmp_path: Path) -> Path:
    """Return the folder of the tests' tiny CLIP as transformers would have written it, by our own names of its tensors."""
    return written(tiny_model, tmp_path / "clip-vit-tiny")


def written(model: Model, folder: Path, **said: Any) -> Path:
    """Write a model as a CLIPModel's folder."""
    folder.mkdir()
    config, images = hugging_face.transformers_config(model.open_clip_config, "tiny")
    config["text_config"] |= said
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *tokenizers.first_merges(SMALL), ""]))
    save_file(hugging_face.to_transformers(model.clip.state_dict()), folder / "model.safetensors")
    return folder


def same(found: Model, wanted: Model) -> None:
    own, other = found.clip.state_dict(), wanted.clip.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert torch.equal(found.tokenizer(TEXTS), wanted.tokenizer(TEXTS))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    classifiers = [each.classifier(("red", "blue"), ("a {}.",)) for each in (found, wanted)]
    assert torch.equal(*(each(images) for each in classifiers))


# --- transformers ---------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_transformers_is_a_model_by_its_path(hf: Path, tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found = models.load(str(hf))
    same(found, tiny_model)
    assert found.open_clip_config["preprocess_cfg"] == tiny_model.open_clip_config["preprocess_cfg"]
    assert (models.display_name(str(hf)), models.input_size(str(hf)), models.base(found)) == ("clip-vit-tiny", 16, None)
    monkeypatch.chdir(hf.parent)
    assert models.absolute("./clip-vit-tiny/") == str(hf) == found.name
    models.load_exactly(str(hf), models.identity(str(hf)))


def test_what_was_made_of_it_is_a_checkpoint_like_any_other(hf: Path, tiny_model: Model, tmp_path: Path) -> None:
    checkpoints.save(models.load(str(hf)), str(tmp_path / "ours"), base={"name": str(hf), "sha256": models.identity(str(hf))})
    ours = models.load(str(tmp_path / "ours"))
    same(ours, tiny_model)
    assert models.base(ours) == str(hf)


def test_queries_keys_and_values_lie_in_this_order_and_projections_are_transposed(tiny_model: Model) -> None:
    """What transformers itself says of it stands in test_hugging_face.py, which needs it."""
    state = tiny_model.clip.state_dict()
    sent = hugging_face.to_transformers(state)
    for tower, block in (("vision", "visual.transformer"), ("text", "transformer")):
        packed = state[f"{block}.resblocks.0.attn.in_proj_weight"]
        apart = [sent[f"{tower}_model.encoder.layers.0.self_attn.{kind}_proj.weight"] for kind in "qkv"]
        assert [torch.equal(a, b) for a, b in zip(apart, packed.chunk(3))] == [True] * 3
    assert torch.equal(sent["visual_projection.weight"], state["visual.proj"].T)
    assert torch.equal(sent["text_projection.weight"], state["text_projection"].T)


@pytest.mark.parametrize("form", ["bin", "parts", "parts of bin", "fp16", "both towers in one file"])
def test_weights_in_every_form(hf: Path, tiny_model: Model, form: str) -> None:
    state = hugging_face.to_transformers(tiny_model.clip.state_dict())
    (hf / "model.safetensors").unlink()
    if form == "bin":
        torch.save(state, hf / "pytorch_model.bin")
    elif form == "fp16":
        save_file({name: t.half() for name, t in state.items()}, hf / "model.safetensors")
        tiny_model = tiny_model.copy()
        tiny_model.clip.load_state_dict({name: t.half().float() for name, t in tiny_model.clip.state_dict().items()})
    elif form == "both towers in one file":
        save_file({f"clip.{name}": t for name, t in state.items()}, hf / "model.safetensors")
    else:
        whole, write = ("pytorch_model.bin", torch.save) if "bin" in form else ("model.safetensors", save_file)
        stem, _, end = whole.partition(".")
        place = {name: f"{stem}-0000{1 + i % 2}-of-00002.{end}" for i, name in enumerate(state)}
        for part in set(place.values()):
            write({name: t for name, t in state.items() if place[name] == part}, hf / part)
        (hf / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    same(models.load(str(hf)), tiny_model)


def test_activations_and_epsilons_are_those_of_the_config(tiny_model: Model, tmp_path: Path) -> None:
    config = json.loads(json.dumps(tiny_model.open_clip_config))
    config["model_cfg"]["quick_gelu"] = True
    config["model_cfg"]["vision_cfg"] |= {"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.0}
    other = Model("other", checkpoints.build(config).eval().requires_grad_(False), tiny_model.tokenizer, config, tiny_model.card)
    found = models.load(str(written(other, tmp_path / "quick")))
    same(found, other)
    assert found.open_clip_config["model_cfg"] == config["model_cfg"]
    assert {type(block.mlp.gelu).__name__ for block in found.clip.visual.transformer.resblocks} == {"QuickGELU"}


def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    config = hugging_face.open_clip_config({"model_type": "clip", "text_config": None, "vision_config": {}}, {}, "here")
    wanted = open_clip.get_model_config("ViT-B-32-quickgelu")
    wanted["vision_cfg"] |= {"head_width": 64}
    assert config["model_cfg"] == wanted
    assert config["preprocess_cfg"] == {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)} | {
        "size": 224,
        "interpolation": "bicubic",
    }
    legacy = hugging_face.open_clip_config(
        {"text_config": {}, "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072}}, {}, "x"
    )
    assert legacy["model_cfg"]["text_cfg"]["width"] == 768


def test_every_file_that_decides_an_answer_is_in_the_identity(hf: Path) -> None:
    seen = {models.identity(str(hf))}
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "merges.txt"):
        (hf / name).write_bytes((hf / name).read_bytes() + b" ")
        seen.add(models.identity(str(hf)))
    (hf / "README.md").write_text("nothing")
    assert models.identity(str(hf)) in seen
    assert len(seen) == 5


def spoilt(hf: Path, **changes: Any) -> None:
    config = json.loads((hf / "config.json").read_text())
    for path, value in changes.items():
        part, _, key = path.rpartition("__")
        (config[part] if part else config)[key] = value
    (hf / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "siglip"}, "is a siglip of transformers, and a CLIPModel .* is read"),
        ({"text_config__hidden_act": "relu"}, "hidden_act is gelu and relu"),
        ({"text_config__eos_token_id": 5}, "eos_token_id is 5, and CLIP's texts end with the last of 714 ids"),
        ({"vision_config__num_channels": 1}, "num_channels is 1"),
        ({"vision_config__num_hidden_layers": 3}, r"do not fit .* 50 of 62 tensors match; missing: visual.transformer.resblocks.2"),
        ({"projection_dim": 32}, "left over: text_projection 16x16, not 16x32, visual.proj 32x16, not 32x32"),
        ({"vision_config__num_attention_heads": 5}, "its config is of no model that can be built here"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(hf: Path, changes: dict[str, Any], said: str) -> None:
    spoilt(hf, **changes)
    with pytest.raises(UserError, match=said) as error:
        models.load(str(hf))
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_are_named(hf: Path) -> None:
    (hf / "model.safetensors").rename(hf / "model.safetensors.index.json")
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": "one.safetensors"}}))
    with pytest.raises(UserError, match=r"index.json names parts that are not there: one.safetensors"):
        models.identity(str(hf))
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": "../one.safetensors"}}))
    with pytest.raises(UserError, match="cannot be a file name"):
        models.load(str(hf))
    (hf / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="a config of a CLIPModel and no weights: put model"):
        models.load(str(hf))


def test_a_tokenizer_that_is_not_clips_is_refused(hf: Path) -> None:
    (hf / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="reads 714 words of CLIP's tokenizer, and the tokenizer here is another one"):
        models.load(str(hf))
    (hf / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"and the tokenizer here has 49408: put the model's own \(tokenizer.json or merges.txt\)"):
        models.load(str(hf))
    pairs = [merge.split(" ") for merge in tokenizers.first_merges(SMALL)]
    (hf / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "merges": pairs}}))
    assert models.load(str(hf)).card["tokenizer"] == {"merges": SMALL}


def test_a_report_finds_a_folder_by_its_weights(hf: Path, local: Path) -> None:
    for folder in (hf, local):
        assert report._name(str(folder), {"as it was called": models.identity(str(folder))}) == "as it was called"


# --- open_clip ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def local(make_model: Any, tmp_path: Path) -> Path:
    """Return a folder that open_clip's `local-dir:` reads: CLIP's whole vocabulary, and of preprocessing what its own writer says."""
    folder = tmp_path / "local"
    folder.mkdir()
    config = json.loads(json.dumps(make_model().open_clip_config["model_cfg"]))
    config["text_cfg"] |= {"vocab_size": tokenizers.WORDS, "width": 8}
    clip = checkpoints.build({"model_cfg": config})
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    said = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    return folder


def test_a_local_dir_of_open_clip_is_what_open_clip_makes_of_it(local: Path) -> None:
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{local}")
    found = models.load(str(local))
    assert all(torch.equal(tensor, found.clip.state_dict()[name]) for name, tensor in clip.state_dict().items())
    assert torch.equal(found.tokenizer(TEXTS), open_clip.get_tokenizer(f"local-dir:{local}")(TEXTS))
    assert (found.preprocess.size, found.preprocess.mean, found.preprocess.std) == (16, tuple(preprocess.transforms[-1].mean), (0.25,) * 3)
    (local / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    torch.save(clip.state_dict(), local / "x.bin")
    assert models.load(str(local)).sha256 == found.sha256
    (local / "open_clip_model.safetensors").unlink()
    (local / "x.bin").rename(local / "open_clip_pytorch_model.bin")
    assert models.load(str(local)).sha256 == found.sha256


def test_a_folder_with_both_forms_is_open_clips_and_what_robustclip_wrote_is_its_own(local: Path, hf: Path, tiny_checkpoint: str) -> None:
    alone = models.identity(str(local))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(hf / name, local / name)
    assert models.identity(str(local)) == alone
    assert folders.of(tiny_checkpoint) is None
    storage.delete(f"{tiny_checkpoint}/config.json")  # of a checkpoint that was not finished
    assert folders.of(tiny_checkpoint) is None
    with pytest.raises(UserError, match="no model"):
        models.load(tiny_checkpoint)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"model_cfg": {"embed_dim": 16}}, "describes no model: it needs model_cfg with embed_dim, vision_cfg and text_cfg"),
        ({"model_cfg": {"text_cfg": {"vocab_size": 700}}}, "do not fit .* left over: token_embedding.weight 49408x8, not 700x8"),
        ({"model_cfg": {"multimodal_cfg": {}}}, "its config is of no model that can be built here"),
    ],
)
def test_a_local_dir_that_does_not_fit_is_refused(local: Path, said: dict[str, Any], match: str) -> None:
    config = json.loads((local / "open_clip_config.json").read_text())
    if said["model_cfg"] == {"embed_dim": 16}:
        config = said
    elif "text_cfg" in said["model_cfg"]:
        config["model_cfg"]["text_cfg"] |= said["model_cfg"]["text_cfg"]
    else:
        config["model_cfg"] |= said["model_cfg"]
    (local / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=match):
        models.load(str(local))
