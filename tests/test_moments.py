"""The statistics that TAPT aligns to (tapt.md item 5): one shard or seven, any number of workers, and never those of another model."""

import io
import itertools
import json
import math
import runpy
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from conftest import NAMES, TEMPLATES
from PIL import Image
from safetensors.torch import save as save_tensors

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data import datasets, world
from robustclip.data.shards import Row, write_split
from robustclip.models.checkpoints import save
from robustclip.models.dress import TokenPrompt
from robustclip.models.insertion import in_images
from robustclip.models.model import Model
from robustclip.names import load
from robustclip.runtime import cli
from robustclip.test_time.moments import ABOUT, FORMAT, Moments, Targets, block_inputs
from robustclip.training import statistics as moments_job
from robustclip.training.installing import install
from robustclip.training.statistics import Images
from robustclip.views.crops import crops

N = 70


def prompted(model, tokens=2, seed=0):
    """Return the model with its own deep prompt."""
    return install(TokenPrompt(tokens, deep=True), model, seed, NAMES)[0]


def targets_of(classifier, images, **facts):
    moments = Moments.of(block_inputs(classifier, images))
    return replace(Targets.of(moments, classifier, "pictures", "train", "centre"), **facts)


def prepared(out, name, rows_per_file):
    """Write N pictures as a set of that many rows a file and return the paths of its files."""
    pixels, labels = world.images("shapes", N, 0, "train")
    rows = []
    for i, (image, label) in enumerate(zip(pixels, labels)):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
        rows.append(Row(f"{i:03d}", int(label), stream.getvalue()))
    folder = f"{out}/data/{name}"
    shards = {"train": write_split(folder, "train", rows, rows_per_file)}
    classes, words = world.SETS["shapes"].class_names, ("{}",)
    datasets.save(datasets.DatasetCard(name, classes, words, {"train": N}, world.SIZE, "ours", "drawn", shards), folder)
    return [f"{folder}/{shard['file']}" for shard in shards["train"]]


def shown(ids, size):
    """Return the images [n,3,size,size] that a model of that size is shown of a set that `prepared` made."""
    pixels = world.images("shapes", N, 0, "train")[0][[int(name) for name in ids]].permute(0, 2, 3, 1).numpy()
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in pixels]
    return torch.stack([torch.tensor(list(image.tobytes())).view(size, size, 3) for image in resized]).permute(0, 3, 1, 2) / 255


@pytest.fixture
def checkpoint(make_model, tmp_path):
    """Return the folder of a checkpoint that wears a deep prompt."""
    model = prompted(make_model("vit"))
    trainable = {"type": "TokenPrompt", "tokens": 2, "deep": True}
    save(model, str(tmp_path / "worn"), trainable=trainable, class_names=NAMES)
    return str(tmp_path / "worn")


@pytest.fixture
def in_pieces(monkeypatch):
    """Make the job's tasks small: five for the pictures, the last one short."""
    monkeypatch.setattr(moments_job, "CHUNK", 16)


def test_tapt_item_5_one_shard_is_seven_shards():
    """Around a mean that is large beside the spread: sums of squares, or fp32, would not get there."""
    g = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(2, 100, 3, 4, generator=g)
    whole = Moments.of(x)
    cuts = [0, 1, 3, 20, 21, 50, 99, 100]
    shards = [Moments.of(x[:, start:end]) for start, end in itertools.pairwise(cuts)]
    assert len(shards) == 7
    pairs = [shards[0].merge(shards[1]), shards[2].merge(shards[3]), shards[4].merge(shards[5]), shards[6]]
    for merged in (reduce(Moments.merge, shards), reduce(Moments.merge, pairs), reduce(Moments.merge, shards[::-1])):
        assert merged.count == 100
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-12, atol=0)
    there = Moments.from_bytes(whole.to_bytes())
    assert (there.count, there.mean.dtype) == (100, torch.float64)
    assert torch.equal(there.mean, whole.mean)
    assert torch.equal(there.m2, whole.m2)


def test_tapt_item_5_the_variance_is_that_of_two_passes(tiny_model, pictures):
    classifier, (x, _, _) = prompted(tiny_model).classifier(NAMES, TEMPLATES), pictures(12)
    inputs = [block_inputs(classifier, part) for part in x.split(5)]
    found = reduce(Moments.merge, map(Moments.of, inputs))
    every = torch.cat(inputs, 1).double()
    mean = every.sum(1) / 12
    variance = sum((every[:, i] - mean) ** 2 for i in range(12)) / 11
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.variance, variance, rtol=1e-11, atol=1e-14)
    assert variance.max() > 1e-3
    with pytest.raises(UserError, match="at least 2 images"):
        _ = Moments.of(inputs[0][:, :1]).variance


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_the_tokens_of_a_prompt_are_in_the_statistics(make_model, pictures, kind):
    """As each block sees them, also where a deep prompt puts others in their place just before it."""
    model = prompted(make_model(kind), 3)
    classifier, (x, _, _) = model.classifier(NAMES, TEMPLATES), pictures(4, model.preprocess.size)
    inputs = block_inputs(classifier, x)
    plain = block_inputs(make_model(kind).classifier(NAMES, TEMPLATES), x)
    assert inputs.shape == (*plain.shape[:2], plain.shape[2] + 3, plain.shape[3])
    assert torch.equal(inputs[0, :, :-3], plain[0])
    layers = model.prompt.visual_layers()
    assert torch.equal(inputs[1:, :, -3:], torch.stack(list(layers))[1:, None].expand(-1, 4, -1, -1))
    assert not torch.equal(inputs[1, :, :-3], plain[1])  # and they were attended to
    assert not inputs.requires_grad
    # What a forward pass with its tokens as an argument shows, which is how TAPT looks at a test image's views.
    seen = []
    visual, normalised = model.clip.visual, (x - classifier.mean) / classifier.std
    with torch.no_grad(), in_images(visual, layers, lambda layer, block: seen.append(block)):
        visual(normalised)
    torch.testing.assert_close(inputs, torch.stack(seen))
    targets = targets_of(classifier, x)
    torch.testing.assert_close(targets.mean[1, -3:], layers[1])
    assert (targets.variance[1, -3:] == 0).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tapt_item_5_files_and_workers_change_no_bit(ray_session, tmp_path, checkpoint, in_pieces, monkeypatch, capsys):
    assert len(prepared(tmp_path, "seven", 10)) == 7
    monkeypatch.setattr(cli, "say_on_terminal", lambda: None)
    file, script = str(tmp_path / "here" / "file.safetensors"), Path(__file__).parents[1] / "pipelines" / "moments.py"
    options = ["--data", "seven", "--workers", "2", "--to", file, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(script), checkpoint, *options])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert file in said
    assert f"robustclip evaluate 'tapt[adversarial={file},gamma=1]:{checkpoint}' --out {tmp_path}" in said
    one = Targets.read(file)
    assert (one.count, one.data, one.split, one.crop, one.file) == (N, "seven", "train", "train", file)
    one.check(load(checkpoint).classifier(NAMES, TEMPLATES))

    # One file and one process after another: the same bits.
    assert len(prepared(tmp_path, "whole", N)) == 1
    job = moments_job.prepare(checkpoint, Images("whole"), str(tmp_path))
    classifier = moments_job.classifier_of(job)
    whole = reduce(Moments.merge, [moments_job.moments_of(job, classifier, chunk) for chunk in range(job.chunks)])
    assert torch.equal(one.mean, whole.mean.float())
    assert torch.equal(one.variance, whole.variance.float())

    # The crops are those of the ids, whoever cuts them.
    job = moments_job.prepare(checkpoint, Images("seven"), str(tmp_path))
    images = shown(job.index.id.to_pylist(), 16)
    cut = [crops(image[None], [(0, "statistics", name)], 1)[:, 0] for image, name in zip(images, job.index.id.to_pylist())]
    expected = Moments.of(block_inputs(classifier, torch.cat(cut)))
    torch.testing.assert_close(one.mean, expected.mean.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.variance, expected.variance.float(), rtol=1e-4, atol=1e-6)
    centre = targets_of(classifier, images)
    assert (one.variance - centre.variance).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_damaged_image_ends_the_job_with_its_name(ray_session, tmp_path, tiny_checkpoint, in_pieces):
    [path] = prepared(tmp_path, "damaged", N)
    table = storage.read_table(path)
    broken = [image[:60] if i == 40 else image for i, image in enumerate(table["image"].to_pylist())]
    storage.write_table(path, table.set_column(1, "image", [broken]))
    with pytest.raises(UserError, match=f"image {table['id'][40].as_py()} cannot be decoded"):
        moments_job.statistics(tiny_checkpoint, Images("damaged"), str(tmp_path), workers=1, cpus=0.5)


def test_the_centre_crop_is_the_image_as_the_model_is_shown_it(tmp_path, tiny_checkpoint, in_pieces):
    """And n images are a subset of all, in chunks that leave none out."""
    prepared(tmp_path, "set", 10)
    job = moments_job.prepare(tiny_checkpoint, Images("set", 33, crop="centre"), str(tmp_path))
    classifier = moments_job.classifier_of(job)
    assert (len(job.rows), job.chunks) == (33, 3)
    found = reduce(Moments.merge, [moments_job.moments_of(job, classifier, chunk) for chunk in range(job.chunks)])
    expected = Moments.of(block_inputs(classifier, shown(job.index.ids(job.rows), 16)))
    assert found.count == 33
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-5)


def test_moments_are_merged_in_the_order_of_their_chunks(tmp_path, tiny_checkpoint, in_pieces, monkeypatch):
    prepared(tmp_path, "set", N)
    made = {i: Moments(14, torch.full((1, 1, 1), float(i)), torch.ones(1, 1, 1)) for i in range(5)}
    arrived = [(i, made[i]) for i in (2, 0, 1, 4, 3)]
    assert [int(moments.mean) for moments in moments_job.in_order(arrived)] == [0, 1, 2, 3, 4]
    monkeypatch.setattr(moments_job, "results", lambda *_: iter(arrived[:-1]))
    with pytest.raises(RuntimeError, match="statistics of 42 images where 70"):
        moments_job.statistics(tiny_checkpoint, Images("set"), str(tmp_path), workers=1)


def test_targets_come_back_from_their_file(tiny_classifier, pictures, tmp_path):
    targets = targets_of(tiny_classifier, pictures(8)[0])
    first, second = (str(tmp_path / "new" / name) for name in ("a", "b"))
    targets.write(first)
    read = Targets.read(first)
    read.write(second)
    assert Path(first).read_bytes() == Path(second).read_bytes()
    assert torch.equal(read.mean, targets.mean)
    assert torch.equal(read.variance, targets.variance)
    assert (read.mean.dtype, read.file) == (torch.float32, first)
    assert (read.count, read.data, read.split, read.crop) == (8, "pictures", "train", "centre")
    read.check(tiny_classifier)


def test_tapt_item_5_statistics_of_another_model_are_refused(make_model, pictures, tmp_path):
    """By a line that names the file: other tokens, other weights under the same prompt, another prompt on the same weights."""
    x, _, _ = pictures(8)
    own = prompted(make_model("vit"))
    classifier, file = own.classifier(NAMES, TEMPLATES), str(tmp_path / "targets")
    targets_of(classifier, x).write(file)
    targets = Targets.read(file)
    targets.check(classifier)

    def refused(model: Model, words: str, **options: bool) -> None:
        with pytest.raises(UserError, match=f"{file}: .*{words}.*robustclip moments"):
            targets.check(model.classifier(NAMES, TEMPLATES), **options)

    refused(make_model("vit"), "7 tokens of width 32, but this model has 2 blocks with 5 tokens")
    refused(prompted(make_model("vit"), 3), "7 tokens of width 32, but this model has 2 blocks with 8 tokens")
    refused(replace(own, clip=make_model("vit", 1).clip), "CLIP weights of sha256")
    refused(prompted(make_model("vit"), seed=1), "a prompt of sha256")
    targets.check(prompted(make_model("vit"), seed=1).classifier(NAMES, TEMPLATES), other_prompt=True)
    refused(prompted(make_model("vit", 1)), "CLIP weights of sha256", other_prompt=True)


def test_tapt_item_5_another_files_content_is_refused(tiny_classifier, pictures, tmp_path):
    path = tmp_path / "targets"
    targets = targets_of(tiny_classifier, pictures(8)[0])
    targets.write(str(path))
    data = path.read_bytes()
    facts = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][ABOUT])

    def refused(content: bytes, words: str) -> None:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}.*{words}"):
            Targets.read(str(path))

    tensors = {"mean": targets.mean, "variance": targets.variance}
    newer = json.dumps(facts | {"format": FORMAT + 1, "what else": 1})
    refused(save_tensors(tensors | {"more": targets.mean.clone()}, {ABOUT: newer}), f"format {FORMAT + 1}.*upgrade")
    refused(save_tensors(tensors), "not a file of token statistics")  # of weights, say
    refused(b"\x80\x04pickle of somebody", "not a file of token statistics")
    refused(b"", "not a file of token statistics")
    refused(data[:-4], "damaged")
    refused(save_tensors({"mean": targets.mean}, {ABOUT: json.dumps(facts)}), "damaged")
    del facts["count"]
    refused(save_tensors(tensors, {ABOUT: json.dumps(facts)}), "damaged")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be read.*robustclip moments"):
        Targets.read(str(path))


def test_models_and_images_without_statistics_are_refused(make_model, tiny_model, pictures, tmp_path, tiny_checkpoint):
    with pytest.raises(UserError, match="statistics of tokens need a vision transformer"):
        block_inputs(make_model("resnet").classifier(NAMES, TEMPLATES), pictures(2, 32)[0])
    with pytest.raises(UserError, match="an ensemble has several"):
        block_inputs(load(f"ensemble:{tiny_checkpoint},tiny-vit8").classifier(NAMES, TEMPLATES), pictures(2)[0])
    with pytest.raises(UserError, match=r"no crop 'center' \(did you mean centre\?\)"):
        Images(crop="center")
    prepared(tmp_path, "set", N)
    with pytest.raises(UserError, match="n=71 is more than the 70 images"):
        moments_job.prepare(tiny_checkpoint, Images("set", 71), str(tmp_path))
    with torch.no_grad():
        tiny_model.clip.visual.class_embedding.fill_(math.inf)
    with pytest.raises(UserError, match="the tokens of pictures are not finite"):
        targets_of(tiny_model.classifier(NAMES, TEMPLATES), pictures(4)[0])
