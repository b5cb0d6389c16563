"""Curves of an evaluation, and its best and worst items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.experiments.judgements import Judgement
from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.experiments.own_maps import read
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import brightened, explanation_image, grid, heat

NAMED = 8
"""Methods with their own color in each panel of the curves: the best ones, and FGVis; the rest are gray."""


def draw_curves(path: Path, judgements: Sequence[Judgement], methods: Sequence[str]) -> None:
    """Mean score over the share of deleted or inserted pixels, for each method."""
    figure = Figure(figsize=(10, 4), dpi=200, layout="constrained")
    colors = dict(zip(methods, colormaps["tab20"].colors * len(methods), strict=False))  # type: ignore[attr-defined]
    for place, kind in zip(figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), strict=True):
        own = {name: [one for one in judgements if one.method == name] for name in methods}
        auc = {name: sum(one.values[kind] for one in ones) / len(ones) for name, ones in own.items()}
        ranked = sorted(methods, key=lambda name: auc[name], reverse=kind == "insertion")
        named = [name for number, name in enumerate(ranked) if number < NAMED or name.startswith("FGVis")]
        for name in [name for name in ranked if name not in named] + named[::-1]:
            curve = torch.stack([getattr(one, kind) for one in own[name]]).mean(0)
            share = torch.linspace(0, 100, len(curve))
            color, width = (colors[name], 1.2) if name in named else ("0.8", 0.8)
            label = f"{name}: {auc[name]:.3f}" if name in named else "_"
            place.plot(share, curve, label=label, color=color, linewidth=2.4 if name.startswith("FGVis") else width)
        handles, labels = place.get_legend_handles_labels()
        rest = f", and {len(ranked) - len(named)} more in gray" if len(ranked) > len(named) else ""
        title = f"area under the curve, best first{rest}"
        place.legend(handles[::-1], labels[::-1], fontsize=7, title=title, title_fontsize=7, frameon=False)
        place.set_xlabel(f"pixels {'deleted' if kind == 'deletion' else 'inserted'}, %")
        place.set_ylabel("score of the class" if kind == "deletion" else "")
        place.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure)


def draw_extremes(
    path: Path,
    judgements: Sequence[Judgement],
    files: Mapping[str, Path],
    method: str,
    classifier: Classifier,
    count: int,
) -> None:
    """The items of one method with the lowest and the highest deletion AUC, side by side."""
    ranked = sorted((one for one in judgements if one.method == method), key=lambda one: one.values["deletion"])
    count = min(count, (len(ranked) + 1) // 2)
    best, worst = ranked[:count], ranked[::-1][:count]
    rows = []
    for pair in zip(best, worst, strict=True):
        row = []
        for one in pair:
            image = as_float(load_image(one.image, classifier.preprocessing, upscale=True))
            found = read(files[one.id])
            texts = [
                f"{fill(classifier.class_name(one.target), 18)}",
                f"deletion {one.values['deletion']:.3f}",
                f"insertion {one.values['insertion']:.3f}",
            ]
            if isinstance(found, Explanation):
                background = classifier.preprocessing.background().to(image)
                views = [brightened(found.evidence[0]), explanation_image(image, found.evidence[0], background)]
            else:
                saliency = found[0] if isinstance(found, torch.Tensor) else found.saliency()[0]
                views = [heat(saliency), image * brightened(saliency)]
            row += list(zip([image, *views], texts, strict=True))
        rows.append(row)
    columns = ["best", method, "evidence", "worst", method, "evidence"]
    save_figure(path, grid(rows, columns, [str(number + 1) for number in range(count)], 1.3))
