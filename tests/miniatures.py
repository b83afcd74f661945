"""Published sets in miniature: every layout with two or three classes and images of a few pixels, grey, CMYK, turned, 1 px wide or huge."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat
from sourcing import image, rng

WNIDS = ("n01440764", "n01443537", "n01484850")  # tench, goldfish, great white shark


def turned():
    """Return a JPEG that says it lies on its side (EXIF)."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4), (200, 30, 10)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def huge():
    """Return a JPEG of 20 million pixels."""
    stream = io.BytesIO()
    Image.new("L", (5000, 4000), 128).save(stream, "JPEG")
    return stream.getvalue()


ODD = (image(8, 8, "JPEG", "L"), image(9, 7, "JPEG", "CMYK"), turned(), image(1, 1, "JPEG"), image(8, 6, "JPEG"))


def jpegs(names):
    """Return {name: JPEG}, odd ones among them."""
    return {name: ODD[i % len(ODD)] for i, name in enumerate(names)}


def lines(*words):
    return "".join(f"{word}\n" for word in words).encode()


def matlab(**variables):
    stream = io.BytesIO()
    savemat(stream, variables)
    return stream.getvalue()


def records(**columns):
    """Return a MATLAB struct array of some columns."""
    rows = np.zeros(len(next(iter(columns.values()))), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        for i, value in enumerate(values):
            rows[name][i] = value
    return rows


def tar_bytes(files, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def textures(partition="1"):
    names = [f"{key}/{key}_{i}.jpg" for key in ("banded", "dotted") for i in range(3)]
    lists = {f"labels/{split}{partition}.txt": lines(names[i], names[3 + i]) for i, split in enumerate(("train", "val", "test"))}
    return jpegs(f"images/{name}" for name in names) | lists


def food(kind):
    names = {split: {key: [f"{key}/{i}" for i in numbers] for key in ("apple_pie", "waffles")} for split, numbers in SPLIT_NUMBERS.items()}
    files = jpegs(f"images/{name}.jpg" for part in names.values() for value in part.values() for name in value)
    if kind == "json":
        return files | {f"meta/{split}.json": json.dumps(part).encode() for split, part in names.items()}
    return files | {f"meta/{split}.txt": lines(*(name for value in part.values() for name in value)) for split, part in names.items()}


SPLIT_NUMBERS = {"train": (1, 2), "test": (3,)}


def aircraft():
    files = jpegs(f"data/images/{i:07d}.jpg" for i in range(6)) | {"data/variants.txt": lines("707-320", "A300B4", "F/A-18")}
    listed = {split: lines(f"{i:07d} 707-320", f"{3 + i:07d} F/A-18") for i, split in enumerate(("train", "val", "test"))}
    return files | {f"data/images_variant_{split}.txt": text for split, text in listed.items()}


def pets():
    names = [f"{breed}_{i}" for breed in ("Abyssinian", "japanese_chin") for i in (1, 2)]
    files = jpegs(f"images/{name}.jpg" for name in names) | {"images/Abyssinian_1.mat": b"?"}
    train, test = (lines(f"Abyssinian_{i} 1 1 1", f"japanese_chin_{i} 2 2 1") for i in (1, 2))
    return files | {"annotations/trainval.txt": train, "annotations/test.txt": test, "annotations/list.txt": lines("#Image CLASS-ID")}


def scenes(lists=False):
    folders = ("a/abbey", "a/apartment_building/outdoor", "b/bar")
    names = [f"{folder}/sun_{i}.jpg" for folder in folders for i in range(2)]
    files = jpegs(names) | {"ClassName.txt": lines(*(f"/{folder}" for folder in folders))}
    partition = {"Training_01.txt": lines(*(f"/{name}" for name in names[::2])), "Testing_01.txt": lines(f"/{names[1]}")}
    return files | (partition if lists else {})


def coop(files, rows):
    return files | {"split_zhou_Set.json": json.dumps(rows).encode()}


def midframes():
    names = [f"UCF-101-midframes/{key}/v_{i}.jpg" for key in ("Apply_Eye_Makeup", "Archery") for i in range(3)]
    short = [name.partition("/")[2] for name in names]
    rows = {split: [[short[i], 0, "Apply_Eye_Makeup"], [short[3 + i], 1, "Archery"]] for i, split in enumerate(("train", "val", "test"))}
    return coop(jpegs(names), rows)


def flowers():
    files = jpegs(f"jpg/image_{i:05d}.jpg" for i in range(1, 7))
    labels = {"imagelabels.mat": matlab(labels=np.array([[1, 1, 1, 102, 102, 77]], np.uint8))}
    return files | labels | {"setid.mat": matlab(trnid=np.array([[1, 4]], np.uint16), valid=np.array([[2]]), tstid=np.array([[3, 5, 6]]))}


def cars():
    meta = matlab(class_names=np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], dtype=object))
    notes = {
        split: matlab(annotations=records(**{"class": numbers, "fname": [f"{i + 1:05d}.jpg" for i in range(len(numbers))]}))
        for split, numbers in (("train", [2, 1, 2]), ("test", [1, 2]))
    }
    files = jpegs([*(f"cars_train/{i:05d}.jpg" for i in (1, 2, 3)), *(f"cars_test/{i:05d}.jpg" for i in (1, 2))])
    labels = {"devkit/cars_train_annos.mat": notes["train"], "cars_test_annos_withlabels.mat": notes["test"]}
    return files | labels | {"devkit/cars_meta.mat": meta}


FLAT = [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3)]
TRUTH = (2, 0, 0)


def flat(truth):
    train = jpegs(f"train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2))
    return train | jpegs(FLAT) | truth


def ground_truth():
    """Return the devkit: ILSVRC's own numbers, which are in another order than the wnids, and parents among the synsets."""
    synsets = records(ILSVRC2012_ID=[1, 2, 3, 1001], WNID=[WNIDS[1], WNIDS[0], WNIDS[2], "n00001740"], num_children=[0, 0, 0, 9])
    numbers = {0: 2, 1: 1, 2: 3}
    return {
        "devkit/data/meta.mat": matlab(synsets=synsets),
        "devkit/data/ILSVRC2012_validation_ground_truth.txt": lines(*(numbers[place] for place in TRUTH)),
    }


def solution():
    rows = [f"{Path(name).stem},{WNIDS[place]} 1 2 3 4" for name, place in zip(FLAT, TRUTH)]
    return {"LOC_val_solution.csv": lines("ImageId,PredictionString", *rows)}


def tiny():
    train = jpegs(f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2))
    val = jpegs(f"val/images/val_{i}.JPEG" for i in range(3))
    boxes = {f"train/{wnid}/{wnid}_boxes.txt": b"x" for wnid in WNIDS}
    notes = {"val/val_annotations.txt": lines(*(f"val_{i}.JPEG\t{WNIDS[i]}\t0\t0\t1\t1" for i in range(3)))}
    words = {"words.txt": lines(*(f"{wnid}\t{word}, other" for wnid, word in zip(WNIDS, ("tench", "goldfish", "shark"))))}
    return train | val | boxes | notes | words | jpegs(["test/images/test_0.JPEG"])


def planes(n, side):
    return rng.integers(0, 256, (n, 3 * side * side), np.uint8)


def cifar_python(classes=("airplane", "automobile"), protocol=2):
    def batch(n):
        return pickle.dumps({b"data": planes(n, 32), b"labels": [i % 2 for i in range(n)], b"batch_label": b"x"}, protocol)

    files = {f"cifar-10-batches-py/data_batch_{i}": batch(2) for i in range(1, 6)} | {"cifar-10-batches-py/test_batch": batch(3)}
    return files | {"cifar-10-batches-py/batches.meta": pickle.dumps({b"label_names": [name.encode() for name in classes]}, protocol)}


def cifar100_python():
    names = {b"fine_label_names": [b"apple", b"aquarium_fish"], b"coarse_label_names": [b"x"]}
    parts = {
        split: pickle.dumps({b"data": planes(n, 32), b"fine_labels": [i % 2 for i in range(n)], b"coarse_labels": [0] * n}, 2)
        for split, n in (("train", 4), ("test", 2))
    }
    return {f"cifar-100-python/{name}": data for name, data in (parts | {"meta": pickle.dumps(names, 2)}).items()}


def cifar_binary():
    def rows(n):
        return b"".join(bytes([i % 2]) + row.tobytes() for i, row in enumerate(planes(n, 32)))

    files = {f"data_batch_{i}.bin": rows(2) for i in range(1, 6)} | {"test_batch.bin": rows(3)}
    return files | {"batches.meta.txt": lines("airplane", "automobile", "")}


def cifar100_binary():
    def rows(n):
        return b"".join(bytes([7, i % 2]) + row.tobytes() for i, row in enumerate(planes(n, 32)))

    return {"train.bin": rows(4), "test.bin": rows(2), "fine_label_names.txt": lines("apple", "aquarium_fish")}


def stl():
    files = {f"{split}_X.bin": planes(n, 96).tobytes() for split, n in (("train", 2), ("test", 3), ("unlabeled", 1))}
    return files | {"train_y.bin": bytes([1, 2]), "test_y.bin": bytes([2, 1, 2]), "class_names.txt": lines("airplane", "bird")}


def hdf5(**arrays):
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return stream.getvalue()


def camelyon():
    files = {}
    for split, n in (("train", 3), ("valid", 1), ("test", 2)):
        pixels = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        files[f"camelyonpatch_level_2_split_{split}_x.h5"] = hdf5(x=pixels)
        files[f"camelyonpatch_level_2_split_{split}_y.h5"] = hdf5(y=np.arange(n).reshape(n, 1, 1, 1) % 2)
    return files


def memes():
    def rows(*pairs):
        return lines(*(json.dumps({"id": i, "img": f"img/{i:05d}.png", "label": label, "text": "x"}) for i, label in pairs))

    files = {f"img/{i:05d}.png": image(5, 9) for i in range(8)}
    lists = {"train.jsonl": rows((0, 0), (1, 1)), "dev_seen.jsonl": rows((2, 0)), "dev_unseen.jsonl": rows((2, 0), (3, 1))}
    lists |= {"test_seen.jsonl": rows((4, 1)), "test_unseen.jsonl": rows((5, 0), (6, 1))}
    return files | lists | {"test.jsonl": lines(json.dumps({"id": 7, "img": "img/00007.png", "text": "x"}))}


def shard(labels, kind="cls"):
    """Return an archive of samples, {key: label}."""
    files = {}
    for key, label in labels.items():
        files |= {f"{key}.webp": image(6, 6, "WEBP"), f"{key}.{kind}": label.encode()}
    return tar_bytes(files)


def webdataset(kind="cls", names=True):
    """Return shards as CLIP_benchmark keeps them; a sample's name is its own only in its archive."""
    texts = {"cls": ("0", "1"), "json": ('{"label": 0}', '{"label": 1}'), "txt": ("cat", "dog")}[kind]
    keys = [f"s{i:07d}" for i in range(2)]
    one, other = ({key: texts[(first + i) % 2] for i, key in enumerate(keys)} for first in (0, 1))
    shards = {"train/0.tar": shard(one, kind), "train/1.tar": shard(other, kind), "test/0.tar": shard(one, kind)}
    counts = {"train/nshards.txt": b"2", "test/nshards.txt": b"1"}
    beside = {"classnames.txt": lines("cat", "dog"), "zeroshot_classification_templates.txt": lines("a drawing of a {c}.")}
    return shards | counts | (beside if names else {})


def parquet(labels, names=None, column="label"):
    cells = [{"bytes": ODD[i % len(ODD)], "path": f"{i}.jpg"} for i in range(len(labels))]
    table = pa.table({"image": cells, column: labels})
    if names:
        info = {"info": {"features": {column: {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def hugging_face():
    names = ("cat", "sea_lion", "zebra")
    parts = {"train-00000-of-00002": [0, 2], "train-00001-of-00002": [1], "test-00000-of-00001": [2, 0]}
    return {f"data/{name}.parquet": parquet(labels, names) for name, labels in parts.items()}


def classes(*folders, n=2, suffix=".jpg"):
    return jpegs(f"{folder}/{i}{suffix}" for folder in folders for i in range(n))


def own_list():
    rows = {"train.txt": lines("pics/0.jpg dog", "pics/1.jpg grey cat"), "test.csv": lines("image,class", "pics/2.jpg,dog")}
    return jpegs(f"pics/{i}.jpg" for i in range(3)) | rows
