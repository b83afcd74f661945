"""The page of a report: what its tables and figures print, mark, leave out and escape."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cascades import ATTACKS, HEALTHY, PASSED, PROTOCOL, PROTOCOL_HASH, synthetic, whole_report

from robustclip.base.errors import UserError
from robustclip.records.expected import Expected
from robustclip.records.findings import Finding
from robustclip.records.rows import CLEAN
from robustclip.results import figures, report
from robustclip.results.page import Page
from robustclip.results.sheet import Sheet

BROKEN = Finding("4", "stronger is stronger", "hard", False, "APGD leaves more right than FGSM")


@pytest.fixture(scope="module")
def built() -> report.Report:
    return whole_report()


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


def test_published_numbers_stand_beside_ours() -> None:
    about = ("tecoa", "FT(TeCoA)", "a paper, Table 1")
    clean = Expected(*about, ("shapes",), CLEAN, 0.8, (60,))
    robust = Expected(*about, ("shapes", "letters", "digits"), (1.0, "pgd-10"), 0.05, (60, 60, 60), ("fgsm", "all at ε < 1"))
    text = Page(report.from_records(synthetic(), PROTOCOL, checks=HEALTHY, expected=[clean, robust])).markdown()
    assert "## Beside published numbers" in text
    assert "1 of 2 agree" in text
    (first,) = re.findall(r"\| tecoa \| FT\(TeCoA\) \(a paper, Table 1\) \| shapes \| clean \| .* \| agree \| – \|", text)
    assert "| 80.0 [68.2, 88.2] |" in first
    assert re.search(r"\| mean of 3 sets \| ε=1 after pgd-10 \| .* \| 5.0 \[2.7, 9.2\] \| .* \| differ \| fgsm, all at ε &lt; 1 \|", text)
    assert "published" not in Page(whole_report()).markdown()


def test_csv_holds_the_numbers_of_the_table(built: report.Report) -> None:
    lines = list(csv.DictReader(io.StringIO(Page(built).csv(per_set=True))))
    assert len(lines) == 3 * 3 * 4
    assert all(float(line["mean"]) == int(line["correct"]) / int(line["n"]) for line in lines)
    assert {line["protocol_hash"] for line in csv.DictReader(io.StringIO(Page(built).csv()))} == {PROTOCOL_HASH}


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
    with pytest.raises(UserError, match=r"unchecked; run robustclip evaluate again"):
        Page(built).comparison()


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
    sheet = Sheet("t", ("a|b", "50 %"), (("x_1 & y", "81.5 [79.2, 83.6]"),), "c")
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
from robustclip.results import figures, report
assert not {"matplotlib", "torch", "ray", "mlflow"} & set(sys.modules)
figures.png(figures.blank_figure(2.0))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
