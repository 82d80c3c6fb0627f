"""The report of an evaluation: one file that needs nothing else, and says what was measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from deploy.cli.main import main
from deploy.train.report import page
from models.evaluation.evaluate import Report
from models.train.learning_curve import Point
from tests.unit.models.evaluation.test_evaluate import rounds, saved

NAN = float("nan")


class Read(HTMLParser):
    """Tags, the attributes that could load something, and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.cells: list[str] = []
        self.circles: list[str] = []
        self.feed(text)
        assert not self.open, "what was opened was closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [name for name, _ in attributes if name in ("src", "href", "data", "xlink:href")]
        self.circles += [value or "" for name, value in attributes if tag == "circle" and name == "class"]
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def report(curves: dict[str, list[Point]]) -> Report:
    sure = np.repeat(np.array([0.1, 0.5, 0.9], np.float32), [100, 50, 10])
    rank = np.where(np.arange(160) % 2, 1, 30)
    return Report(rank, np.ones(160, int), np.full(160, 7), sure, 1.5, 200.0, "mlp", curves)


def test_the_file_loads_nothing_and_can_be_read_in_the_dark() -> None:
    text = page(report({"logit": [Point(1, 3.0, 3.2), Point(2, 2.5, 2.9)]}), 20, {"command": "shopwindow evaluate"})
    read = Read(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags) and not read.loads
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"var\((--\w+)\)", text)) == set(re.findall(r"(--\w+):", text)), "each colour is named once"


def test_losses_bins_rows_and_figures_are_in_its_tables() -> None:
    curves = {"logit": [Point(1, 3.0, 3.25)], "history model": [Point(1, 4.5, 4.75), Point(2, 4.125, NAN)]}
    read = Read(page(report(curves), 20, {"command": "shopwindow evaluate --train 'a <b>'"}))
    for row in (
        ["logit", "1", "3.0000", "3.2500"],
        ["history model", "2", "4.1250", "-"],
        ["0.067 to 0.133", "100", "0.100", "0.500", "0.404 to 0.596"],
        ["clicks on it in training, 5 to 19", "160", "50.00", "50.00"],
        ["calibration_error", f"{100 * (100 * 0.4 + 10 * 0.4) / 160:,.1f}"],
        ["calibration_error_among_candidates", f"{100 * (100 * 0.4 + 10 * 0.4) / 160:,.1f}"],
        ["command", "shopwindow evaluate --train 'a <b>'"],
        ["scored by", "mlp"],
    ):
        assert any(read.cells[k : k + len(row)] == row for k in range(len(read.cells))), (row, read.cells)
    assert read.circles.count("learnt") == 3, "an epoch, a point"
    assert read.circles.count("held") == 2 + 3, "none where nothing was held out; one for each bin"


def test_the_command_writes_it_and_says_no_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, clicks in (("train", rounds(1, 300, 1)), ("test", rounds(2, 40, 1, 2e9))):
        saved(clicks, tmp_path / name)
    given = ["evaluate", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--limit", "60"]
    assert main([*given, "--report", str(tmp_path / "none" / "r.html")]) == 1
    told = capsys.readouterr().err
    assert "none" in told and "folder that exists" in told and "signals" not in told, "nothing was trained"
    assert main([*given, "--report", str(tmp_path / "r.html")]) == 0
    cells = Read((tmp_path / "r.html").read_text()).cells
    assert cells[cells.index("positions") + 1] == "60"
    assert cells[cells.index("command") + 1].startswith("shopwindow evaluate --train ")
    assert ["logit", "1"] in [cells[k : k + 2] for k in range(len(cells))]
