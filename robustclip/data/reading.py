"""Reading chosen rows of a split at once, for the evaluator and for validation (training streams units instead, see plan.py)."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robustclip.data.card import DatasetCard
from robustclip.data.index import Index
from robustclip.data.shards import read_pixels


def decoded_size(card: DatasetCard, model_size: int) -> int | None:
    """Return the side images are decoded to: None (as stored) where a set is native at or below the model's size, else the model's size.

    Smaller images are attacked as they are and enlarged inside the classifier; larger ones are resized and cropped before the attack.
    """
    return None if card.native_size is not None and card.native_size <= model_size else model_size


def read_images(
    index: Index, rows: np.ndarray, size: int | None, resize: int | None, interpolation: str = "bicubic"
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return ids, pixels uint8 [n,H,W,3] and labels int64 [n] of the rows (positions in the index), in their order.

    Raises UserError naming the file and id of an image that cannot be decoded.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[int(index.file[row]), int(index.row_group[row])].append(place)
    pixels: list[np.ndarray] = [np.empty(0)] * len(rows)
    for (file, row_group), places in groups.items():
        _, images, _ = read_pixels(index.files[file], row_group, index.row[rows[places]], size, resize, interpolation)
        for place, image in zip(places, images, strict=True):
            pixels[place] = image
    return index.ids(rows), np.stack(pixels), index.label[rows]


def stratified(index: Index, n: int | None) -> np.ndarray:
    """Return n rows (all with None) that cover the classes as evenly as they can be: first of each class, second of each, by hash of id.

    Fixed by the ids alone, and nested: the first 100 are among the first 200.
    """
    by_hash = np.argsort(index.hashed("evaluation"), kind="stable")
    seen = np.zeros(len(index.class_names), dtype=np.int64)
    turn = np.empty(len(by_hash), dtype=np.int64)
    for place, row in enumerate(by_hash):
        turn[place] = seen[index.label[row]]
        seen[index.label[row]] += 1
    return by_hash[np.argsort(turn, kind="stable")][:n]


def beside(index: Index, ids: Sequence[str], n: int) -> np.ndarray:
    """Return up to n rows whose ids are none of these, in the order of `stratified`."""
    rows = stratified(index, n + len(ids))
    others = ~np.isin(index.ids(rows), ids)
    return rows[others][:n]


def split_identity(card: DatasetCard, split: str) -> str:
    """Return the hash of a split's shards with the class names and templates it is read with."""
    facts = [[shard["sha256"] for shard in card.shards[split]], card.class_names, card.templates]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def to_images(pixels: np.ndarray | Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images [B,3,H,W] in [0,1] of 8-bit pixels [B,H,W,3], which travel to a GPU as they are, while it works."""
    bytes_ = torch.as_tensor(pixels)
    if torch.device(device).type == "cuda" and not bytes_.is_cuda:
        bytes_ = bytes_.pin_memory()
    return bytes_.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype) / 255
