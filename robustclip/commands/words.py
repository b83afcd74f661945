"""Write the table of words that a masked language model puts into the class prompts of a protocol; text attacks then need no such model.

Example: robustclip words bert-base-uncased/ --protocol mmcoa-16 --to words.json
then:    robustclip evaluate MODEL --protocol multimodal --table words.json
"""

import argparse

from robustclip.attacks.text.masked import MaskedWords, table_of
from robustclip.attacks.text.words import prompts_of
from robustclip.base import storage
from robustclip.base.ranges import COUNT
from robustclip.evaluation import protocols
from robustclip.runtime import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("model", help="local folder of a masked language model: vocab.txt, config.json, model.safetensors")
    parser.add_argument("--protocol", default="multimodal", help="the sets whose prompts (default: %(default)s)")
    parser.add_argument("--to", default="words.json", help="file to write (default: %(default)s)")
    parser.add_argument("--k", type=cli.taking(COUNT), default=10, help="likely tokens of each word (default: %(default)s)")
    parser.add_argument("--cls-offset", type=int, choices=(0, 1), default=1, help="0: of the row before it, as the published code does")
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, protocols.Protocol, str, str]:
    """Return the command line, the protocol, where results go and the file to write; raises UserError for what cannot be."""
    args = parser().parse_args()
    return args, protocols.named(args.protocol), cli.out_folder(args), cli.file_to_write(args.to)


def run() -> None:
    args, protocol, out, file = asked()
    cli.say_on_terminal()
    source = MaskedWords.read(args.model, k=args.k, cls_offset=args.cls_offset)
    resolved = protocols.resolve(protocol, out)
    cards = [test_set.card for test_set in resolved.sets.values()]
    prompts = {prompt.text: prompt for card in cards for prompt in prompts_of(card.class_names, card.templates)}
    storage.write_json(file, table_of(source, list(prompts.values())))
    print(f"{len(prompts)} prompts of {len(cards)} sets: {file}, from {source.folder} ({source.sha256})")
