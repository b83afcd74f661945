"""The comparison on photographs, on miniatures: which classes go where, what is said of them, how rates are chosen, and its tables."""

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import multimodal
import photo_runs
import photo_sets
import photo_study
import photographs
import pytest
import test_time
import torch
from photo_runs import METHODS, PROBE, PROBED, PROMPT, RATES, TOWER, score
from photo_study import DIGITS, INSIDE, PROTOCOL, SWEEPS, Study
from photos import TINY, archives, study_on

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.commands import evaluate, sweep
from robustclip.data.card import load
from robustclip.evaluation import protocols
from robustclip.models.checkpoints import save
from robustclip.training import proxy
from robustclip.training.alone import finetune_alone
from robustclip.training.config import Config
from robustclip.training.job import prepare

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
        "tiny-few": 5,
        "tiny-all": 200,
    }
    assert not {*parts["tiny-seen"]} & {*parts["tiny-unseen"]}
    assert not {*parts["tiny-tuned"]} & {*parts["tiny-rest"]}
    assert {*parts["tiny-few"]} < {*parts["tiny-unseen"]}
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return archives(tmp_path_factory.mktemp("data"))


@pytest.fixture
def study(data: str, tmp_path: Path, make_model: Any) -> Study:
    return study_on(data, str(tmp_path / "out"), make_model())


def test_the_sets_are_those_of_their_archives_and_made_once(data: str, tmp_path: Path) -> None:
    out = str(tmp_path)
    said = photo_sets.make_sets(data, out, unseen=2, tuned=3)
    cards = {name: load(storage.join(out, "data", name)) for name in (*photo_sets.classes_of(TINY), "cifar10", "clothing")}
    assert [len(cards[name].class_names) for name in ("tiny-seen", "tiny-tuned", "tiny-rest", "tiny-unseen", "tiny-all")] == [5, 3, 2, 2, 7]
    assert cards["tiny-seen"].splits == {"test": 30, "train": 60}
    assert cards["tiny-unseen"].splits == cards["tiny-few"].splits == {"test": 12}
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
    saft, tecoa = (study.runs.config(method, TOWER, 1.0) for method in ("SAFT", "TeCoA"))
    assert {*saft.templates.texts} == {*load(storage.join(study.out, "data", INSIDE)).class_names}
    assert replace(saft, templates=None) == tecoa  # which learns by names
    assert all(f"like a {name}" in texts and len(texts) > 1 for name, texts in saft.templates.texts.items())
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
    assert [*asked] == ["epsilon", "interpolation", "trainable", "first_blocks", "train_size"]
    assert (asked["epsilon"].optim.lr, asked["first_blocks"].optim.weight_decay) == (1e-3, 0.0)
    sizes = asked["train_size"]
    assert (sizes.data.n, sizes.optim.warmup) == (None, 3)
    assert photo_sets.TUNED // sizes.optim.batch * sizes.optim.epochs >= 2 * sizes.optim.warmup  # one image a class leaves the warm-up


def test_the_shift_is_a_command_that_attacks_towers_under_descriptions(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_json(study.runs.rates_file, {"TeCoA, tower": 1e-3, "SAFT, tower": 3e-3})
    with pytest.raises(UserError, match=r"is not trained yet: python benchmarks/photographs\.py tower"):
        study.shift()
    for method in ("TeCoA", "SAFT"):
        for config in study.runs.final(method, TOWER, study.seeds):
            storage.write_json(storage.join(prepare(config, study.out).folder, "result.json"), {})
    monkeypatch.setattr("sys.argv", study.shift()[1:])
    args, protocol, _ = evaluate.asked()
    assert len(args.models) == 4
    assert (protocol.sets, protocol.eps, protocol.n, protocol.independent) == (photo_study.DESCRIBED, (1.0, 2.0), 3, True)
    plain, seen = protocol.attacks
    assert (plain, seen.attack) == (PROTOCOL.attacks[0],) * 2
    assert {*seen.texts.texts} == {*TINY}  # of every class of Tiny-ImageNet, so of those of both sets


@pytest.mark.parametrize("part", ["ladder", "prompts", "outcomes"])
def test_attacks_take_the_share_of_a_gpu_that_evaluators_take(part: str, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def seen(names: Sequence[str], resolved: Any, out: str, **given: Any) -> None:
        asked.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(photo_study.cluster, "fitting_actors", lambda: (3, 0.25))
    for module in (photo_study, multimodal, test_time):
        monkeypatch.setattr(module, "evaluate", seen)
    run = {
        "ladder": lambda: study.bench().attacked({"CLIP": study.clip}, study.ladder()),
        "prompts": lambda: multimodal.show({"CLIP": [study.clip]}, protocols.resolve(study.multimodal(), study.out), study.out),
        "outcomes": lambda: study.outcomes([study.clip], replace(PROTOCOL, n=3)),
    }
    with pytest.raises(KeyboardInterrupt):
        run[part]()
    assert (asked["actors"], asked["gpus"]) == (3, 0.25)


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
    assert "how sure, a value a seed" in table
    assert next(line for line in lines if line.startswith("| Adv. | eps 2 |")).count(";") == 4  # two seeds in four columns
    assert "protocol photographs, hash" in table
    assert "tiny-rest n = 3" in table
    assert "checks: " in table
    known = photographs.zero_shot(study)
    assert "| tiny-unseen | descriptions | 12 |" in known
    assert "| digits | names | 1000 |" in known
    assert known.count("\n| ") == len((*photo_sets.SCORED, INSIDE, DIGITS)) + 1
    assert "of which 12 each attacked" in known
    assert known.count("checks: ") == 2
    torch.set_num_threads(1)
