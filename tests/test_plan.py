"""Which rows train and in what order: pure, nested, each row at most once an epoch, equal units, and the same for any order of reading."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustclip.base.errors import UserError
from robustclip.base.seeds import derive
from robustclip.data.card import DatasetCard, save
from robustclip.data.index import Index, scan
from robustclip.data.plan import Plan, read_unit, select
from robustclip.data.shards import Row, write_split


def index_of(n, classes=3, group=7):
    at = np.arange(n, dtype=np.int32)
    ids = pa.array([f"set/train/{i}" for i in range(n)])
    names = tuple(f"class {c}" for c in range(classes))
    return Index(("one", "two"), at // group % 2, at // group // 2, at % group, (at % classes).astype(np.int64), ids, names)


def permuted(index, order):
    places = index.file[order], index.row_group[order], index.row[order]
    return Index(index.files, *places, index.label[order], index.id.take(order), index.class_names)


def plan_of(index, rows=None, micro_batch=4, batch=8, epochs=2, seed=0):
    return Plan.of(index, np.arange(len(index)) if rows is None else rows, micro_batch=micro_batch, batch=batch, epochs=epochs, seed=seed)


def flat(plan, epoch):
    """Return every (file, row_group, row) of an epoch, in the order of its units."""
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    units = [plan.unit(step, i) for step in steps for i in range(plan.units_per_step)]
    return [[(f, g, int(row)) for f, g, rows in unit for row in rows] for unit in units]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 120), micro=st.integers(1, 9), units=st.integers(1, 4), seed=st.integers(0, 5), group=st.integers(1, 20))
def test_an_epoch_walks_each_row_at_most_once_in_equal_units(n, micro, units, seed, group):
    index = index_of(n, group=group)
    if micro * units > n:
        with pytest.raises(UserError, match="smaller batch"):
            plan_of(index, micro_batch=micro, batch=micro * units, seed=seed)
        return
    plan = plan_of(index, micro_batch=micro, batch=micro * units, seed=seed)
    for epoch in range(2):
        walked = flat(plan, epoch)
        assert {len(unit) for unit in walked} == {micro}
        rows = [row for unit in walked for row in unit]
        assert len(rows) == len(set(rows)) == n // (micro * units) * micro * units
        assert set(rows) <= set(zip(index.file.tolist(), index.row_group.tolist(), index.row.tolist()))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(4, 90), held_out=st.integers(0, 3))
def test_subsets_are_nested_disjoint_from_validation_and_the_same_for_any_reading_order(data, n, held_out):
    index = index_of(n)
    small, large = sorted(data.draw(st.tuples(*[st.integers(1, n - held_out)] * 2)))
    (few, validation), (many, again) = select(index, small, None, held_out), select(index, large, None, held_out)
    assert set(few) <= set(many)
    assert len(few) == small
    assert np.array_equal(validation, again)
    assert not set(validation) & set(many)
    order = np.array(data.draw(st.permutations(range(n))))
    other = permuted(index, order)
    for mine, theirs in zip(select(index, small, None, held_out), select(other, small, None, held_out)):
        assert set(index.ids(mine)) == set(other.ids(theirs))


def test_mmcoa_item_11_per_class_is_exact_balanced_and_nested():
    index = index_of(90)
    one, five = (select(index, per_class=k, held_out=10)[0] for k in (1, 5))
    assert np.bincount(index.label[one]).tolist() == [1, 1, 1]
    assert np.bincount(index.label[five]).tolist() == [5, 5, 5]
    assert set(one) <= set(five)
    assert len(select(index, held_out=10)[0]) == 80


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"n": 10, "per_class": 1}, "both"),
        ({"n": 81, "held_out": 10}, "n=81 is more than the 80 images left of 90"),
        ({"per_class": 31}, "per_class=31 is more than the 30 training images of the class 'class 0'"),
        ({"held_out": 90}, "leaves nothing"),
        ({"n": 0}, "n=0"),
        ({"per_class": 0}, "per_class=0"),
        ({"held_out": -1}, "held_out=-1"),
    ],
)
def test_impossible_selections_are_named(asked, word):
    with pytest.raises(UserError, match=word):
        select(index_of(90), **asked)


def test_a_class_without_images_is_named():
    index = index_of(90, classes=3)
    short = Index(index.files, index.file, index.row_group, index.row, index.label, index.id, (*index.class_names, "unicorn"))
    with pytest.raises(UserError, match="0 training images of the class 'unicorn'"):
        select(short, per_class=1)


def test_mmcoa_item_11_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    index = index_of(100)
    plan, again = plan_of(index), plan_of(index)
    later = flat(plan, 1)  # asked in another order than the plan's own
    assert flat(plan, 0) == flat(again, 0) != later
    assert flat(again, 1) == later
    assert flat(plan_of(index, seed=1), 0) != flat(plan, 0)
    assert flat(pickle.loads(pickle.dumps(plan)), 0) == flat(plan, 0)
    assert len(pickle.dumps(plan)) < len(pickle.dumps(plan_of(index))) + 100  # the drawn orders do not travel


def test_the_order_is_the_same_on_every_machine():
    order = plan_of(index_of(40), seed=3).order(0)
    assert order.shape == (10, 4)
    assert order[0].tolist() == [21, 25, 27, 26]  # measured once; a change would break resuming of finished work


def test_a_unit_touches_few_row_groups():
    plan = plan_of(index_of(128 * 20, group=128), micro_batch=32, batch=64)
    touched = [len(plan.unit(step, i)) for step in range(plan.steps_per_epoch) for i in range(2)]
    assert max(touched) <= 2


def test_items_are_dealt_out_equally():
    plan = plan_of(index_of(100), micro_batch=2, batch=8)
    assert (plan.steps_per_epoch, plan.steps, plan.units_per_step) == (12, 24, 4)
    items = [*plan.items()]
    assert items[:5] == [
        {"step": 0, "unit": 0},
        {"step": 0, "unit": 1},
        {"step": 0, "unit": 2},
        {"step": 0, "unit": 3},
        {"step": 1, "unit": 0},
    ]
    for workers in (1, 2, 4):
        plan.check_world(workers)
        assert {item["unit"] % workers for item in items[1::workers]} == {1 % workers}
    for workers in (0, 3, 8):
        with pytest.raises(UserError, match=f"{workers} workers cannot share the 4 units"):
            plan.check_world(workers)
    with pytest.raises(IndexError):
        plan.unit(24, 0)


@pytest.mark.parametrize("wrong", [{"batch": 9}, {"micro_batch": 0}, {"epochs": 0}, {"batch": 200}])
def test_plans_that_cannot_be_walked_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        plan_of(index_of(100), **wrong)


def png(side, value):
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def stored(folder, images):
    """Write images as one split and return the plan that walks it once, two rows a unit."""
    rows = [Row(f"set/train/{i}", i % 2, image) for i, image in enumerate(images)]
    shards = write_split(str(folder), "train", rows, rows_per_file=5)
    card = DatasetCard("set", ("a", "b"), ("{}",), {"train": len(rows)}, None, "none", "test", {"train": shards})
    save(card, str(folder))
    return plan_of(scan(str(folder), card, "train"), micro_batch=2, batch=4, epochs=1)


def test_units_carry_keys_labels_pixels_and_their_step(tmp_path):
    plan = stored(tmp_path, [png(8, i) for i in range(12)])
    seen = {}
    for item in plan.items():
        unit = read_unit(plan, {name: np.array([value]) for name, value in item.items()}, size=4)
        assert (unit["pixels"].shape, unit["pixels"].dtype, unit["key"].dtype, unit["label"].dtype) == (
            (2, 4, 4, 3),
            "uint8",
            "int64",
            "int64",
        )
        assert unit["step"].tolist() == [item["step"]] * 2
        seen |= {int(k): (int(y), int(x[0, 0, 0])) for k, y, x in zip(unit["key"], unit["label"], unit["pixels"])}
    assert seen == {derive("id", f"set/train/{i}"): (i % 2, i) for i in range(12)}


def test_a_damaged_image_names_id_and_file(tmp_path):
    plan = stored(tmp_path, [png(8, 0)[:40]] * 4)
    with pytest.raises(UserError, match=r"train-00000\.parquet: the image set/train/\d"):
        read_unit(plan, next(plan.items()))


def test_mixed_sizes_ask_for_a_size(tmp_path):
    plan = stored(tmp_path, [png(8 + i, 0) for i in range(4)])
    with pytest.raises(UserError, match="set an image size"):
        read_unit(plan, next(plan.items()))
    assert read_unit(plan, next(plan.items()), size=8)["pixels"].shape == (2, 8, 8, 3)


def test_data_workers_never_import_torch():
    code = "import sys; import robustclip.data.plan; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
