"""Models in and out against transformers itself: its own CLIPModel, tokenizers and SigLIP's; needs `uv sync --extra hf`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from robustclip import names as models
from robustclip.models import exporting, tokenizers, zoo
from robustclip.models.model import Model

transformers: Any = pytest.importorskip("transformers")
TEXTS = ["a photo of a red fox.", "two papillons", "Cloud-9 isn't blue", "A  STRIPED   thing & more", "café"]
CLOSE = 1e-5  # of logits of up to 15: another order of the same sums
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "eos_token_id": 2}
VISION = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}


def drawn(**both: Any) -> Any:
    """Return a random CLIPModel of transformers; its biases and norms are not those of a fresh one."""
    config = transformers.CLIPConfig(text_config=TEXT | both, vision_config=VISION | both, projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def ours(model: Model, images: Tensor, tokens: Tensor) -> Tensor:
    clip: Any = model.clip
    image, text, scale = clip(images, tokens)[:3]
    return scale * image @ text.T


def pictures(side: int) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["quick_gelu", "gelu", "parts"])
def test_a_clip_model_of_transformers_answers_the_same_here(form: str, tmp_path: Path) -> None:
    theirs = drawn(hidden_act="gelu" if form == "gelu" else "quick_gelu", layer_norm_eps=1e-5 if form == "gelu" else 1e-6)
    theirs.save_pretrained(tmp_path, **({"max_shard_size": "1MB"} if form == "parts" else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == (form == "parts")
    found = models.load(str(tmp_path))
    images, tokens = pictures(32), found.tokenizer(TEXTS)
    wanted = theirs(input_ids=tokens, pixel_values=images).logits_per_image
    assert wanted.std() > 0.1
    assert (ours(found, images, tokens) - wanted).abs().max() <= CLOSE


def test_what_is_exported_answers_the_same_there(tmp_path: Path) -> None:
    model = models.load("tiny-vit8")
    exporting.write(model, "hf", str(tmp_path))
    theirs, said = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values())
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path)
    read = processor(text=TEXTS, return_tensors="pt", padding="max_length", max_length=24, truncation=True)
    images = pictures(32)
    wanted = ours(model, images, model.tokenizer(TEXTS))
    assert wanted.std() > 1
    given = theirs.eval()(input_ids=read.input_ids, attention_mask=read.attention_mask, pixel_values=images).logits_per_image
    assert (given - wanted).abs().max() <= CLOSE


def test_a_picture_is_seen_the_same_there(tmp_path: Path) -> None:
    from PIL import Image

    model = models.load("tiny-vit8")
    exporting.write(model, "hf", str(tmp_path))
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = transformers.CLIPProcessor.from_pretrained(tmp_path)(images=Image.fromarray(pixels.numpy()), return_tensors="pt").pixel_values
    classifier = model.classifier(("a",), ("{}",))
    assert torch.allclose(given[0], (pixels.permute(2, 0, 1) / 255 - classifier.mean) / classifier.std, atol=1e-6)


@pytest.mark.parametrize("merges", [2000, tokenizers.MERGES])
def test_words_have_the_same_ids_there(merges: int, tmp_path: Path) -> None:
    model = models.load("tiny-vit8")
    read = tokenizers.cut_tokenizer(merges, 24)
    exporting._tokenizer(model, merges, str(tmp_path))
    given = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids
    for ids, wanted in zip(given, read(TEXTS).tolist(), strict=True):
        assert ids == wanted[: len(ids)]
        assert not any(wanted[len(ids) :])


def test_open_clip_reads_a_cut_tokenizer_out_of_the_folder(tmp_path: Path) -> None:
    model = models.load("tiny-vit8")
    exporting.write(model, "open_clip", str(tmp_path))
    clip = open_clip.create_model(f"local-dir:{tmp_path}").eval().requires_grad_(False)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    image, text, scale = clip(pictures(32), tokens)
    assert torch.equal(scale * image @ text.T, ours(model, pictures(32), model.tokenizer(TEXTS)))


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """Return the folder of a tokenizer that is not CLIP's, as SigLIP has one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "blue", "thing"])}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_siglip_reads_with_a_tokenizer_of_transformers_and_goes_out_with_it(
    sentences: Path, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads(json.dumps(make_model("siglip").open_clip_config["model_cfg"]))
    config["text_cfg"] |= {"vocab_size": 9, "context_length": 6, "hf_tokenizer_name": str(sentences)}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "SigLIP", config)
    zoo._identity.cache_clear()
    model = models.load("open_clip:SigLIP/random[seed=0]")
    tokens = model.tokenizer(["a photo of red", "blue cat"])
    assert tokens.tolist() == [[3, 4, 5, 6, 0, 0], [7, 2, 0, 0, 0, 0]]
    exporting.write(model, "open_clip", str(tmp_path / "sent"))
    back = models.load(str(tmp_path / "sent"))
    assert back.sha256 == model.sha256
    assert torch.equal(back.tokenizer(["a photo of red", "blue cat"]), tokens)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(each.classifier(("red", "blue"), ("a photo of {}",))(images) for each in (model, back)))
