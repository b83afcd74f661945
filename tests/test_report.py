"""A report on a rendered world with planted differences: what it prints, what it refuses and what it escapes."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.records import findings
from robustclip.records import rows as records
from robustclip.records.findings import Finding
from robustclip.results import figures, report
from robustclip.results.page import Page

PROTOCOL_HASH = "0123456789abcdef" * 4
ATTACKS, EPS = ("pgd-10", "apgd-ce-20"), (1.0, 2.0, 4.0)
PROTOCOL = {
    "name": "demo",
    "sets": {
        "shapes": {"class_names": ["circle", "square"], "real": False},
        "letters": {"class_names": ["a", "b", "c", "d"], "real": False},
        "digits": {"class_names": list("0123456789"), "real": True},
    },
    "attacks": list(ATTACKS),
    "eps": [4, 1, 2],
    "norm": "Linf",
}
SKILL = {"plain": (0.9, 0.0), "tecoa": (0.8, 0.8), "fare": (0.84, 0.7)}  # clean accuracy, chance to survive one attack


def synthetic(
    skill: dict[str, tuple[float, float]] = SKILL, n: int = 60, protocol_hash: str = PROTOCOL_HASH, attacks: tuple[str, ...] = ATTACKS
) -> pa.Table:
    """Return the records of a cascade over random models."""
    rows = []
    for model, (clean, survive) in skill.items():
        for dataset in PROTOCOL["sets"]:
            generator = np.random.default_rng(len(dataset))
            for i in range(n):
                alive = True
                for attack, eps in [("clean", 0.0), *((attack, eps) for eps in EPS for attack in attacks)]:
                    if alive:
                        alive = bool(generator.random() < (clean if attack == "clean" else survive))
                        rows.append(
                            {
                                "protocol": "demo",
                                "protocol_hash": protocol_hash,
                                "model": model,
                                "model_sha256": f"sha256-of-{model}",
                                "dataset": dataset,
                                "image_id": f"{i:05d}",
                                "attack": attack,
                                "eps": eps,
                                "label": 1,
                                "prediction": int(alive),
                                "correct": alive,
                                "attack_config": "" if attack == "clean" else '{"restarts": 1}',
                            }
                        )
    return records.table(rows)


PASSED = Finding("1", "nothing at eps 0", "hard", True, "nothing moved")
WARNED = Finding("8", "converged", "warning", False, "pgd-10 still gains")
BROKEN = Finding("4", "stronger is stronger", "hard", False, "APGD leaves more right than FGSM")
HEALTHY = {"plain": [PASSED], "tecoa": [PASSED, WARNED], "fare": [PASSED]}


@pytest.fixture(scope="module")
def built() -> report.Report:
    return report.from_records(synthetic(), PROTOCOL, names={"tecoa": "TeCoA ε=2"}, checks=HEALTHY)


def test_markdown_prints_every_number_with_n_interval_and_protocol(built: report.Report) -> None:
    text = Page(built).markdown()
    assert "n = 180 images" in text
    assert PROTOCOL_HASH in text
    assert "| TeCoA ε=2 | 75.6 [68.8, 81.3] | 46.1 [39.0, 53.4] |" in text
    assert "pgd-10 (restarts: 1), apgd-ce-20 (restarts: 1)" in text
    assert "2 of 3 sets are rendered" in text
    for sheet in Page(built).sheets:
        assert all(len(row) == len(sheet.header) for row in sheet.rows)


def test_a_table_says_where_attacks_were_reduced(built: report.Report) -> None:
    """Under the main table, the stages and the table of every set; apgd-ce-20 stands for an attack with targets."""
    sets = {name: dict(each) for name, each in PROTOCOL["sets"].items()}
    sets["shapes"]["reduced"], sets["letters"]["reduced"] = {"apgd-ce-20": None}, {"apgd-ce-20": "apgd-ce-20[t=3]"}
    text = Page(report.from_records(synthetic(), PROTOCOL | {"sets": sets})).markdown()
    said = "Reduced where a set has too few classes: shapes (2 classes): no apgd-ce-20; letters (4 classes): apgd-ce-20 as apgd-ce-20[t=3]."
    assert text.count(said) == 3
    assert "Reduced" not in Page(built).markdown()


def test_mean_above_chance_uses_the_classes_of_every_set(built: report.Report) -> None:
    accuracies = [built.outcomes["plain"][name].clean.mean() for name in ("shapes", "letters", "digits")]
    expected = np.mean(accuracies) - np.mean([1 / 2, 1 / 4, 1 / 10])
    assert built.mean("plain", "clean").above_chance == pytest.approx(expected)


def test_csv_holds_the_numbers_of_the_table(built: report.Report) -> None:
    lines = list(csv.DictReader(io.StringIO(Page(built).csv(per_set=True))))
    assert len(lines) == 3 * 3 * 4
    assert all(float(line["mean"]) == int(line["correct"]) / int(line["n"]) for line in lines)
    assert {line["protocol_hash"] for line in csv.DictReader(io.StringIO(Page(built).csv()))} == {PROTOCOL_HASH}


def test_the_verdict_is_one_plain_sentence(built: report.Report) -> None:
    assert built.verdict(1.0).startswith("robust ε=1: fare is better than plain (+39.4 points, n=180, 95 % +")
    assert "is not distinguishable from" in built.verdict("clean")
    mirrored = report.from_records(synthetic(), PROTOCOL, baseline="fare", chosen="plain", checks=HEALTHY)
    assert "plain is worse than fare" in mirrored.verdict(1.0)


def test_what_each_attack_breaks_is_a_table_where_there_are_several(built: report.Report) -> None:
    assert "## Which attack breaks what" in Page(built).markdown()
    alone = report.from_records(synthetic(attacks=ATTACKS[1:]), PROTOCOL | {"attacks": list(ATTACKS[1:])}, checks=HEALTHY)
    assert "## Which attack breaks what" not in Page(alone).markdown()


def test_one_model_alone_has_no_comparison() -> None:
    assert "against" not in Page(report.from_records(synthetic(), PROTOCOL, models=["fare"], checks=HEALTHY)).markdown()


def test_the_checks_stand_under_the_numbers(built: report.Report) -> None:
    text = Page(built).markdown()
    assert "| TeCoA ε=2 | 1 | 8: pgd-10 still gains | none | none | yes |" in text
    assert report.MARK not in text
    assert "## fare against plain" in text


@pytest.mark.parametrize("model", ["plain", "fare"])
def test_a_hard_failure_keeps_a_number_out_of_every_ranking(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked in every table, not compared, not on the line that joins the best; the others stay as they are."""
    lines: list[list[str]] = []
    monkeypatch.setattr(figures, "curve", lambda clean, robust, ranked: lines.append(ranked) or b"")
    built = report.from_records(synthetic(), PROTOCOL, checks=HEALTHY | {model: [PASSED, BROKEN]})
    Page(built).figures()
    assert lines == [[name for name in HEALTHY if name != model]]
    text = Page(built).markdown()
    assert f"| {model} {report.MARK} |" in text
    assert "| tecoa |" in text
    assert "no: hard failure of check 4: APGD leaves more right than FGSM" in text
    assert "fare against plain" not in text
    with pytest.raises(UserError, match=f"{model} cannot be compared.*hard failure of check 4"):
        Page(built).comparison()


def test_a_few_survivors_are_named() -> None:
    table = synthetic({"plain": (0.9, 0.0), "tecoa": (0.8, 0.8), "lucky": (0.9, 0.55)})
    built = report.from_records(table, PROTOCOL)
    text = Page(built).markdown()
    survivors = {m: [id_ for each in seen.values() for id_ in each.ids[each.flags(4)]] for m, seen in built.outcomes.items()}
    assert len(survivors["tecoa"]) > report.FEW >= len(survivors["lucky"]) > len(survivors["plain"]) == 0
    assert f"lucky is still right at ε=4 on {', '.join(survivors['lucky'])}." in text
    assert text.count("is still right at") == 1


def test_means_stand_again_without_the_sets_at_chance(built: report.Report) -> None:
    assert "at chance" not in Page(built).markdown()
    guessing = synthetic({"plain": (0.9, 0.0), "blind": (0.52, 0.5)})  # of two classes in shapes, four in letters, ten in digits
    found = report.from_records(guessing, PROTOCOL)
    assert found.at_chance == ["shapes"]
    text = Page(found).markdown().partition("## Without sets at chance level")[2]
    left = np.mean([found.outcomes["blind"][name].clean.mean() for name in ("letters", "digits")])
    assert f"| blind ✗ | {100 * left:.1f} [" in text
    assert "over the other 2 sets: on shapes the clean accuracy" in text


def test_the_spread_over_seeds_stands_beside_the_intervals() -> None:
    models = ["fare", "tecoa"]
    found = report.from_records(synthetic(), PROTOCOL, seeds={"fare and its other seeds": models})
    means = [100 * found.mean(model, "clean").mean for model in models]
    line = f"| fare and its other seeds | 2 | {np.mean(means):.1f} ± {np.std(means, ddof=1):.1f} ({min(means):.1f} to {max(means):.1f}) |"
    assert line in Page(found).markdown()
    assert "Training luck" not in Page(report.from_records(synthetic(), PROTOCOL)).markdown()


def test_what_was_not_checked_is_not_ranked() -> None:
    built = report.from_records(synthetic(), PROTOCOL)
    assert set(built.unranked.values()) == {"unchecked"}
    with pytest.raises(UserError, match=r"unchecked; run pipelines/evaluate\.py again"):
        Page(built).comparison()


def test_an_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean tecoa"):
        report.from_records(synthetic(), PROTOCOL, models=["teco"])


def test_a_set_that_was_not_evaluated_is_refused() -> None:
    table = synthetic()
    with pytest.raises(UserError, match="0 of all images of set 'letters'"):
        report.from_records(table.filter(pc.not_equal(table["dataset"], "letters")), PROTOCOL)


def test_a_model_that_lacks_images_is_refused() -> None:
    table = pa.concat_tables([synthetic({"plain": (0.9, 0.0)}), synthetic({"fare": (0.8, 0.5)}, n=50)])
    with pytest.raises(UserError, match="differ in 10 images"):
        report.from_records(table, PROTOCOL)


def test_a_set_that_is_not_finished_is_refused() -> None:
    sets = {name: {**each, "n": 61} for name, each in PROTOCOL["sets"].items()}
    with pytest.raises(UserError, match="model 'fare' has 60 of 61 images of set 'shapes'"):
        report.from_records(synthetic(), {**PROTOCOL, "sets": sets}, models=["fare"])


def test_two_models_under_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="same name"):
        report.from_records(synthetic(), PROTOCOL, names={"plain": "fare"})


def test_the_page_stands_alone_and_escapes_what_comes_from_data(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>"
    built = report.from_records(synthetic({"plain": (0.9, 0.0), evil: (0.8, 0.5)}), {**PROTOCOL, "name": evil}, notes=[evil])
    text = Path(Page(built).write(str(tmp_path))).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)" in text
    assert not re.search(r"(src|href)=.(?!data:)|@import|url\(", text)
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.md", "table.csv", "per_set.csv", "table.tex", "report.html", "clean_against_robust.png", "security_curve.png",
    }  # fmt: skip


def test_tables_survive_the_signs_of_their_languages() -> None:
    sheet = figures.Sheet("t", ("a|b", "50 %"), (("x_1 & y", "81.5 [79.2, 83.6]"),), "c")
    assert "a\\|b" in sheet.markdown()
    assert r"x\_1 \& y & 81.5 [79.2, 83.6] \\" in sheet.latex()
    assert "<td>81.5 <small>[79.2, 83.6]</small></td>" in sheet.html()


def test_a_long_name_keeps_its_beginning() -> None:
    assert figures.short("tapt", 4) == "tapt"
    assert figures.short("tapt[views=16,keep=0.25]-run-8235fbead305e702", 12) == "tapt[views=…"


def test_figures_are_deterministic() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    grid = figures.adversarial_grid(images, images, [("a", "b")] * 3)
    assert grid.startswith(b"\x89PNG")
    assert grid == figures.adversarial_grid(images, images, [("a", "b")] * 3)


def test_figures_keep_out_of_global_state() -> None:
    code = """
import sys
from robustclip import figures, report
assert not {"matplotlib", "torch", "ray", "mlflow"} & set(sys.modules)
figures.png(figures.blank_figure(2.0))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return an output folder with the records of two protocols, one of them with its description."""
    for i, (model, skill) in enumerate(SKILL.items()):
        records.write(str(tmp_path / "records"), f"cell{i}", synthetic({model: skill}))
    records.write(str(tmp_path / "records"), "other", synthetic({"plain": (0.9, 0.0)}, protocol_hash="f" * 64))
    storage.write_json(str(tmp_path / "protocols" / f"{PROTOCOL_HASH}.json"), PROTOCOL)
    for model, found in HEALTHY.items():
        storage.write_json(findings.path(str(tmp_path), PROTOCOL_HASH, f"sha256-of-{model}"), {"findings": findings.as_json(found)})
    return tmp_path


def command(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "pipelines" / "report.py"
    return subprocess.run([sys.executable, str(script), "--out", str(out), *arguments], capture_output=True, text=True, check=False)


def test_the_command_writes_the_report_of_the_chosen_protocol(out: Path) -> None:
    done = command(out, "--protocol", PROTOCOL_HASH[:8], "plain", "fare")
    assert done.returncode == 0, done.stderr
    page = out / "reports" / PROTOCOL_HASH[:12] / "report.html"
    assert page.exists()
    assert f"open {page}" in done.stdout
    assert "## fare against plain" in done.stdout
    assert "tecoa" not in done.stdout


def test_the_command_compares_two_models(out: Path) -> None:
    done = command(out, "--protocol", PROTOCOL_HASH, "--compare", "fare", "plain")
    assert done.returncode == 0, done.stderr
    assert "robust ε=1: fare is better than plain" in done.stdout
    assert "p (Holm)" in done.stdout
    Path(findings.path(str(out), PROTOCOL_HASH, "sha256-of-fare")).unlink()
    done = command(out, "--protocol", PROTOCOL_HASH, "--compare", "fare", "plain")
    assert done.returncode == 2
    assert "fare cannot be compared under protocol demo: unchecked; run pipelines/evaluate.py again" in done.stderr


def test_the_command_finds_a_checkpoint_folder_by_its_run(out: Path) -> None:
    records.write(str(out / "records"), "run", synthetic({"run-abc": (0.8, 0.9)}))
    storage.write_json(str(out / "checkpoint" / "config.json"), {"run": "abc"})
    done = command(out, "--protocol", PROTOCOL_HASH, str(out / "checkpoint"))
    assert done.returncode == 0, done.stderr
    assert "| run-abc ✗ | " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "records of 2 protocols cannot be compared.*demo 0123456789ab .3 models, last written.*demo ffffffffffff .1 model,"),
        (["--protocol", "dem"], "no records of protocol 'dem'; there are: demo"),
        (["--protocol", "ffff"], "is missing: run pipelines/evaluate.py again"),
        (["--protocol", "0123", "teco"], "did you mean tecoa"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(out: Path, arguments: list[str], message: str) -> None:
    done = command(out, *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
