"""The notebook runs, and shows what it says."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import skimage.data
from nbclient import NotebookClient
from numpy.typing import NDArray
from PIL import Image

from fgvis_lightning.data.inputs import as_images
from fgvis_lightning.networks.load import load_classifier

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "explain.ipynb"
SIDE = 448  # two screen pixels for each pixel of the network's input


def test_the_notebook_has_no_outputs_of_its_own_and_few_lines() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    steps = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len([line for line in steps if "import" not in line]) <= 6


def picture(output: Any) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def place(part: NDArray[Any], panel: NDArray[Any]) -> tuple[int, int]:
    """Top and left of a picture of the network's input in a panel, in which each pixel covers two by two."""
    height, width = (whole - 2 * side for whole, side in zip(panel.shape[:2], part.shape[:2], strict=True))
    for top in range(height + 1):
        for left in range(width + 1):
            seen = panel[top : top + SIDE : 2, left : left + SIDE : 2]
            if np.abs(seen[0] - part[0]).max() <= 1 and np.abs(seen - part).max() <= 1:
                return top, left
    raise AssertionError("the picture is not in the panel")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|traitlets)")
def test_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    # No warnings, no logs, but for tqdm's where ipywidgets is not installed.
    said = [output.text for output in outputs if output.output_type == "stream" and "IProgress" not in output.text]
    assert not said
    first, *overlays = [output for output in outputs if output.output_type != "stream"]
    panel, *seen = [picture(output) for output in (first, *overlays)]
    photo = Image.fromarray(skimage.data.stereo_motorcycle()[0])
    image = as_images(photo, load_classifier("packaged_efficientnet_lite0").preprocessing)[0].permute(1, 2, 0) * 255
    top, left = place(image.numpy(), panel)
    below, beneath = place(seen[0], panel)
    assert (left, below > top + SIDE, left < SIDE, top < SIDE) == (beneath, True, True, True)
    rows, columns = panel.shape[0] // SIDE, panel.shape[1] // SIDE
    assert (rows, columns in (2, 3)) == (2, True)
    step = (panel.shape[1] - left) // columns
    inner = [panel[top : top + SIDE, left + step * column :][:, 8 : SIDE - 8].std() for column in range(columns)]
    assert inner[1] < inner[2 if columns == 3 else 0], "faint evidence is brightened beside it"
    assert re.fullmatch(r"moped 0\.5\d\d → 0\.5\d\d, \d+\.\d %, reached", first.data["text/plain"])
    assert first.data["text/plain"] in first.data["text/html"]
    assert [one.shape for one in seen] == [(224, 224, 3)] * 2
    assert np.abs(seen[0] - seen[1]).mean() > 10, "another class, other evidence"
