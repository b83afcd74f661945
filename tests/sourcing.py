"""Sources for tests of prepare: images, class folders and archives of them, and what was made of them."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from robustclip.data.index import scan
from robustclip.data.shards import read_rows

rng = np.random.default_rng(0)


def image(height=8, width=8, kind="PNG", mode="RGB"):
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode).save(stream, kind)
    return stream.getvalue()


def as_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def as_tar(path, files, mode="w:gz", folders=()):
    with tarfile.open(path, mode) as archive:
        for name in folders:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def stored(card, split):
    """Return {id: (encoded bytes, class name)} of a split, read from its shards."""
    index = scan(card.folder, card, split)
    found = {}
    for i in range(len(index)):
        ids, images, labels = read_rows(index.files[index.file[i]], index.row_group[i], [index.row[i]])
        found[ids[0]] = (images[0], card.class_names[labels[0]])
    return found


def left(out):
    """Return what lies under <out>/data, hidden files too."""
    return sorted(os.listdir(Path(out) / "data")) if (Path(out) / "data").exists() else []
