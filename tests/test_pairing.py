"""A step over all pairs: gradient caching, leaked gradients, prompts rewritten now and then (mmcoa.md section 10, by number)."""

from threading import Barrier, Thread

import pytest
import torch
import torch.nn.functional as F
from paired import RANDOM, batch_of, run
from parts import NAMES, TEMPLATES, learned, learner_of, step
from summing import summed

from robustclip.attacks.text.search import TextAttack
from robustclip.defenses import CleanContrastive, MMCoA
from robustclip.defenses.mmcoa import Pairs
from robustclip.training.trainables import Towers

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
        learner.world = summed(add(rank), rank)
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
    waiting = learner.pairs.waiting
    images, attacked = (torch.cat([getattr(each, side) for each in waiting]) for side in ("images", "attacked"))
    loss, expected = plain_gradient(learner, images, attacked, labels, learner.rewritten)
    parts = learner.pairs.backward(learner.rewritten, learner.world)
    assert float(sum(parts.values())) == pytest.approx(float(loss.detach()), abs=1e-9)
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
        iterates = [each.iterates for each in learner.pairs.waiting]
        learner.pairs.backward(learner.rewritten, learner.world)
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
