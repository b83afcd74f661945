"""Write the statistics of a model's visual tokens over training images, which TAPT aligns every test image to.

Example: robustclip moments outputs/runs/0123456789abcdef/model --data labelled --n 2000 --to moments.safetensors
then:    robustclip evaluate "tapt[adversarial=moments.safetensors,gamma=1]:outputs/runs/0123456789abcdef/model"
"""

import argparse
from typing import get_args

from robustclip import names as models
from robustclip.runtime import cli, cluster
from robustclip.test_time.moments import Crop
from robustclip.training.statistics import Images, statistics


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, embedded name or open_clip:NAME/TAG of a model with a vision transformer")
    parser.add_argument("--data", default=Images.name, help="set the images are of (default: %(default)s)")
    parser.add_argument("--split", default=Images.split, help="split of it (default: %(default)s)")
    parser.add_argument("--n", type=int, help="images of it (default: all)")
    parser.add_argument("--crop", choices=get_args(Crop), default=Images.crop, help="train: random, as published (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Images.seed, help="of the random crops (default: %(default)s)")
    parser.add_argument("--resize", type=int, help="scale the shorter side of large images to this first (default: the model's size)")
    parser.add_argument("--to", default="moments.safetensors", help="file to write (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes at once (default: as many as fit)")
    parser.add_argument("--gpus", type=float, default=1.0, help="share of a GPU each process takes (default: %(default)s)")
    cli.add_out(parser)
    return parser


def run() -> None:
    args = parser().parse_args()
    cli.say_on_terminal()
    images = Images(args.data, args.n, args.split, args.crop, args.seed, args.resize)
    out, file, model = cli.out_folder(args), cli.file_to_write(args.to), models.absolute(args.model)
    cluster.check_address()
    cluster.connect()
    cluster.warn_of_local_results(out)
    workers, gpus = cluster.fitting_actors(args.workers, args.gpus)
    targets = statistics(model, images, out, workers=workers, gpus=gpus)
    targets.write(file)
    blocks, tokens, width = targets.mean.shape
    print(f"{targets.count} images of {args.data}, {blocks} blocks, {tokens} tokens of width {width}: {file}")
    print(f'next: robustclip evaluate "tapt[adversarial={file},gamma=1]:{model}"')
