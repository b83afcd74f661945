"""A name means one model, everywhere and always: paths from the root, hashes that are looked at, two of one display name told apart."""

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cascades import PROTOCOL_HASH, synthetic
from test_report import command, out  # noqa: F401 - a fixture
from tuned import moved, pair, saved_run

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.commands import evaluate
from robustclip.evaluation import protocols
from robustclip.evaluation.alone import evaluate_named
from robustclip.evaluation.evaluator import Worker
from robustclip.evaluation.wanted import Wanted, same_but_seed
from robustclip.models import checkpoints
from robustclip.names import single
from robustclip.records import rows as records
from robustclip.sweeps.spaces import Space, rooted
from robustclip.test_time import TAPT, TPT
from robustclip.training import statistics
from robustclip.training.job import prepare
from robustclip.training.loop import build_learner
from robustclip.training.recipes import RECIPES


def refused(said, call, *arguments):
    with pytest.raises(UserError, match=said) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


# --- paths from the root --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tiny-vit8", "tiny-vit8"),
        ("tiny-vit8/", "HERE/tiny-vit8"),
        ("./run/../run/", "HERE/run"),
        ("~/run", "HOME/run"),
        ("file:///a/run/", "/a/run"),
        ("s3://bucket/run/", "s3://bucket/run"),
        ("interpolate:.50:run", "interpolate:0.5:HERE/run"),
        ("ensemble:run,tiny-vit8", "ensemble:HERE/run,tiny-vit8"),
        ("towers:~/a,b/", "towers:HOME/a,HERE/b"),
        ("tpt[views=16]:run", "tpt[views=16]:HERE/run"),
        ("tapt[adversarial=m.safetensors,gamma=1]:run", "tapt[adversarial=HERE/m.safetensors,gamma=1.0]:HERE/run"),
        ("promptalign[clean=~/m.safetensors]:run", "promptalign[clean=HOME/m.safetensors]:HERE/run"),
        ("open_clip:ViT-B-32-quickgelu/openai", "open_clip:ViT-B-32-quickgelu/openai"),
        ("open_clip:ViT-B-32/w.pt", "open_clip:ViT-B-32/HERE/w.pt"),
        ("open_clip:ViT-B-32//a/w", "open_clip:ViT-B-32//a/w"),
        ("tpt:open_clip:ViT-B-32/random[seed=07]", "tpt:open_clip:ViT-B-32/random[seed=7]"),
        ("open_clip:hf-hub:timm/some.model", "open_clip:hf-hub:timm/some.model"),
    ],
)
def test_a_name_is_told_from_the_root(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = found.replace("HERE", str(tmp_path)).replace("HOME", str(tmp_path / "home"))
    assert models.absolute(name) == expected
    monkeypatch.chdir("/")
    assert models.absolute(expected) == expected


@pytest.mark.parametrize("name", ["ensemble:run,tiny-vit8", "tapt[adversarial=m.safetensors]:run"])
def test_a_path_that_would_cut_a_name_in_two_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / "a,b]").mkdir()
    monkeypatch.chdir(tmp_path / "a,b]")
    refused("comma or a bracket.*link to it", models.absolute, name)


def test_an_embedded_name_means_the_embedded_model_whatever_lies_here(make_model, tmp_path, monkeypatch, caplog):
    """Also what is read beside its weights: ids, card, size."""
    before = [asked("tiny-vit8") for asked in (models.identity, models.display_name, models.input_size, models.selection)]
    saved_run(make_model(), tmp_path / "tiny-vit8", str(models.parse("tiny-vit8").folder), config={"seed": 0})
    monkeypatch.chdir(tmp_path)
    single.warn_of_shadow.cache_clear()
    with caplog.at_level(logging.WARNING, "robustclip"):
        assert [asked("tiny-vit8") for asked in (models.identity, models.display_name, models.input_size, models.selection)] == before
    assert [record.getMessage() for record in caplog.records if "write ./tiny-vit8" in record.getMessage()]
    assert same_but_seed({"tiny-vit8": "a", "./tiny-vit8": "b"}) == {}
    assert models.display_name("./tiny-vit8") == "run-abc"
    assert models.identity("./tiny-vit8") != before[0]


def test_a_run_of_a_relative_folder_is_that_of_its_path_from_the_root(tiny_checkpoint, tmp_path, monkeypatch):
    smoke = RECIPES["smoke"].config
    monkeypatch.chdir(Path(tiny_checkpoint).parent)
    near, far = (prepare(replace(smoke, model=name), str(tmp_path)) for name in (Path(tiny_checkpoint).name, tiny_checkpoint))
    assert near.config.model == far.config.model == tiny_checkpoint
    assert near.key == far.key
    assert near.model_sha256 == models.identity(tiny_checkpoint)


def test_a_space_names_its_models_and_files_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = {"model": {"grid_search": ["tiny-vit8", "run"]}, "test_time": {"grid_search": [TPT(), TAPT(adversarial="m.safetensors")]}}
    space = rooted(Space("s", "?", "smoke", {**grid, "optim.lr": 0.1}, "val/robust", "max", fixed={"model": "other", "seed": 1}))
    assert space.space["model"] == {"grid_search": ["tiny-vit8", f"{tmp_path}/run"]}
    assert space.space["test_time"] == {"grid_search": [TPT(), TAPT(adversarial=f"{tmp_path}/m.safetensors")]}
    assert (space.space["optim.lr"], space.fixed) == (0.1, {"model": f"{tmp_path}/other", "seed": 1})


# --- the one that was asked for -------------------------------------------------------------------------------------------------------


def test_weights_that_were_replaced_are_refused_by_all_who_load_elsewhere(make_model, tiny_checkpoint, tmp_path):
    """A worker of an evaluation, one of a training, one of a statistics job."""
    resolved = protocols.resolve(replace(protocols.named("smoke"), sets=("shapes",)), str(tmp_path))
    wanted = Wanted([tiny_checkpoint], resolved, str(tmp_path))
    job = prepare(replace(RECIPES["smoke"].config, model=tiny_checkpoint), str(tmp_path))
    counting = statistics.prepare(tiny_checkpoint, statistics.Images("shapes", 4, split="test", rendered=16), str(tmp_path))
    combined = f"ensemble:tiny-vit8,{tiny_checkpoint}"
    sha256 = models.identity(combined)
    checkpoints.save(make_model(seed=1), tiny_checkpoint)
    said = rf"{tiny_checkpoint} is another model here and now \(sha256 .*replaced since"
    refused(said, Worker(resolved, str(tmp_path), 1, None).run, wanted.missing[0], tiny_checkpoint)
    refused(said, build_learner, job, "cpu")
    refused(said, models.load_exactly, combined, sha256)
    (error,) = statistics.Worker(counting)({"number": np.array([0])})["error"]  # returned: Ray Data would wrap it in pages
    assert re.search(said, error)
    assert not storage.exists(records.path(wanted.folder, wanted.missing[0].key))


def test_weights_replaced_while_they_are_read_are_refused(make_model, tiny_checkpoint, monkeypatch):
    sha256, load = models.identity(tiny_checkpoint), checkpoints.load

    def slow(name, folder):
        checkpoints.save(make_model(seed=1), folder)
        return load(name, folder)

    monkeypatch.setattr(checkpoints, "load", slow)
    refused("replaced since", models.load_exactly, tiny_checkpoint, sha256)


def test_weights_are_hashed_once_in_a_command_and_again_when_they_changed(make_model, tiny_checkpoint, tmp_path, monkeypatch):
    resolved, read, plain = protocols.resolve(protocols.named("smoke"), str(tmp_path)), [], storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: (read.append(storage.name_of(path)), plain(path))[1])
    found = set()
    for seed in (0, 1):
        checkpoints.save(make_model(seed=seed), tiny_checkpoint)
        for file in Path(tiny_checkpoint).iterdir():
            os.utime(file, (seed, 10**9 + seed))
        for _ in range(2):
            wanted = Wanted([tiny_checkpoint, f"ttc:{tiny_checkpoint}"], resolved, str(tmp_path))
            found.add(models.load_exactly(tiny_checkpoint, models.identity(tiny_checkpoint)).sha256)
        assert len({cell.model_sha256 for cell in wanted.missing}) == 2
        assert read.count("model.safetensors") == 1 + seed
    assert len(found) == 2


def test_a_worker_loads_again_when_other_weights_are_asked_of_one_name(make_model, tiny_checkpoint, tmp_path):
    resolved = protocols.resolve(replace(protocols.named("smoke"), sets=("shapes",), n=4), str(tmp_path))
    worker, found = Worker(resolved, str(tmp_path), 1, None), []
    for seed in (0, 1):
        checkpoints.save(make_model(seed=seed), tiny_checkpoint)
        (cell,) = Wanted([tiny_checkpoint], resolved, str(tmp_path)).missing
        found.append(worker.run(cell, tiny_checkpoint))
        assert worker.loaded[1].sha256 == make_model(seed=seed).sha256
    assert len(set(found)) == 2


# --- the base of a checkpoint ---------------------------------------------------------------------------------------------------------


def test_a_base_is_found_where_its_hash_is(make_model, tmp_path, monkeypatch):
    """Where the card says, where both were moved together, and in the package whatever the card calls it."""
    checkpoints.save(make_model(), str(tmp_path / "out/runs/a/model"))
    run = saved_run(moved(make_model()), tmp_path / "out/runs/b/model", str(tmp_path / "out/runs/a/model"))
    assert models.base(models.load(run)) == str(tmp_path / "out/runs/a/model")
    (tmp_path / "out").rename(tmp_path / "there")
    run = str(tmp_path / "there/runs/b/model")
    for name in (run, f"interpolate:0.5:{run}", f"tpt:{run}", f"ensemble:{run},tiny-vit8"):
        assert evaluate.base_of(models.load(name)) == str(tmp_path / "there/runs/a/model")
    assert models.origin(models.load(run)).sha256 == make_model().sha256
    checkpoints.save(make_model(seed=1), str(tmp_path / "out/runs/a/model"))  # another one has come to the old place
    assert models.base(models.load(run)) == str(tmp_path / "there/runs/a/model")
    here = saved_run(moved(make_model()), tmp_path / "here/model", "tiny-vit8")
    card = json.loads(Path(here, "config.json").read_text())
    Path(here, "config.json").write_text(json.dumps(card | {"base": card["base"] | {"name": "outputs/clip"}}))
    assert models.base(models.load(here)) == "tiny-vit8"


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_who_asks_for_a_base_that_is_not_there_is_said(make_model, tmp_path, change):
    clip, run = pair(make_model, tmp_path)
    shutil.rmtree(clip)
    if change == "replaced":
        checkpoints.save(make_model(seed=1), clip)
    said = rf"{run} was fine-tuned from {clip} with sha256 \w+\.\.\., as its config.json says, .*put the old weights back"
    for asked in (models.origin, models.base):
        refused(said, asked, models.load(run))
    refused(said, models.load, f"interpolate:0.5:{run}")
    refused(rf"{said}.*give first a model that was not fine-tuned, such as tiny-vit8", evaluate.base_of, models.load(run))


# --- two of one display name ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def twins(make_model, tmp_path):
    """Return the folders of two models of one display name."""
    for seed, parent in enumerate("ab"):
        checkpoints.save(make_model(seed=seed), str(tmp_path / parent / "model"))
    return [str(tmp_path / parent / "model") for parent in "ab"]


def test_two_models_of_one_display_name_are_told_apart(twins, tmp_path):
    said = [f"model@{models.identity(name)[:8]}" for name in twins]
    assert models.called([*twins, "tiny-vit8"]) == {twins[0]: said[0], twins[1]: said[1], "tiny-vit8": "tiny-vit8"}
    assert models.called(twins[:1]) == {twins[0]: "model"}
    shutil.copytree(twins[0], tmp_path / "c" / "model")
    assert set(models.called([twins[0], str(tmp_path / "c" / "model")]).values()) == {"model"}  # one model, in two places
    resolved = protocols.resolve(replace(protocols.named("smoke"), sets=("shapes",)), str(tmp_path))
    assert [cell.model for cells in Wanted(twins, resolved, str(tmp_path)).cells.values() for cell in cells] == said
    for name in twins:
        saved_run(models.load(name), Path(name), "tiny-vit8", config={"seed": 0})
    assert list(same_but_seed(models.called(twins)).values()) == [[f"run-abc@{models.identity(name)[:8]}" for name in twins]]


def test_a_report_tells_models_of_two_evaluations_apart_and_finds_them_by_weights(out, twins):  # noqa: F811
    """Each was alone in its command, so both are called `model` in their records."""
    for i, name in enumerate(twins):
        mine = synthetic({"model": (0.9 - 0.2 * i, 0.5)})
        hashed = records.table([row | {"model_sha256": models.identity(name)} for row in mine.to_pylist()])
        records.write(str(out / "records"), f"twin{i}", hashed)
    said = [f"model@{models.identity(name)[:8]}" for name in twins]
    done = command(out, "--protocol", PROTOCOL_HASH, *twins)
    assert done.returncode == 0, done.stderr
    assert all(f"| {name} " in done.stdout for name in said)
    Path(storage.join(twins[0], "model.safetensors")).write_bytes(
        Path(storage.join(twins[1], "model.safetensors")).read_bytes()[:-1] + b"?"
    )
    (out / "records" / "twin1.parquet").unlink()
    done = command(out, "--protocol", PROTOCOL_HASH, twins[0])
    assert done.returncode == 2
    assert f"{twins[0]}: the records of model are of other weights" in done.stderr


def test_a_finished_evaluation_is_found_by_any_way_to_write_its_name(tiny_checkpoint, tmp_path, monkeypatch):
    resolved = protocols.resolve(replace(protocols.named("smoke"), sets=("shapes",), n=4), str(tmp_path))
    table = evaluate_named(tiny_checkpoint, resolved, str(tmp_path))
    monkeypatch.chdir(Path(tiny_checkpoint).parent)
    wanted = Wanted([f"{Path(tiny_checkpoint).name}/"], resolved, str(tmp_path))
    assert wanted.missing == []
    assert set(wanted.name_of.values()) == {tiny_checkpoint}  # what a worker, which lives in another folder, is given
    assert evaluate_named(f"./{Path(tiny_checkpoint).name}", resolved, str(tmp_path)).equals(table)
