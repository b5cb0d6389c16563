"""TensorBoard's event files, and a real server in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fit
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from fgvis_lightning import load_explanations
from fgvis_lightning.callbacks.tensorboard import TensorBoardImages, _bars
from fgvis_lightning.defense.coverage import Coverage, Layer
from fgvis_lightning.errors import InputError

CURVES = ["--tensorboard.every_n_iterations", "2", "--trainer.log_every_n_steps", "2", "--data.batch_size", "2"]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def picture(found: EventAccumulator, tag: str) -> NDArray[np.uint8]:
    (image,) = found.Images(tag)
    return np.asarray(Image.open(BytesIO(image.encoded_image_string)).convert("RGB"))


def test_each_item_has_curves_a_panel_and_gates(folder: Path, output: Path) -> None:
    fit(output, folder, *CURVES)
    found = events(output / "tensorboard")
    for explanation in load_explanations(output):
        id, coverage = explanation.ids[0], explanation.coverage
        for name in ("score", "mean evidence"):
            points = found.Scalars(f"{id}/{name}")
            assert [point.step for point in points] == [2, 4]
            assert all(0 <= point.value <= 1 for point in points)
        assert picture(found, f"{id}/panel").shape[1] == 1110
        assert [image.step for image in found.Images(f"{id}/gates")] == [4]
        assert coverage is not None
        assert coverage.closed is not None
        rows = (picture(found, f"{id}/gates") == (29, 90, 158)).all(2).sum(1)
        lengths = rows[rows > 0][[0, -1]].tolist()  # two layers, the image's on top
        assert lengths == pytest.approx((0.58 * 1110 * coverage.closed[0]).tolist(), abs=6)
    assert picture(found, "gates").shape == (600, 1110, 3)
    assert max(len(tag.rpartition("/")[2]) for kind in ("scalars", "images") for tag in found.Tags()[kind]) <= 16
    text = found.Tensors("coverage/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "nonlinearity calls gated" in text
    assert coverage is not None
    assert [row for row in text.splitlines() if f"| {coverage.layers[0].module} |" in row]


@pytest.mark.parametrize("option", ["every_n_iterations", "max_items"])
def test_refuses_negative_numbers(option: str) -> None:
    with pytest.raises(InputError, match=f"Expected {option} from 0"):
        TensorBoardImages(**{option: -1})


def test_many_layers_have_some_of_their_names() -> None:
    layers = tuple(Layer("relu", f"blocks.{number}.act") for number in range(50))
    shown = _bars(Coverage(layers=layers), torch.linspace(0, 1, 50))
    assert shown.shape == (600, 1110, 3)
    ends = [row.nonzero()[0].max() for row in (shown == (29, 90, 158)).all(2) if row.any()]
    assert ends == sorted(ends)


def test_settings_that_differ_come_first(folder: Path, output: Path) -> None:
    fit(output / "one", folder, *CURVES)
    fit(output / "two", folder, *CURVES, "--model.level", "0.5")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(output)).Reload()
    runs = {f"tensorboard{end}" for end in ("", "/final")}
    assert set(multiplexer.Runs()) == {f"{name}/{run}" for name in ("one", "two") for run in runs}
    assert set(EventMultiplexer().AddRunsFromDirectory(str(output / "one")).Runs()) == runs
    provider = MultiplexerDataProvider(multiplexer, str(output))
    context = Context(TBContext(data_provider=provider))
    request = RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), context.hparams_from_data_provider(request, "", 0)
    )
    assert [info.name for info in experiment.hparam_infos if info.differs] == ["level"]
    assert {info.name.tag for info in experiment.metric_infos} == {
        "final/score",
        "final/mean evidence",
        "final/level reached",
    }
    (final,) = events(output / "two" / "tensorboard" / "final").Scalars("final/mean evidence")
    expected = torch.stack([1 - explanation.sparsity for explanation in load_explanations(output / "two")]).mean()
    assert final.value == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.slow
def test_tensorboard_shows_it_in_a_browser(folder: Path, output: Path) -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        assert not os.environ.get("CI"), "CI has a browser"
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver

    fit(output / "one", folder, *CURVES)
    fit(output / "two", folder, *CURVES, "--model.level", "0.5")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(output), "--port", str(port)]
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1400"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            expected = {
                "timeseries": ["photo_0@", "mean evidence", "one/tensorboard"],
                "images": ["photo_0@", "by color channel", "panel", "gates"],
                "text": ["coverage", "nonlinearity"],
                "hparams": ["final/mean evidence", "level", "0.5"],
            }
            for tab, words in expected.items():
                shown = ""
                for _ in range(60):
                    if not shown:
                        driver.get("about:blank")
                        with_server = f"http://127.0.0.1:{port}/#{tab}"
                        try:
                            driver.get(with_server)
                        except Exception:  # it is not up yet
                            time.sleep(1)
                            continue
                    time.sleep(1)
                    shown = _text(driver)
                    if all(word in shown for word in words):
                        break
                assert not [word for word in words if word not in shown], f"{tab}: {shown[:2000]}"
                assert not re.search("No dashboards are active|No (scalar|image|text) data", shown)
        finally:
            driver.quit()
    finally:
        server.terminate()
        server.wait()


def _text(driver: object) -> str:
    """All that is to be read, in shadow roots and frames as well."""
    script = """
      const walk = (node) => {
        if (node.nodeType === Node.TEXT_NODE) return node.textContent + ' ';
        if (['SCRIPT', 'STYLE'].includes(node.nodeName)) return '';
        let text = node.shadowRoot ? walk(node.shadowRoot) : '';
        if (node.nodeName === 'IFRAME' && node.contentDocument) text += walk(node.contentDocument.body);
        for (const child of node.childNodes) text += walk(child);
        return text;
      };
      return document.body ? walk(document.body) : '';
    """
    text: str = driver.execute_script(script)  # type: ignore[attr-defined]
    return text
