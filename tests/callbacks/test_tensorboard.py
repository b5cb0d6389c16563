"""TensorBoard's event files, and a real server in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgvis_lightning import load_explanations

CURVES = ["--tensorboard.every_n_iterations", "2", "--trainer.log_every_n_steps", "2", "--data.batch_size", "2"]


def test_each_item_has_curves_and_gates(folder: Path, output: Path) -> None:
    fit(output, folder, *CURVES)
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    explanations = list(load_explanations(output))
    mean = torch.zeros(3)
    for explanation in explanations:
        id, coverage = explanation.ids[0], explanation.coverage
        for name in ("score", "sparsity"):
            points = events.Scalars(f"{id}/{name}")
            assert [point.step for point in points] == [2, 4]
            assert all(0 <= point.value <= 1 for point in points)
        assert coverage is not None
        assert coverage.closed is not None
        gates = events.Scalars(f"{id}/closed gates by layer")
        assert [point.step for point in gates] == list(range(1, len(coverage.layers) + 1))
        assert torch.tensor([point.value for point in gates]).allclose(coverage.closed[0], atol=1e-5)
        mean = mean[: len(gates)] + coverage.closed[0] / len(explanations)
    overall = [point.value for point in events.Scalars("closed gates by layer")]
    assert torch.tensor(overall).allclose(mean, atol=1e-5)
    text = events.Tensors("coverage/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "nonlinearity calls gated" in text
    assert coverage is not None
    assert [row for row in text.splitlines() if f"| {coverage.layers[0].module} |" in row]


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
                "timeseries": ["photo_0@", "closed gates by layer", "sparsity"],
                "images": ["photo_0@", "mask", "panel"],
                "text": ["coverage", "nonlinearity"],
                "hparams": ["final/sparsity", "level", "0.5"],
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
