"""Draw the pictures of the gallery, with the demo's network and photos: ``python docs/gallery.py [NAME …]``.

The pictures are drawn from explanations that the package's commands store in results/gallery. Existing explanations are
not computed again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor

from fgvis_lightning import Explanation, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.photos import packaged
from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.results.figures import brightened, explanation_image, grid, made_visible

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "gallery"
GAMES = ("preservation", "deletion", "generation", "repression")


def fit(config: str, photo: str, folder: str, *options: str) -> list[Explanation]:
    """Explain one of scikit-image's photos with a configuration; explanations are sorted by item id."""
    output = RESULTS / folder
    source = ["--data.images", f"package:skimage/data/{photo}", "--output", str(output)]
    main(["fit", "--config", str(ROOT / "configs" / f"{config}.yaml"), *source, *options])
    return list(load_explanations(output))


def picture(photo: str, preprocessing: Preprocessing) -> Tensor:
    """A photo as resized and cropped for the network (3,H,W), in [0,1]."""
    return load_image(packaged(f"skimage/data/{photo}"), preprocessing) / 255


Row = list[tuple[Tensor | None, str]]


def save(name: str, rows: list[Row], columns: list[str], names: list[str], inches: float) -> None:
    """A figure as JPEG, of at most 1600 pixels in width."""
    save_figure(RESULTS / name, grid(rows, columns, names, inches))
    with Image.open(RESULTS / f"{name}.png") as drawn:
        image = drawn.convert("RGB")
    image.thumbnail((1600, 1600), Image.Resampling.LANCZOS)
    image.save(ROOT / "docs" / f"gallery_{name}.jpg", quality=70, optimize=True)


def views(found: Explanation, image: Tensor, preprocessing: Preprocessing) -> tuple[tuple[Tensor, str], ...]:
    """The explanation with both scores, brightened if it is faint, and the brightened mask with its mean."""
    evidence, how = made_visible(found.evidence[0])
    scores = f"p = {float(found.score_image):.2f} → {float(found.score_explanation):.2f}"
    shown = explanation_image(image, evidence, preprocessing.background())
    return (shown, "\n".join(filter(None, (scores, how)))), masked(found)


def masked(found: Explanation) -> tuple[Tensor, str]:
    """The brightened mask with its mean."""
    evidence = found.evidence[0]
    return brightened(evidence), f"mean {100 * float(evidence.mean()):.1f} %"


def games(preprocessing: Preprocessing) -> None:
    """One photo, four games."""
    image = picture("chelsea.png", preprocessing)
    rows: list[Row] = [[(image, "")], [(None, "")]]
    for game in GAMES:
        (found,) = fit(game, "chelsea.png", f"games/{game}")
        for row, view in zip(rows, views(found, image, preprocessing), strict=True):
            row.append(view)
    save("games", rows, ["image", *GAMES], ["evidence", "mask"], 1.7)


def channels(preprocessing: Preprocessing) -> None:
    """Part of a photo, its mask and the mask's channels; every pixel of the mask is a square."""
    (found,) = fit("preservation", "coffee.png", "channels")
    evidence, image = found.evidence[0], picture("coffee.png", preprocessing)
    top, left, side = 40, 40, 72
    part = (slice(None), slice(top, top + side), slice(left, left + side))
    shown = explanation_image(image, evidence, preprocessing.background())
    mask = evidence[part]
    row: Row = [(image[part], ""), (shown[part], ""), (mask, "")]
    row += [(one.expand_as(mask), f"mean {100 * float(one.mean()):.1f} %") for one in mask]
    columns = ["image", "evidence", "mask", "its red channel", "its green channel", "its blue channel"]
    save("channels", [row], columns, ["espresso"], 1.5)


def classes(preprocessing: Preprocessing) -> None:
    """One photo, three classes."""
    photo, names = "motorcycle_left.png", ["moped", "disk brake", "crash helmet"]
    found = fit("preservation", photo, "classes", "--data.targets", f"[{', '.join(names)}]")
    by_name = {one.name(0): one for one in found}
    image = picture(photo, preprocessing)
    rows: list[Row] = [[(image, "")], [(None, "")]]
    for name in names:
        for row, view in zip(rows, views(by_name[name], image, preprocessing), strict=True):
            row.append(view)
    save("classes", rows, ["image", *names], ["evidence", "mask"], 1.7)


def defense(preprocessing: Preprocessing) -> None:
    """A class that is not there, with and without gates."""
    options = ("--model.lam", "0", "--model.iterations", "60", "--model.patience", "0", "--data.targets", "strawberry")
    image = picture("rocket.jpg", preprocessing)
    rows: list[Row] = []
    for game in ("generation", "preservation"):
        row: Row = [(image, "")]
        for defended in ("false", "true"):
            output = f"defense/{game}_{defended}"
            (found,) = fit(game, "rocket.jpg", output, *options, "--model.defended", defended)
            shown = explanation_image(image, found.evidence[0], preprocessing.background())
            row += [(shown, f"p(strawberry) = {float(found.score_explanation):.3f}"), masked(found)]
        rows.append(row)
    columns = ["image", "undefended:\nexplanation", "mask", "defended:\nexplanation", "mask"]
    save("defense", rows, columns, ["generation", "preservation"], 1.6)


FIGURES: dict[str, Callable[[Preprocessing], None]] = {one.__name__: one for one in (games, channels, classes, defense)}


if __name__ == "__main__":
    own = load_classifier("packaged_efficientnet_lite0").preprocessing
    for chosen in sys.argv[1:] or FIGURES:
        FIGURES[chosen](own)
