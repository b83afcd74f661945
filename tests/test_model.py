"""Models: built without a download, saved and loaded bit for bit, refused in one line when something does not fit."""

import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from parts import NAMES, TEMPLATES

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.data import world
from robustclip.evaluation.wanted import same_but_seed
from robustclip.models import checkpoints
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.dress import LinearHead, PixelPrompt, TokenPrompt
from robustclip.models.model import FORMAT
from robustclip.training.installing import install
from robustclip.training.trainables import VisualTower

PROMPTS = (PixelPrompt("pad", 3), PixelPrompt("random patch", 5), PixelPrompt("whole"), TokenPrompt(4), TokenPrompt(2, deep=True))


def edited(folder, **changes):
    """Change keys of a checkpoint's config.json."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(name, said):
    with pytest.raises(UserError, match=said) as error:
        models.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", checkpoints.embedded())
def test_every_embedded_model_loads_and_classifies_the_embedded_world(name):
    model = models.load(name)
    x, _ = world.images("shapes", 4, 0, "test")
    with torch.no_grad():
        logits = model.classifier(world.SETS["shapes"].class_names, world.SETS["shapes"].templates)(x.float() / 255)
    assert logits.shape == (4, len(world.SETS["shapes"].class_names))
    assert torch.isfinite(logits).all()
    assert {p.dtype for p in model.clip.parameters()} == {torch.float32}
    assert models.input_size(name) == model.preprocess.size == world.SIZE


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip", "timm"])
def test_a_saved_model_comes_back_to_the_bit(make_model, pictures, tmp_path, kind):
    model, folder = make_model(kind), str(tmp_path / "model")
    checkpoints.save(model, folder, run="abc", class_names=["red"])
    back = models.load(folder)
    x, _, _ = pictures(3, model.preprocess.size)
    with torch.no_grad():
        assert torch.equal(back.classifier(["a", "b"], ["{}"])(x), model.classifier(["a", "b"], ["{}"])(x))
    assert back.sha256 == model.sha256
    assert (back.card["run"], back.card["class_names"], back.card["format"]) == ("abc", ["red"], FORMAT)
    assert models.input_size(folder) == model.preprocess.size
    assert not back.clip.training
    assert not any(p.requires_grad for p in back.clip.parameters())


@pytest.mark.parametrize("trainable", PROMPTS, ids=str)
def test_a_prompt_is_saved_with_its_model(tiny_model, pictures, tmp_path, trainable):
    prompted, _ = install(trainable, tiny_model, 3, NAMES)
    x, _, _ = pictures(3)
    for turn in ("once", "twice"):  # the second time from the loaded model, whose card alone knows of the prompt
        checkpoints.save(prompted, str(tmp_path / turn))
        back = models.load(str(tmp_path / turn))
        with torch.no_grad():
            expected, found = (m.classifier(["a", "b"], ["{}"])(x) for m in (prompted, back))
        assert torch.equal(found, expected)
        assert back.sha256 == prompted.sha256
        prompted = back


def test_a_linear_probe_is_saved_with_its_model_and_its_classes(tiny_model, pictures, tmp_path):
    """Also from the loaded model, whose card alone knows of it; for other classes than its own, or another order, it is refused."""
    probe, parameters = install(LinearHead(), tiny_model, 0, NAMES)
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    x, _, _ = pictures(3)
    for turn in ("once", "twice"):
        checkpoints.save(probe, str(tmp_path / turn))
        back = models.load(str(tmp_path / turn))
        with torch.no_grad():
            expected, found = (m.classifier(NAMES, TEMPLATES)(x) for m in (probe, back))
            by_hand = back.classifier(NAMES, TEMPLATES).features(x) @ parameters[0].T + parameters[1]
        assert torch.equal(found, expected)
        torch.testing.assert_close(found, by_hand)
        assert back.sha256 == probe.sha256 != tiny_model.sha256
        assert not any(p.requires_grad for p in back.readout.parameters())
        for others in (["red", "green"], NAMES[::-1], [*NAMES, "pink"]):
            with pytest.raises(UserError, match=r"linear probe of red, green, blue \(4 classes\)"):
                back.classifier(others, TEMPLATES)
        probe = back
    checkpoints.save(tiny_model, str(tmp_path / "plain"))
    assert models.identity(str(tmp_path / "once")) == models.identity(str(tmp_path / "twice")) != models.identity(str(tmp_path / "plain"))


def test_the_hash_sees_the_prompt_and_every_weight(tiny_model, make_model):
    prompted, parameters = install(PixelPrompt("pad", 3), make_model(), 0, NAMES)
    hashes = {tiny_model.sha256, prompted.sha256}
    parameters[0].data[0, 0, 0, 0] += 1e-3
    hashes.add(prompted.sha256)
    tiny_model.clip.logit_scale.data += 1e-6
    hashes.add(tiny_model.sha256)
    assert len(hashes) == 4


def test_a_copy_shares_no_weights(tiny_model):
    copied, before = tiny_model.copy(), tiny_model.sha256
    _, parameters = install(VisualTower(), copied, 0, NAMES)
    with torch.no_grad():
        parameters[0].add_(1)
    assert tiny_model.sha256 == before != copied.sha256
    assert {id(p) for p in parameters}.isdisjoint({id(p) for p in tiny_model.clip.parameters()})


def test_open_clip_opens_a_checkpoint_too(tiny_checkpoint, tiny_model, pictures):
    theirs = open_clip.create_model(f"local-dir:{tiny_checkpoint}").eval()
    x, _, _ = pictures(2)
    with torch.no_grad():
        assert torch.equal(theirs.encode_image(x), tiny_model.clip.encode_image(x))


def test_identity_changes_with_one_byte_of_the_weights(tiny_checkpoint):
    weights, before = Path(tiny_checkpoint) / "model.safetensors", models.identity(tiny_checkpoint)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert models.identity(tiny_checkpoint) != before


def test_identity_is_of_the_content_not_of_the_place_or_the_card(tiny_model, tmp_path):
    for name in ("a", "b"):
        checkpoints.save(tiny_model, str(tmp_path / name), run=name)
    assert models.identity(str(tmp_path / "a")) == models.identity(str(tmp_path / "b"))
    assert [models.display_name(str(tmp_path / name)) for name in ("a", "b")] == ["run-a", "run-b"]


def test_identity_changes_with_the_architecture(tiny_checkpoint):
    before, path = models.identity(tiny_checkpoint), Path(tiny_checkpoint) / "open_clip_config.json"
    path.write_text(path.read_text().replace('"head_width": 16', '"head_width": 8'))
    assert models.identity(tiny_checkpoint) != before


def test_weights_of_another_architecture_are_refused(tiny_checkpoint):
    path = Path(tiny_checkpoint) / "open_clip_config.json"
    path.write_text(path.read_text().replace('"layers": 2', '"layers": 3'))
    refused(tiny_checkpoint, "do not fit the architecture")


def test_a_newer_checkpoint_is_refused(tiny_checkpoint):
    edited(tiny_checkpoint, format=FORMAT + 1)
    refused(tiny_checkpoint, "upgrade robustclip")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save], ids=["pickle", "torch"])
def test_no_pickle_is_ever_loaded(tiny_checkpoint, tmp_path, save):
    save(Bomb(tmp_path / "boom"), Path(tiny_checkpoint) / "model.safetensors")
    refused(tiny_checkpoint, "safetensors")
    assert not (tmp_path / "boom").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()  # it would have gone off


@pytest.mark.parametrize("file", ["model.safetensors", "open_clip_config.json"])
def test_an_unfinished_folder_is_refused(tiny_checkpoint, file):
    (Path(tiny_checkpoint) / file).unlink()
    refused(tiny_checkpoint, file)


@pytest.mark.parametrize(("trainable", "file"), [(TokenPrompt(2), "prompt.safetensors"), (LinearHead(), "readout.safetensors")])
def test_a_folder_without_what_its_card_speaks_of_is_refused(tiny_model, tmp_path, trainable, file):
    checkpoints.save(install(trainable, tiny_model, 0, NAMES)[0], str(tmp_path / "model"))
    (tmp_path / "model" / file).unlink()
    refused(str(tmp_path / "model"), file)


def test_cut_weights_are_refused(tiny_checkpoint):
    path = Path(tiny_checkpoint) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(tiny_checkpoint, "not a whole safetensors file")


def test_unknown_names_are_refused_with_a_suggestion(monkeypatch):
    monkeypatch.setattr(checkpoints, "embedded", lambda: {"tiny-vit8": Path("nowhere")})
    refused("tiny-vit9", "did you mean tiny-vit8")
    refused("open_clip:ViT-B-33/openai", "did you mean ViT-B-32")


@pytest.fixture
def no_download(monkeypatch):
    """Make open_clip fail where it would begin to fetch weights."""

    def fetch(*args, **kwargs):
        raise ConnectionError("would download\nnow")

    monkeypatch.setattr(open_clip, "create_model", fetch)


def test_plain_gelu_for_quickgelu_weights_is_refused_before_any_download(no_download):
    refused("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32-quickgelu/openai")
    for right in ("ViT-B-32-quickgelu/openai", "ViT-B-32/laion2b_s34b_b79k"):
        refused(f"open_clip:{right}", "could not load it: would download now")  # that is: it passed the check


def test_a_model_of_the_zoo_is_one_like_any_other(monkeypatch, tiny_model, tmp_path):
    clip = tiny_model.clip
    clip.visual.preprocess_cfg = {"size": (16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **kwargs: clip)
    zoo = models.load("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert zoo.preprocess.size == 16
    assert models.identity("open_clip:ViT-B-32/laion2b_s34b_b79k") == zoo.sha256
    assert zoo.tokenizer(["a"]).shape == (1, 77)


def test_checkpoints_of_one_recipe_are_told_by_their_config(make_model, tmp_path):
    def saved(run, **config):
        checkpoints.save(make_model(), str(tmp_path / run), run=run, config={"optim": {"lr": 1e-3}, "seed": 0, **config})
        return str(tmp_path / run)

    names = ["tiny-vit8", saved("a"), saved("b", seed=1), saved("c", optim={"lr": 1e-2}), saved("d", seed=2)]
    assert same_but_seed(models.called(names)) == {"run-a": ["run-a", "run-b", "run-d"]}
    assert same_but_seed(models.called(names[:2])) == {}


@pytest.mark.parametrize("name", ["{}", "ensemble:tiny-vit8,{}", "ttc:{}"])
def test_a_model_on_a_device_reads_its_prompts_there(name, tiny_checkpoint, monkeypatch):
    """Else the first classifier would be read on the CPU and the next ones on the GPU, which rounds otherwise."""
    where, read = set(), ZeroShotClassifier.embed_prompts
    monkeypatch.setattr(ZeroShotClassifier, "embed_prompts", lambda self: where.add(next(self.clip.parameters()).device.type) or read(self))
    classifier = models.load(name.format(tiny_checkpoint)).to("meta").classifier(["a", "b"], ["a {}."])
    assert where == {"meta"}
    assert {each.device.type for each in classifier.parameters()} == {"meta"}
