"""What a record may not depend on: neighbours, order, cells, actors change no bit; another micro-batch size moves next to no verdict."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from toys import LISTED, others, short

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base.threat import Ball
from robustclip.evaluation import computing, protocols
from robustclip.evaluation.protocols import Protocol
from robustclip.records import rows as records

NAMES, TEMPLATES, N = ("red", "green", "blue", "grey"), ("a photo of a {}.",), 11
CELL = {"cell_key", *records.VOLATILE}  # which cell a row came from, and what two honest runs differ in


@pytest.mark.parametrize("name", LISTED)
def test_order_and_neighbours_change_no_bit_in_micro_batches(name, tiny_model, pictures):
    classifier, (x, _, ids) = tiny_model.classifier(NAMES, TEMPLATES), pictures(N)
    classifier.surrogates = others(classifier, pictures)
    with torch.no_grad():
        y = classifier(x).argmax(1)
    attack = short(name, len(NAMES))
    ball = Ball("L2", 60.0) if "l2" in name else Ball("Linf", 3.0)

    def attacked(places):
        return attack(classifier, x[places], y[places], [ids[i] for i in places], ball, 0, 4).images

    together, shuffled = attacked(list(range(N))), [7, 0, 10, 3, 5, 9, 1, 8, 2, 6, 4]
    assert torch.equal(attacked(shuffled), together[shuffled])
    for place in (0, 6, 10):
        assert torch.equal(attacked([place])[0], together[place])


def by_image(table: pa.Table) -> list[dict]:
    """Return the rows, sorted, without what says which cell they came from."""
    rows = [{name: value for name, value in row.items() if name not in CELL} for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["dataset"], row["image_id"], row["eps"], row["attack"]))


def test_cells_of_any_size_hold_the_same_rows(tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That actors compute what one process does is test_evaluation.py's."""
    resolved, model = protocols.resolve(protocols.named("smoke"), str(tmp_path)), models.load(tiny_checkpoint)

    def rows() -> pa.Table:
        cells = resolved.cells(models.display_name(tiny_checkpoint), models.identity(tiny_checkpoint))
        found = [computing.provenance(cell, resolved) | row for cell in cells for row in computing.compute(model, cell, resolved)]
        return records.table(found)

    whole = by_image(rows())
    for images in (5, 7):
        monkeypatch.setattr(protocols, "CELL_IMAGES", images)
        table = rows()
        assert len(table["cell_key"].unique()) == 2 * -(-16 // images)
        assert by_image(table) == whole


@pytest.mark.slow
def test_micro_batch_sizes_agree_on_nearly_every_verdict(tmp_path: Path) -> None:
    sets = {"shapes": 200, "letters": 100, "weather": 100}
    model, verdicts = models.load("tiny-vit8"), {}
    for size in (8, 16, 32):
        verdicts[size] = {}
        for name, n in sets.items():
            protocol = Protocol("sizes", (name,), (PGD(10),), (1.0,), n=n, micro_batch=size)
            resolved = protocols.resolve(protocol, str(tmp_path))
            (cell,) = resolved.cells("tiny-vit8", "sha256")
            for row in computing.compute(model, cell, resolved):
                verdicts[size][row["image_id"]] = row["correct"]  # the last row of an image says whether it survived
    right = {size: sum(each.values()) for size, each in verdicts.items()}
    total = len(verdicts[8])
    assert 0.15 * total < right[8] < 0.6 * total  # an eps in the middle: many verdicts could flip
    for size in (16, 32):
        flips = [id_ for id_, verdict in verdicts[size].items() if verdict != verdicts[8][id_]]
        print(f"micro-batches of {size} against 8: {len(flips)} of {total} verdicts flip {flips}")
        assert len(flips) <= 0.01 * total, flips
        assert abs(right[size] - right[8]) <= 0.005 * total, flips
