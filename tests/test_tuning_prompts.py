"""Prompts tuned at test time: the numbered tests of the method's sheet that need no real weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import NAMES
from toys import ids_of

from robustclip.attacks.pgd import logits_of
from robustclip.base.errors import UserError
from robustclip.models.dress import JointTokens
from robustclip.test_time import RTPT, TAPT, TPT, TTC, PromptAlign, ViewEnsemble
from robustclip.test_time import tapt as tapt_module
from robustclip.test_time.moments import Moments, Targets, block_inputs
from robustclip.test_time.rtpt import reliability
from robustclip.test_time.tapt import alignment
from robustclip.test_time.tuning import entropy, entropy_of_mean, most_confident
from robustclip.training.installing import install
from robustclip.views.crops import crops

TEMPLATE = "a photo of a {}."
DESIGNS = ("visual", "independent", "text to visual")
FEW = {"views": 8, "keep": 0.5}


@pytest.fixture
def prompted(make_model, pictures, tmp_path):
    """Return a function that gives a classifier with learned tokens (of one block) and the file of its statistics."""

    def make(design, seed=0):
        worn, parameters = install(JointTokens(design, 2, 1), make_model("vit", seed), 3, NAMES)
        with torch.no_grad():
            for p in parameters:
                p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
                p.requires_grad_(False)
        classifier = worn.classifier(NAMES, (TEMPLATE,))
        path = str(tmp_path / f"{design}-{seed}.safetensors")
        Targets.of(Moments.of(block_inputs(classifier, pictures(24, seed=9)[0])), classifier, "pictures", "train", "centre").write(path)
        return classifier, path

    return make


def tapt(classifier, path, **settings):
    return TAPT(**{**FEW, "adversarial": path, "clean": path, **settings}).classifier(classifier, seed=0)


def adapted_state(defence, images, ids):
    """Return the tuned tokens of every layer, visual then text, of images."""
    keys = defence.of(ids).keys
    with torch.enable_grad():
        found = defence.adapt(images, keys, False)
    return [*found.visual, found.classes]


@pytest.mark.parametrize("design", DESIGNS)
def test_tapt_item_1_every_image_starts_from_the_loaded_tensors(prompted, pictures, design):
    """Reset is by construction: no forward, attack or step changes a tensor of the prompt, and the start is the loaded state."""
    classifier, path = prompted(design)
    loaded = {name: p.clone() for name, p in classifier.prompt.state_dict().items()}
    defence, images = tapt(classifier, path, lr=0.1), pictures(4)[0]
    first = logits_of(defence, images, ids_of(4), 4)
    assert all(torch.equal(p, loaded[name]) for name, p in defence.prompt.state_dict().items())
    assert torch.equal(logits_of(defence, images, ids_of(4), 4), first), "nothing is carried on"
    none = tapt(classifier, path, steps=0)
    with torch.no_grad():
        assert torch.allclose(none(images), classifier(images), atol=1e-5), "without a step it is the loaded model"


@pytest.mark.parametrize(("design", "kept"), [("visual", 0), ("independent", 1)])
def test_tapt_item_1_a_random_reset_throws_trained_tokens_away(prompted, design, kept):
    classifier, path = prompted(design)
    defence = tapt(classifier, path, random_reset=True)
    same = [torch.equal(p, q) for p, q in zip(defence.start.prompt.state().values(), classifier.prompt.state().values(), strict=True)]
    assert sum(same) == kept, "the published reset keeps the context alone"
    assert defence.base.prompt is classifier.prompt, "A1 meets the static model, A2 the state it starts from"
    with pytest.raises(UserError, match="random_reset is what the published code does to independent prompts"):
        tapt(*prompted("text to visual"), random_reset=True)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_tapt_item_3_one_step_is_a_sign_and_no_scale_of_the_loss_moves_it(prompted, pictures, design, scale):
    classifier, path = prompted(design)
    defence, images = tapt(classifier, path, weight_decay=0.5), pictures(3)[0]
    loss = defence.loss
    defence.loss = lambda seen: scale * loss(seen)
    start = {name: p.detach() for name, p in classifier.prompt.state().items()}
    keys = defence.of(ids_of(3)).keys
    views = defence.views(images, keys)
    gradients = defence.first_gradients(views)
    states = {name: p.expand(3, *p.shape) for name, p in start.items()}
    zeros = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in states.items()}
    after, _ = defence.stepped(states, zeros, gradients, 1, False)
    lr, decay = defence.settings.lr, defence.settings.weight_decay
    for name, p in states.items():
        clear = gradients[name].abs() > 1e-5
        assert clear.float().mean() > 0.3
        moved = after[name] - p + lr * decay * p
        assert torch.allclose(moved[clear].abs(), torch.full_like(moved[clear], lr), rtol=2e-3)
        assert torch.equal(moved[clear].sign(), -gradients[name][clear].sign())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_step_is_that_of_torch(prompted, pictures, design, steps):
    """A reference by torch's own AdamW, one image at a time, views chosen and losses computed by hand."""
    classifier, path = prompted(design)
    defence, images = tapt(classifier, path, steps=steps, lr=0.01, weight_decay=0.1), pictures(2)[0]
    got = logits_of(defence, images, ids_of(2), 2)
    targets = Targets.read(path)
    for i, id_ in enumerate(ids_of(2)):
        own = images[i : i + 1]
        views = torch.cat([own, crops(own, defence.of([id_]).keys, FEW["views"] - 1)[0]])
        worn = classifier.wearing(classifier.prompt)
        start = {name: p.clone() for name, p in classifier.prompt.state_dict().items()}
        parameters = list(worn.prompt.parameters())
        optimizer = torch.optim.AdamW([p.requires_grad_() for p in parameters], lr=0.01, weight_decay=0.1)
        with torch.no_grad():
            kept = views[most_confident(worn(views)[None], defence.settings.kept)[0]]
        for _ in range(steps):
            optimizer.zero_grad()
            blocks = []
            unit = F.normalize(worn.features(kept, look=lambda i, x: blocks.append(x)), dim=-1)  # noqa: B023
            p = worn.against(unit, worn.class_features()).softmax(-1).mean(0)
            x = blocks[0]
            away = (x.mean(0) - targets.mean[0]).abs().mean() / 2 + (x.var(0) - targets.variance[0]).abs().mean() / 2
            (-(p * p.log()).sum() + 100 / 9 * away).backward()
            optimizer.step()
        with torch.no_grad():
            worn.class_embeddings = worn.class_features()
            assert torch.allclose(worn(images[i : i + 1])[0], got[i], atol=1e-4)
            assert not torch.allclose(classifier.wearing(None)(images[i : i + 1])[0], got[i], atol=1e-2)
        worn.prompt.load_state_dict(start)
        worn.prompt.requires_grad_(False)


def test_tapt_item_4_entropies_and_kept_views():
    logits = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0)) * 3
    assert (entropy_of_mean(logits) >= entropy(logits).mean(1)).all()
    same = logits[:, :1].expand(-1, 6, -1)
    assert torch.allclose(entropy_of_mean(same), entropy(same).mean(1), atol=1e-6)
    p = logits.softmax(-1).mean(1)
    assert torch.allclose(entropy_of_mean(logits), -(p * p.log()).sum(1), atol=1e-6)
    assert TAPT().kept == 6
    assert torch.equal(most_confident(logits, 2).sort(1).values, entropy(logits).argsort(1)[:, :2].sort(1).values)


def test_tapt_item_4_alignment_is_zero_at_the_targets_and_counts_its_blocks():
    blocks = [torch.randn(3, 6, 5, 4) for _ in range(9)]
    first = [b[:1] for b in blocks]
    targets = Targets(torch.stack([b[0].mean(0) for b in first]), torch.stack([b[0].var(0) for b in first]), 2, "", "", "train", "", "")
    assert torch.allclose(alignment(first, targets, range(9), True), torch.zeros(1), atol=1e-6)
    assert float(alignment(first, targets, range(9), False)) > 0.01, "the published variance divides by k"
    each = torch.stack([alignment(blocks, targets, range(i, i + 1), True) for i in range(9)])
    assert torch.allclose(alignment(blocks, targets, range(9), True), each.sum(0), atol=1e-5)
    assert (each[:, 1:] > 0).all()


@pytest.mark.parametrize(("compat", "layers", "unbiased"), [(False, range(9), True), (True, range(8), False)])
def test_tapt_item_4_the_published_code_leaves_out_the_last_block(prompted, pictures, monkeypatch, compat, layers, unbiased):
    classifier, path = prompted("independent")
    classifier.prompt.depth = 9
    asked = []
    monkeypatch.setattr(tapt_module, "alignment", lambda blocks, targets, *how: asked.append(how) or blocks[0][:, 0, 0, 0] * 0)
    tapt(classifier, path, paper_compat=compat)(pictures(1)[0])
    assert set(asked) == {(layers, unbiased)}


def defences(prompted):
    classifier, path = prompted("independent")
    plain = classifier.wearing(None)
    return {
        "tapt": tapt(classifier, path, lr=0.02),
        "tapt, two steps": tapt(classifier, path, lr=0.02, steps=2),
        "tapt-v": tapt(*prompted("visual"), lr=0.02),
        "tapt-vlj": tapt(*prompted("text to visual"), lr=0.02),
        "promptalign": PromptAlign(**FEW, clean=path).classifier(classifier, 0),
        "tpt": TPT(**FEW, lr=0.05).classifier(plain, 0),
        "rtpt": RTPT(**FEW, lr=0.05).classifier(plain, 0),
        "rtpt, augmix": RTPT(**FEW, lr=0.05, augment="augmix").classifier(plain, 0),
        "views": ViewEnsemble(**FEW).classifier(plain, 0),
        "ttc": TTC(threshold=10.0).classifier(plain, 0),
    }


@pytest.mark.parametrize(
    "name", ["tapt", "tapt, two steps", "tapt-v", "tapt-vlj", "promptalign", "tpt", "rtpt", "rtpt, augmix", "views", "ttc"]
)
def test_tapt_item_6_eight_together_are_eight_alone(prompted, pictures, name):
    defence, images, ids = defences(prompted)[name], pictures(8)[0], ids_of(8)
    together = logits_of(defence, images, ids, 8)
    alone = torch.cat([logits_of(defence, images[i : i + 1], ids[i : i + 1], 1) for i in range(8)])
    backwards = logits_of(defence, images.flip(0), ids[::-1], 4).flip(0)
    assert torch.allclose(together, alone, atol=1e-5 * float(together.abs().max()))
    assert torch.allclose(together, backwards, atol=1e-5 * float(together.abs().max()))
    static = logits_of(defence.base, images, ids, 8)
    assert not torch.allclose(together, static, atol=1e-3), "it does something"
    others = logits_of(defence, images, [f"other/{i}" for i in range(8)], 8)
    assert not torch.equal(others, together), "views are keyed by the image's id"
    seeded = logits_of(type(defence.settings)(**vars(defence.settings)).classifier(defence.base, 1), images, ids, 8)
    assert not torch.equal(seeded, together), "and by the seed"


@pytest.mark.parametrize("design", ["text", *DESIGNS])
def test_the_first_gradient_computed_once_for_all_is_that_of_each(prompted, pictures, design):
    classifier, path = prompted(design) if design != "text" else (None, None)
    defence = TPT(**FEW).classifier(prompted("visual")[0].wearing(None), 0) if design == "text" else tapt(classifier, path)
    images = pictures(3)[0]
    views = defence.views(images, defence.of(ids_of(3)).keys)
    state = {name: p.detach().expand(3, *p.shape) for name, p in defence.prompt.state().items()}
    shared, each = defence.first_gradients(views), defence.gradients(views, state, False)
    for name in state:
        assert torch.allclose(shared[name], each[name], atol=1e-6 + 1e-4 * float(each[name].abs().max()))
        assert each[name].abs().max() > 0


def test_tapt_item_8_rtpt_weights_and_equal_views(prompted, pictures, monkeypatch):
    weights = reliability(F.normalize(torch.randn(3, 8, 5), dim=-1), 20, 0.01)
    assert torch.allclose(weights.sum(1), torch.ones(3))
    basis = torch.eye(3)[None]
    lone = torch.cat([basis[:, :1], basis[:, :1], basis[:, 2:]], 1)  # two equal views and one that resembles none
    assert torch.allclose(reliability(lone, 1, 0.01), torch.tensor([[0.5, 0.5, 0.0]]), atol=1e-6), "a view is no neighbour of itself"
    plain, images = prompted("visual")[0].wearing(None), pictures(2)[0]
    defence = RTPT(**FEW, steps=0).classifier(plain, 0)
    monkeypatch.setattr(defence, "views", lambda images, keys: images[:, None].expand(-1, 8, -1, -1, -1))
    with torch.no_grad():
        assert torch.allclose(defence(images), defence.start(images), atol=1e-4), "equal views are the image itself"


def test_tapt_item_8_ttc(prompted, pictures):
    plain, images = prompted("visual")[0].wearing(None), pictures(4)[0]
    keys = TTC().classifier(plain, 0).of(ids_of(4)).keys

    def moved(**settings):
        return TTC(**settings).classifier(plain, 0).adapt(images, keys, False)

    noise, usual, last = moved(threshold=0.0), moved(threshold=10.0), moved(threshold=10.0, beta=50.0)
    assert torch.equal(noise, moved(threshold=10.0, steps=0)), "not stable, or without a step: the noise alone"
    assert not torch.equal(noise, usual)
    steps = [moved(threshold=10.0, beta=50.0, steps=n) for n in (1, 2)]
    assert torch.allclose(last, steps[1], atol=1e-7), "beta to infinity: the last step alone"
    e = torch.exp(2.0 * torch.arange(3))
    assert torch.allclose(usual, sum(w * d for w, d in zip(e / e.sum(), (noise, *steps), strict=True)), atol=1e-6)
    for delta in (noise, usual, last):
        assert delta.abs().max() <= 4 / 255 + 1e-6
        assert (images + delta).min() >= 0
        assert (images + delta).max() <= 1
    assert (steps[0] - noise).abs().max() <= 1 / 255 + 1e-6


def test_an_end_to_end_gradient_is_another_and_the_answer_the_same(prompted, pictures):
    images, ids = pictures(4)[0], ids_of(4)
    for name, defence in defences(prompted).items():
        with_, without = (each.of(ids) for each in (defence.end_to_end(), defence))
        x = images.clone().requires_grad_()
        logits = [each(x) for each in (with_, without)]
        scale = float(logits[1].detach().abs().max())
        assert torch.allclose(*logits, atol=2e-4 * scale), name
        g = [torch.autograd.grad(out.logsumexp(1).sum(), x)[0] for out in logits]
        assert (g[1] != 0).any(), name
        assert torch.allclose(*g) == (name == "views"), f"{name}: only where nothing is tuned they are one"


def test_statistics_of_another_model_are_refused(prompted):
    classifier, path = prompted("independent")
    other, _ = prompted("independent", seed=1)
    with pytest.raises(UserError, match="made with CLIP weights of sha256"):
        tapt(other, path)
    with pytest.raises(UserError, match="with 7 tokens"):
        tapt(replace_prompt(classifier), path)


def replace_prompt(classifier):
    """Return the classifier with a prompt of three tokens."""
    from robustclip.models.joint import JointPrompt

    more = JointPrompt(classifier.clip, classifier.tokenizer, "visual", 3, 1, TEMPLATE, "random", torch.Generator().manual_seed(0))
    return classifier.wearing(more)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda c, path: TAPT(adversarial=path).classifier(c, 0), "needs the files adversarial clean"),
        (lambda c, path: TAPT(adversarial=path, clean=path, gamma=1.5).classifier(c, 0), "gamma is 1.5"),
        (lambda c, path: TAPT(adversarial=path, clean=path).classifier(c.wearing(None), 0), "this model has none"),
        (lambda c, path: PromptAlign().classifier(c, 0), "needs statistics"),
        (lambda c, path: TPT(views=4), "a share of 0.1 is kept"),
        (lambda c, path: tapt(c, path, views=10, keep=0.1), "1 of 10 views is kept, which has no variance"),
        (lambda c, path: TPT().classifier(c, 0), "wears a prompt in its images"),
    ],
)
def test_what_cannot_be_tuned_is_refused(prompted, make, said):
    with pytest.raises(UserError, match=said):
        make(*prompted("independent"))


def test_one_kind_of_statistics_is_enough_where_the_other_has_no_share(prompted):
    classifier, path = prompted("independent")
    assert [share for share, _ in replace(TAPT(), adversarial=path, gamma=1.0).targets(classifier)] == [1.0]
