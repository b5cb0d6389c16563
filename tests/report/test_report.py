from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from datetime import datetime
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import NETWORK
from made_results import EVIL, attribution, evaluation, explanation, photo, run
from PIL import Image

from fgvis_lightning import InputError, load_explanation
from fgvis_lightning.cli import main
from fgvis_lightning.report.gather import gather
from fgvis_lightning.report.sections import read_markdown
from fgvis_lightning.results.figures import brightest
from fgvis_lightning.results.numbers import USUAL
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import load_metadata, save_tensors


class Page(HTMLParser):
    """A page's elements, the JSON that it carries, and the words that it shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data: dict[str, Any] = {}
        self.words = ""
        self.policy = ""
        self.text = path.read_text(encoding="utf-8")
        self._script: str | None = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        own = dict(attrs)
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policy = own["content"] or ""
        self._script = (own.get("id") or "") if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.data[self._script] = json.loads(data)
        elif self._script is None:
            self.words += data


def report(folder: Path, *more: str) -> Path:
    main(["report", str(folder), *more])
    return folder / "report.html"


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["report", *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def picture(url: str) -> Any:
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB")).astype(float)


def test_a_page_has_all_items_with_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run")
    evaluation(folder / "evaluation", "run", {"0000@cat": 0.125, "0001@dog": 0.25})
    page = Page(report(folder))
    assert "Look at" in capsys.readouterr().out
    rows = page.data["rows"]
    assert [row["id"] for row in rows] == ["0000@cat", "0001@dog", "0002@cat", "0003@dog", "torn"]
    assert [row["state"] for row in rows] == ["reached", "reached", "reached", "missed", "failed"]
    assert [row["deletion"] for row in rows] == [0.125, 0.25, None, None, None]
    assert rows[1]["score_image"] == pytest.approx(0.4, abs=1e-5)
    assert rows[1]["score_explanation"] == pytest.approx(0.2, abs=1e-5)
    assert rows[1]["evidence"] == pytest.approx(0.125 / 2, abs=1e-5)
    assert "sparsity" not in page.text.partition("<script>")[0]
    view = page.data["view-0"]
    assert view["curves"] == [[0.25, 0.1875, 0.125, 0.0625, 0], [0, 0.25, 0.5, 0.75, 1]]
    assert view["metadata"]["network"] == "Tiny"
    assert view["settings"]["level"] == "1.0"
    assert [row["agreement"] for row in rows] == [None, 0.875, None, 0.875, None]
    assert page.data["view-1"]["metadata"]["seeds"] == "3"
    assert "view-4" not in page.data


@pytest.mark.parametrize(
    ("items", "numbers"),
    [
        (1, ()),
        (
            2,
            (
                "items2",
                "score on the image0.333 to 0.667",
                "mean evidence3.1 to 6.2 %",
                f"agreement of the runs ({USUAL})0.875",
            ),
        ),
        (4, ("items4", "level reached3 of 4", "score on the image0.200 to 0.800", "mean evidence3.1 to 12.5 %")),
        (5, ("items5", "level reached4 of 5", "median score on the image0.500", "median mean evidence9.4 %")),
    ],
)
def test_two_items_have_an_overview_and_five_have_medians(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], items: int, numbers: tuple[str, ...]
) -> None:
    page = Page(report(run(tmp_path / "run", items)))
    words = re.sub(r"\s+", " ", page.words)
    assert ("Overview" in words, "curves were not computed" in words) == (items > 1, items > 1)
    assert [number for number in numbers if number not in words] == []
    assert ("median" in words) == (items >= 5)
    assert " evaluate --results" not in page.text  # the command has the folder of whoever sends the page
    command = f"fgvis evaluate --results {tmp_path / 'run'} --output {tmp_path / 'run' / 'evaluation'}"
    printed = capsys.readouterr().out
    assert f"run this with the run's network options, then `report` again:\n  {command}\n" in printed
    evaluation(tmp_path / "run" / "evaluation", "run", {"0000@cat": 0.125})
    report(tmp_path / "run")
    assert " evaluate --results" not in capsys.readouterr().out


@pytest.mark.parametrize(("items", "plots"), [(9, 0), (10, 4)])
def test_pictures_come_first_and_plots_from_ten_items_on(tmp_path: Path, items: int, plots: int) -> None:
    page = Page(report(run(tmp_path / "run", items)))
    assert page.tags.count("svg") == plots
    assert page.text.index('id="items"') < page.text.index('id="overview"')


def test_the_head_says_what_is_there(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 18)  # 16 photos
    for number, path in enumerate(sorted((folder / "explanations").iterdir())):
        os.utime(path, (86_400 * (20_000 - number),) * 2)
    newest = datetime.fromtimestamp(86_400 * 20_000)
    page = Page(report(folder))
    assert f"16 photos, 18 items; newest explanation of {newest.day} {newest:%B %Y}" in page.words
    assert "<title>run – FGVis report</title>" in page.text
    titled = Page(report(folder, "--title", f"Cats & {EVIL}"))
    assert titled.words.count(f"Cats & {EVIL}") == 2  # title and heading
    assert titled.tags == page.tags
    assert "1 photo, 1 item;" in Page(report(explanation(tmp_path / "one", "a@cat", "a.png").parent.parent)).words


def test_the_page_explains_itself_as_the_documentation_does(tmp_path: Path) -> None:
    explanation(tmp_path / "run", "a@cat", "a.png")
    page = Page(report(tmp_path / "run"))
    assert '<details id="how">' in page.text  # closed
    words = re.sub(r"\s+", " ", page.words)
    reading = re.sub(r"\s+", " ", (Path(__file__).parents[2] / "docs" / "how-to" / "reading.md").read_text())
    for sentence in (
        "evidence on the mean color of the network's normalization; everything else is removed",
        "is exactly the picture that the network classifies",
        "they are not colors of the image",
        "The scores are those of the original evidence",
        "The mask does not reach the goal of the game",
    ):
        assert sentence in words
        assert sentence in reading
    assert "runs agree" not in words
    explanation(tmp_path / "run", "a@cat", "a.png", agreement=0.5)
    words = re.sub(r"\s+", " ", Page(report(tmp_path / "run")).words)
    for sentence in (
        f"Near 1, a single run with another seed gives the same mask; near 0, a different one; {USUAL}, since",
        "about 0.95 in preservation and generation, and by 0.5 to 0.6 in deletion and repression",
    ):
        assert sentence in words
        assert sentence in reading


def test_the_second_score_is_called_what_it_is(tmp_path: Path) -> None:
    kept, lost = "score on the explanation", "score without the evidence"
    for number in range(2):
        for game in ("preservation", "deletion"):
            explanation(tmp_path / game, f"{number}@cat", "a.png", game=game, score=(number + 1) / 4)
            explanation(tmp_path / "both" / game, f"{number}@cat", "a.png", game=game, score=(number + 1) / 4)
    for folder, name, other in (("preservation", kept, lost), ("deletion", lost, kept)):
        page = Page(report(tmp_path / folder))
        assert f"{name}\n0.125 to 0.250" in re.sub(r"\s*\n\s*", "\n", re.sub("<[^>]*>", "\n", page.text))
        assert f'<option value="score_explanation">{name}</option>' in page.text
        assert other not in page.words
        assert page.data["view-0"]["after"] == name
        assert "runs merged (seeds)3" in page.words
    both = Page(report(tmp_path / "both"))
    assert f"median {kept}" in both.words
    assert f"median {lost}" in both.words
    assert '<option value="score_explanation">second score</option>' in both.text
    attribution(tmp_path / "map", "0@cat", "a.png", "Grad-CAM")
    assert "score_explanation_from" in both.text
    assert 'value="score_explanation"' not in (text := Page(report(tmp_path / "map")).text)
    assert "score_explanation_from" not in text


def test_channels_are_called_what_they_are(tmp_path: Path) -> None:
    path = explanation(tmp_path / "run", "a@cat", tmp_path / "gone.png")
    item, before = load_explanation(path), load_metadata(path)
    for count, bands in ((5, "5 1 2"), (1, "")):
        settings = json.loads(before["settings"]) | {"mean": [0.5] * count, "std": [0.5] * count}
        says = {**before, "settings": json.dumps(settings)} | ({"bands": bands} if bands else {})
        save_tensors(path, {"mask": item.mask[0, [0, 0, 1, 1, 2][:count]].half()}, says)
        view = Page(report(tmp_path / "run")).data["view-0"]
        if bands:
            assert view["channels"] == ["band 5", "band 1", "band 2"]
    assert (view["channels"], view["means"]) == (["gray"] * 3, {})


def test_the_mask_is_there_pixel_by_pixel(tmp_path: Path) -> None:
    path = explanation(tmp_path / "run", "a@cat", photo(tmp_path / "a.png", 0), share=0.5, game="deletion")
    view = Page(report(tmp_path / "run")).data["view-0"]
    evidence = load_explanation(path).evidence[0]
    shown = torch.from_numpy(picture(view["evidence"]) / 255 * view["scale"]).permute(2, 0, 1).float()
    torch.testing.assert_close(shown, evidence, atol=1 / 500, rtol=0)
    assert view["top"] == pytest.approx(float(brightest(evidence)))
    assert view["means"] == pytest.approx({"red": 0.5, "green": 0.25, "blue": 0})
    with Image.open(tmp_path / "a.png") as image:
        assert np.abs(picture(view["image"]) - np.asarray(image)).mean() < 6


def test_maps_of_other_methods_have_their_colors(tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png", 0)
    attribution(tmp_path / "all" / "Grad_CAM", "a@cat", image, "Grad-CAM")
    explanation(tmp_path / "all" / "FGVis", "a@cat", image)
    page = Page(report(tmp_path / "all"))
    assert [(row["method"], row["evidence"]) for row in page.data["rows"]] == [
        ("FGVis", pytest.approx(0.125)),
        ("Grad-CAM", None),
    ]
    heat = picture(page.data["view-1"]["heat"])
    assert heat[0, 0].sum() < 10 < heat[0, -1].sum()
    assert page.data["view-1"]["evidence"] is None


@pytest.mark.parametrize(
    "evil", [EVIL, "</script><script>alert(1)</script>", "<!--<script>", "\"' onload=alert(1) {{ 1 }}"]
)
def test_names_are_words_and_nothing_else(tmp_path: Path, evil: str) -> None:
    folder = tmp_path / "plain"
    explanation(folder, "a@cat", photo(tmp_path / "a.png", 0))
    explanation(folder, "b@dog", tmp_path / f"{evil.replace('/', '')}.png", name="dog")
    plain = Page(report(folder))
    named = tmp_path / evil.replace("/", "")
    explanation(named, "a@cat", photo(tmp_path / "a.png", 0), name=evil)
    explanation(named, "b@dog", tmp_path / f"{evil.replace('/', '')}.png", name="dog")
    (named / "failures").mkdir()
    (named / "failures" / "x.txt").write_text(evil)
    page = Page(report(named))
    assert page.tags.count("script") == plain.tags.count("script")
    assert page.tags.count("img") == plain.tags.count("img")
    assert page.data["rows"][0]["name"] == evil
    assert evil in page.words
    assert page.text.count("<!--") == 0


def test_a_policy_allows_the_page_itself_and_nothing_else(tmp_path: Path) -> None:
    page = Page(report(run(tmp_path / "run")))
    assert page.policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in page.policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.text)


def test_what_is_too_large_for_a_file_is_a_folder(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    report(folder, "--limit", "0.008")
    assert not (folder / "report.html").exists()
    page = Page(folder / "report" / "index.html")
    assert not any(name.startswith("view") for name in page.data)
    assert {path.name for path in (folder / "report" / "items").iterdir()} == {f"{number}.js" for number in range(4)}
    assert (folder / "report" / page.data["rows"][2]["thumbnail"]).read_bytes()[:2] == b"\xff\xd8"
    text = (folder / "report" / "items" / "2.js").read_text()
    in_one = Page(report(folder))
    assert json.loads(text.removeprefix("received(2, ").removesuffix(");\n")) == in_one.data["view-2"]
    assert not (folder / "report" / "index.html").exists()  # what is old does not stay beside what is new
    report(folder, "--limit", "0")
    assert not (folder / "report.html").exists()


def test_links_in_place_of_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run")
    report(folder, "--limit", "0")
    (folder / "report" / "items").rename(tmp_path / "elsewhere")
    (folder / "report" / "items").symlink_to(tmp_path / "elsewhere")
    there = sorted((tmp_path / "elsewhere").iterdir())
    with pytest.raises(SystemExit):
        report(folder)
    assert f"{folder / 'report' / 'items'} is a link to the outside" in capsys.readouterr().err
    assert sorted((tmp_path / "elsewhere").iterdir()) == there


def test_sizes_of_a_strangers_file_take_no_memory(tmp_path: Path) -> None:
    path = explanation(tmp_path / "run", "a@cat", photo(tmp_path / "a.png", 0))
    item = load_explanation(path)
    for name, value in (("size", [100_000, 100_000]), ("resize", 10**6)):
        settings = {**json.loads(load_metadata(path)["settings"]), "resize": 10**6, name: value}
        save_tensors(path, {"mask": item.mask[0].half()}, {**load_metadata(path), "settings": json.dumps(settings)})
        assert Page(report(tmp_path / "run")).data["view-0"]["image"] is not None


def test_equal_folders_have_equal_pages(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    first = report(folder).read_bytes()
    assert report(folder).read_bytes() == first


def test_images_that_are_gone_are_named_and_the_panel_is_shown(tmp_path: Path) -> None:
    explanation(tmp_path / "run", "a@cat", tmp_path / "gone.png")
    photo(tmp_path / "run" / "panels" / "a@cat.png", 1)
    view = Page(report(tmp_path / "run")).data["view-0"]
    assert view["image"] is None
    assert "does not exist" in view["problem"]
    assert "gone.png" in view["problem"]
    assert picture(view["panel"]).shape == (32, 32, 3)
    assert picture(view["evidence"]).shape == (32, 32, 3)


def test_relative_paths_of_images_are_followed_from_above_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work" / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    explanation(tmp_path / "work" / "out" / "run", "a@cat", photo(Path("../photos/a.png"), 0))
    explanation(tmp_path / "work" / "out" / "run", "a@dog", "../photos/a.png", "dog")
    explanation(tmp_path / "work" / "out" / "run", "b@cat", photo(Path("b.png"), 1))
    folder, shown = tmp_path / "work" / "out" / "run", [f"view-{place}" for place in range(3)]
    here = Page(report(folder))
    monkeypatch.chdir("elsewhere")
    page = Page(report(folder))
    assert all(page.data[view]["image"] == here.data[view]["image"] is not None for view in shown)
    assert capsys.readouterr().err == ""
    photo(tmp_path / "photos" / "a.png", 2)  # another content is not shown
    page = Page(report(folder))
    assert [page.data[view]["image"] is None for view in shown] == [True, True, False]
    error = capsys.readouterr().err
    assert "1 of 2 images was not found, e.g. ../photos/a.png; run the command from the folder in" in error
    monkeypatch.chdir("..")
    report(folder)
    assert "1 of 2 images was not shown, e.g.: Expected the image that was explained, but" in capsys.readouterr().err
    report(folder, "--images", str(photo(tmp_path / "new" / "a.png", 0).parent))
    assert capsys.readouterr().err == ""
    path = folder / "explanations" / "b@cat.safetensors"
    save_tensors(path, {"mask": load_explanation(path).mask[0].half()}, {**load_metadata(path), "image": "b" * 3000})
    report(folder)
    assert "1 of 2 images was not found, e.g. bbb" in capsys.readouterr().err


def test_damaged_explanations_are_named_and_the_others_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "run")
    path = folder / "explanations" / "0001@dog.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    page = Page(report(folder))
    assert "3 items, 2 failed or damaged" in capsys.readouterr().out
    row = page.data["rows"][1]
    assert (row["state"], row["id"]) == ("damaged", "0001@dog")
    assert "0001@dog.safetensors is damaged" in row["reason"]
    assert row["reason"].endswith("To compute it again, run the command that made it.")  # not report
    assert "0001@dog.safetensors is damaged" in page.words


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    explanation(tmp_path / "run", "a@cat", photo(tmp_path / "a.png", 0))
    says = {"target": "1", "score_image": "0.5", "score_explanation": "0.5", "game": "deletion"}
    save_tensors(tmp_path / "run" / "explanations" / "b@cat.safetensors", {"mask": torch.zeros(8, 8)}, says)
    (tmp_path / "run" / "curves.png").write_bytes(b"no picture")
    page = Page(report(tmp_path / "run"))
    assert "a map (H,W), but" in page.data["rows"][1]["reason"]
    assert "curves.png cannot be read" in page.words


def test_an_image_of_another_size_is_not_shown_with_a_mask_that_does_not_fit(tmp_path: Path) -> None:
    path = explanation(tmp_path / "run", "a@cat", photo(tmp_path / "a.png", 0))
    item = load_explanation(path)
    save_tensors(path, {"mask": item.mask[0, :, :16].half()}, load_metadata(path))
    view = Page(report(tmp_path / "run")).data["view-0"]
    assert view["image"] is None
    assert "size" in view["problem"]


def test_evidence_of_a_single_pixel_is_seen_in_the_list(tmp_path: Path) -> None:
    path = explanation(tmp_path / "run", "a@cat", tmp_path / "gone.png", side=448)
    item = load_explanation(path)
    item.mask.zero_()[0, :, 200, 200] = 1
    save_tensors(path, {"mask": item.mask[0].half()}, load_metadata(path))
    assert picture(Page(report(tmp_path / "run")).data["rows"][0]["thumbnail"])[140:146, 140:146].max() > 100


@pytest.mark.parametrize(
    ("command", "there", "words"),
    [
        ("compare", "costs", "Cost of one image"),
        ("adversarial", "adversarial", "Does the defense hold?"),
        ("sanity", "sanity", "Do maps depend on the network?"),
        ("sanity", "complexity", "Do maps depend on the network?"),
        ("sanity", "sensitivity", "Do maps depend on the network?"),
        ("pointing", "pointing", "Is the evidence in the object?"),
        ("bias", "color_ranking", "Bias: color"),
    ],
)
def test_what_other_commands_leave_is_there(tmp_path: Path, command: str, there: str, words: str) -> None:
    table = Table(("method", "number"))
    table.add(("a|b", 0.25))
    (tmp_path / f"{there}.md").write_text(table.markdown())
    photo(tmp_path / ("color_sheet.png" if command == "bias" else "comparison.png"), 0)
    page = Page(report(tmp_path))
    assert words in page.words
    assert "a|b" in page.words
    assert page.tags.count("img") == 1 + page.tags.count("dialog")  # the picture, and the panel's place
    assert page.data["rows"] == []


def test_tables_for_people_are_read_as_they_were_written() -> None:
    first, second = Table(("method", "↑ |up|")), Table(("x", "y"))
    first.add(("one", float("nan")))
    second.add(("a", "b"))
    found = list(read_markdown(f"{first.markdown()}\nDifferences:\n\n{second.markdown()}", "first"))
    assert [(rows.caption, rows.columns, rows.rows) for rows in found] == [
        ("first", ("method", "↑ |up|"), (("one", "undefined"),)),
        ("Differences", ("x", "y"), (("a", "b"),)),
    ]


def test_folders_without_results_say_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "fgvis fit --config" in fails(capsys, str(tmp_path / "empty"))
    assert "is not a folder" in fails(capsys, str(tmp_path / "nowhere"))
    (tmp_path / "empty" / "index.html").touch()  # of benchmark, whose items lie deeper
    told = fails(capsys, str(tmp_path / "empty"))
    assert f"whose page is {tmp_path / 'empty' / 'index.html'}" in told
    assert f"{tmp_path / 'empty' / 'NETWORK' / 'maps'}" in told
    run(tmp_path / "run")
    assert "FILE.html" in fails(capsys, str(tmp_path / "run"), "--output", str(tmp_path / "page.pdf"))


def test_items_of_an_image_are_in_the_order_of_the_targets(tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png", 0)
    for id, name in (("cat", "cat"), ("dog", "dog"), ("top1-owl", "owl"), ("top2-fox", "fox"), ("top10-ape", "ape")):
        for stem in ("a", "a-b"):
            explanation(tmp_path / "run", f"{stem}@{id}", image, name)

    def names() -> list[str]:
        entries = gather(tmp_path / "run").entries
        assert [entry.id.partition("@")[0] for entry in entries] == ["a"] * 5 + ["a-b"] * 5
        assert [entry.name for entry in entries[:5]] == [entry.name for entry in entries[5:]]
        return [entry.name for entry in entries[:5]]

    assert names() == ["cat", "dog", "owl", "fox", "ape"]
    for config, order in (
        ("data: {targets: [dog, top-10, Cat]}", ["dog", "owl", "fox", "ape", "cat"]),
        ("data: {targets: [predicted]}", ["owl", "fox", "ape", "cat", "dog"]),
        ("data: {targets: top10}", ["cat", "dog", "owl", "fox", "ape"]),
        ("data: [targets]", ["cat", "dog", "owl", "fox", "ape"]),
    ):
        (tmp_path / "run" / "config.yaml").write_text(config)
        assert names() == order, config


def test_an_evaluation_shows_the_items_that_it_has_judged_and_that_lie_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", 2)
    evaluation(tmp_path / "evaluation", "run", {"0000@cat": 0.1})
    config = tmp_path / "evaluation" / "config.yaml"
    for judged in (f"['{tmp_path / 'run'}']", f"'{tmp_path / 'run'}'"):  # as --results was written
        config.write_text(f"results: {judged}\n")
        with pytest.raises(InputError, match="has no explanations"):  # a stranger's could name any folder
            gather(tmp_path / "evaluation")
        assert f"--output {tmp_path / 'run' / 'evaluation'}, then fgvis report" in capsys.readouterr().err
    (tmp_path / "run").rename(tmp_path / "evaluation" / "run")
    config.write_text(f"results: '{tmp_path / 'evaluation' / 'run'}'\n")
    found = gather(tmp_path / "evaluation")
    assert [(entry.id, entry.values.get("deletion")) for entry in found.entries] == [
        ("0000@cat", 0.1),
        ("0001@dog", None),
        ("torn", None),
    ]


def test_a_run_its_evaluation_and_its_page(folder: Path, output: Path) -> None:
    tiny = [*NETWORK]
    cpu = ["--trainer.accelerator", "cpu"]
    main(["fit", *tiny, *cpu, "--model.iterations", "4", "--output", str(output), "--data.images", str(folder)])
    main(["evaluate", *tiny, "--device", "cpu", "--results", str(output), "--output", str(output / "evaluation")])
    page = Page(report(output))
    assert [row["state"] in ("reached", "missed") for row in page.data["rows"]] == [True] * 3
    for place, row in enumerate(page.data["rows"]):
        deletion, insertion = page.data[f"view-{place}"]["curves"]
        assert deletion[0] == pytest.approx(row["score_image"], abs=1e-3)
        assert insertion[-1] == pytest.approx(row["score_image"], abs=1e-3)
        assert row["deletion"] is not None
    assert "Faithfulness" in page.words
    assert "Gates" in page.words


def test_results_in_subfolders_of_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with explanations shows only these, a folder of such folders shows all."""
    for folder in ("all", "all/more"):
        run(tmp_path / folder, 1)
    report(tmp_path / "all")
    named = f"Not on this page, since {tmp_path / 'all'} has results of its own: {tmp_path / 'all' / 'more'}\n"
    assert named in capsys.readouterr().out
    report(tmp_path / "all" / "more")
    assert "Not on this page" not in capsys.readouterr().out
