"""open_clip's zoo: weights are named or drawn from a seed, and files say, where they can, with which activation they were trained."""

import json
import logging
from collections import OrderedDict

import open_clip
import pytest
import torch
from open_clip import pretrained
from safetensors.torch import save_file
from torch import nn

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.models import weights, zoo

TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Give open_clip two small architectures, which differ in the activation alone, and no memory of models loaded before."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", TOWERS)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small-quickgelu", TOWERS | {"quick_gelu": True})
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Alone", TOWERS)
    zoo._identity.cache_clear()
    weights.warn.cache_clear()


def refused(name, said):
    with pytest.raises(UserError, match=said) as error:
        models.load(name)
    assert "\n" not in str(error.value)


# --- no weights -----------------------------------------------------------------------------------------------------------------------


def test_an_architecture_without_weights_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setitem(pretrained._PRETRAINED, "Small", {"first_tag": {}, "second_tag": {}})
    for name in ("open_clip:Small", "open_clip:Small/"):
        refused(name, r"Small names no weights: give .*first_tag, second_tag.*random\[seed=0\]")
    refused("open_clip:Small/first_tagg", r"no weights 'first_tagg' \(did you mean first_tag\?\)")
    refused("open_clip:Alone", r"with a file, since open_clip has no weights of it, or random\[seed=0\]")
    refused("open_clip:Small/random", r"no weights 'random'.*random\[seed=0\]")
    refused("open_clip:ViT-S-32-alt", "names no weights")


def test_a_model_of_the_hub_without_weights_is_refused(monkeypatch):
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", lambda *args, **kwargs: {"model_cfg": json.loads(json.dumps(TOWERS))})
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", lambda *args, **kwargs: 1 / 0)
    refused("open_clip:hf-hub:some/model", "could not load it: .*could not be loaded")


def test_random_weights_are_those_of_their_seed_and_no_other_number_moves():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = models.load("open_clip:Small/random[seed=0]")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = (models.load(f"open_clip:Small/random[seed={seed}]") for seed in ("00", "1"))
    assert first.sha256 == again.sha256 != other.sha256
    assert models.display_name("open_clip:Small/random[seed=00]") == again.name == "open_clip:Small/random[seed=0]"
    assert not any(p.requires_grad for p in first.clip.parameters())


def test_one_seed_under_two_activations_is_two_models():
    names = [f"open_clip:{name}/random[seed=0]" for name in ("Small", "Small-quickgelu")]
    assert len({models.load(name).sha256 for name in names}) == 1
    assert len({models.identity(name) for name in names}) == 2
    for name in names:
        models.load_exactly(name, models.identity(name))


# --- files ----------------------------------------------------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    """OpenAI's activation."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Archived(nn.Module):
    """What OpenAI's archives are like: weights, an activation and three numbers of the architecture among the buffers."""

    def __init__(self, clip, activation):
        super().__init__()
        self.activation = activation
        for name, number in (("input_resolution", 16), ("context_length", 8), ("vocab_size", 64)):
            self.register_buffer(name, torch.tensor(number))
        for name, tensor in clip.state_dict().items():
            self.put(name.split("."), tensor)

    def put(self, path, tensor):
        module = self
        for part in path[:-1]:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_buffer(path[-1], tensor.half() if tensor.is_floating_point() else tensor)

    def forward(self, x):
        return self.activation(x)


def archive(clip, path, activation):
    """Write a TorchScript archive and return its state as whoever loads and saves it again has it."""
    torch.jit.trace(Archived(clip, activation), torch.zeros(2)).save(str(path))
    return torch.jit.load(str(path)).state_dict()


@pytest.fixture
def clip():
    return models.load("open_clip:Small-quickgelu/random[seed=3]").clip


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_openais_archive_is_not_run_and_the_way_out_names_the_right_activation(clip, tmp_path):
    archive(clip, tmp_path / "ViT.pt", QuickGELU())
    for architecture in ("Small", "Small-quickgelu"):
        refused(
            f"open_clip:{architecture}/{tmp_path}/ViT.pt", r"TorchScript archive.*load open_clip:Small-quickgelu/openai.*Small-quickgelu/TO"
        )
    archive(clip, tmp_path / "plain.pt", nn.GELU())
    refused(f"open_clip:Small/{tmp_path}/plain.pt", "TorchScript archive.*load open_clip:Small/openai")


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("form", ["torch", "legacy", "wrapped", "safetensors"])
def test_what_was_saved_of_openais_model_needs_quickgelu(clip, tmp_path, form, caplog):
    state, path = archive(clip, tmp_path / "ViT.pt", QuickGELU()), tmp_path / ("again.safetensors" if form == "safetensors" else "again.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 1, "state_dict": OrderedDict((f"module.{name}", t) for name, t in state.items())}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    refused(f"open_clip:Small/{path}", f"these weights use QuickGELU, Small has plain GELU; load open_clip:Small-quickgelu/{path}")
    with caplog.at_level(logging.WARNING, "robustclip"):
        loaded = models.load(f"open_clip:Small-quickgelu/{path}")
    assert caplog.records == []
    for name, tensor in clip.state_dict().items():
        assert torch.equal(loaded.clip.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_the_config_beside_weights_says_how_they_were_trained(clip, tmp_path, caplog):
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWERS | {"quick_gelu": True}}))
    refused(f"open_clip:Small/{tmp_path}/open_clip_model.safetensors", "these weights use QuickGELU")
    with caplog.at_level(logging.WARNING, "robustclip"):
        models.load(f"open_clip:Small-quickgelu/{tmp_path}/open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWERS}))
    refused(f"open_clip:Small-quickgelu/{tmp_path}/open_clip_model.safetensors", "use plain GELU, Small-quickgelu has QuickGELU")
    assert caplog.records == []


def test_where_nothing_tells_it_warns_once_with_the_way_out(clip, tmp_path, caplog):
    path = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), path)
    with caplog.at_level(logging.WARNING, "robustclip"):
        for _ in range(2):
            assert models.load(f"open_clip:Small/{path}").sha256 == models.load(f"open_clip:Small-quickgelu/{path}").sha256
        models.load(f"open_clip:Alone/{path}")  # has no other activation
    plain, quick = (record.getMessage() for record in caplog.records)
    assert f"if QuickGELU is right, load open_clip:Small-quickgelu/{path}" in plain
    assert f"if plain GELU is right, load open_clip:Small/{path}" in quick
    assert models.identity(f"open_clip:Small/{path}") != models.identity(f"open_clip:Small-quickgelu/{path}")


def test_a_file_is_read_again_when_it_changed(clip, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), path)
    name = f"open_clip:Alone/{path}"
    before = models.identity(name)
    clip.logit_scale.data += 1
    torch.save(clip.state_dict(), path)
    assert models.identity(name) != before
    with pytest.raises(UserError, match="replaced since"):
        models.load_exactly(name, before)


@pytest.mark.parametrize("file", ["nowhere.pt", "s3://bucket/weights.pt", "/"])
def test_a_file_that_is_not_here_is_refused(file):
    refused(f"open_clip:Small/{file}", "there is no file .* on this machine")


def test_what_is_no_weights_file_is_refused(tmp_path):
    for name, content in (("torn.pt", b"PK\x03\x04 torn"), ("torn.safetensors", b"torn"), ("text.bin", b"a,b")):
        (tmp_path / name).write_bytes(content)
        refused(f"open_clip:Alone/{tmp_path}/{name}", "cannot be read as weights")
