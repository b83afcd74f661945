"""What text attacks make of a model's prompts, kept as one file per attack: computed once for all cells."""

import json
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict, dataclass, field

from robustclip.attacks.text.rewriting import Rewritten
from robustclip.base import storage
from robustclip.base.values import key
from robustclip.records.prompts import folder_of


@dataclass(frozen=True)
class Kept(MutableMapping[str, Rewritten]):
    """The rewritten prompts of one model on one set, by attack; `about` names the two: model_sha256 and dataset.

    Written atomically, so two workers that compute the same one do no harm: they compute the same.
    """

    out: str
    protocol_hash: str
    about: dict[str, str]
    _seen: dict[str, Rewritten] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> str:
        """Return the file of an attack."""
        return storage.join(folder_of(self.out, self.protocol_hash), f"{key(self.about, name)}.json")

    def __getitem__(self, name: str) -> Rewritten:
        if name not in self._seen:
            if not storage.exists(self.path(name)):
                raise KeyError(name)
            said = storage.read_json(self.path(name))
            clean, texts, cosines = (tuple(said[each]) for each in ("clean", "texts", "cosines"))
            self._seen[name] = Rewritten(clean, texts, cosines, float(said["collisions"]))
        return self._seen[name]

    def __setitem__(self, name: str, value: Rewritten) -> None:
        storage.write_json(self.path(name), self.about | {"attack": json.loads(name)} | asdict(value))
        self._seen[name] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("what was computed is kept")

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)
