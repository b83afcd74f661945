"""Write the statistics of a model's visual tokens over training images, which TAPT aligns every test image to.

Example: robustclip moments outputs/runs/0123456789abcdef/model --data labelled --n 2000 --to moments.safetensors
then:    robustclip evaluate "tapt[adversarial=moments.safetensors,gamma=1]:outputs/runs/0123456789abcdef/model"
"""

import argparse
from typing import get_args

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, PIXELS, SEED, SHARE
from robustclip.runtime import cli, cluster
from robustclip.runtime.logged import located
from robustclip.test_time.moments import Crop
from robustclip.training.statistics import Images, statistics


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("model", help="checkpoint folder, embedded name or open_clip:NAME/TAG of a model with a vision transformer")
    parser.add_argument("--data", default=Images.name, help="set the images are of (default: %(default)s)")
    parser.add_argument("--split", default=Images.split, help="split of it (default: %(default)s)")
    parser.add_argument("--n", type=cli.taking(COUNT), help="images of it (default: all)")
    parser.add_argument("--crop", choices=get_args(Crop), default=Images.crop, help="train: random, as published (default: %(default)s)")
    parser.add_argument("--seed", type=cli.taking(SEED), default=Images.seed, help="of the random crops (default: %(default)s)")
    parser.add_argument(
        "--resize", type=cli.taking(PIXELS), help="scale the shorter side of large images to this first (default: the model's)"
    )
    parser.add_argument("--to", default="moments.safetensors", help="file to write (default: %(default)s)")
    parser.add_argument("--workers", type=cli.taking(COUNT), help="processes at once (default: as many as fit)")
    parser.add_argument("--gpus", type=cli.taking(SHARE), default=1.0, help="share of a GPU each process takes (default: %(default)s)")
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, Images, str, str]:
    """Return the command line, the images, where results go and the file to write; raises UserError for what cannot be."""
    args = parser().parse_args()
    out = cli.out_folder(args)
    args.model = located(args.model, out)
    models.parse(args.model)
    file = cli.file_to_write(args.to)
    if {",", "]"} & set(file):
        raise UserError(f"--to {file}: a model's name, tapt[adversarial=FILE]:MODEL, can hold no file with ',' or ']': choose another")
    return args, Images(args.data, args.n, args.split, args.crop, args.seed, args.resize), out, file


def run() -> None:
    args, images, out, file = asked()
    cli.say_on_terminal()
    cluster.check_address()
    model = models.absolute(args.model)
    cluster.connect()
    cluster.warn_of_local_results(out)
    workers, gpus = cluster.fitting_actors(args.workers, args.gpus)
    targets = statistics(model, images, out, workers=workers, gpus=gpus)
    targets.write(file)
    blocks, tokens, width = targets.mean.shape
    print(f"{targets.count} images of {args.data}, {blocks} blocks, {tokens} tokens of width {width}: {file}")
    print(f"next: {cli.command('evaluate', f'tapt[adversarial={file},gamma=1]:{model}', '--out', args.out)}")
