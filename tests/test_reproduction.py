"""The ledger of claims: rules by hand, planted wrong claims, files that say nonsense, what makes a verdict stale, the page."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import claiming
import numpy as np
import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.models.checkpoints import save
from robustclip.models.model import Model
from robustclip.reproduction import ledger, page, worlds
from robustclip.reproduction.ledger import Part
from robustclip.reproduction.measuring import Evaluated, measured, result
from robustclip.reproduction.rules import REFUTED, SHOWN, UNDECIDED, Measured, Rule, judge, together

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = str(ROOT / "claims")
PAPERS = page.papers(CLAIMS)
WORLDS = {name: worlds.read(CLAIMS, name) for name in page.WORLDS}
EVERY = [(paper, claim) for paper in PAPERS.values() for claim in paper.claims]
GAIN = {"a robust": 1.0, "b robust": -1.0}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where no photographs' CLIP lies: whoever trained another one finds its column not measured."""
    monkeypatch.chdir(tmp_path)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "than", "low", "high", "changes", "verdict"),
    [
        ("above", 0.0, 1.0, 9.0, {}, SHOWN),
        ("above", 0.0, -9.0, -1.0, {}, REFUTED),
        ("above", 0.0, -1.0, 9.0, {}, UNDECIDED),
        ("above", 0.0, 0.0, 9.0, {}, UNDECIDED),  # the interval ends on the rule
        ("below", 0.0, -9.0, -1.0, {}, SHOWN),
        ("below", 0.0, 1.0, 9.0, {}, REFUTED),
        ("above", 15.8, 10.2, 15.5, {}, REFUTED),  # a gain, and not the size that was claimed
        ("above", 15.8, 10.2, 16.5, {}, UNDECIDED),
        ("above", -5.0, 0.0, 0.0, {"deciding": 0}, SHOWN),  # no image differs: not worse by 5 points
        ("above", 0.0, 1.0, 9.0, {"n": 99}, UNDECIDED),
        ("above", 0.0, -9.0, -1.0, {"n": 99}, UNDECIDED),
        ("above", 0.0, 0.2, 9.0, {"deciding": 5}, UNDECIDED),
        ("above", 0.0, 1.0, 9.0, {"seeds": (11.0, -1.0)}, UNDECIDED),
        ("above", 0.0, -9.0, -1.0, {"seeds": (-11.0, 1.0)}, UNDECIDED),
        ("below", 0.0, -9.0, -1.0, {"seeds": (-11.0, 0.0)}, UNDECIDED),
    ],
)
def test_a_rule_by_hand(side: str, than: float, low: float, high: float, changes: dict[str, object], verdict: str) -> None:
    middle = (low + high) / 2
    found = replace(Measured(middle, low, high, 600, 60, (middle, middle)), **changes)  # type: ignore[arg-type]
    said, why = judge(Rule(side, than), found)  # type: ignore[arg-type]
    assert said == verdict
    assert bool(why) == (verdict == UNDECIDED)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([SHOWN, SHOWN], SHOWN),
        ([SHOWN, UNDECIDED], UNDECIDED),
        ([SHOWN, REFUTED], REFUTED),
        ([UNDECIDED, REFUTED], REFUTED),
        ([UNDECIDED], UNDECIDED),
    ],
)
def test_each_statistic_must_show_a_claim_and_any_refutes_it(verdicts: list[str], said: str) -> None:
    assert together(verdicts) == said


# --- from records to verdicts -----------------------------------------------------------------------------------------


def draws(share: float, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def judged(evaluated: Evaluated, terms: dict[str, float], above: float = 0.0) -> tuple[str, str]:
    claim = ledger.Claim("planted", "x", "x", "x", "s", (Part(terms, Rule("above", above)),))
    found = result(claim, "rule", evaluated, (0, 1), "2026-11-30")
    return found.verdict, found.why


def test_planted_claims_true_wrong_and_of_too_few_images() -> None:
    strong, weak = [draws(0.6, 400, seed) for seed in (1, 2)], [draws(0.3, 400, 3)]
    whole = claiming.evaluated(a=strong, b=weak)
    assert judged(whole, GAIN) == (SHOWN, "")
    assert judged(whole, {"b robust": 1.0, "a robust": -1.0}) == (REFUTED, "")
    assert judged(whole, GAIN, above=50.0) == (REFUTED, "")
    assert judged(claiming.evaluated(a=weak, b=weak), GAIN)[0] == UNDECIDED
    few = claiming.evaluated(a=[each[:40] for each in strong], b=[weak[0][:40]])
    assert judged(few, GAIN) == (UNDECIDED, "40 images, of 100 that it takes")
    assert judged(few, {"b robust": 1.0, "a robust": -1.0})[0] == UNDECIDED


def test_seeds_that_disagree_decide_nothing() -> None:
    """One seed far above, one below: their mean is above, on every draw of images."""
    a, b = [np.ones(400, dtype=bool), draws(0.2, 400, 1)], [draws(0.4, 400, 2)]
    verdict, why = judged(claiming.evaluated(a=a, b=b), GAIN)
    assert (verdict, why[:15]) == (UNDECIDED, "seeds disagree:")


def test_a_model_that_failed_a_check_or_met_none_decides_nothing() -> None:
    whole = claiming.evaluated(a=[draws(0.9, 400, 1)], b=[draws(0.1, 400, 2)])
    assert judged(whole, GAIN)[0] == SHOWN
    hard = {name: [replace(each, passed=False, reason="masked") for each in found] for name, found in whole.checks.items()}
    assert judged(replace(whole, checks={**whole.checks, "a-0": hard["a-0"]}), GAIN) == (UNDECIDED, "a failed check 1: masked")
    assert judged(replace(whole, checks={"b-0": whole.checks["b-0"]}), GAIN) == (UNDECIDED, "a is not checked")


def test_a_statistic_by_hand() -> None:
    """Of 4 images a holds 3 and 1, b holds 1: (0.75 + 0.25) / 2 - 0.25 = 25 points, by seed 50 and 0; two images are not 0 throughout."""
    a, b = [np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])], [np.array([1, 0, 0, 0])]
    found = measured(Part(GAIN, Rule("above", 0.0)), claiming.evaluated(a=[x > 0 for x in a], b=[x > 0 for x in b]))
    assert (found.estimate, found.seeds, found.n, found.deciding) == (25.0, (50.0, 0.0), 4, 2)
    fall = measured(Part({"b clean": 1.0, "b robust": -1.0}, Rule("above", 0.0)), claiming.evaluated(b=[x > 0 for x in b]))
    assert fall.estimate == 75.0  # two columns of one model


# --- the ledger -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("above = 0.0, published", "below = 0.0, above = 0.0, published", "one rule"),
        ('"clip clean" = 1, "clip robust"', '"clip" = 1, "clip robust"', "is not 'ROLE COLUMN'"),
        ('study = "small"\nparts', 'studdy = "small"\nparts', "unknown key 'studdy' (did you mean study?)"),
        ('source = "Table 1"\n', "", "source is missing"),
        ('study = "small"\nparts', 'study = "small"\nnot_yet = "why"\nparts', "give a study and its parts, or not_yet"),
        ("[claims.falls]", "[claims.falls", "not valid TOML"),
        ("# by hand", "[results.rendered.fals]\n# by hand", "is of no claim (did you mean falls?)"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in claiming.HAND
    text = claiming.HAND.replace(old, new, 1)
    where = f"{text}{ledger.MARK}" if not new.startswith("[results") else claiming.HAND + ledger.MARK + new
    (tmp_path / "paper.toml").write_text(where)
    with pytest.raises(UserError) as refused:
        ledger.read(str(tmp_path / "paper.toml"))
    assert said in str(refused.value)
    assert "paper.toml" in str(refused.value)


def test_results_are_written_below_what_is_by_hand_and_keep_their_date(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(claiming.HAND)
    part = Measured(1.5, -0.25, 3.0, 600, 7, (1.0, 2.0))
    first = ledger.Result(UNDECIDED, 'it "holds" 0', "abc", "smoke 123", "2026-11-30", (0, 1), (part,))
    ledger.read(str(path)).with_results("rendered", {"falls": first}).write()
    once = path.read_text()
    assert once.startswith(claiming.HAND)
    assert ledger.read(str(path)).results == {"rendered": {"falls": first}}
    assert ledger.read(str(path)).text() == once
    later = replace(first, date="2026-12-01")
    assert ledger.read(str(path)).with_results("rendered", {"falls": later}).text() == once
    other = ledger.read(str(path)).with_results("rendered", {"falls": replace(later, verdict=SHOWN)})
    assert other.results["rendered"]["falls"].date == "2026-12-01"
    assert other.with_results("clip", {"rises": first}).results["rendered"] == other.results["rendered"]  # another world's column stays


def disagreements(paper: ledger.Paper, world: worlds.World) -> list[str]:
    """Return the claims whose verdict in a world is not what its own numbers and the rules of now say."""
    wrong = []
    for claim in paper.claims:
        found = paper.results.get(world.name, {}).get(claim.name)
        if found is None:
            continue
        said = together([judge(part.rule, each)[0] for part, each in zip(claim.parts, found.parts, strict=True)])
        withheld = found.verdict == UNDECIDED and "check" in found.why
        if (found.verdict != said and not withheld) or page.standing(paper, claim, world) != found:
            wrong.append(claim.name)
    return wrong


@pytest.mark.parametrize("name", PAPERS)
def test_every_verdict_follows_from_its_numbers(name: str, elsewhere: None) -> None:
    paper = PAPERS[name]
    assert [disagreements(paper, world) for world in WORLDS.values()] == [[]] * len(WORLDS)
    assert Path(paper.path).read_text() in (paper.text(), paper.by_hand.rstrip() + "\n")


def test_a_verdict_by_hand_and_a_rule_that_moved_are_seen() -> None:
    paper, world = PAPERS["tecoa"], WORLDS["rendered"]
    (claim,) = (claim for claim in paper.claims if claim.name == "robust")
    part = Measured(13.0, 10.0, 16.0, 600, 90, (12.0, 14.0))
    honest = ledger.Result(SHOWN, "", world.fingerprint(claim), "strong 123", "2026-11-30", (0, 1), (part,))
    assert disagreements(paper.with_results("rendered", {"robust": honest}), world) == []
    for fault in ({"verdict": REFUTED}, {"rule": "0"}, {"parts": (replace(part, low=-1.0),)}):
        assert disagreements(paper.with_results("rendered", {"robust": replace(honest, **fault)}), world) == ["robust"], fault
    moved = replace(claim, parts=(replace(claim.parts[0], rule=Rule("above", 12.0)),))
    assert world.fingerprint(moved) != world.fingerprint(claim)


def test_a_verdict_is_of_the_model_that_is_there(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    """A CLIP that was trained again at the same path leaves no verdict; one that is not here, or a result that names none, says nothing."""
    paper, (claim,) = PAPERS["tecoa"], (claim for claim in PAPERS["tecoa"].claims if claim.name == "robust")
    folder = str(tmp_path / "clip")
    world = replace(WORLDS["rendered"], fixed={"model": folder})
    of = ledger.Result(SHOWN, "", world.fingerprint(claim), "strong 123", "2026-11-30", (0, 1), (), "another")
    found = paper.with_results("rendered", {"robust": of})
    assert page.standing(found, claim, world) == of
    save(make_model(), folder)
    assert page.standing(found, claim, world) is None
    assert page.standing(paper.with_results("rendered", {"robust": replace(of, base="")}), claim, world) == replace(of, base="")
    ours = replace(of, base=models.identity(folder))
    assert page.standing(paper.with_results("rendered", {"robust": ours}), claim, world) == ours
    save(make_model(seed=1), folder)
    assert page.standing(paper.with_results("rendered", {"robust": ours}), claim, world) is None
    assert WORLDS["clip"].weights(WORLDS["clip"].studies["methods"]) == ""  # of the zoo: asked of nobody


def test_the_model_of_a_result_is_written_where_it_is_known(tmp_path: Path) -> None:
    """The same numbers as before keep their date, and learn whose they are."""
    path = tmp_path / "paper.toml"
    path.write_text(claiming.HAND)
    before = ledger.Result(SHOWN, "", "abc", "smoke 123", "2026-11-30", (0, 1), (Measured(1.5, 0.5, 3.0, 600, 7, (1.0, 2.0)),))
    ledger.add(str(path), "rendered", {"falls": before})
    assert "base" not in path.read_text()
    ledger.add(str(path), "rendered", {"falls": replace(before, date="2026-12-01", base="f00d")})
    assert ledger.read(str(path)).results["rendered"] == {"falls": replace(before, base="f00d")}
    assert 'base = "f00d"' in path.read_text()


def test_results_are_added_to_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(claiming.HAND)
    stale = ledger.read(str(path))
    first = ledger.Result(UNDECIDED, "why", "abc", "smoke 123", "2026-11-30", (0, 1), ())
    ledger.add(str(path), "clip", {"rises": first})
    path.write_text(path.read_text().replace("CLIP falls.", "CLIP falls down."))
    ledger.add(stale.path, "rendered", {"falls": first})
    now = ledger.read(str(path))
    assert now.results == {"clip": {"rises": first}, "rendered": {"falls": first}}
    assert now.claims[0].says == "CLIP falls down."
    assert [file.name for file in tmp_path.iterdir()] == ["paper.toml"]


def test_the_page_is_that_of_the_ledger(elsewhere: None) -> None:
    said = (ROOT / "docs" / "claims.md").read_text()
    assert said == page.page(CLAIMS), "robustclip reproduce --paper tecoa --world photographs writes the page anew"
    assert all(f"**{claim.name}**" in said for _, claim in EVERY)
