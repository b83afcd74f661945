"""Protocols: a hash over all a robust accuracy depends on, nested stratified samples, and keys that change with the weights."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustclip.attacks import APGD, APGDT, PGD
from robustclip.base.errors import UserError
from robustclip.data.card import DatasetCard
from robustclip.data.index import Index
from robustclip.data.reading import stratified
from robustclip.data.world import SETS
from robustclip.evaluation import protocols
from robustclip.evaluation.protocols import PROTOCOLS, Protocol, Resolved, named
from robustclip.evaluation.rules import SetRule

BASE = Protocol("test", ("a", "b"), (PGD(2), APGD(3)), (1.0, 2.0), n=6)


def index_of(n, classes=3, prefix="x"):
    at = np.arange(n, dtype=np.int32)
    ids = pa.array([f"{prefix}/{i}" for i in range(n)])
    label = (np.minimum(at, at % 7) % classes).astype(np.int64)  # some classes are rare
    return Index(("file",), at * 0, at * 0, at, label, ids, tuple(f"class {c}" for c in range(classes)))


def make_set(name, n=6, templates=("a {}.",), names=("red", "green", "blue"), sha256="0"):
    card = DatasetCard(name, names, templates, {"test": n}, 8, "none", "here", {"test": ({"file": "f", "sha256": sha256, "rows": n},)})
    return protocols.TestSet(card, index_of(n, prefix=name), np.arange(n))


def resolved(protocol=BASE, sets=None):
    sets = {name: make_set(name) for name in protocol.sets} if sets is None else sets
    return Resolved(protocol, sets)


# --- the hash -------------------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "name": "other",
    "sets": ("b", "a"),
    "attacks": (PGD(2), APGD(4)),
    "eps": (1.0, 2.5),
    "n": 5,
    "norm": "L2",
    "level": "grey-box A1",
    "averaging": "mean over images",
    "real": ("a",),
    "seed": 1,
    "render_seed": 1,
    "resize": 10,
    "micro_batch": 7,
    "crop": 8,
    "interpolation": "bilinear",
    "attacked": 3,
    "independent": True,
    "rules": (SetRule("a", split="val"),),
}


def test_what_was_prepared_is_real_and_what_was_rendered_only_where_the_protocol_says_so():
    rendered = {name: replace(each, card=replace(each.card, render_seed=3)) for name, each in resolved().sets.items()}
    for protocol, sets, real in (
        (replace(BASE, real=()), None, True),
        (replace(BASE, real=()), rendered, False),
        (replace(BASE, real=("a",)), rendered, True),
    ):
        assert resolved(protocol, sets).describe()["sets"]["a"]["real"] is real


def test_every_setting_is_listed_here():
    assert SETTINGS.keys() == Protocol.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_hash_changes_with_every_setting(name):
    assert resolved(replace(BASE, **{name: SETTINGS[name]})).hash != resolved().hash


@pytest.mark.parametrize("attack", [PGD(2, alpha=0.3), PGD(2, restarts=2), PGD(2, random_start=False)], ids=repr)
def test_the_hash_changes_with_every_setting_of_an_attack(attack):
    assert resolved(replace(BASE, attacks=(attack, APGD(3)))).hash != resolved().hash


@pytest.mark.parametrize(
    "rule",
    [
        SetRule("b"),
        SetRule("a", split="val"),
        SetRule("a", classes=3),
        SetRule("a", images=6),
        SetRule("a", templates=("{}",)),
        SetRule("a", class_names=("x", "y", "z")),
        SetRule("a", native=8),
        SetRule("a", skips=("pgd-2",)),
    ],
    ids=repr,
)
def test_the_hash_changes_with_every_rule_of_a_set(rule):
    assert rule.__dataclass_fields__.keys() == {"name", "split", "classes", "images", "templates", "class_names", "native", "skips"}
    assert resolved(replace(BASE, rules=(rule,))).hash != resolved(replace(BASE, rules=(SetRule("a"),))).hash


def test_the_hash_changes_with_precision(monkeypatch):
    before = resolved().hash
    monkeypatch.setattr(protocols, "PRECISION", "fp16")
    assert resolved().hash != before


def test_the_hash_changes_with_the_order_of_attacks():
    assert resolved(replace(BASE, attacks=BASE.attacks[::-1])).hash != resolved().hash


@pytest.mark.parametrize(
    "changed",
    [
        {"templates": ("a {}!",)},
        {"templates": ("a {}.", "{}")},
        {"names": ("red", "blue", "green")},
        {"names": ("red", "green", "navy")},
    ],
    ids=str,
)
def test_the_hash_changes_with_class_names_and_templates(changed):
    other = resolved(sets={"a": make_set("a"), "b": make_set("b", **changed)})
    assert other.hash != resolved().hash
    assert other.sets["b"].prompts_hash != resolved().sets["b"].prompts_hash


def test_the_hash_changes_with_the_ids_and_their_order():
    sets = [{"a": make_set("a"), "b": replace(make_set("b"), rows=rows)} for rows in (np.arange(6), np.arange(5), np.arange(6)[::-1])]
    assert len({resolved(sets=each).hash for each in sets}) == 3


def test_the_hash_is_a_value():
    assert resolved().hash == resolved().hash
    assert len(resolved().hash) == 16
    assert resolved(sets={"a": make_set("a", sha256="1"), "b": make_set("b")}).hash == resolved().hash  # pixels are in the cells' keys


def test_a_protocol_says_where_an_attack_is_reduced():
    chosen = replace(BASE, attacks=(PGD(2), APGD(3, loss="dlr"), APGDT(3)))
    sets = {"a": make_set("a", names=("red", "green")), "b": make_set("b", names=tuple(f"colour {i}" for i in range(6)))}
    found = resolved(chosen, sets)
    assert found.describe()["attacks"] == ["pgd-2", "apgd-dlr-3", "apgd-t-3"]
    assert found.describe()["sets"]["a"]["reduced"] == {"apgd-dlr-3": None, "apgd-t-3": None}
    assert found.describe()["sets"]["b"]["reduced"] == {"apgd-t-3": "apgd-t-3[t=5]"}
    assert resolved().describe()["sets"]["a"]["reduced"] == {}


# --- cells ----------------------------------------------------------------------------------------------------------------------------


def keys(found, weights="w"):
    return [cell.key for cell in found.cells("model", weights)]


def test_cells_cover_every_image_once_in_order():
    found = resolved(replace(BASE, n=None), {"a": make_set("a", 450), "b": make_set("b", 3)})
    cells = found.cells("model", "w")
    assert [(cell.dataset, len(cell.rows)) for cell in cells] == [("a", 200), ("a", 200), ("a", 50), ("b", 3)]
    assert np.concatenate([cell.rows for cell in cells[:3]]).tolist() == list(range(450))
    assert len(set(keys(found))) == 4
    assert {cell.model for cell in cells} == {"model"}


def test_images_beyond_those_attacked_and_attacks_a_set_skips_are_left_out():
    chosen = replace(BASE, n=None, attacked=300, rules=(SetRule("b", skips=("apgd-ce-3",)),))
    cells = resolved(chosen, {"a": make_set("a", 450), "b": make_set("b", 3)}).cells("model", "w")
    met = [(cell.dataset, len(cell.rows), [attack.name for attack in cell.attacks]) for cell in cells]
    both = ["pgd-2", "apgd-ce-3"]
    assert met == [("a", 200, both), ("a", 100, both), ("a", 150, []), ("b", 3, ["pgd-2"])]
    assert np.concatenate([cell.rows for cell in cells[:3]]).tolist() == list(range(450))


def test_a_cells_key_changes_with_weights_pixels_and_protocol():
    base = keys(resolved())
    assert base == keys(resolved())
    others = [
        keys(resolved(), "other weights"),
        keys(resolved(replace(BASE, seed=1))),
        keys(resolved(sets={"a": make_set("a", sha256="1"), "b": make_set("b", sha256="1")})),
    ]
    assert len({*base, *(key for other in others for key in other)}) == 4 * len(base)
    assert resolved().cells("renamed", "w")[0].key == base[0]  # a name is no content


# --- stratified -----------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 80), st.integers(1, 9), st.data())
def test_a_sample_covers_the_classes_evenly_and_is_nested(n, classes, data):
    index = index_of(n, classes)
    small = data.draw(st.integers(1, n))
    large = data.draw(st.integers(small, n))
    chosen = stratified(index, small)
    assert len(set(chosen.tolist())) == small
    assert stratified(index, large)[:small].tolist() == chosen.tolist()
    taken, there = (np.bincount(index.label[rows], minlength=classes) for rows in (chosen, np.arange(n)))
    short = taken < there  # a class may have fewer than another only if it has no more
    assert not short.any() or taken.max() <= taken[short].min() + 1
    assert sorted(stratified(index, None).tolist()) == list(range(n))


@given(st.integers(2, 60), st.randoms(use_true_random=False))
def test_a_sample_depends_on_ids_and_not_on_their_place(n, random):
    index, order = index_of(n), list(range(n))
    random.shuffle(order)
    moved = replace(index, label=index.label[order], id=index.id.take(pa.array(order)), row=index.row[order])
    assert index.ids(stratified(index, n // 2)) == moved.ids(stratified(moved, n // 2))


# --- refusals and names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eps": (2.0, 1.0)}, "ascending"),
        ({"eps": (1.0, 1.0)}, "ascending"),
        ({"eps": (0.0, 1.0)}, "positive"),
        ({"eps": (-1.0,)}, "not negative"),
        ({"norm": "L1"}, "Linf or L2"),
        ({"sets": ()}, "at least one data set"),
        ({"attacks": ()}, "at least one data set and one attack"),
        ({"attacks": (PGD(2), PGD(2, alpha=1.0))}, "two attacks have one name"),
        ({"sets": ("a", "a")}, "stands twice"),
        ({"rules": (SetRule("a"), SetRule("a", native=8))}, "stands twice"),
        ({"rules": (SetRule("a", skips=("pgd-2", "apgd-ce-3")),)}, "no attack is left for the set 'a'"),
        ({"level": "grey"}, "level 'grey'.*grey-box A1"),
        ({"interpolation": "nearest"}, "interpolation 'nearest'.*bicubic"),
        ({"resize": 8, "crop": 16}, "crop of 16 px does not fit"),
    ],
    ids=str,
)
def test_a_protocol_that_says_nothing_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        replace(BASE, **changes)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_known_by_their_name(name):
    assert named(name).name == name
    assert set(named(name).real) <= set(named(name).sets) - set(SETS) | {"digits"}


def test_an_unknown_protocol_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean demo"):
        named("dmo")
