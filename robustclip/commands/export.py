"""Write a model as other programs take it, with its robust card (README.md): what it withstood, how it was made, what was not measured.

Example: robustclip export outputs/runs/0123456789abcdef/model --as open_clip --to my-robust-clip
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.staging import staged
from robustclip.data import card as data_card
from robustclip.models import checkpoints, exporting, zoo
from robustclip.models.model import Model
from robustclip.results import model_card
from robustclip.runtime import cli
from robustclip.runtime.logged import located

RECORD = "robustclip.json"  # whose export a folder is
CARD = "README.md"
LIBRARIES = {"open_clip": "open_clip", "hf": "transformers", "visual": "pytorch"}
USE = {
    "open_clip": "import open_clip\n\n"
    "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:FOLDER')\n"
    "tokenizer = open_clip.get_tokenizer('local-dir:FOLDER')",
    "hf": "from transformers import CLIPModel, CLIPProcessor\n\n"
    "model = CLIPModel.from_pretrained('FOLDER')\n"
    "processor = CLIPProcessor.from_pretrained('FOLDER')",
    "visual": "import open_clip\nimport torch\n\n"
    "model, _, preprocess = open_clip.create_model_and_transforms(ARCHITECTURE, TAG)  # of the base: the text tower is as it was\n"
    f"model.visual.load_state_dict(torch.load('FOLDER/{exporting.TOWER}', weights_only=True))",
}


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("model", help="checkpoint folder, or any other name of one CLIP: interpolate:0.5:CHECKPOINT, open_clip:NAME/TAG")
    forms = "; ".join(f"{form}: {what}" for form, what in exporting.FORMS.items())
    parser.add_argument("--as", dest="form", required=True, choices=exporting.FORMS, help=forms)
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder to write; one that is not this model's export is left alone")
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, str, str]:
    """Return the command line, where results are and the folder to write; raises UserError for what cannot be."""
    args = parser().parse_args()
    out = cli.out_folder(args)
    args.model = located(args.model, out)
    models.parse(args.model)
    return args, out, cli.file_to_write(args.to)


def run() -> None:
    args, out, folder = asked()
    cli.say_on_terminal()
    name = models.absolute(args.model)
    sha256 = models.identity(name)
    check_free(folder, sha256)
    model = models.load_exactly(name, sha256)
    reports, unfinished = model_card.measured(out, sha256)
    about = about_of(model, sha256, args.form, storage.name_of(folder), out)
    with staged(folder, replace=True) as stage:
        exporting.write(model, args.form, stage)
        storage.write_bytes(storage.join(stage, CARD), model_card.written(about, reports, unfinished).encode())
        files = sorted(storage.name_of(path) for path in storage.list_files(stage))
        record = {"format": 1, "as": args.form, "model": about.source, "sha256": sha256, "files": [*files, RECORD]}
        storage.write_json(storage.join(stage, RECORD), record)
    numbers = (
        ", ".join(f"protocol {found.protocol['name']} ({found.protocol_hash[:12]})" for found in reports) or "none: nothing was measured"
    )
    print(f"{exporting.FORMS[args.form]}\nnumbers of the card  {numbers}\nexport               {folder}")
    if not reports:
        print(f"next: {cli.command('evaluate', name, '--out', args.out)}, then the same command again")


def check_free(folder: str, sha256: str) -> None:
    """Raise UserError for a folder that is there, unless it is empty or an export of these weights and nothing else."""
    if not storage.exists(folder) or (os.path.isdir(folder) and not os.listdir(folder)):
        return
    path = storage.join(folder, RECORD)
    record = storage.read_json(path) if storage.exists(path) else {}
    if record.get("sha256") != sha256:
        raise UserError(f"{folder} is there already and no export of this model: choose another folder, or move it away")
    there = os.listdir(folder) if storage.is_local(folder) else map(storage.name_of, storage.list_files(folder))
    if others := sorted({*there} - {*record["files"]}):
        raise UserError(f"{folder} holds what no export wrote ({others[0]}), which would be gone: choose another folder, or move it away")


def about_of(model: Model, sha256: str, form: str, called: str, out: str) -> model_card.About:
    """Return what the card says beside the numbers; paths of this machine stay here."""
    base = (model.card.get("base") or {}).get("name", "")
    training = without_paths(model.card.get("config") or {})
    hub, licence = origin_of(base or model.name)
    data = str((training.get("data") or {}).get("name", ""))
    said = f"{shown(base)} (sha256 {model.card['base'].get('sha256', 'not said')})" if base else ""
    use = USE[form].replace("FOLDER", called)
    if base.startswith(zoo.ZOO) and (tag := zoo.on(zoo.split(base)[1])[0]):
        use = use.replace("ARCHITECTURE, TAG", f"'{zoo.split(base)[0]}', '{tag}'")
    licences = {data: licence_of(data, out)} if data else {}
    return model_card.About(called, shown(model.name), sha256, LIBRARIES[form], use, said, hub, licence, licences, training)


def shown(name: str) -> str:
    """Return what a model is called outside this machine: of a path its last part."""
    if not name.startswith(zoo.ZOO):
        return models.display_name(name)
    begun, file = zoo.on(zoo.split(name)[1])
    return f"{zoo.ZOO}{zoo.split(name)[0]}/{begun}{'//' if begun else '/'}{storage.name_of(file)}" if file else name


def without_paths(value: Any) -> Any:
    """Return a config in which a path is its last part, and a model what it is called outside this machine."""
    if isinstance(value, dict):
        return {key: shown(each) if key == "model" and isinstance(each, str) else without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    return storage.name_of(value) if isinstance(value, str) and value.startswith("/") else value


def origin_of(name: str) -> tuple[str, str]:
    """Return the hub's name of a base and a hub's name of its weights' licence, "" for what is not known."""
    if name in checkpoints.embedded():
        return "", "apache-2.0"
    if not name.startswith(zoo.ZOO):
        return "", ""
    from open_clip.pretrained import get_pretrained_cfg

    architecture, source = zoo.split(name)
    if architecture.startswith(zoo.HUB):
        return architecture.removeprefix(zoo.HUB), ""
    tag, _ = zoo.on(source)
    known: Mapping[str, Any] = get_pretrained_cfg(architecture, tag) or {}
    return str(known.get("hf_hub") or "").rstrip("/"), "mit" if tag == "openai" else ""


def licence_of(name: str, out: str) -> str:
    """Return the licence that the card of a training set under `out` notes, "" where it is not there."""
    data = storage.join(out, "data")
    there = [each for each in storage.list_folders(data) if each == name or each.startswith(f"{name}-r")]
    cards = [storage.join(data, each) for each in there if storage.exists(storage.join(data, each, data_card.CARD))]
    return data_card.load(cards[0]).licence if cards else ""
