"""Text attacks: within their budget, never worse than the clean prompt, deterministic, and as strong as their search."""

import json

import pytest
import torch

from robustclip.attacks.modes import TEXTS, in_names, with_collisions
from robustclip.attacks.text import hotflip, vocabulary
from robustclip.attacks.text.hotflip import HotFlip
from robustclip.attacks.text.scores import away, image_guided, margin
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import Asked, Characters, Neighbours, RandomWords, Table
from robustclip.attacks.text.vocabulary import encode, whole_words
from robustclip.attacks.text.words import STOP_WORDS, distance, prompts_of
from robustclip.base.errors import UserError
from robustclip.base.threat import TextBudget
from robustclip.base.values import from_json, key, to_json

WORDY = ("grey tent", "red", "great blue fish", "cloud")
TEMPLATES = ("a photo of a {}.", "one {} here")


@pytest.fixture
def classifier(tiny_model):
    return tiny_model.classifier(WORDY, TEMPLATES)


def scores_of(classifier, rewritten):
    before, after = (encode(classifier, texts) for texts in (rewritten.clean, rewritten.texts))
    return 1 - (before * after).sum(1)


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_a_texts_features_are_its_own_and_nothing_behind_its_end_is_computed(make_model, monkeypatch, kind):
    clip = make_model(kind).classifier(WORDY, TEMPLATES)
    texts = ["red", "a photo of a red cloud and a great blue fish", "!?", *(f"one {word} here" for word in WORDY)]
    seen, compute = [], type(clip.clip).encode_text
    monkeypatch.setattr(
        type(clip.clip), "encode_text", lambda self, ids, *more, **other: seen.append(ids) or compute(self, ids, *more, **other)
    )
    together = encode(clip, [*texts, texts[0]])
    assert sum(map(len, seen)) == len(seen) * vocabulary.MICRO_BATCH
    assert len({ids.shape[1] for ids in seen}) == (3 if kind == "vit" else 1)
    assert torch.equal(together, torch.cat([encode(clip, [text]) for text in [*texts, texts[0]]])), "whatever else is encoded with it"
    assert torch.allclose(together[:-1], clip.embed_texts(texts), atol=1e-6)


def changed_words(clean, now):
    """Return how many of the words of a prompt are others now; both have as many."""
    a, b = clean.split(), now.split()
    assert len(a) == len(b)
    return sum(x != y for x, y in zip(a, b))


@pytest.mark.parametrize("name", TEXTS)
def test_mmcoa_item_5_an_attack_keeps_its_budget_and_never_helps(name, classifier):
    attack = TEXTS[name]
    found = attack(classifier)
    assert found.clean == tuple(prompt.text for prompt in prompts_of(WORDY, TEMPLATES))
    assert found.texts != found.clean
    assert torch.allclose(1 - torch.tensor(found.cosines), scores_of(classifier, found), atol=1e-6)
    assert bool((scores_of(classifier, found) >= -1e-6).all())
    for clean, now in zip(found.clean, found.texts):
        assert (distance(clean, now) if name == "char" else changed_words(clean, now)) <= 1


@pytest.mark.parametrize("name", TEXTS)
def test_mmcoa_item_5_the_same_prompts_whatever_else_is_attacked(name, classifier, tiny_model):
    """Deterministic, and a class's prompt does not depend on the other classes but for their names, nor on the order."""
    attack = with_collisions(TEXTS[name])
    whole = attack(classifier)
    assert attack(classifier) == whole
    turned = attack(tiny_model.classifier(WORDY[::-1], TEMPLATES))
    assert dict(zip(turned.clean, turned.texts)) == dict(zip(whole.clean, whole.texts))


def test_mmcoa_item_5_exhaustive_is_at_least_greedy_and_two_words_at_least_one(classifier):
    for source in (Neighbours(), HotFlip(), RandomWords(5)):
        values = [
            scores_of(classifier, TextAttack(source, TextBudget(words=words), order=order)(classifier))
            for words, order in ((1, "greedy"), (1, "exhaustive"), (2, "exhaustive"))
        ]
        assert bool((values[1] >= values[0] - 1e-6).all())
        assert bool((values[2] >= values[1] - 1e-6).all())
        assert float(values[2].sum()) > float(values[1].sum())


def test_mmcoa_item_8_hotflip_beats_the_control(classifier):
    """The gradient finds worse words than chance does, on average over the prompts."""
    control, found = (scores_of(classifier, TEXTS[name](classifier)).mean() for name in ("random", "hotflip"))
    assert found > control


def test_no_budget_changes_nothing(classifier):
    for attack in (TextAttack(HotFlip(), TextBudget(words=0)), TextAttack(Characters(), TextBudget(edits=0))):
        found = attack(classifier)
        assert found.texts == found.clean
        assert found.cosines == pytest.approx([1.0] * len(found.clean))


def test_the_scope_keeps_the_template(classifier):
    for name, attack in TEXTS.items():
        found = in_names(attack)(classifier)
        for now, template in zip(found.texts, [*TEMPLATES] * len(WORDY)):
            before, after = template.split("{}")
            assert now.startswith(before), name
            assert now.endswith(after), name


def test_stop_words_stay_and_do_not_come(classifier):
    for name in ("random", "clip_knn", "hotflip"):
        for clean, now in zip(*(lambda found: (found.clean, found.texts))(TEXTS[name](classifier))):
            for before, after in zip(clean.rstrip(".").split(), now.rstrip(".").split()):
                assert before == after or not {before, after} & STOP_WORDS


def test_mmcoa_item_8_the_gradient_at_the_clean_prompt_is_zero_and_in_a_masked_one_it_is_not(classifier):
    """At the clean prompt 1 - cos has its minimum: HotFlip must start elsewhere."""
    prompts = prompts_of(WORDY, TEMPLATES[:1])
    clean = encode(classifier, [prompt.text for prompt in prompts])
    asked = Asked(classifier, prompts, [[4], [4], [4], [4]], "any word", away(clean))
    weight = classifier.clip.token_embedding.weight
    red = [classifier.tokenizer(["e"])[0, 1]]  # any one token, in the place of a word that is one token itself
    prompts = prompts_of(["e"], TEMPLATES[:1])
    own = Asked(classifier, prompts, [[4]], "any word", away(encode(classifier, [prompts[0].text])))
    (at_clean,) = hotflip.gradients(own, [(0, 4)], weight[red[0]])
    (masked, *_) = hotflip.gradients(asked, [(0, 4)], weight.mean(0))
    assert float(at_clean.norm()) < 1e-5 < 1e-3 < float(masked.norm())


def test_the_gradient_is_that_of_the_embedding_in_the_place(classifier):
    """Moving the embedding a little along the gradient raises the score by what it says."""
    prompts = prompts_of(["e"], TEMPLATES[:1])
    other = encode(classifier, ["something else"])
    asked = Asked(classifier, prompts, [[4]], "any word", away(other))
    start = classifier.clip.token_embedding.weight[300].detach()
    (g,), at = hotflip.gradients(asked, [(0, 4)], start), hotflip.token_places(classifier, prompts, [(0, 4)])

    def score(embedding):
        tokens = torch.zeros(1, dtype=torch.long)
        with torch.no_grad(), hotflip.embedded(classifier.clip.token_embedding, tokens, at, embedding[None]):
            return float(asked.score(classifier.embed_texts([prompts[0].text]), tokens))

    step = 1e-3 * g / g.norm()
    assert score(start + step) - score(start - step) == pytest.approx(2 * float(g @ step), rel=0.05)


def test_mmcoa_item_7_kl_of_softmaxed_unit_features_ranks_as_1_minus_cosine():
    """BERT-Attack's own score, KL(softmax a || softmax b), orders candidates as the cosine does."""
    g = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(200, 512, generator=g, dtype=torch.float64), dim=1)
    clean, others = unit[:1], torch.nn.functional.normalize(0.7 * unit[:1] + 0.5 * unit[1:], dim=1)
    kl = (clean.softmax(1) * (clean.log_softmax(1) - others.log_softmax(1))).sum(1)
    ours = away(clean)(others, torch.zeros(len(others), dtype=torch.long))
    assert torch.allclose(kl * 512, ours, rtol=0.02)
    by_kl, by_ours = kl.argsort(), ours.argsort()
    swapped = by_kl != by_ours
    assert bool(((kl[by_kl] - kl[by_ours])[swapped].abs() < 1e-5).all())


def test_scores():
    classes = torch.eye(3)
    class_of = torch.tensor([0, 1])
    features, own = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]), torch.tensor([0, 1])
    assert margin(classes, class_of)(features, own).tolist() == pytest.approx([0.2, 0.2])
    assert away(classes[:2])(features, own).tolist() == pytest.approx([0.4, 0.4])
    assert image_guided(classes, class_of)(features, own).tolist() == pytest.approx([-0.6, -0.6])


def test_a_label_change_is_left_out_and_counted(tiny_model):
    """A table offers another class's name as the best word: taken only where that is allowed, counted in both cases."""
    names = ("red", "grey", "blue")
    classifier = tiny_model.classifier(names, ("a {}",))
    table = Table("t.json", "0", {f"a {name}": {1: [other for other in names if other != name]} for name in names})
    kept, free = (attack(classifier) for attack in (TextAttack(table), with_collisions(TextAttack(table))))
    assert kept.texts == kept.clean
    assert all(now in free.clean and now != clean for clean, now in zip(free.clean, free.texts))
    assert kept.collisions == free.collisions == 1.0


def test_some_classes_are_rewritten_as_among_all_of_them(tiny_model):
    """Each against the names of the others: what may not be written depends on which class it is."""
    names = ("red", "green", "blue", "grey")
    classifier = tiny_model.classifier(names, ("a {}",))
    table = Table("t.json", "0", {f"a {name}": {1: [other for other in names if other != name]} for name in names})
    for attack in (TextAttack(table), with_collisions(TextAttack(table))):
        clean, now, collided = attack.rewrite(classifier, range(4))
        for classes in ([2, 3], [3, 1], [0]):
            some = attack.rewrite(classifier, classes)
            assert some == tuple([each[c] for c in classes] for each in (clean, now, collided))


def test_a_table_is_its_file(tmp_path, tiny_model):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"a red": [[1, ["blue", "tent"]]], "a cloud": []}))
    table = Table.read(str(path))
    attack = TextAttack(table)
    found = attack(tiny_model.classifier(("red", "cloud"), ("a {}",)))
    assert found.texts[0] in ("a blue", "a tent")
    assert found.texts[1] == "a cloud"
    written = to_json(attack)
    assert written["source"] == {"type": "Table", "file": "words.json", "sha256": table.sha256}
    path.write_text(json.dumps({"a red": [[1, ["blue"]]], "a cloud": []}))
    assert key(attack) != key(TextAttack(Table.read(str(path))))
    with pytest.raises(UserError, match=r"words\.json has no candidates for 'a fox': make the table"):
        attack(tiny_model.classifier(("red", "fox"), ("a {}",)))
    path.write_text(json.dumps({"a red": [[1, ["dark blue"]]], "a cloud": []}))
    assert TextAttack(Table.read(str(path)))(tiny_model.classifier(("red", "cloud"), ("a {}",))).texts == ("a red", "a cloud")  # two words
    path.write_text('{"a red": 3}')
    with pytest.raises(UserError, match="no table of candidates"):
        Table.read(str(path))


@pytest.mark.parametrize(
    ("source", "budget", "said"),
    [
        (HotFlip(), TextBudget(edits=1), "changes words: give its budget in words"),
        (Characters(), TextBudget(words=1), "changes edits: give its budget in edits"),
        (Table("t", "0", {}), TextBudget(words=2), "candidates of clean prompts only"),
    ],
)
def test_a_budget_in_another_unit_is_refused(source, budget, said):
    with pytest.raises(UserError, match=said):
        TextAttack(source, budget)


def test_a_guided_attack_needs_a_guide(classifier):
    with pytest.raises(UserError, match="needs images of each class"):
        TextAttack(score="image")(classifier)
    guide = classifier.class_embeddings[torch.tensor([1, 2, 3, 0])]
    found = TextAttack(RandomWords(8), score="image")(classifier, guide)
    own = guide.repeat_interleave(2, 0)
    before, after = ((encode(classifier, texts) * own).sum(1) for texts in (found.clean, found.texts))
    assert bool((after <= before + 1e-6).all())
    assert float((before - after).sum()) > 0


def test_names_say_what_differs():
    names = {attack.name for attack in TEXTS.values()}
    assert names == {"random-1w", "clip_knn-1w", "hotflip-1w", "char-1e-top2"}
    assert in_names(TEXTS["hotflip"]).name == "hotflip-1w-name"
    assert with_collisions(TEXTS["hotflip"]).name == "hotflip-1w+collisions"
    assert TextAttack(order="greedy", score="margin").name == "clip_knn-1w-greedy-margin"
    for attack in TEXTS.values():
        assert from_json(TextAttack, to_json(attack)) == attack


def test_random_words_are_keyed_by_seed_prompt_and_place(classifier):
    texts = [TextAttack(RandomWords(seed=seed))(classifier).texts for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_words_of_the_vocabulary_are_words_the_tokenizer_gives_back(classifier):
    words, ids = whole_words(classifier.tokenizer)
    assert len(words) > 50
    tokens = classifier.tokenizer(list(words))
    assert torch.equal(tokens[:, 1], ids)
    assert bool((tokens[:, 2] == tokens[:, 2][0]).all())  # nothing but the end behind it


ODD = ("rock, paper, scissors", "🙂", " ".join(["long"] * 80), "x", "x", "l'été", "#1!", "ice-cream (vanilla)")


@pytest.mark.parametrize("name", TEXTS)
def test_odd_class_names_are_attacked_like_others(name, tiny_model):
    """Commas, an emoji alone, 80 words, one letter, a duplicate, accents, signs: defined, never a crash."""
    classifier = tiny_model.classifier(ODD, ("a {}.",))
    found = TEXTS[name](classifier)
    assert len(found.texts) == len(ODD)
    assert all(now.strip() for now in found.texts)
    assert found.texts[3] == found.texts[4]
    assert bool((scores_of(classifier, found) >= -1e-6).all())


def test_an_empty_class_name_is_refused(tiny_model):
    with pytest.raises(UserError, match="class 1 has an empty name"):
        tiny_model.classifier(("red", " "), ("a {}",))
