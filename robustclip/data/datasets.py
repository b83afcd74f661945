"""Where data sets live under an output folder, and the embedded sets, rendered when first asked for."""

import io
import json
import logging
import shlex
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.locks import alone
from robustclip.base.ranges import DRAWN, check
from robustclip.base.staging import staged
from robustclip.base.threads import one_thread
from robustclip.data import world
from robustclip.data.card import CARD, DatasetCard, load, save
from robustclip.data.shards import Row, write_split
from robustclip.data.variants import base_of

log = logging.getLogger(__name__)

RENDERED = "rendered world, not a benchmark of real CLIP"
ROW_GROUP = 128  # rows: tiny images, of which many are read as fast as few
SCANNED = "real scans: Optical Recognition of Handwritten Digits (UCI, Alpaydin and Kaynak 1998), as shipped with scikit-learn"


def _missing(folder: str) -> UserError:
    name, data = storage.name_of(folder), storage.parent_of(folder)
    prepared = [other for other in storage.list_folders(data) if storage.exists(storage.join(data, other, CARD))]
    hint = did_you_mean(name, [*prepared, *world.SETS])
    return UserError(
        f"no data set {name!r} under {data}{hint}; prepared: {', '.join(prepared) or 'none'}; "
        f"embedded: {', '.join(world.SETS)}; make one with robustclip prepare SOURCE --name {shlex.quote(name)}"
    )


def set_folder(out: str, name: str, split_sizes: Mapping[str, int], render_seed: int) -> str:
    """Return where a set lives: <out>/data/<name>, and for an embedded set a folder named after all it depends on.

    Such a folder never changes once it is there: other sizes or another seed are another folder, so no set can be mistaken for another.
    A split's images and shards are the same in every folder that asks for as many with that seed.
    """
    if name not in world.SETS:
        return storage.join(out, "data", storage.safe_name(name))
    sizes = "-".join(f"{storage.safe_name(split)}{split_sizes[split]}" for split in sorted(split_sizes))
    return storage.join(out, "data", f"{name}-r{render_seed}-{sizes}")


def ensure_set(out: str, name: str, split_sizes: Mapping[str, int], render_seed: int) -> DatasetCard:
    """Return the card of a prepared set, or of an embedded one with these split sizes and seed, rendered first where it is not there.

    A prepared set keeps its own sizes; `split_sizes` and `render_seed` speak of embedded sets. The card's `folder` says where it lies.
    """
    if (base := base_of(name)) != name:
        raise UserError(f"{name} is {base} looked at otherwise, to evaluate on, never to train on; give {base!r}")
    folder = set_folder(out, name, split_sizes, render_seed)
    if name not in world.SETS:
        if not storage.exists(storage.join(folder, CARD)):
            raise _missing(folder)
        return load(folder)
    if not storage.exists(storage.join(folder, CARD)):
        with alone(folder):
            if not storage.exists(storage.join(folder, CARD)):
                _render(folder, name, split_sizes, render_seed)
    card = load(folder)
    if (card.splits, card.render_seed) != (dict(split_sizes), render_seed):
        raise UserError(f"{folder}: the card says splits {card.splits}, seed {card.render_seed}; delete the folder to render it again")
    return card


def class_names_of(out: str, name: str) -> tuple[str, ...]:
    """Return the class names of a prepared set, or of an embedded one, which is not rendered for them."""
    return world.SETS[name].class_names if name in world.SETS else ensure_set(out, name, {}, 0).class_names


def _render(folder: str, name: str, split_sizes: Mapping[str, int], seed: int) -> None:
    check(split_sizes, dict.fromkeys(split_sizes, DRAWN), f"{name}: the number of images of ")
    log.info("rendering %s (seed %d, %s) into %s", name, seed, json.dumps(dict(split_sizes)), folder)
    scanned = world.SETS[name].scenes is None
    with staged(folder) as stage:
        shards = {}
        for split, size in split_sizes.items():
            pixels, labels = _images(name, size, seed, split)
            shards[split] = write_split(stage, split, _rows(name, split, pixels, labels), row_group=ROW_GROUP)
        card = DatasetCard(
            name=name,
            class_names=world.SETS[name].class_names,
            templates=world.SETS[name].templates,
            splits=dict(split_sizes),
            native_size=world.SIZE,
            licence="CC BY 4.0 (UCI), distributed with scikit-learn (BSD-3-Clause)" if scanned else "Apache-2.0",
            source=SCANNED if scanned else RENDERED,
            shards=shards,
            render_seed=seed,
        )
        save(card, stage)


@one_thread()
def _images(name: str, size: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Return world.images, drawn by one thread: the pictures are so small that sharing them out takes several times longer."""
    try:
        return world.images(name, size, seed, split)
    except ValueError as error:
        raise UserError(str(error)) from error


def _rows(name: str, split: str, pixels: Tensor, labels: Tensor) -> list[Row]:
    """Return the rows of rendered images uint8 [n,3,H,W]; each is encoded when it is written."""
    hwc = pixels.permute(0, 2, 3, 1).numpy()

    def encoder(i: int) -> Any:
        return lambda: _png(hwc[i])

    return [Row(f"{name}/{split}/{i:06d}", int(label), encoder(i)) for i, label in enumerate(labels.tolist())]


def _png(pixels: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
