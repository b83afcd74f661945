"""The cells that some models need under a protocol: which are there, which must be computed, and their records in the end."""

import json
import logging
from collections.abc import Mapping, Sequence

import pyarrow as pa

from robustclip import names as models
from robustclip.base import storage
from robustclip.evaluation.computing import library_versions
from robustclip.evaluation.protocols import Cell, Resolved
from robustclip.records import rows as records

log = logging.getLogger(__name__)


class Wanted:
    """The cells of the models `names` under a protocol, `missing` those without records, which lie in `folder` of `out`.

    `name_of` gives the model of a cell's key, by the name that is found from anywhere; `shares` says whether cells of a set share what
    one of them learns.
    """

    def __init__(
        self, names: Sequence[str], resolved: Resolved, out: str, folder: str = records.FOLDER, schema: pa.Schema = records.SCHEMA
    ):
        self.folder, self.schema, self.shares = storage.join(out, folder), schema, bool(resolved.surrogates)
        called = models.called([models.absolute(name) for name in names])
        self.cells = {name: resolved.cells(called[name], models.identity(name)) for name in called}
        self.name_of = {cell.key: name for name, cells in self.cells.items() for cell in cells}
        distinct = {cell.key: cell for cells in self.cells.values() for cell in cells}  # a model may have been named twice
        self.missing = [cell for cell in distinct.values() if not storage.exists(records.path(self.folder, cell.key))]
        self.found = len(distinct) - len(self.missing)

    def table(self) -> pa.Table:
        """Return the verified records of all cells, model by model."""
        return pa.concat_tables([self._read(cell) for cells in self.cells.values() for cell in cells])

    def _read(self, cell: Cell) -> pa.Table:
        """Return a cell's records under the name its model is asked for by (the same weights may have had another one)."""
        table = records.read(self.folder, cell.key, self.schema)
        other = set(table["versions"].unique().to_pylist()) - {library_versions()}
        if other:
            log.warning("records of %s under %s were made with other versions: %s", cell.dataset, cell.model, other.pop())
        column = table.schema.get_field_index("model")
        return table.set_column(column, "model", pa.array([cell.model] * len(table), pa.string()))


def same_but_seed(called: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the groups of checkpoints whose configs differ in the seed alone: the first one's display name -> those of all.

    `called` are the models by name, with their display names.
    """
    groups: dict[str, list[str]] = {}
    for name, display in called.items():
        named = models.parse(name)
        if isinstance(named, models.Folder) and (config := named.card().get("config")):
            groups.setdefault(json.dumps({**config, "seed": None}, sort_keys=True), []).append(display)
    return {group[0]: group for group in groups.values() if len(group) > 1}
