"""MMCoA: the loss by hand, duplicates, what learns of the two towers and what is refused (mmcoa.md section 10, by number)."""

import math

import pytest
import torch
import torch.nn.functional as F
from paired import RANDOM, batch_of, run
from parts import NAMES, learner_of, step

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.defenses import CleanContrastive, MMCoA, TeCoA
from robustclip.defenses.mmcoa import Pairs, both_ways
from robustclip.models import checkpoints
from robustclip.training.pretraining import contrastive_loss
from robustclip.training.trainables import Towers, VisualTower


def pairs_of(b=6, d=5, labels=None, seed=0):
    """Return unit features with a graph, in double precision."""
    g = torch.Generator().manual_seed(seed)
    sides = [F.normalize(torch.randn(b, d, generator=g, dtype=torch.float64), dim=1).requires_grad_() for _ in range(4)]
    labels = torch.arange(b) if labels is None else labels
    return Pairs(*sides, labels=labels, scale=torch.tensor(7.0, dtype=torch.float64))


def shared_texts(pairs):
    """Return the pairs with one text for all rows of a class, as prompts are."""
    first = [int((pairs.labels == label).nonzero()[0]) for label in pairs.labels]
    return pairs._replace(texts=pairs.texts[first].detach().requires_grad_(), rewritten=pairs.rewritten[first].detach().requires_grad_())


def test_mmcoa_item_1_without_attacks_it_is_twice_clips_own_loss():
    pairs = pairs_of()
    plain = pairs._replace(attacked=pairs.images, rewritten=pairs.texts)
    total = sum(MMCoA().pair_loss(plain).values())
    assert torch.allclose(total, 2 * contrastive_loss(pairs.images, pairs.texts, pairs.scale))
    assert torch.allclose(CleanContrastive().pair_loss(plain)["contrastive"], contrastive_loss(pairs.images, pairs.texts, pairs.scale))


def test_mmcoa_item_1_a_weight_of_0_leaves_its_side_out():
    pairs = pairs_of()
    sum(MMCoA(lambda_txt=0.0).pair_loss(pairs).values()).backward()
    assert pairs.rewritten.grad is None
    assert pairs.images.grad is None
    assert pairs.attacked.grad is not None
    pairs = pairs_of()
    sum(MMCoA(lambda_img=0.0).pair_loss(pairs).values()).backward()
    assert pairs.attacked.grad is None
    assert pairs.texts.grad is None


def test_mmcoa_item_1_two_pairs_by_hand():
    """Images (1,0), (0,1); texts (0.6,0.8), (1,0); scale 2: logits 1.2, 2 / 1.6, 0."""
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    pairs = Pairs(a, a, b, b, torch.tensor([0, 1]), torch.tensor(2.0))

    def ce(*logits):  # of the first
        return math.log(sum(math.exp(z - logits[0]) for z in logits))

    i2t, t2i = (ce(1.2, 2.0) + ce(0.0, 1.6)) / 2, (ce(1.2, 1.6) + ce(0.0, 2.0)) / 2
    assert float(both_ways(a, b, pairs)) == pytest.approx(i2t + t2i, abs=1e-6)


LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def gradients(loss, pairs):
    return torch.autograd.grad(loss, [pairs.images, pairs.texts], retain_graph=True)


def test_mmcoa_item_2_class_lse_is_diag_where_all_classes_differ():
    pairs = pairs_of()
    assert torch.allclose(*(both_ways(pairs.images, pairs.texts, pairs, targets) for targets in ("diag", "class_lse")))


def test_mmcoa_item_2_with_duplicates_uniform_targets_are_diag_and_class_lse_differs_by_a_constant():
    pairs = shared_texts(pairs_of(labels=LABELS))
    same = (LABELS[:, None] == LABELS).double()
    logits = pairs.scale * pairs.images @ pairs.texts.T
    uniform = same / same.sum(1, keepdim=True)
    soft = -(uniform * logits.log_softmax(1)).sum(1).mean() - (uniform * logits.T.log_softmax(1)).sum(1).mean()
    diag = both_ways(pairs.images, pairs.texts, pairs)
    assert torch.allclose(soft, diag)
    # Rows of one class share one text, so the text's gradient counts as a sum over its rows.
    (soft_i, soft_t), (diag_i, diag_t) = gradients(soft, pairs), gradients(diag, pairs)
    assert torch.allclose(soft_i, diag_i)
    assert torch.allclose(same @ soft_t, same @ diag_t)

    own = torch.arange(len(LABELS))
    i2t = F.cross_entropy(logits, own)
    lse = (logits.logsumexp(1) - logits.masked_fill(same == 0, -torch.inf).logsumexp(1)).mean()
    copies = same.sum(1).log().mean()
    assert torch.allclose(i2t - lse, copies)
    assert torch.allclose(*(torch.autograd.grad(loss, pairs.images, retain_graph=True)[0] for loss in (i2t, lse)))
    both = both_ways(pairs.images, pairs.texts, pairs, "class_lse")
    t2i = [float((diag - i2t).detach()), float((both - lse).detach())]
    assert t2i[0] != pytest.approx(t2i[1], abs=1e-3)
    assert float(i2t.detach()) >= float(copies)


def test_both_towers_learn_and_the_classes_follow(make_model, pictures):
    batch = batch_of(pictures)
    learner = learner_of(make_model(), run(MMCoA(text=RANDOM), micro_batch=8))
    before = learner.student.class_embeddings.clone()
    visual, text = (dict(learner.model.clip.named_parameters())[name].clone() for name in ("visual.proj", "token_embedding.weight"))
    losses = [step(learner, batch, 8)["loss"] for _ in range(8)]
    assert losses[-1] < losses[0]
    now = dict(learner.model.clip.named_parameters())
    assert not torch.equal(now["visual.proj"], visual)
    assert not torch.equal(now["token_embedding.weight"], text)
    assert not torch.equal(learner.student.class_embeddings, before)
    assert torch.equal(learner.student.class_embeddings, learner.student.embed_prompts())
    assert not torch.equal(learner.teacher.class_embeddings, learner.student.class_embeddings)


@pytest.mark.parametrize(
    ("trainable", "prefix"),
    [(Towers("text"), "text"), (Towers("text", "norms and biases"), "few"), (VisualTower(), "visual"), (Towers(), "both")],
    ids=str,
)
def test_only_what_was_chosen_learns(trainable, prefix, make_model, pictures):
    learner = learner_of(make_model(), run(MMCoA(text=RANDOM), trainable))
    before = {name: p.detach().clone() for name, p in learner.model.clip.named_parameters()}
    step(learner, batch_of(pictures))
    moved = {name for name, p in learner.model.clip.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert "logit_scale" not in moved
    towers = {"visual" if name.startswith("visual.") else "text" for name in moved}
    assert towers == {"text": {"text"}, "few": {"text"}, "visual": {"visual"}, "both": {"visual", "text"}}[prefix]
    if prefix == "few":
        assert all("ln_" in name or name.endswith("bias") for name in moved)


@pytest.mark.parametrize(("scale", "expected"), [("frozen", 2.0), ("trainable", None), ("clamped", None)])
def test_logit_scale_stays_is_free_or_is_held(scale, expected, tiny_model, pictures):
    tiny_model.clip.logit_scale.data.fill_(math.log(99.99) if scale == "clamped" else 2.0)
    learner = learner_of(tiny_model, run(CleanContrastive(), Towers(logit_scale=scale), lr=0.5))
    for _ in range(3):
        step(learner, batch_of(pictures))
    now = float(tiny_model.clip.logit_scale.detach())
    assert now <= math.log(100) + 1e-6 or scale != "clamped"
    assert (now == 2.0) is (expected == 2.0)


def test_a_checkpoint_holds_both_towers(tiny_model, pictures, tmp_path):
    learner = learner_of(tiny_model, run(MMCoA(text=RANDOM)))
    step(learner, batch_of(pictures))
    learner.finish()
    checkpoints.save(learner.model, str(tmp_path))
    loaded = models.load(str(tmp_path))
    for name, p in learner.model.clip.named_parameters():
        assert torch.equal(dict(loaded.clip.named_parameters())[name], p), name
    x, _, _ = pictures(4)
    assert torch.equal(loaded.classifier(NAMES, ["a {} thing."])(x), learner.model.classifier(NAMES, ["a {} thing."])(x))


def test_an_average_of_weights_has_its_own_classes(tiny_model, pictures):
    learner = learner_of(tiny_model, run(MMCoA(text=RANDOM), ema=0.9))
    step(learner, batch_of(pictures))
    raw = learner.student.class_embeddings.clone()
    with learner.averaged():
        inside = learner.student.class_embeddings.clone()
        assert torch.equal(inside, learner.student.embed_prompts())
    assert not torch.equal(inside, raw)
    assert torch.equal(learner.student.class_embeddings, raw)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MMCoA(lambda_img=-1.0), "weights, not negative"),
        (lambda: MMCoA(lambda_img=0.0, lambda_txt=0.0), "not both 0"),
        (lambda: MMCoA(refresh=0), "defense.refresh is 0"),
        (lambda: Towers("visual"), "choose both, text"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_loss_against_fixed_texts_is_refused_for_both_towers(tiny_model):
    with pytest.raises(UserError, match="TeCoA trains against fixed texts"):
        learner_of(tiny_model, run(TeCoA()))
