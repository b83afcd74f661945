"""Prompts tuned at test time: TAPT's start, step and loss, by the numbered tests of its sheet that need no real weights."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from adapting import DESIGNS, FEW, tapt, with_tokens
from toys import ids_of

from robustclip.attacks.pgd import logits_of
from robustclip.base.errors import UserError
from robustclip.test_time import TAPT, TPT
from robustclip.test_time import tapt as tapt_module
from robustclip.test_time.moments import Targets
from robustclip.test_time.tapt import alignment
from robustclip.test_time.tuning import entropy, entropy_of_mean, most_confident
from robustclip.views.crops import crops


@pytest.fixture
def prompted(make_model, pictures, tmp_path):
    """Return a function that gives a classifier with learned tokens (of one block) and the file of its statistics."""
    return partial(with_tokens, make_model, pictures, tmp_path)


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
