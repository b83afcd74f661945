"""What learns: the right parameters and no others, fresh from a seed, ordinary weights in the end, and refusals with a reason."""

import re
from dataclasses import replace

import pytest
import torch
from parts import NAMES, SMALL, TEMPLATES, config, learned, learner_of, pixels, step

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.defenses import TeCoA
from robustclip.models import checkpoints
from robustclip.models.checkpoints import build, save
from robustclip.models.dress import LinearHead, PixelPrompt, TokenPrompt, dressed
from robustclip.models.model import Model
from robustclip.training.installing import install
from robustclip.training.trainables import FirstBlocks, LastBlocks, LoRA, NormsAndBiases, SameSize, VisualTower

PROMPTS = (PixelPrompt("pad", 3), PixelPrompt("whole"), TokenPrompt(4), TokenPrompt(2, deep=True))
# Of a tiny ViT of two blocks, of a ResNet and of a timm tower: the names inside the visual tower that a trainable may touch.
TOUCHES = {
    ("VisualTower", "vit"): r".*",
    ("LastBlocks", "vit"): r"transformer\.resblocks\.1\..*|ln_post\..*|proj",
    ("LastBlocks", "resnet"): r"layer4\.0\..*|attnpool\..*",
    ("LastBlocks", "timm"): r"trunk\.blocks\.5\..*|trunk\.norm\..*|trunk\.attn_pool\..*",
    ("FirstBlocks", "vit"): r"class_embedding|positional_embedding|conv1\.weight|ln_pre\..*|transformer\.resblocks\.0\..*",
    ("FirstBlocks", "resnet"): r"(conv|bn)\d\..*|layer1\.0\..*",
    ("FirstBlocks", "timm"): r"trunk\.(cls_token|pos_embed|patch_embed\..*|norm_pre\..*|blocks\.0\..*)",
    ("NormsAndBiases", "vit"): r".*ln_(pre|post|1|2)\.(weight|bias)|.*(in_proj_bias|out_proj\.bias|c_fc\.bias|c_proj\.bias)",
    ("NormsAndBiases", "resnet"): r".*bn\d\.(weight|bias)|.*downsample\.1\.(weight|bias)|attnpool\..*bias",
    ("NormsAndBiases", "timm"): r".*norm\d?\.(weight|bias)|.*\.bias",
}


def sizes(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize("trainable", [*SMALL, *PROMPTS], ids=str)
def test_only_what_the_trainable_names_can_learn(tiny_model, trainable):
    model, parameters = install(trainable, tiny_model, 0, NAMES)
    classifier = model.classifier(NAMES, TEMPLATES)
    assert {id(p) for p in parameters} == {id(p) for p in classifier.parameters() if p.requires_grad}
    assert len(parameters) == len({id(p) for p in parameters}) > 0
    prefixes = {"LinearHead": "readout.", "Towers": "clip."} | dict.fromkeys(
        ("PixelPrompt", "TokenPrompt", "FramedTokens", "JointTokens", "InputFilter"), "prompt."
    )
    prefix = prefixes.get(type(trainable).__name__)
    assert all(n.startswith(prefix or "clip.visual.") for n, p in classifier.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "kind"), TOUCHES)
def test_a_part_of_the_tower_is_all_that_it_is_called(make_model, name, kind):
    trainables = {type(each).__name__: each for each in (VisualTower(), LastBlocks(1), FirstBlocks(1), NormsAndBiases())}
    model, _ = install(trainables[name], make_model(kind), 0, NAMES)
    named = dict(model.clip.visual.named_parameters())
    learning = {name for name, p in named.items() if p.requires_grad}
    assert learning == {each for each in named if re.fullmatch(TOUCHES[name, kind], each)}
    assert learning


def test_the_last_blocks_count_from_the_end(make_model):
    found = [sizes(install(LastBlocks(n), make_model(), 0, NAMES)[1]) for n in (1, 2)]
    block = sizes(make_model().clip.visual.transformer.resblocks[0].parameters())
    assert found[1] - found[0] == block
    for n in (0, 3):
        with pytest.raises(UserError, match=f"trainable.blocks is {n}: "):
            install(LastBlocks(n), make_model(), 0, NAMES)
    assert sizes(install(LastBlocks(4), make_model("resnet"), 0, NAMES)[1]) > sizes(
        install(LastBlocks(1), make_model("resnet"), 0, NAMES)[1]
    )


# --- by number ------------------------------------------------------------------------------------------------------------------------


def test_prompts_have_as_many_numbers_as_the_papers():
    """200 tokens of width 768: 153,600, which is SameSize's default; a frame of 30 px at 224: 69,840; LoRA: rank (in + out) a matrix."""
    vision = {"image_size": 224, "patch_size": 112, "width": 768, "layers": 2, "head_width": 64}
    text = {"vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    model_cfg = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3}}
    model = Model("wide", build(config).requires_grad_(False), len, config, {})
    assert sizes(install(TokenPrompt(200), model, 0, NAMES)[1]) == 153_600
    assert sizes(install(TokenPrompt(200, deep=True), model, 0, NAMES)[1]) == 2 * 153_600
    assert sizes(install(PixelPrompt("pad", 30), model, 0, NAMES)[1]) == 69_840
    assert sizes(install(PixelPrompt("fixed patch", 30), model, 0, NAMES)[1]) == 3 * 30 * 30
    assert sizes(install(PixelPrompt("whole"), model, 0, NAMES)[1]) == 3 * 224 * 224
    assert sizes(install(LinearHead(), model, 0, NAMES)[1]) == 4 * 8 + 4
    assert sizes(install(SameSize(), model.copy(), 0, NAMES)[1]) == 153_600
    assert sizes(install(LoRA(4), model.copy(), 0, NAMES)[1]) == 2 * 4 * (4 * 768 + 2 * 768 + 2 * (768 + 4 * 768))


@pytest.mark.parametrize("asked", [1, 32, 33, 500, 9_999, 32_384])
def test_same_size_trains_exactly_the_number_asked(tiny_model, pictures, asked):
    """The entries that a step of AdamW with weight decay changes are the last ones of the tower's list, and no more."""
    x, y, ids = pictures(8)
    names = [name for name, _ in tiny_model.clip.visual.named_parameters()]
    with torch.no_grad():
        for p in tiny_model.clip.visual.parameters():
            p += 0.01 * (p == 0)  # an entry that is 0 would not feel its decay
        before = torch.cat([p.flatten() for p in tiny_model.clip.visual.parameters()])
    learner = learner_of(tiny_model, config(TeCoA(), SameSize(asked), batch=8, weight_decay=0.5))
    assert sizes(learner.parameters) == asked
    step(learner, (pixels(x), y, ids))
    learner.finish()
    after = dict(learner.model.clip.visual.named_parameters())
    changed = torch.cat([after[name].detach().flatten() for name in names]) != before
    assert changed.sum() == asked
    assert bool(changed[-asked:].all())


@pytest.mark.parametrize("asked", [0, -1, 32_385])
def test_same_size_is_refused_where_there_are_not_so_many(tiny_model, asked):
    with pytest.raises(UserError, match=rf"trainable\.parameters is {asked}: "):
        install(SameSize(asked), tiny_model, 0, NAMES)


# --- inside the weights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "siglip", "timm"])
@pytest.mark.parametrize("trainable", [LoRA(2, 8.0), SameSize(3000)], ids=lambda trainable: type(trainable).__name__)
def test_at_the_start_nothing_changes_and_the_end_is_an_ordinary_tower(make_model, pictures, tmp_path, kind, trainable):
    """Outputs before and after, the saved and loaded one's included, equal those of the tower with the numbers inside its weights."""
    plain = make_model(kind)
    x, y, ids = pictures(8, plain.preprocess.size)
    learner = learner_of(make_model(kind), config(TeCoA(), trainable, batch=8))
    with torch.no_grad():
        torch.testing.assert_close(learner.student(x), plain.classifier(NAMES, TEMPLATES)(x), atol=1e-5, rtol=1e-5)
        before = learner.student(x)
    for _ in range(2):
        step(learner, (pixels(x), y, ids))
    with torch.no_grad():
        trained = learner.student(x)
    assert (trained - before).abs().max() > 1e-2
    learner.finish()
    assert learner.model.clip.state_dict().keys() == plain.clip.state_dict().keys()
    assert type(learner.model.clip.visual) is type(plain.clip.visual)
    checkpoints.save(learner.model, str(tmp_path / "model"))
    back = models.load(str(tmp_path / "model"))
    assert back.sha256 == learner.model.sha256 != plain.sha256
    with torch.no_grad():
        for model in (learner.model, back):
            torch.testing.assert_close(model.classifier(NAMES, TEMPLATES)(x), trained, atol=1e-4, rtol=1e-4)


def test_a_low_rank_change_has_its_rank_and_its_scale(tiny_model, pictures):
    """W - W_0 = (alpha / rank) B A of rank 2, in every matrix of every block, and nowhere else."""
    x, y, ids = pictures(8)
    before = {name: p.detach().clone() for name, p in tiny_model.clip.visual.named_parameters()}
    learner = learner_of(tiny_model, config(TeCoA(), LoRA(2, 6.0), batch=8))
    for _ in range(2):
        step(learner, (pixels(x), y, ids))
    inside = learner.model.clip.visual.transformer.resblocks[1].mlp.c_fc.parametrizations.weight[0]
    expected = 3.0 * inside.up.detach() @ inside.down.detach()
    learner.finish()
    after = dict(learner.model.clip.visual.named_parameters())
    torch.testing.assert_close(
        after["transformer.resblocks.1.mlp.c_fc.weight"] - before["transformer.resblocks.1.mlp.c_fc.weight"], expected
    )
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if name.startswith("transformer.resblocks.") and before[name].ndim == 2}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name].detach() - before[name], rtol=1e-4) == 2
    with pytest.raises(UserError, match=r"trainable\.rank is 0"):
        LoRA(0)


# --- prompts and readouts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [*PROMPTS, PixelPrompt("random patch", 8)], ids=str)
def test_a_start_is_fixed_by_the_seed_and_looks_standard_normal(make_model, trainable):
    starts = [install(trainable, make_model(), seed, NAMES)[1] for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1]))
    assert not torch.equal(starts[0][0], starts[2][0])
    values = torch.cat([p.detach().flatten() for p in starts[0]])
    assert abs(values.mean()) < 0.3
    assert 0.8 < values.std() < 1.2


def test_a_moving_patch_moves_with_seed_and_step_and_rests_when_it_is_scored(make_model, pictures):
    x, y, ids = pictures(8)

    def learner(seed=0):
        return learner_of(make_model(), config(TeCoA(), PixelPrompt("random patch", 4), batch=8, seed=seed))

    def places(seed, micro_batch=8):
        trained = learner(seed)
        found = []
        for _ in range(5):
            for part in torch.arange(8).split(micro_batch):
                trained.accumulate(pixels(x)[part], y[part], [ids[i] for i in part])
                found.append(trained.model.prompt.place)
            trained.update()
        return found

    whole = places(0)
    assert len(set(whole)) > 2
    assert places(0, 4) == [place for place in whole for _ in range(2)]  # one place a step, whatever is computed together
    assert places(1) != whole
    resumed = learner()
    resumed.step = 3
    resumed.accumulate(pixels(x)[:4], y[:4], ids[:4])
    assert resumed.model.prompt.place == whole[3]
    for score in (lambda: resumed.validate(x, y, ids), resumed.finish):
        resumed.model.before_step(0, 3)
        score()
        assert resumed.model.prompt.place == (6, 6)


def test_a_linear_head_starts_at_zero_and_reads_raw_features(tiny_model, pictures):
    x, y, ids = pictures(8)
    learner = learner_of(tiny_model, config(TeCoA(), LinearHead(), batch=8))
    assert torch.equal(learner.student(x), torch.zeros(8, 4))
    step(learner, (pixels(x), y, ids))
    weight, bias = learner.parameters
    with torch.no_grad():
        torch.testing.assert_close(learner.student(x), learner.teacher.features(x) @ weight.T + bias)
    assert learned(learner).abs().max() > 0.05


@pytest.mark.parametrize("trainable", SMALL, ids=lambda trainable: type(trainable).__name__)
@pytest.mark.parametrize(("worn", "said"), [(PixelPrompt("pad", 2), "a prompt"), (LinearHead(), "a linear readout")], ids=str)
def test_a_model_with_a_prompt_or_a_readout_is_not_trained_again(tiny_model, trainable, worn, said):
    dressed_up, _ = install(worn, tiny_model, 0, NAMES)
    with pytest.raises(UserError, match=f"already has {said}: fine-tune the model it was made from"):
        install(trainable, dressed_up, 0, NAMES)


EMPTY = [PixelPrompt("pad", 0), PixelPrompt("fixed patch", 0), PixelPrompt("random patch", 0), TokenPrompt(0), TokenPrompt(0, deep=True)]


@pytest.mark.parametrize("trainable", EMPTY, ids=str)
def test_an_empty_prompt_is_refused(tiny_model, trainable):
    with pytest.raises(UserError, match="nothing to learn"):
        install(trainable, tiny_model, 0, NAMES)


def test_what_makes_no_sense_on_a_tower_is_refused(make_model):
    with pytest.raises(UserError, match=r"prompt tokens need a vision transformer.*ModifiedResNet"):
        install(TokenPrompt(2), make_model("resnet"), 0, NAMES)
    with pytest.raises(UserError, match=r"LoRA needs a vision transformer.*ModifiedResNet"):
        install(LoRA(), make_model("resnet"), 0, NAMES)
    with pytest.raises(UserError, match=r"trainable\.tokens is -1"):
        TokenPrompt(-1)
    with pytest.raises(UserError, match=r"trainable\.shape is 'round'"):
        PixelPrompt("round")


@pytest.mark.parametrize("trainable", [*SMALL, *PROMPTS], ids=str)
def test_a_card_says_how_to_build_what_a_model_wears(make_model, trainable):
    worn, parameters = install(trainable, make_model(), 0, NAMES)
    built = dressed(replace(make_model(), card={**worn.card, "class_names": NAMES}))
    for mine, theirs in ((worn.prompt, built.prompt), (worn.readout, built.readout)):
        assert type(mine) is type(theirs)
        if mine is not None:
            assert [p.shape for p in theirs.parameters()] == [p.shape for p in parameters]


def test_a_card_without_a_prompt_or_with_a_newer_one(tiny_model, tmp_path):
    for card in ({}, {"trainable": {"type": "VisualTower"}}, {"trainable": {"type": "LoRA", "rank": 2, "alpha": 2.0}}):
        plain = replace(tiny_model, card=card)
        assert dressed(plain) is plain
    with pytest.raises(UserError, match="upgrade robustclip"):
        dressed(replace(tiny_model, card={"trainable": {"type": "PixelPrompt", "pad": 2, "shape": "pad"}}))
    with pytest.raises(UserError, match="shape is 'round'"):
        dressed(replace(tiny_model, card={"trainable": {"type": "PixelPrompt", "shape": "round"}}))
    worn, _ = install(TokenPrompt(2), tiny_model, 0, NAMES)
    save(worn, str(tmp_path / "newer"), trainable={"type": "Adapter", "rank": 2})
    with pytest.raises(UserError, match=r"names an unknown trainable .*Adapter.* of prompt.safetensors: upgrade robustclip"):
        models.load(str(tmp_path / "newer"))
