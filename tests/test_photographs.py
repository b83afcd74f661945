"""The comparison on photographs, on miniatures: which classes go where, what is said of them, how rates are chosen, and its tables."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import photo_runs
import photo_sets
import photo_study
import photographs
import pytest
import torch
from photo_runs import METHODS, PROBE, PROBED, PROMPT, RATES, TOWER, score
from photo_study import INSIDE, PROTOCOL, SWEEPS, Study
from sourcing import as_tar, image

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.commands import sweep
from robustclip.data.card import load
from robustclip.models.checkpoints import save
from robustclip.training import proxy
from robustclip.training.alone import finetune_alone
from robustclip.training.config import Config
from robustclip.training.job import prepare

TINY = ("goldfish", "bullfrog", "tabby", "lion", "pizza", "wok", "pay-phone")
SMALL = (
    ("data.n", 16),
    ("data.held_out", 4),
    ("optim.batch", 8),
    ("optim.micro_batch", 8),
    ("optim.epochs", 1),
    ("optim.warmup", 0),
    ("validation.images", 4),
    ("validation.steps", 1),
)


# --- sets -----------------------------------------------------------------------------------------------------------------------------


def test_which_class_is_where_depends_on_its_name_alone_and_no_class_is_in_two_parts() -> None:
    names = sorted(name for each in photo_sets.KINDS.values() for name in each.split(", "))
    assert len(set(names)) == len(names) == 200
    parts = photo_sets.classes_of(names)
    assert {name: len(each) for name, each in parts.items()} == {
        "tiny-seen": 160,
        "tiny-tuned": 100,
        "tiny-rest": 60,
        "tiny-unseen": 40,
        "tiny-all": 200,
    }
    assert not {*parts["tiny-seen"]} & {*parts["tiny-unseen"]}
    assert not {*parts["tiny-tuned"]} & {*parts["tiny-rest"]}
    assert {*parts["tiny-tuned"], *parts["tiny-rest"]} == {*parts["tiny-seen"]}
    assert photo_sets.classes_of(names[::-1])["tiny-unseen"] == parts["tiny-unseen"]
    fewer = photo_sets.classes_of([name for name in names if name != parts["tiny-rest"][0]])
    assert fewer["tiny-unseen"] == parts["tiny-unseen"]  # another class that is missing moves none
    assert photo_sets.classes_of([f"{name} " for name in names])["tiny-unseen"] != [f"{name} " for name in parts["tiny-unseen"]]


def test_captions_say_the_kind_of_a_class_beside_its_descriptions() -> None:
    found = photo_sets.captions_of({"goldfish": ["It is orange."], "thing nobody knows": ["x"], "lion": []})
    assert found["goldfish"] == [
        "It is orange.",
        "a photo of a fish.",
        "a small fish.",
        "a picture of one fish.",
        "a goldfish, a kind of fish.",
    ]
    assert found["thing nobody knows"] == ["x"]
    assert found["lion"][-1] == "a lion, a kind of big cat."


def folders(split: str, names: Sequence[str], n: int, side: int = 32) -> dict[str, bytes]:
    return {f"{split}{name.replace(' ', '_')}/{i}.png": image(side, side) for name in names for i in range(n)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder of archives laid out as the real ones, of a few small images."""
    root = tmp_path_factory.mktemp("data")
    for name in ("tinyimagenet32", "cifar10", "clothing"):
        (root / name).mkdir()
    as_tar(root / "tinyimagenet32" / "train.tar.gz", folders("", TINY, 12))
    as_tar(root / "tinyimagenet32" / "val.tar.gz", folders("", TINY, 6))
    (root / "tinyimagenet32" / "descriptions.json").write_text(json.dumps({name: [f"like a {name}"] for name in TINY}))
    for name, classes in (("cifar10", ("automobile", "ship", "cat")), ("clothing", ("longsleeve", "outwear", "hat"))):
        for split, n in (("train", 12), ("test", 8)):
            prefix = f"{split}/" if name == "cifar10" else ""
            as_tar(root / name / f"{split}.tar.gz", folders(prefix, classes, n, 32 if name == "cifar10" else 40))
    return str(root)


@pytest.fixture
def study(data: str, tmp_path: Path, make_model: Any) -> Study:
    """Return a study on the miniatures, its sets prepared, a tiny random model in the CLIP's place."""
    out = str(tmp_path / "out")
    photo_sets.make_sets(data, out, unseen=2, tuned=3)
    save(make_model(), storage.join(out, "photos"))
    return Study(out, data, (0, 1), 3, SMALL)


def test_the_sets_are_those_of_their_archives_and_made_once(data: str, tmp_path: Path) -> None:
    out = str(tmp_path)
    said = photo_sets.make_sets(data, out, unseen=2, tuned=3)
    cards = {name: load(storage.join(out, "data", name)) for name in (*photo_sets.classes_of(TINY), "cifar10", "clothing")}
    assert [len(cards[name].class_names) for name in ("tiny-seen", "tiny-tuned", "tiny-rest", "tiny-unseen", "tiny-all")] == [5, 3, 2, 2, 7]
    assert cards["tiny-seen"].splits == {"test": 30, "train": 60}
    assert cards["tiny-unseen"].splits == {"test": 12}
    assert "pay-phone" in cards["tiny-all"].class_names
    assert set(cards["cifar10"].class_names) == {"car", "boat", "cat"}
    assert set(cards["clothing"].class_names) == {"long sleeve shirt", "jacket", "hat"}
    assert said[0] == "tiny-seen: 5 classes; test 30, train 60; 0 skipped"
    archive = Path(out, "archives", "tiny-seen", "train.tar")
    before = archive.stat().st_mtime_ns
    assert photo_sets.make_sets(data, out, unseen=2, tuned=3) == said
    assert archive.stat().st_mtime_ns == before
    with tarfile.open(archive) as kept:
        assert {name.partition("/")[0] for name in kept.getnames()} == {name.replace(" ", "_") for name in cards["tiny-seen"].class_names}


# --- trainings ------------------------------------------------------------------------------------------------------------------------


def test_every_method_is_a_training_on_the_tower_and_on_prompts(study: Study) -> None:
    """That its parts go together, its images are there, and that no two of them are one run."""
    configs = [config for row in photographs.ROWS for config in study.runs.short(*row)]
    assert len(configs) == 3 * (2 * len(METHODS) + len(PROBED))
    assert len({prepare(config, study.out).key for config in configs}) == len(configs)
    assert {config.threat.image.eps for config in configs if config.threat.image} == {2.0}
    probes = {config.data.name for config in study.runs.short(PROBE, "clothing")}
    assert probes == {"clothing"}
    assert type(study.runs.config("TeCoA + FARE", TOWER, 1.0).defense).__name__ == "Mix"


def alone(configs: Sequence[Config], out: str) -> list[dict[str, Any]]:
    """Train configs in this process, as `trained` does on Ray, with results where it keeps them."""
    results = []
    for config in configs:
        job = prepare(config, out)
        file = storage.join(job.folder, "result.json")
        if not storage.exists(file):
            model, history = finetune_alone(models.load(config.model), config, out)
            save(
                model,
                storage.join(job.folder, "model"),
                run=job.key,
                **{k: v for k, v in model.card.items() if k not in ("format", "tokenizer")},
            )
            metrics = {name: value for row in history for name, value in row.items()} | {proxy.STRONG: history[-1]["val/robust"]}
            storage.write_json(file, {"checkpoint": storage.join(job.folder, "model"), "metrics": metrics, "history": history})
        results.append(storage.read_json(file))
    return results


def test_the_rate_with_the_best_held_out_score_is_chosen_and_kept(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(configs: Sequence[Config], out: str) -> list[dict[str, Any]]:
        """Attacked methods do best at the middle rate, CE at the largest, if its robust accuracy does not count."""
        best = {"CleanCE": (0.1, 0.2, 0.3), "TeCoA": (0.1, 0.3, 0.2)}
        found = []
        for config in configs:
            place = RATES[TOWER].index(config.optim.lr)
            kind = type(config.defense).__name__
            found.append(
                {"metrics": {"val/clean": best[kind][place], "val/strong": 0.9 - 0.4 * place if kind == "CleanCE" else 0.05 * place}}
            )
        return found

    monkeypatch.setattr(photo_runs, "trained", scored)
    runs = study.runs
    with pytest.raises(UserError, match=r"no rate was chosen for TeCoA on tower: run the piece `rates` first"):
        runs.chosen("TeCoA", TOWER)
    assert runs.choose([("TeCoA", TOWER), ("CE", TOWER)]) == {"TeCoA, tower": RATES[TOWER][1], "CE, tower": RATES[TOWER][2]}
    assert runs.chosen("CE", TOWER) == RATES[TOWER][2]
    assert [config.seed for config in runs.final("CE", TOWER, (0, 1))] == [0, 1]
    assert {config.optim.lr for config in runs.final("CE", TOWER, (0, 1))} == {RATES[TOWER][2]}
    assert score(runs.config("TeCoA", TOWER, 1.0), {"val/clean": 0.5, "val/strong": 0.25}) == 0.75
    monkeypatch.setattr(photo_runs, "trained", lambda configs, out: [{"metrics": {"val/clean": 0.5, "val/strong": 0.1}}] * len(configs))
    assert runs.choose([("FARE", PROMPT)]) == {"FARE, prompt": min(RATES[PROMPT])}


# --- pieces ---------------------------------------------------------------------------------------------------------------------------


def test_the_sweeps_of_the_trends_are_commands_that_are_understood(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_json(study.runs.rates_file, {"TeCoA, tower": 1e-3})
    asked = {}
    for words in map(Study(study.out, study.data).sweep, SWEEPS):
        monkeypatch.setattr("sys.argv", words[1:])
        _, space, config, protocol, out = sweep.asked()
        asked[space.name] = config
        assert (protocol.sets, protocol.eps, protocol.n, out) == (PROTOCOL.sets, (1.0, 2.0), 80, study.out)
        assert config.model == study.clip
        assert config.data.name == INSIDE
    assert [*asked] == ["epsilon", "interpolation", "trainable", "train_size"]
    assert (asked["epsilon"].optim.lr, asked["train_size"].data.n, asked["train_size"].optim.warmup) == (1e-3, None, 10)


def test_what_did_not_run_says_so_and_an_unknown_piece_is_refused(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_bytes(photographs.told(study, "rates"), b"| method | rate |")
    photographs.run(["--out", study.out])
    said = capsys.readouterr().out
    assert "## rates\n| method | rate |" in said
    assert said.count("did not run: python benchmarks/photographs.py") == len(photographs.PIECES) - 1
    with pytest.raises(UserError, match="no piece 'towers'"):
        photographs.run(["towers", "--out", study.out])


@pytest.mark.slow
def test_from_rates_to_the_tables(study: Study, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained without Ray, to the same weights; attacked by one of Ray's evaluators."""
    monkeypatch.setattr(photo_study.cluster, "total", lambda: (1.0, 0.0))
    for module in (photo_runs, photographs):
        monkeypatch.setattr(module, "trained", alone)
    few = {name: METHODS[name] for name in ("Adv.", "TeCoA")}
    for module in (photo_runs, photographs):
        monkeypatch.setattr(module, "METHODS", few)
    monkeypatch.setattr(photographs, "CONTRASTS", [("TeCoA", "Adv.")])
    rows = [("TeCoA", TOWER), ("Adv.", TOWER), ("TeCoA", PROMPT), ("Adv.", PROMPT), *((PROBE, name) for name in PROBED)]
    monkeypatch.setattr(photographs, "ROWS", rows)
    monkeypatch.setattr(photo_runs, "RATES", {part: rates[:2] for part, rates in RATES.items()})
    assert photographs.rates(study).count("\n") == 1 + len(rows)
    table = photographs.compare(TOWER, study)
    lines = table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| CLIP", "| Adv.", "| TeCoA"]
    assert all(line.count("|") == 10 for line in lines[:5])
    assert "seeds" in lines[4]
    assert "TeCoA - Adv., points, paired" in table
    assert all(f"LP(CE) of {name}, clean | eps 1 | eps 2:" in table for name in PROBED)
    prompted = photographs.compare(PROMPT, study)
    assert "(prompt - tower) of Adv. - (prompt - tower) of TeCoA" in prompted
    known = photographs.zero_shot(study)
    assert "| tiny-unseen | descriptions | 12 |" in known
    assert known.count("\n") == 1 + len((*photo_sets.SCORED, INSIDE)) + 1
    torch.set_num_threads(1)
