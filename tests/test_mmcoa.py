"""MMCoA: the loss by hand, duplicates, gradient caching, leaked gradients, both towers learning (mmcoa.md section 10, by number)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from parts import NAMES, TEMPLATES, config, learned, learner_of, pixels, step

from robustclip import names as models
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.base.errors import UserError
from robustclip.defenses import CleanContrastive, MMCoA, TeCoA
from robustclip.defenses.mmcoa import Pairs, both_ways
from robustclip.models import checkpoints
from robustclip.training.config import InnerAttack
from robustclip.training.pairing import World
from robustclip.training.pretraining import contrastive_loss
from robustclip.training.trainables import Towers, VisualTower

RANDOM = TextAttack(RandomWords())


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


def batch_of(pictures, n=16):
    x, y, ids = pictures(n)
    return pixels(x), y, ids


def run(defense, trainable=None, **optim):
    return replace(config(defense, trainable or Towers(), batch=16, **optim), attack=InnerAttack(2, 0.75))


LEAKY = MMCoA(text=RANDOM, targets="class_lse", leak_attack_grads=True)


@pytest.mark.parametrize("defense", [MMCoA(text=RANDOM), LEAKY, CleanContrastive()])
def test_mmcoa_item_3_micro_batches_and_workers_give_the_gradient_of_the_whole_batch(defense, make_model, pictures):
    """One micro-batch of 16, four of 4, and two workers with two of 4 each: same loss, same step."""
    batch = batch_of(pictures)
    trainable = Towers(logit_scale="trainable")
    found = []
    for micro_batch in (16, 4):
        learner = learner_of(make_model(), run(defense, trainable), dtype=torch.float64)
        found.append((step(learner, batch, micro_batch)["loss"], learned(learner)))
    found.append(two_workers(defense, trainable, make_model, batch))
    for loss, weights in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-9)
        torch.testing.assert_close(weights, found[0][1], atol=1e-9, rtol=1e-7)


def two_workers(defense, trainable, make_model, batch):
    """Return the loss and the weights of two workers in threads that meet wherever a tensor is added up."""
    from threading import Barrier, Thread

    barrier, held = Barrier(2), [None, None]
    learners = [learner_of(make_model(), run(defense, trainable), dtype=torch.float64) for _ in range(2)]
    reports = [None, None]

    def add(rank):
        def sum_up(tensor):
            held[rank] = tensor.clone()
            barrier.wait()
            both = held[0] + held[1]
            barrier.wait()
            tensor.copy_(both)

        return sum_up

    def work(rank):
        pixels, labels, ids = batch
        learner = learners[rank]
        learner.world = World(rank, 2, add(rank))
        for unit in range(rank, 4, 2):
            rows = slice(4 * unit, 4 * unit + 4)
            learner.accumulate(pixels[rows], labels[rows], ids[rows])
        reports[rank] = learner.update()

    fused = torch.backends.mha.get_fastpath_enabled()
    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.backends.mha.set_fastpath_enabled(fused)  # each forward puts back what it found: two at a time may leave it off
    assert reports[0] == reports[1]
    torch.testing.assert_close(learned(learners[0]), learned(learners[1]), atol=0, rtol=0)
    return reports[0]["loss"], learned(learners[0])


def plain_gradient(learner, images, attacked, labels, rewritten):
    """Return the gradient of the loss of a whole batch in one graph, without any caching."""
    student, templates = learner.student, len(learner.student.templates)

    def texts(prompts):
        rows = torch.stack([student.embed_texts(list(prompts[c * templates : (c + 1) * templates])).mean(0) for c in labels.tolist()])
        return F.normalize(rows, dim=-1)

    clean, now = (student.embed_images(side) for side in (images, attacked))
    scale = student.clip.logit_scale.exp()
    pairs = Pairs(clean, now, texts(student.texts), texts(rewritten), labels, scale)
    total = sum(learner.config.defense.pair_loss(pairs).values())
    return total, torch.autograd.grad(total, learner.parameters, allow_unused=True)


def test_the_cached_gradient_is_that_of_one_graph(tiny_model, pictures):
    pixels_, labels, ids = batch_of(pictures)
    learner = learner_of(tiny_model, run(MMCoA(text=RANDOM), Towers(logit_scale="trainable")), dtype=torch.float64)
    for part in torch.arange(16).split(4):
        learner.accumulate(pixels_[part], labels[part], [ids[i] for i in part])
    waiting = learner.waiting
    images, attacked = (torch.cat([getattr(each, side) for each in waiting]) for side in ("images", "attacked"))
    loss, expected = plain_gradient(learner, images, attacked, labels, learner.rewritten)
    learner._pairs(learner.config.defense)
    assert float(sum(learner.parts.values())) == pytest.approx(float(loss.detach()), abs=1e-9)
    for p, g in zip(learner.parameters, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, torch.zeros_like(p) if g is None else g)


def test_mmcoa_item_4_the_attacks_leave_no_gradient(tiny_model, pictures):
    learner = learner_of(tiny_model, run(MMCoA(text=RANDOM)))
    learner.accumulate(*batch_of(pictures))
    assert all(p.grad is None for p in learner.model.clip.parameters())


def test_mmcoa_item_4_the_leak_is_the_attacks_loss_at_its_iterates(tiny_model, pictures):
    """Sum over k of grad CE(x + delta_k, y), both towers, recomputed in one graph."""
    pixels_, labels, ids = batch_of(pictures)
    found = []
    for leaks in (False, True):
        settings = run(MMCoA(text=RANDOM, leak_attack_grads=leaks))
        learner = learner_of(tiny_model.copy(), settings, dtype=torch.float64)
        for part in torch.arange(16).split(8):
            learner.accumulate(pixels_[part], labels[part], [ids[i] for i in part])
        iterates = [each.iterates for each in learner.waiting]
        learner._pairs(settings.defense)
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters])
    assert [len(each) for each in iterates] == [2, 2]  # of the second learner: one iterate a step
    student = learner.student
    classes = F.normalize(student.embed_texts(list(student.texts)).view(len(NAMES), 2, -1).mean(1), dim=-1)
    total = 0.0
    for k in range(2):
        images = torch.cat([each[k] for each in iterates])
        logits = student.clip.logit_scale.exp() * student.embed_images(images) @ classes.T
        total = total + F.cross_entropy(logits, labels)
    expected = torch.autograd.grad(total, learner.parameters, allow_unused=True)
    for plain, leaked, g in zip(*found, expected, strict=True):
        torch.testing.assert_close(leaked - plain, torch.zeros_like(plain) if g is None else g, atol=1e-9, rtol=1e-6)


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


def test_prompts_are_rewritten_every_so_many_steps_and_survive_a_restart(make_model, pictures, monkeypatch):
    batch, asked = batch_of(pictures), []
    plain = TextAttack.__call__
    monkeypatch.setattr(TextAttack, "__call__", lambda self, *args: asked.append(1) or plain(self, *args))
    settings = run(MMCoA(text=RANDOM, refresh=3))
    learner = learner_of(make_model(), settings)
    for _ in range(4):
        step(learner, batch, 8)
    assert len(asked) == 2
    state = learner.state()
    step(learner, batch, 8)
    again = learner_of(make_model(), settings)
    again.restore(state)
    assert again.rewritten == learner.rewritten
    step(again, batch, 8)
    assert len(asked) == 2
    torch.testing.assert_close(learned(again), learned(learner), atol=0, rtol=0)


def test_at_every_step_the_prompts_of_the_batch_s_classes_are_rewritten(tiny_model, pictures):
    learner = learner_of(tiny_model, run(MMCoA(text=RANDOM)))
    expected, clean = RANDOM(learner.student).texts, learner.student.texts
    images, labels, ids = batch_of(pictures)
    some = labels != 2
    step(learner, (images[some], labels[some], [id_ for id_, wanted in zip(ids, some.tolist(), strict=True) if wanted]))
    for i, (now, rewritten, before) in enumerate(zip(learner.rewritten, expected, clean, strict=True)):
        assert now == (before if i // len(TEMPLATES) == 2 else rewritten)
    assert all(a != b for a, b in zip(expected, clean, strict=True))  # so that what was left alone can be told


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
