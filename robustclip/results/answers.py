"""The tables of what models answer beyond right or wrong: how sure they were, and whether they read out a word on the image."""

from robustclip.records import calibration, metrics
from robustclip.records.calibration import BINS, COVERAGES, DRAWS
from robustclip.records.rows import CLEAN
from robustclip.results.report import Report
from robustclip.results.sheet import Sheet
from robustclip.results.sheets import percent

NOT_RECORDED = "not recorded"


def calibrated(report: Report) -> Sheet:
    """Return the table of calibration, clean and under attack: confidence against accuracy, ECE, selective accuracies, AURC."""
    rows = []
    for model, found in report.calibrations.items():
        if not any(found.values()):
            rows.append((report.marked(model), "all", *[NOT_RECORDED] * (3 + len(COVERAGES))))
            continue
        rows += [(report.marked(model), title, *_cells(each)) for title, each in found.items()]
    selective = (f"accuracy at {100 * coverage:.0f} % coverage" for coverage in COVERAGES)
    caption = (
        f"In percent, all images together, every set weighing alike. Confidence: the softmax probability of the answer. ECE: expected "
        f"calibration error, {BINS} bins of equal width. Accuracy at a coverage: of that share of the images of which the model is surest. "
        "AURC: area under the risk-coverage curve, lower is better. Under attack an image counts with the answer that decided, its first "
        "wrong one or else its last right one; attacks stop where they succeed and do not ask for confidence, so a model may be surer of "
        f"other wrong answers. Brackets: Wilson's interval at a coverage, else a bootstrap over images ({DRAWS} draws, within each set); "
        "few images raise an ECE, so it may stand at the end of its interval, which reaches 0 where chance alone would give as much."
    )
    if any(each is None for found in report.calibrations.values() for each in found.values()):
        caption += f" {NOT_RECORDED.capitalize()}: of rows older than that column; delete their files under records/ and evaluate again."
    header = ("model", "images", "confidence − accuracy", "ECE", *selective, "AURC")
    return Sheet("Calibration", header, tuple(rows), caption, left=2)


def _cells(found: calibration.Calibration | None) -> list[str]:
    if found is None:
        return [NOT_RECORDED] * (3 + len(COVERAGES))
    gap = f"{100 * found.gap.mean:+.1f} [{100 * found.gap.low:+.1f}, {100 * found.gap.high:+.1f}]"
    return [gap, *map(percent, (found.ece, *found.selective, found.aurc))]


def words(report: Report) -> Sheet | None:
    """Return the table of how often the answer is the word that is written on the image; None where no set has words."""
    rows = []
    for dataset, k in report.classes.items():
        for model, seen in report.outcomes.items():
            lured = {column: seen[dataset].lured(column) for column in report.columns}
            shares = [metrics.of_share(float(flags.mean()), len(flags)) for flags in lured.values() if flags is not None]
            if shares:
                clean = metrics.accuracy(seen[dataset], CLEAN)
                by_chance = f"{100 * (1 - clean.mean) / (k - 1):.1f}"
                rows.append((dataset, report.marked(model), str(clean.n), percent(clean), by_chance, *map(percent, shares)))
    if not rows:
        return None
    caption = (
        "On every image of these sets the name of another of its classes is written: accuracy, and the share of images answered with that "
        "name, in percent with 95 % Wilson intervals. Evenly: what that share would be if the wrong answers to clean images (word and all) "
        "were spread evenly over the other classes. A model that cannot read loses accuracy only where a word hides something."
    )
    titles = (f"the word, {title}" for title in report.columns.values())
    header = ("set", "model", "n", "accuracy, clean", "the word, evenly", *titles)
    return Sheet("Words on images", header, tuple(rows), caption, left=2)
