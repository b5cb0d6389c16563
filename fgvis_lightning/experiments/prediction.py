"""``python train.py predict``: what does the network predict?

Prints the most probable classes of each image with their probabilities, as the explanations of ``fit`` see them: to
check the preprocessing and the class names, and to find classes for ``--data.targets``. It writes no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.data.items import list_items
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import add_device, build, chosen_device, network_parser
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.networks.logits import checked
from fgvis_lightning.results.numbers import probability


def make_parser() -> Parser:
    """The options of ``predict``."""
    parser = network_parser("predict", __doc__ or "")
    parser.add_argument("--data.images", type=str | list[str], required=True, help="As in fit.")
    parser.add_argument("--top", type=int, default=5, help="Number of classes to print for each image.")
    add_device(parser)
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line and print the predictions; images that cannot be read are reported at the end."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    if config.top < 1:
        raise InputError(f"Expected --top to be at least 1, but got {config.top}.")
    objects = build(parser, config)
    classifier = from_options(**vars(objects.model))
    items = list_items(config.data.images, "top1", classifier)
    network = classifier.network.to(device := chosen_device(config.device))
    print(classifier.described, flush=True)
    unreadable = []
    for item in items:
        try:
            image = load_image(item.path, classifier.preprocessing, upscale=True)
        except InputError as error:
            unreadable.append(str(error))
            continue
        x = classifier.preprocessing.normalize(as_float(image))[None].to(device)
        with torch.no_grad():
            logits = checked(network(x), x, classifier)[0]
            every = torch.arange(len(logits), device=device)
            found, order = classifier.task.probability(logits.expand(len(logits), -1), every).sort(descending=True)
        print(f"\n{item.image_id}")
        for index, value in zip(order[: config.top].tolist(), found.tolist(), strict=False):
            print(f"{probability(value):>7}  {classifier.class_name(index)}", flush=True)
    if unreadable:
        raise InputError("\n  ".join([f"{len(unreadable)} of {len(items)} images could not be read:", *unreadable]))
