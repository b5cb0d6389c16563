"""The notebook runs, and shows what it says."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "explain.ipynb"


def test_the_notebook_has_no_outputs_of_its_own_and_few_lines() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    steps = [line for cell in cells[:2] for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len([line for line in steps if "import" not in line]) <= 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|traitlets)")
def test_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    # No warnings, no logs, but for tqdm's where ipywidgets is not installed.
    said = [output.text for output in outputs if output.output_type == "stream" and "IProgress" not in output.text]
    assert not said
    picture, scores = [output for output in outputs if output.output_type != "stream"]
    with Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))) as image:
        ratio = image.width / image.height  # one row of pictures, or two where the evidence is faint
        assert ratio > 2.5 or 1.2 < ratio < 1.6
        assert np.asarray(image).std() > 30
    assert "tensor([0.9" in scores.data["text/plain"]
