"""``python train.py pointing``: is the evidence in the object?

Takes a folder of ``fit`` or ``compare``, optionally your own maps, and marked objects in the photos: a CSV file with
columns image, target, x0, y0, x1 and y1 (left, top, right and bottom in pixels of the image file, rotated by its EXIF
orientation; the image as a path relative to the CSV file, or as the end of the explained path), annotations in COCO's
format (boxes, polygons, uncompressed run lengths), or a folder of masks that are black outside of the object, named
after items or images. Objects go through the network's resizing and center crop, like the photos. An item's objects
are all objects of its class in its image.

The pointing game (Zhang et al., ECCV 2016) checks whether the map's maximum is at the object; the energy pointing game
(Wang et al., CVPR workshops 2020) measures the share of the map inside it. Controls without any map are shown as well:
a uniform map or a random point, and the center of the picture, where photographers place objects::

    <output>/pointing.csv, .md         each method's hits with 95 % Wilson intervals, and its shares inside with
                                       95 % bootstrap intervals over images
    <output>/pointing_items.csv        each single item
    <output>/pointing.pdf, .png        some items, with their objects outlined on the maps
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import fill

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.data.explained import check_same_input, explained_image
from fgvis_lightning.data.images import carried, content, upright_size
from fgvis_lightning.data.objects import Marked, by_image, read_masks, read_objects
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import build, new_parser
from fgvis_lightning.experiments.output import save_figure, save_table, write_config
from fgvis_lightning.experiments.own_maps import common_items, find_methods, fitting_map, read, saliency_of, stored
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.statistics import bootstrap, wilson, with_intervals
from fgvis_lightning.metrics import energy_pointing_game, pointing_game
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.results.figures import as_rgb, grid, heat
from fgvis_lightning.results.folder import IMAGE
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import load_metadata, write_whole

UNIFORM, CENTER = "uniform map, random point", "center of the picture"

COLOR = (0.0, 1.0, 0.85)  # color of the outline: unlike skin, grass and wood in photos, and unlike the colors of maps


@dataclass(frozen=True)
class Target:
    """The object at which an item's maps should point."""

    id: str  # of the item
    metadata: Mapping[str, str]  # of its file
    target: int  # index of the class
    mask: Tensor  # of the object or objects, booleans (H,W) of the input's size
    objects: int  # number of objects


def make_parser() -> Parser:
    """The options of ``pointing``."""
    parser = new_parser("pointing", (__doc__ or "").partition("\n\nThe pointing game")[0], "results/pointing")
    parser.add_argument("--results", type=list[str] | str, required=True, help="Folder of fit or compare, or several.")
    parser.add_argument(
        "--truth", type=str, required=True, help="A CSV file with boxes, a COCO file FILE.json, or a folder of masks."
    )
    parser.add_argument("--maps", type=dict[str, str], default={}, help="Your own maps, as in evaluate.")
    parser.add_argument("--tolerance", type=int, default=15, help="Tolerated distance from the object, in pixels.")
    parser.add_argument("--sheet", type=int, default=6, help="Items in the figure; 0 for none.")
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, measure, and write tables and a figure."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.results or config.tolerance < 0 or config.sheet < 0:
        raise InputError(
            f"Expected folders in --results, and --tolerance and --sheet of at least 0, but got {config.results}, "
            f"{config.tolerance} and {config.sheet}."
        )
    methods = find_methods(config.results, config.maps)
    ids = common_items(methods)
    objects = build(parser, config)
    classifier = from_options(**vars(objects.model))
    source = stored(methods)
    targets, left_out = find_targets({id: source[id] for id in ids}, config.truth, classifier)
    print(f"{classifier.described}\n{len(targets):,} items by {', '.join(methods)}")
    for what, count in left_out.items():
        if count:
            print(f"left out: {count:,} {what}")
    if not targets:
        raise InputError(
            f"Expected objects of the items' images and classes, but {config.truth} has none for {len(ids):,} items "
            f"({', '.join(f'{count:,} {what}' for what, count in left_out.items())})."
        )
    output = Path(config.output)
    write_config(output, parser.prog, parser.dump(config, skip_none=False))
    items = measure(targets, methods, config.tolerance)
    table = summary(items, [*methods, UNIFORM, CENTER])
    write_whole(output / "pointing_items.csv", items.csv().encode())
    markdown = with_intervals(table)
    save_table(output / "pointing", table, markdown)
    print(f"\n{markdown}")
    if config.sheet:
        places = dict.fromkeys(len(targets) * place // config.sheet for place in range(config.sheet))
        _draw_sheet(output / "pointing", [targets[place] for place in places], methods, items, classifier)
        print(f"Look at {output / 'pointing.png'}; single items: {output / 'pointing_items.csv'}")


def find_targets(paths: Mapping[str, Path], truth: str, classifier: Classifier) -> tuple[list[Target], dict[str, int]]:
    """The items with an object in the network's input, and the reasons for leaving items out → counts.

    ``paths``: item id → its file; for ``truth``, see the module.

    Raises:
        InputError: a file cannot be read, does not fit, or belongs to another image or network.
    """
    size = cache(lambda path: upright_size(path, classifier.preprocessing))
    items = {id: load_metadata(path) for id, path in paths.items()}
    if nameless := [id for id, metadata in items.items() if "image" not in metadata]:
        raise InputError(f"Expected explanations of image files, but {nameless[0]} does not name its image.")
    marked = _marked({id: metadata["image"] for id, metadata in items.items()}, truth, classifier)
    without, cut = "items without an object of their class", "items whose objects are outside of the crop"
    lost = "objects outside of the crop, or too small for a pixel"
    left_out, targets = dict.fromkeys((without, cut, lost), 0), []
    for id, metadata in items.items():
        index, path = int(metadata["target"]), metadata["image"]
        own = [one for one in marked[id] if one.target in (index, None)]
        if not own:
            left_out[without] += 1
            continue
        sha256 = metadata.get(IMAGE)
        if sha256 is not None and content(path) != sha256:
            raise InputError(
                f"Expected the image that was explained, but {path} has changed. Restore the original image."
            )
        check_same_input(metadata, id, classifier.preprocessing)
        masks = [carried(one.shape.mask(*size(path)), classifier.preprocessing) for one in own]
        seen = [mask for mask in masks if mask.any()]
        left_out[lost] += len(masks) - len(seen)
        if seen:
            targets.append(Target(id, metadata, index, torch.stack(seen).any(0), len(seen)))
        else:
            left_out[cut] += 1
    return targets, left_out


def _marked(images: Mapping[str, str], truth: str, classifier: Classifier) -> dict[str, list[Marked]]:
    """Item id → the objects of its image, of all classes; ``images``: item id → path of its image."""
    if not Path(truth).is_dir():
        found = by_image(read_objects(truth, classifier), dict.fromkeys(images.values()))
        return {id: found.get(path, []) for id, path in images.items()}
    masks = read_masks(Path(truth))
    stems: dict[str, set[str]] = {}
    for path in images.values():
        stems.setdefault(Path(path).stem, set()).add(path)
    chosen = {}
    for id, path in images.items():
        stem = Path(path).stem
        names = [id, id.rpartition("@")[0], *([stem] if len(stems[stem]) == 1 else [])]
        chosen[id] = [masks[name] for name in names if name in masks][:1]
    return chosen


def measure(targets: Sequence[Target], methods: Mapping[str, Mapping[str, Path]], tolerance: int) -> Table:
    """A row for each item and method, and for each item and control.

    Raises:
        InputError: a map cannot be read, or its size is not that of the network's input.
    """
    table = Table(("id", "image", "target", "method", "objects", "share of the picture", "hit", "energy inside"))
    for target in targets:
        mask = target.mask[None]
        share = float(mask.float().mean())
        own = (target.id, target.metadata["image"], target.target)
        for name, paths in methods.items():
            saliency = fitting_map(read(paths[target.id]), mask.shape[1:], target.id, name)
            found = float(pointing_game(saliency, mask, tolerance)), float(energy_pointing_game(saliency, mask))
            table.add((*own, name, target.objects, share, *found))
        near = within_reach(target.mask, tolerance)
        middle = near[near.shape[0] // 2, near.shape[1] // 2]
        table.add((*own, UNIFORM, target.objects, share, float(near.float().mean()), share))
        table.add((*own, CENTER, target.objects, share, float(middle), math.nan))
    return table


def within_reach(mask: Tensor, tolerance: int) -> Tensor:
    """The places where a map's maximum is a hit of `pointing_game`: booleans (H,W), like the mask."""
    reach = max(tolerance - 1, 0)
    steps = torch.arange(-reach, reach + 1)
    distance = steps[:, None] ** 2 + steps**2
    disk = ((distance < tolerance**2) | (distance == 0)).float()
    return F.conv2d(mask[None, None].float(), disk[None, None], padding=reach)[0, 0] > 0.5


def summary(items: Table, methods: Sequence[str]) -> Table:
    """Means with intervals, a row for each method and each control."""
    columns = ("hits", "energy inside", "energy above the object's share")
    table = Table(("method", "items", "images", *(f"{name}{end}" for name in columns for end in ("", " from", " to"))))
    whole = items.named()
    for name in methods:
        rows = [row for row in whole if row["method"] == name]
        images = [str(row["image"]) for row in rows]
        hits, energy, share = (
            torch.tensor([row[column] for row in rows], dtype=torch.float64)
            for column in ("hit", "energy inside", "share of the picture")
        )
        count, rate = len(set(images)), float(hits.mean())
        # The rate of a random point is not a count of hits; it is known for each image.
        pointed = bootstrap(hits, images) if name == UNIFORM else (rate, *wilson(rate * count, count))
        table.add((name, len(rows), count, *pointed, *bootstrap(energy, images), *bootstrap(energy - share, images)))
    return table


def outlined(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture (3,H,W) with a line around the mask (H,W), about 1/100 of the picture wide."""
    wide = max(1, round(min(mask.shape) / 200))
    marked = F.pad(mask[None, None].float(), [wide] * 4)  # an object cut by the crop has an edge there
    inner = 1 - F.max_pool2d(1 - marked, 2 * wide + 1, 1, wide)[0, 0, wide:-wide, wide:-wide]
    outer = F.max_pool2d(marked, 2 * wide + 1, 1, wide)[0, 0, wide:-wide, wide:-wide]
    return torch.where(outer > inner, torch.tensor(COLOR)[:, None, None], picture)


def _draw_sheet(
    path: Path,
    targets: Sequence[Target],
    methods: Mapping[str, Mapping[str, Path]],
    items: Table,
    classifier: Classifier,
) -> None:
    """A row for each item: the photo and each method's map, with the outlined object and its row in ``items``."""
    measured = {(row["id"], row["method"]): row for row in items.named()}
    rows = []
    for target in targets:
        photo = as_rgb(explained_image(target.metadata, classifier.preprocessing), classifier.preprocessing.bands)
        row = [(outlined(photo, target.mask), fill(classifier.class_name(target.target), 20))]
        for name, paths in methods.items():
            saliency = saliency_of(read(paths[target.id]))[0]
            found = measured[target.id, name]
            text = f"{'hit' if found['hit'] else 'miss'}, {100 * found['energy inside']:.0f} % inside"
            row.append((outlined(heat(saliency), target.mask), text))
        rows.append(row)
    heads = ["object", *(fill(name, 16) for name in methods)]
    save_figure(path, grid(rows, heads, [str(number + 1) for number in range(len(rows))], 1.5))
