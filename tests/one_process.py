"""What an evaluation records, computed by this process alone: what every worker, node and store is held to."""

import pyarrow as pa

from robustclip import names as models
from robustclip.evaluation import computing, protocols
from robustclip.records import rows as records


def cells_of(resolved: protocols.Resolved, name: str) -> list[protocols.Cell]:
    """Return the cells of a model."""
    return resolved.cells(models.display_name(name), models.identity(name))


def computed(resolved: protocols.Resolved, name: str, cells: list[protocols.Cell] | None = None) -> pa.Table:
    """Return the records of a model's cells (None: all), on one thread."""
    model, found = models.load(name), []
    for cell in cells_of(resolved, name) if cells is None else cells:
        shared = computing.provenance(cell, resolved) | {"threads": 1}
        found += [shared | row for row in computing.compute(model, cell, resolved)]
    return records.table(found)
