"""Test-time defences by name, through the evaluator: identity, display name, records by level, report and checks."""

import shutil
from dataclasses import replace
from unittest.mock import patch

import pyarrow as pa
import pytest
import torch
from conftest import NAMES
from toys import ids_of

from robustclip import names as models
from robustclip.attacks import PGD, Square
from robustclip.attacks.levels import Aimed
from robustclip.base.errors import UserError
from robustclip.evaluation import computing, probing, protocols
from robustclip.evaluation.alone import evaluate_named
from robustclip.evaluation.checks import run_checks
from robustclip.evaluation.checks.state import prompts_of_the_checkpoint
from robustclip.models.adaptive import Adaptive
from robustclip.models.checkpoints import save
from robustclip.models.dress import JointTokens
from robustclip.records import rows as records
from robustclip.results import figures, report
from robustclip.results.page import Page
from robustclip.test_time import TEST_TIME, TPT
from robustclip.test_time.moments import Moments, Targets, block_inputs
from robustclip.training.installing import install
from robustclip.training.trainables import VisualTower

SMALL = "views=4,keep=0.5"
LADDER = (Aimed("A0", PGD(2)), Aimed("A2", PGD(2)), Aimed("A3", PGD(3)), Aimed("A5", PGD(2), draws=2), Aimed("A6", Square(3)))


@pytest.fixture
def prompted(make_model, pictures, tmp_path):
    """Return the folder of a checkpoint with learned tokens and the file of its statistics."""
    trainable = JointTokens("independent", 2, 1)
    worn, _ = install(trainable, make_model("vit"), 0, NAMES)
    save(worn, str(tmp_path / "run"), trainable={"type": "JointTokens", "design": "independent", "tokens": 2, "depth": 1})
    classifier = models.load(str(tmp_path / "run")).classifier(NAMES, ("{}",))
    path = str(tmp_path / "moments.safetensors")
    Targets.of(Moments.of(block_inputs(classifier, pictures(12)[0])), classifier, "pictures", "train", "centre").write(path)
    return str(tmp_path / "run"), path


def test_every_kind_has_a_name(prompted, make_model, pictures, tmp_path):
    prompts, path = prompted
    save(make_model("vit"), str(tmp_path / "plain"))
    needed = {"tapt": f",adversarial={path},clean={path}", "promptalign": f",clean={path}"}
    seen = set()
    for kind in TEST_TIME:
        settings = "" if kind in ("ttc", "dbd") else SMALL + needed.get(kind, "")
        folder = prompts if kind in needed else str(tmp_path / "plain")
        name = f"{kind}[{settings}]:{folder}"
        found = models.load(name)
        classifier = found.classifier(NAMES, ("{}",))
        assert isinstance(classifier, Adaptive)
        assert classifier(pictures(2)[0]).shape == (2, len(NAMES))
        assert models.display_name(name).startswith(kind)
        assert models.display_name(name).endswith(f"-{folder.rpartition('/')[2]}")
        assert path not in models.display_name(name)
        assert models.input_size(name) == 16
        seen.add(models.identity(name))
    assert len(seen) == len(TEST_TIME)


def test_what_the_identity_is_of(prompted, make_model, pictures, tmp_path):
    folder, path = prompted
    name = f"tapt[{SMALL},adversarial={path},clean={path}]:{folder}"
    before = models.identity(name)
    assert models.identity(name.replace("views=4", "views=6")) != before
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copy(path, moved)
    assert models.identity(name.replace(path, str(moved))) == before, "where a file lies is not what it is"
    classifier = models.load(folder).classifier(NAMES, ("{}",))
    Targets.of(Moments.of(block_inputs(classifier, pictures(13)[0])), classifier, "pictures", "train", "centre").write(str(moved))
    assert models.identity(name.replace(path, str(moved))) != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tpt[views]:tiny-vit8", "settings are written"),
        ("tpt[view=4]:tiny-vit8", "unknown recipe key 'view': did you mean 'views'"),
        ("tpt[views=many]:tiny-vit8", "takes int"),
        ("tpt[augment=blur]:tiny-vit8", "takes 'crops' or 'augmix', not 'blur'"),
        ("tapt[adversarial=none.safetensors]:tiny-vit8", "there is no file .*none.safetensors"),
    ],
)
def test_names_that_say_nothing_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        models.identity(name)


def test_combinations_do_not_adapt():
    for inner in ("tpt:tiny-vit8", "interpolate:0.5:x", "ensemble:tiny-vit8,x"):
        with pytest.raises(UserError):
            models.load(f"tpt[{SMALL}]:{inner}")
    assert isinstance(models.parse("tiny-vit8"), models.Single)


def test_what_adapts_is_not_fine_tuned():
    with pytest.raises(UserError, match="fine-tune the model under the defence"):
        install(VisualTower(), models.load(f"tpt[{SMALL}]:tiny-vit8"), 0, NAMES)


def drawn_levels(built):
    """Return what the figure of attacker levels is given, after it was drawn."""
    with patch.object(figures, "levels", wraps=figures.levels) as draw:
        drawn = Page(built).figures()
    assert set(drawn) == {"clean_against_robust", "attacker_levels"}, "no curve over a single radius"
    assert drawn["attacker_levels"].startswith(b"\x89PNG")
    return draw.call_args.args


def test_a_ladder_through_the_evaluator(tmp_path):
    """In this process: that actors write what one process computes is test_evaluation.py's."""
    out, name = str(tmp_path), f"tpt[{SMALL}]:tiny-vit8"
    protocol = replace(
        protocols.named("smoke"), sets=("shapes",), real=(), attacks=LADDER, n=6, independent=True, micro_batch=3, name="ladder"
    )
    resolved = protocols.resolve(protocol, out)
    table = pa.concat_tables([evaluate_named(each, resolved, out) for each in ("tiny-vit8", name)])
    levels = {(row["model"], row["attack"]): row["level"] for row in table.to_pylist() if row["attack"] != "clean"}
    called = models.display_name(name)
    assert called == "tpt[views=4,keep=0.5]-tiny-vit8"
    assert [levels[called, attack.name] for attack in LADDER] == ["grey-box A0", "grey-box A2", *3 * ["white-box"]]
    assert [levels["tiny-vit8", attack.name] for attack in LADDER] == ["grey-box A0", *4 * ["white-box"]]
    built = report.from_records(table, resolved.describe())
    page = Page(built).markdown()
    assert [rung.title for rung in built.levels] == [attack.name.partition(")")[0] + ")" for attack in LADDER]
    assert "Attacker levels" in page
    assert "What it costs" in page
    worst = [built.mean(each, 2.0).mean for each in built.outcomes]
    assert all(
        worst[i] <= min(rung.outcomes[each]["shapes"].flags(2.0).mean() for rung in built.levels) for i, each in enumerate(built.outcomes)
    )
    clean, levels, worst, grey = drawn_levels(built)
    assert grey == {rung.title for rung in built.levels[:2]}, "what never saw the defence adapt is drawn in grey"
    for name_ in clean:
        assert worst[name_].mean <= min(each[name_].mean for each in levels.values()) <= clean[name_].mean


@pytest.mark.slow
def test_checks_look_at_a_defence_that_adapts(tmp_path):
    protocol = replace(protocols.named("smoke"), sets=("shapes",), real=(), attacks=(PGD(3),), n=6, micro_batch=6)
    resolved = protocols.resolve(protocol, str(tmp_path))
    found = {}
    for name in ("tiny-vit8", f"tpt[{SMALL}]:tiny-vit8"):
        loaded = models.load(name)
        rows = computing.compute(loaded, resolved.cells(models.display_name(name), models.identity(name))[0], resolved)
        shared = computing.provenance(resolved.cells(models.display_name(name), models.identity(name))[0], resolved)
        found[name] = records.table([shared | row for row in rows])
    table = pa.concat_tables(found.values())
    subject = probing.probe(f"tpt[{SMALL}]:tiny-vit8", "tiny-vit8", resolved, table)
    said = {finding.number: finding for finding in run_checks(subject)}
    assert [finding.number for finding in said.values() if finding.level == "hard" and finding.passed is False] == []
    assert said["11"].figures["gradient calls"] > 0
    assert said["19"].figures["no optimisation at inference"] is False, "the entry rule sees it optimise"


def test_a_reset_that_loses_the_prompt_trips_the_guard(prompted, tmp_path):
    folder, path = prompted
    verdicts = []
    for reset in ("false", "true"):
        name = f"tapt[{SMALL},adversarial={path},clean={path},random_reset={reset}]:{folder}"
        loaded = models.load(name)

        class Subject:
            classifier, model, source, images = loaded.classifier(NAMES, ("{}",)), loaded, name, torch.rand(2, 3, 16, 16)

        verdicts.append(prompts_of_the_checkpoint(Subject()))
    assert [verdict.passed for verdict in verdicts] == [True, False]
    assert "adapts from another prompt" in verdicts[1].reason


def test_plain_clip_is_where_fine_tuning_began(tiny_model, make_model, pictures, tmp_path):
    save(make_model("vit", seed=1), str(tmp_path / "base"))
    save(tiny_model, str(tmp_path / "tuned"), base={"name": str(tmp_path / "base"), "sha256": models.identity(str(tmp_path / "base"))})
    images = pictures(2)[0]
    plain = make_model("vit", seed=1).classifier(NAMES, ("{}",))
    for name in (str(tmp_path / "tuned"), f"tpt[{SMALL}]:{tmp_path / 'tuned'}", f"views[{SMALL}]:{tmp_path / 'base'}"):
        found = computing.undefended(models.load(name), NAMES, ("{}",))
        assert torch.equal(found(images), plain(images))


def test_ttc_asks_the_original_clip_how_stable_an_image_is(make_model, pictures, tmp_path):
    base, tuned = str(tmp_path / "base"), str(tmp_path / "tuned")
    save(make_model("vit", seed=1), base)
    save(make_model("vit"), tuned, base={"name": base, "sha256": models.identity(base)})
    images, keys = pictures(8)[0], [(0, "test time", 0, id_) for id_ in ids_of(8)]
    plain, own = (models.load(f"ttc:{name}").classifier(NAMES, ("{}",)) for name in (base, tuned))
    noise = models.load(f"ttc[threshold=0]:{tuned}").classifier(NAMES, ("{}",)).adapt(images, keys, False)

    def share(defence):
        """Return how far the noise moves each image, as a share, in the eyes of the model below a defence."""
        seen = defence.base.features(images)
        return (defence.base.features(images + noise) - seen).norm(dim=1) / seen.norm(dim=1)

    by_plain, by_own = share(plain), share(own)
    threshold = float((by_plain.median() + by_own.median()) / 2)
    stable = by_plain < threshold
    assert not torch.equal(stable, by_own < threshold), "the two disagree"
    moved = models.load(f"ttc[threshold={threshold}]:{tuned}").classifier(NAMES, ("{}",)).adapt(images, keys, False)
    assert torch.equal((moved == noise).flatten(1).all(1), ~stable)
    assert plain.judge is plain.base
    names = (f"ttc:{tuned}", f"tpt[{SMALL}]:{tuned}")
    before = [models.identity(name) for name in names]
    save(make_model("vit"), tuned, base={"name": base, "sha256": "another"})
    assert [models.identity(name) == old for name, old in zip(names, before, strict=True)] == [False, True], (
        "whom it asks is part of what it is"
    )


def test_a_fresh_draw_is_another_throw(tiny_classifier, pictures):
    defence = TPT(views=4, keep=0.5).classifier(tiny_classifier, 0)
    images = pictures(3)[0]
    throws = [defence.of(ids_of(3), draw)(images) for draw in (0, 0, 1)]
    assert torch.equal(throws[0], throws[1])
    assert not torch.equal(throws[0], throws[2])
