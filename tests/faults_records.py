"""Faults planted in what is counted: ids, rows, aggregation, selection, provenance."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from probes import changed, make_set

from robustclip.evaluation import cascade
from robustclip.evaluation.protocols import Resolved, TestSet
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.records import survival


def column(table, name, values):
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def edited(change):
    """Return the records with every row changed by a function."""
    return lambda subject, patch: changed(subject, records=records.table(change(row) for row in subject.records.to_pylist()))


def kept(keep):
    """Return the records without some rows."""

    def plant(subject, patch):
        return changed(subject, records=records.table(row for i, row in enumerate(subject.records.to_pylist()) if keep(i, row)))

    return plant


def is_clean(row):
    return row["attack"] == records.CLEAN


def far_away(row):
    return row | ({} if is_clean(row) else {"linf": 13 / 255})


def first_n_of_a_sorted_set(subject, patch):
    labels = np.arange(64) // 16
    ids = [f"sorted/{i:03d}" for i in range(64)]
    test_set = replace(make_set("pictures", labels, ids), rows=np.arange(16))
    return changed(subject, resolved=Resolved(subject.protocol, {"pictures": test_set}))


def set_dropped(subject, patch):
    protocol = replace(subject.protocol, sets=("pictures", "textures"))
    sets = {**subject.resolved.sets, "textures": make_set("textures", [0, 1, 2, 3] * 4, [f"texture/{i}" for i in range(16)])}
    return changed(subject, protocol=protocol, resolved=Resolved(protocol, sets))


def zero_fill(row):
    """The last images of the run left as a table of zeros would have them."""
    late = row["image_id"].endswith(("3", "7", "9"))
    return row | ({"label": 0, "prediction": 0, "clean_prediction": 0, "correct": True} if late else {})


def no_pass(row):
    return row | ({} if is_clean(row) else {"forwards": 0})


def last_attack_alone(subject, patch):
    honest = survival._survival

    def last_alone(rows, attacks, *rest):
        counted = honest(rows, attacks, *rest)
        last = pc.and_(pc.equal(rows["attack"], attacks[-1]), pc.invert(rows["correct"]))
        broken = set(rows.filter(last)["image_id"].to_pylist())
        robust = np.array([id_ not in broken for id_ in counted.ids])
        return replace(counted, stages=np.broadcast_to(robust[:, None, None], counted.stages.shape))

    patch.setattr(survival, "_survival", last_alone)
    return changed(subject, records=None)


def everything_attacked_again(subject, patch):
    honest = cascade.run_cascade

    def run(classifier, images, labels, ids, protocol):
        alone = [honest(classifier, images, labels, ids, replace(protocol, attacks=(attack,))) for attack in protocol.attacks]
        return alone[0] + [row for rows in alone[1:] for row in rows if not is_clean(row)]

    patch.setattr(cascade, "run_cascade", run)
    return changed(subject, records=None)


def selected_on_the_test_set(subject, patch):
    return changed(subject, selection_ids=frozenset(subject.ids[:3]))


def weights_without_hash(subject, patch):
    patch.setattr(Model, "sha256", property(lambda self: self.name))
    return changed(subject)


def templates_without_hash(subject, patch):
    patch.setattr(TestSet, "prompts_hash", property(lambda self: self.card.name))
    patch.setattr(Resolved, "_describe_set", lambda self, name, test_set: {"n": len(test_set.rows)})
    return changed(subject, records=None)


def one_byte_of_the_weights(subject, patch):
    return changed(subject, model_sha256="0" + subject.model_sha256[1:])


def template_edited_after_the_run(subject, patch):
    test_set = subject.resolved.sets["pictures"]
    other = replace(test_set, card=replace(test_set.card, templates=("a {}",)))
    return changed(subject, resolved=Resolved(subject.protocol, {"pictures": other}))


def protocols_mixed(subject, patch):
    patch.setattr(survival, "_one_protocol", lambda table: None)
    return changed(subject)


def baseline_of_other_images(subject, patch):
    rows = subject.records.to_pylist()
    others = [row | {"model": "plain", "image_id": f"other/{row['image_id']}"} for row in rows]
    return changed(subject, records=records.table(rows + others), baseline_name="plain")


def no_baseline(subject, patch):
    return changed(subject, baseline_name="plain")


def classes_of_one_text(subject, patch):
    """Two of the four class names become one text to any tokenizer that knows no capitals."""
    test_set = subject.resolved.sets["pictures"]
    names = ("red", "Red ", "blue", "grey")
    return changed(
        subject, resolved=Resolved(subject.protocol, {"pictures": replace(test_set, card=replace(test_set.card, class_names=names))})
    )


def eps_for_images_from_0_to_1(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, eps=(2 / 255, 6 / 255)))


FAULTS = [
    ("2", "a record outside its ball", edited(far_away)),
    ("16", "the first n of a class-sorted set", first_n_of_a_sorted_set),
    ("16", "a set dropped from the list", set_dropped),
    ("16", "rows left at their zero fill", edited(zero_fill)),
    ("16", "attacked rows without a pass", edited(no_pass)),
    ("16", "an image without rows", kept(lambda i, row: row["image_id"] != "picture/0/5")),
    ("16", "an attack's row missing", kept(lambda i, row: i != 20)),
    ("17", "an aggregator that asks the last attack alone", last_attack_alone),
    ("17", "broken images attacked again", everything_attacked_again),
    ("21", "selection on the reported images", selected_on_the_test_set),
    ("22", "a hash that weights do not change", weights_without_hash),
    ("22", "a hash that templates do not change", templates_without_hash),
    ("22", "one byte changed in the weights after the run", one_byte_of_the_weights),
    ("22", "one template edited after the run", template_edited_after_the_run),
    ("22", "records of two protocols counted as one", protocols_mixed),
    ("22", "rows that do not say their versions", edited(lambda row: row | {"versions": None})),
    ("G6", "records that saw gradients that are not finite", edited(lambda row: row | {"nonfinite_gradient": 0.5})),
    ("G7", "clean accuracy on half of the images", kept(lambda i, row: not is_clean(row) or i % 2)),
    ("G7", "robust accuracy on half of the images", kept(lambda i, row: is_clean(row) or row["label"] % 2)),
    ("G9", "no undefended model in the run", no_baseline),
    ("G9", "an undefended model on other images", baseline_of_other_images),
    ("G11", "two classes that are one text", classes_of_one_text),
    ("G12", "eps in units of [0,1]", eps_for_images_from_0_to_1),
]
