"""The images of a set that universal perturbations are learned on, none of which is scored, and what was learned, kept as files."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.base.values import key
from robustclip.data.card import DatasetCard
from robustclip.data.datasets import ensure_set
from robustclip.data.index import Index, scan
from robustclip.data.reading import beside
from robustclip.data.world import SETS
from robustclip.evaluation.rules import Protocol

log = logging.getLogger(__name__)

SPLITS = ("train", "val")  # what is learned on where a set has it, the first first


def other_images(
    protocol: Protocol, name: str, card: DatasetCard, split: str, ids: Sequence[str], out: str
) -> tuple[DatasetCard, str, Index]:
    """Return the card, split and index of the images of a set that perturbations are learned on, where a protocol scores `ids` of a split.

    They are of the set's split `train`, else `val`; where it has neither, those of the scored split that are not scored. An embedded set is
    rendered longer: it begins with the scored images. Raises UserError where all images are scored.
    """
    attacks = protocol.universal_on(name)
    wanted = max(attack.images for attack in attacks)
    learned = next((each for each in SPLITS if each in card.splits and each != split), split)
    if name in SETS:
        longer = ensure_set(out, name, {learned: card.splits[split] + wanted}, protocol.render_seed)
        card = replace(longer, templates=card.templates, class_names=card.class_names)
    index = scan(card.folder, card, learned)
    rows = beside(index, ids, wanted)
    if not len(rows):
        raise UserError(
            f"protocol {protocol.name!r}: {attacks[0].name} is learned on images that are not scored, and all {len(ids)} of data set "
            f"{name!r}, split {split!r}, are: prepare its train split too, or score fewer (--n)"
        )
    if len(rows) < wanted:
        log.warning("%s: %s is learned on %d images, not %d: no more of them are not scored", name, attacks[0].name, len(rows), wanted)
    return card, learned, index.only(rows)


@dataclass(frozen=True)
class Perturbations:
    """Learned perturbations, a file each, in a folder that can be deleted at any time.

    `about` is what decides one beside the attack, its ball, its seed and its images: model, prompts, precision, versions, device, shards.
    One process at a time learns a perturbation; the others that need it wait and read it.
    """

    folder: str
    about: tuple[Any, ...]

    def __call__(self, name: str, learn: Callable[[], Tensor]) -> Tensor:
        """Return what was learned under a name before, or have it learned; raises UserError for a damaged file."""
        path = storage.join(self.folder, f"{key(self.about, name)}.safetensors")
        if not storage.exists(path):
            with alone(path, partial(log.info, "another process learns %s: waiting for it", path)):
                if not storage.exists(path):
                    delta = learn().detach().cpu().contiguous()
                    storage.write_bytes(path, save_tensors({"delta": delta}))
        try:
            return load_tensors(storage.read_bytes(path))["delta"]
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): delete it, it is then learned again") from error
