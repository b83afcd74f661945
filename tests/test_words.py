"""Prompts as words and characters: places, budgets, and which rewritings are really a label change."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustclip.attacks.text.words import STOP_WORDS, OtherNames, Prompt, distance, plain, prompts_of, within

ICE = Prompt("a photo of a ", "great ice-cream", ", sweet.")


def test_a_prompt_is_its_three_parts_and_knows_its_words():
    assert ICE.text == "a photo of a great ice-cream, sweet."
    assert ICE.words == ["a", "photo", "of", "a", "great", "ice-cream", "sweet"]
    assert [ICE.words[i] for i in ICE.places("any word")] == ["photo", "great", "ice-cream", "sweet"]
    assert [ICE.words[i] for i in ICE.places("class name")] == ["great", "ice-cream"]


def test_a_word_gives_way_and_is_not_rewritten_again():
    (place,) = [i for i in ICE.places("class name") if ICE.words[i] == "ice-cream"]
    new = ICE.with_word(place, "stone")
    assert new.text == "a photo of a great stone, sweet."
    assert new.name == "great stone"
    assert place not in new.places("any word")
    assert [new.words[i] for i in new.places("any word")] == ["photo", "great", "sweet"]


def test_several_words_in_the_place_of_one_move_the_later_places():
    once = ICE.with_word(6, "salty")  # sweet
    twice = once.with_word(1, "dark red picture")
    assert twice.text == "a dark red picture of a great ice-cream, salty."
    assert [twice.words[i] for i in twice.places("any word")] == ["great", "ice-cream"]


@given(st.text("ab ,é🙂", max_size=8), st.text("ab ,é🙂", min_size=1, max_size=8), st.text("ab ,é🙂", max_size=8))
def test_every_edit_is_one_edit_and_stays_in_its_scope(before, name, after):
    prompt = Prompt(before, name, after)
    for scope in ("any word", "class name"):
        whole = prompt.text if scope == "any word" else prompt.name
        found = [new for place in range(len(whole) + 1) for new in prompt.edits(scope, place, "ax ")]
        assert {distance(new.text, prompt.text) for new in found} <= {1}
        assert len({new.text for new in found}) >= 2 * len(whole)
        if scope == "class name":
            assert {(new.before, new.after) for new in found} == {(before, after)}


def test_edits_reach_every_string_one_edit_away():
    found = {new.text for place in range(3) for new in Prompt("", "ab", "").edits("any word", place, "ab")}
    assert found == {"b", "a", "bb", "aa", "aab", "bab", "abb", "aba"}  # of "ab" over the letters a and b


@pytest.mark.parametrize(("a", "b", "d"), [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "ac", 1), ("🙂a", "a", 1)])
def test_levenshtein(a, b, d):
    assert distance(a, b) == distance(b, a) == d


NAMES = ["great white shark", "hammerhead", "tiger cat", "Sharks", "red fox"]


@pytest.mark.parametrize(
    ("own", "place", "word", "collides"),
    [
        (1, 4, "shark", True),  # equals "Sharks" but for the plural, and is contained in the great white shark
        (1, 4, "tiger", True),  # contained in another name
        (1, 4, "red fox", True),  # is another name
        (1, 4, "big red fox", True),  # contains another name
        (1, 4, "redfox", False),
        (1, 4, "boat", False),
        (1, 1, "fox", True),  # the template says it just as well
        (0, 6, "cat", True),  # "great white cat": a word of another class's name
        (2, 5, "hammerhead", True),
        (4, 4, "blue", False),  # its own name
    ],
)
def test_a_word_that_names_another_class_is_a_label_change(own, place, word, collides):
    prompt = prompts_of(NAMES, ["a photo of a {}."])[own]
    assert OtherNames(NAMES).collide(own, prompt, prompt.with_word(place, word)) is collides


def test_an_edit_that_spells_another_class_is_a_label_change():
    names = ["cat", "bat", "dog"]
    cat = prompts_of(names, ["a {}"])[0]
    found = {new.name: OtherNames(names).collide(0, cat, new) for new in cat.edits("class name", 0, "bx")}
    assert found["bat"] is True
    assert found["xat"] is False


def test_two_classes_of_one_name_do_not_forbid_each_other():
    names = ["crane", "crane", "heron"]
    prompt = prompts_of(names, ["a {}"])[0]
    others = OtherNames(names)
    assert not others.collide(0, prompt, prompt)
    assert others.collide(0, prompt, prompt.with_word(1, "heron"))


def test_asking_by_index_is_asking_every_name():
    dice = random.Random(0)
    words = ["red", "reds", "blue", "fox", "cat", "big", "!"]
    for _ in range(300):
        names = [" ".join(dice.choices(words, k=dice.randint(1, 3))) for _ in range(6)]
        own, prompt = 0, prompts_of(names, ["a big {}."])[0]
        rewritten = prompt.with_word(dice.choice(prompt.places("any word") or [0]), " ".join(dice.choices(words, k=dice.randint(1, 2))))
        before, after, name = plain(prompt.text), plain(rewritten.text), plain(rewritten.name)
        kept = max(i for i in range(min(len(before), len(after)) + 1) if before[:i] == after[:i])
        tail = max(i for i in range(min(len(before), len(after)) - kept + 1) if before[len(before) - i :] == after[len(after) - i :])
        new = after[kept : len(after) - tail]
        others = [plain(other) for other in names if plain(other) != plain(names[own])]
        expected = any(within(new, other) or within(other, new) or other == name for other in others)
        assert OtherNames(names).collide(own, prompt, rewritten) is expected, (names, rewritten)


def test_stop_words_are_words():
    assert "a" in STOP_WORDS
    assert "" not in STOP_WORDS
    assert all(word == word.lower().strip() for word in STOP_WORDS)
