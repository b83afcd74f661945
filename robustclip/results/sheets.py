"""The tables of a report, one function each: what stands in a cell, and the caption that says what it means."""

from robustclip.records import findings, metrics
from robustclip.records.expected import Gap, gap
from robustclip.records.rows import CLEAN
from robustclip.results.report import Report
from robustclip.results.sheet import Sheet

PROMPTS = "prompts.csv"
VERDICTS = {1: "better", -1: "worse", 0: "not distinguishable"}


def main(report: Report) -> Sheet:
    """Return the table of means: clean and robust accuracy of every model."""
    largest, separate = report.eps[-1], report.real if len(report.real) < len(report.classes) else []
    header = ["model", *report.columns.values(), f"above chance, clean / ε={largest:g}"]
    header += [f"{name} {title}" for name in separate for title in ("clean", f"ε={largest:g}")]
    rows = []
    for model in report.outcomes:
        means = {column: report.mean(model, column) for column in report.columns}
        row = [report.marked(model), *map(percent, means.values())]
        row.append(f"{100 * means[CLEAN].above_chance:+.1f} / {100 * means[largest].above_chance:+.1f}")
        row += [percent(metrics.accuracy(report.outcomes[model][name], c)) for name in separate for c in (CLEAN, largest)]
        rows.append(tuple(row))
    return Sheet("Clean and robust accuracy", tuple(header), tuple(rows), _main_caption(report))


def _main_caption(report: Report) -> str:
    seen = report.outcomes[report.baseline]
    sizes = {name: len(outcome.ids) for name, outcome in seen.items()}
    attacked = sum(len(outcome.ids[outcome.attacked]) for outcome in seen.values())
    n, effective = sum(sizes.values()), report.mean(report.baseline, CLEAN).effective_n
    weight = "" if round(effective) == n else f" at the effective n of unequal sets, {effective:,.0f}"
    alone = "".join(f"; {name} alone: n = {sizes[name]:,} of them" for name in report.real if len(report.real) < len(sizes))
    over = f"mean over {len(sizes)} sets" if len(sizes) > 1 else f"set {next(iter(sizes))}"
    some = f", {attacked:,} of them attacked" if attacked < n else ""
    return (
        f"{report.grey_box}Accuracy in percent, {over}, n = {n:,} images per model{some}{alone}. Brackets: 95 % Wilson interval{weight}. "
        f"ε in 1/255, {report.protocol.get('norm', 'norm not stated')}; robust = correct when clean and under every attack up to this ε."
        f"{report.reduced} Above chance: mean of accuracy − 1/classes, in points.{report.marks} "
        f"Protocol {report.protocol['name']}, {report.protocol_hash[:12]}."
    )


def per_set(report: Report) -> Sheet:
    """Return the table of every set and model."""
    rows = tuple(
        (
            dataset,
            report.marked(model),
            str(k),
            str(len(seen[dataset].ids)),
            *(percent(metrics.accuracy(seen[dataset], c)) for c in report.columns),
        )
        for dataset, k in report.classes.items()
        for model, seen in report.outcomes.items()
    )
    caption = f"Accuracy in percent with its 95 % Wilson interval, n images, worst case over the attacks as above.{report.reduced}"
    return Sheet("Every set", ("set", "model", "classes", "n", *report.columns.values()), rows, caption, left=2)


def stages(report: Report) -> Sheet:
    """Return the table of what is left after each attack of the cascade."""
    names = [(e, attack) for e in report.eps for attack in report.counted]
    rows = tuple((report.marked(model), *(percent(report.mean(model, stage)) for stage in names)) for model in report.outcomes)
    caption = "Cumulative: accuracy in percent under this attack and everything before it (left of it), never under this attack alone."
    return Sheet("Which attack breaks what", ("model", *(f"ε={e:g} after {attack}" for e, attack in names)), rows, caption + report.reduced)


def alone(report: Report) -> Sheet:
    """Return the table of what each of the independent attacks leaves."""
    columns = sorted(report.alone, key=lambda column: column[0])
    rows = []
    for model in report.outcomes:
        means = (metrics.macro(report.alone[column][model], column[0], report.classes) for column in columns)
        rows.append((report.marked(model), *map(percent, means)))
    caption = "Accuracy in percent of images that are right when clean and under this one attack; every image met every attack."
    titles = (f"{attack}, ε={e:g}" for e, attack in columns)
    return Sheet("Each attack on its own", ("model", *titles), tuple(rows), caption + report.reduced)


def levels(report: Report) -> Sheet:
    """Return the table of what attackers of every level leave, each level the worst case of its own attacks."""
    rows = []
    for model in report.outcomes:
        means = (metrics.macro(rung.outcomes[model], rung.eps, report.classes) for rung in report.levels)
        clean = percent(report.mean(model, CLEAN))
        rows.append((report.marked(model), clean, *map(percent, means), *(percent(report.mean(model, e)) for e in report.eps)))
    titles = (f"{rung.title}, ε={rung.eps:g}" for rung in report.levels)
    caption = (
        "Accuracy in percent under the attacks of each level, per image the worst of them. Grey-box levels never saw the defence adapt: "
        "their numbers are for comparison with published ones; a model that does not adapt is met itself from A1 on. The last columns are "
        "per image the worst of all levels."
    )
    worst = (f"worst of all, ε={e:g}" for e in report.eps)
    return Sheet("Attacker levels", ("model", "clean", *titles, *worst), tuple(rows), caption + report.reduced)


def cost_of_levels(report: Report) -> Sheet:
    """Return the table of what an answer and an attack of every level cost."""
    rows = []
    for model in report.outcomes:
        clean = f"{report.levels[0].clean_ms[model]:.1f}"
        rows.append((report.marked(model), clean, *(f"{rung.attack_ms[model]:.0f}" for rung in report.levels)))
    caption = "Milliseconds per image on one evaluator: to answer, and to be attacked by all attacks of a level."
    titles = (f"{rung.title}, ε={rung.eps:g}" for rung in report.levels)
    return Sheet("What it costs", ("model", "answer", *titles), tuple(rows), caption)


def shifted(report: Report) -> Sheet:
    """Return the table of what attacks left that saw other texts than are scored."""
    rows = []
    for each in report.shifts:
        for model in report.outcomes:
            left = (each.seen.get(model), each.scored[model], each.white[model] if each.white else None)
            sets = tuple(left[0] or ())  # not those that leave the attack out
            cells = (percent(metrics.macro(one, each.eps, report.classes, sets)) if one and sets else "–" for one in left)
            rows.append((report.marked(model), each.attack, f"{each.eps:g}", *cells))
    header = ("model", "attack", "ε", "under the texts it saw", "transfer: under the scored texts", "the attack that saw the scored texts")
    caption = (
        "Accuracy in percent. The attack saw the model under other texts: first how often what it made is answered right under those, then "
        "how often images that are right when clean stay right under the scored texts. That is transfer: it measures what an attacker did "
        "not know, is part of no worst case and is never ranked; an image that is wrong under the texts it saw is left as it is. The last "
        "column is the same attack in sight of the scored texts."
    )
    return Sheet("Prompt shift (transfer)", header, tuple(rows), caption, left=2)


def prompts(report: Report) -> Sheet:
    """Return the table of what text attacks made of the class prompts, with the prompt that went farthest."""
    rows = []
    for now in report.prompts:
        far = min(range(len(now.texts)), key=lambda i: now.cosines[i])
        changed = sum(a != b for a, b in zip(now.clean, now.texts, strict=True))
        mean = sum(now.cosines) / len(now.cosines)
        farthest = f"{now.clean[far]} → {now.texts[far]} ({now.cosines[far]:.2f})"
        counts = (f"{changed} of {len(now.texts)}", f"{mean:.2f}", f"{100 * now.collisions:.0f} %")
        rows.append((now.dataset, report.name(now.model), now.attack, *counts, farthest))
    header = ("set", "model", "attack", "prompts changed", "mean cosine", "collisions", "farthest")
    caption = (
        "What text attacks made of the class prompts, the same for all images of a set: cosine of the new prompt's features with the clean "
        f"one's, and for how many prompts the best rewriting would have named another class. All of them: {PROMPTS} beside this page."
    )
    return Sheet("Attacked prompts", header, tuple(rows), caption, left=7)


def checks(report: Report) -> Sheet:
    """Return the table of what the checks found on every model's probe."""
    rows = []
    for model in report.outcomes:
        found = report.checks.get(model, ())
        passed, skipped = ([each for each in found if each.passed is value] for value in (True, None))
        warned, broken = (findings.reasons(findings.failed(found, level)) or "none" for level in ("warning", "hard"))
        ranked = f"no: {report.unranked[model]}" if model in report.unranked else "yes"
        rows.append((report.marked(model), str(len(passed)), warned, broken, ", ".join(each.number for each in skipped) or "none", ranked))
    caption = (
        "The checks and guards of an honest robust accuracy (docs/honest.md), run with attacks of their own on a probe of the model's best "
        "set; a warning is printed with its reason, a hard failure keeps the model's numbers out of every ranking."
    )
    return Sheet("Checks", ("model", "passed", "warnings", "hard failures", "not applicable", "ranked"), tuple(rows), caption, left=6)


def paired(report: Report) -> Sheet:
    """Return the table of the chosen model against the baseline on the same images."""
    a, b = report.name(report.chosen), report.name(report.baseline)
    rows = []
    for column, found in report.differences.items():
        better, worse = (sum(each.p_holm < 0.05 and side * each.difference > 0 for each in found.per_set.values()) for side in (1, -1))
        counts = (str(sum(each.only_a for each in found.per_set.values())), str(sum(each.only_b for each in found.per_set.values())))
        rows.append((report.columns[column], points(found), *counts, f"{better} / {worse} of {len(found.per_set)}", VERDICTS[found.sign]))
    caption = (
        f"Difference of the means in points on the same {report.differences[CLEAN].n:,} images, 95 % interval from a paired bootstrap "
        f"over images ({metrics.DRAWS} draws, within each set). Sets better / worse: exact McNemar at 5 % after Holm over the sets."
    )
    header = ("accuracy", "difference", f"only {a} right", f"only {b} right", "sets better / worse", "verdict")
    return Sheet(f"{a} against {b}", header, tuple(rows), caption)


def without_chance(report: Report) -> Sheet:
    """Return the table of means again, without the sets on which some model does not know better than guessing."""
    left = tuple(name for name in report.classes if name not in report.at_chance)
    rows = tuple(
        (report.marked(model), *(percent(metrics.macro(report.outcomes[model], column, report.classes, left)) for column in report.columns))
        for model in report.outcomes
    )
    caption = (
        f"The same means over the other {len(left)} sets: on {', '.join(report.at_chance)} the clean accuracy of at least one model cannot "
        "be told from 1/classes, and a number there says little of robustness."
    )
    return Sheet("Without sets at chance level", ("model", *report.columns.values()), rows, caption)


def luck(report: Report) -> Sheet:
    """Return the spread of the means over training seeds, for every group of models that differ in their seed alone."""
    rows = []
    for title, models in report.seeds.items():
        found = [metrics.spread([report.mean(model, column).mean for model in models]) for column in report.columns]
        cells = (f"{100 * s.mean:.1f} ± {100 * s.deviation:.1f} ({100 * s.smallest:.1f} to {100 * s.largest:.1f})" for s in found)
        rows.append((title, str(len(models)), *cells))
    caption = "Mean ± standard deviation over training seeds (smallest to largest), on the same images; no interval above contains it."
    return Sheet("Training luck", ("models", "seeds", *report.columns.values()), tuple(rows), caption)


def set_by_set(report: Report) -> Sheet:
    """Return McNemar's test for every set and column."""
    a, b = report.name(report.chosen), report.name(report.baseline)
    rows = tuple(
        (
            name,
            title,
            str(each.n),
            str(each.only_a),
            str(each.only_b),
            f"{100 * each.difference:+.1f}",
            f"{each.p:.2g}",
            f"{each.p_holm:.2g}",
        )
        for name in report.classes
        for column, title in report.columns.items()
        for each in [report.differences[column].per_set[name]]
    )
    header = ("set", "accuracy", "n", f"only {a} right", f"only {b} right", "difference", "p", "p (Holm)")
    caption = "Exact McNemar test on the images that exactly one of the two gets right; Holm: corrected for the number of sets."
    return Sheet("Set by set", header, rows, caption, left=2)


def published(report: Report) -> Sheet:
    """Return the table of our numbers beside published ones."""
    rows, agreeing = [], 0
    for each in report.expected:
        ours, printed = each.ours(report.outcomes[each.model]), each.printed
        found = gap(ours, printed)
        agreeing += found.agrees
        attack = "clean" if each.column == CLEAN else f"ε={each.column[0]:g} after {each.column[1]}"  # type: ignore[index]
        where = each.sets[0] if len(each.sets) == 1 else f"mean of {len(each.sets)} sets"
        rows.append(
            (
                *(report.marked(each.model), f"{each.row} ({each.source})", where, attack),
                *(percent(ours), percent(printed), points(found), "agree" if found.agrees else "differ"),
                ", ".join(each.besides) or "–",
            )
        )
    header = ("model", "held against", "set", "column", "ours", "published", "difference", "the two", "ours counts besides")
    caption = (
        f"{agreeing} of {len(rows)} agree: 0 is in the 95 % interval of the difference, which comes from the intervals of both (Newcombe). "
        "What ours counts besides can only lower it. An interval is that of the images counted here or in print, which are rarely the same."
    )
    return Sheet("Beside published numbers", header, tuple(rows), caption, left=4)


def percent(estimate: metrics.Estimate) -> str:
    """Return "81.5 [79.2, 83.6]"."""
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(difference: metrics.Difference | Gap) -> str:
    """Return "+12.3 [+10.1, +14.4]"."""
    return f"{100 * difference.point:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
