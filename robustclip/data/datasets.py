"""The card of a data set, where sets live under an output folder, and the embedded sets, rendered when first asked for."""

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.data.shards import Row, write_split

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
CARD = "dataset.json"
RENDERED = "rendered world, not a benchmark of real CLIP"
SCANNED = "real scans: Optical Recognition of Handwritten Digits (UCI, Alpaydin and Kaynak 1998), as shipped with scikit-learn"


@dataclass(frozen=True)
class DatasetCard:
    """What a data set is: splits are row counts, native_size is the pixel side if every image is a square of it, shards name the files.

    `render_seed` is the seed of an embedded set, None for a prepared one. `folder` is where the card was found; it is not written.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    splits: dict[str, int]
    native_size: int | None
    licence: str
    source: str
    shards: dict[str, tuple[dict, ...]]
    skipped: dict[str, int] = field(default_factory=dict)
    render_seed: int | None = None
    schema_version: int = SCHEMA_VERSION
    folder: str = field(default="", compare=False)


def save(card: DatasetCard, folder: str) -> None:
    """Write <folder>/dataset.json."""
    facts = {key: value for key, value in asdict(card).items() if key != "folder"}
    storage.write_json(storage.join(folder, CARD), facts)


def load(folder: str) -> DatasetCard:
    """Return the card of the set in `folder`; a missing set, a newer version or a missing key is a UserError."""
    path = storage.join(folder, CARD)
    if not storage.exists(path):
        raise _missing(folder)
    facts = storage.read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path}: not a data set card; prepare the set again")
    version = facts.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version {version} is newer than this program reads ({SCHEMA_VERSION}); update robustclip")
    for key in ("name", "class_names", "templates", "splits", "native_size", "licence", "source", "shards"):
        if key not in facts:
            raise UserError(f"{path}: the key {key!r} is missing; prepare the set again")
    known = {f.name for f in fields(DatasetCard)}  # keys of a later minor version are left alone
    card: dict[str, Any] = {key: value for key, value in facts.items() if key in known}
    card |= {key: tuple(facts[key]) for key in ("class_names", "templates")}
    card["shards"] = {split: tuple(shards) for split, shards in facts["shards"].items()}
    return DatasetCard(**{**card, "folder": folder})


def whole(card: DatasetCard) -> bool:
    """Return whether every shard is there with the bytes the card says."""
    shards = [(storage.join(card.folder, shard["file"]), shard["sha256"]) for shards in card.shards.values() for shard in shards]
    return all(storage.exists(path) and storage.sha256_file(path) == sha256 for path, sha256 in shards)


def _missing(folder: str) -> UserError:
    from robustclip.data.world import SETS

    name, data = storage.name_of(folder), storage.parent_of(folder)
    prepared = [other for other in storage.list_folders(data) if storage.exists(storage.join(data, other, CARD))]
    hint = did_you_mean(name, [*prepared, *SETS])
    return UserError(
        f"no data set {name!r} under {data}{hint}; prepared: {', '.join(prepared) or 'none'}; "
        f"embedded: {', '.join(SETS)}; make one with pipelines/prepare.py SOURCE --name {name}"
    )


def set_folder(out: str, name: str, split_sizes: Mapping[str, int], render_seed: int) -> str:
    """Return where a set lives: <out>/data/<name>, and for an embedded set a folder named after all it depends on.

    Such a folder never changes once it is there: other sizes or another seed are another folder, so no set can be mistaken for another.
    A split's images and shards are the same in every folder that asks for as many with that seed.
    """
    from robustclip.data.world import SETS

    if name not in SETS:
        return storage.join(out, "data", storage.safe_name(name))
    sizes = "-".join(f"{storage.safe_name(split)}{split_sizes[split]}" for split in sorted(split_sizes))
    return storage.join(out, "data", f"{name}-r{render_seed}-{sizes}")


def ensure_set(out: str, name: str, split_sizes: Mapping[str, int], render_seed: int) -> DatasetCard:
    """Return the card of a prepared set, or of an embedded one with these split sizes and seed, rendered first where it is not there.

    A prepared set keeps its own sizes; `split_sizes` and `render_seed` speak of embedded sets. The card's `folder` says where it lies.
    """
    from robustclip.data.world import SETS

    folder = set_folder(out, name, split_sizes, render_seed)
    if name not in SETS:
        return load(folder)
    if not storage.exists(storage.join(folder, CARD)):
        _render(folder, name, split_sizes, render_seed)
    card = load(folder)
    if (card.splits, card.render_seed) != (dict(split_sizes), render_seed):
        raise UserError(f"{folder}: the card says splits {card.splits}, seed {card.render_seed}; delete the folder to render it again")
    return card


def _render(folder: str, name: str, split_sizes: Mapping[str, int], seed: int) -> None:
    from robustclip.data import world

    for split, size in split_sizes.items():
        if size < 1:
            raise UserError(f"{name}: {size} images were asked for the split {split!r}; ask for at least 1")
    log.info("rendering %s (seed %d, %s) into %s", name, seed, json.dumps(dict(split_sizes)), folder)
    scanned = world.SETS[name].scenes is None
    with storage.staged(folder) as stage:
        shards = {}
        for split, size in split_sizes.items():
            pixels, labels = _images(name, size, seed, split)
            shards[split] = write_split(stage, split, _rows(name, split, pixels, labels))
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


def _images(name: str, size: int, seed: int, split: str) -> "tuple[Tensor, Tensor]":
    """Return world.images, drawn by one thread: the pictures are so small that sharing them out takes several times longer."""
    import torch

    from robustclip.data import world

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return world.images(name, size, seed, split)
    except ValueError as error:
        raise UserError(str(error)) from error
    finally:
        torch.set_num_threads(threads)


def _rows(name: str, split: str, pixels: "Tensor", labels: "Tensor") -> list[Row]:
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
