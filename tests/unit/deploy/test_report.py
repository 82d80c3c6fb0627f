"""The evaluation report: one file that loads nothing and shows all figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from deploy.cli.main import main
from deploy.train.report import render_report
from models.evaluation.evaluate import Report
from models.train.learning_curve import Point
from tests.harness.training import stride_clicks, write_clickstream

NAN = float("nan")


class ParsedReport(HTMLParser):
    """Tags, attributes that could load something, and cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.cells: list[str] = []
        self.circles: list[str] = []
        self.feed(text)
        assert not self.open, "every tag is closed"

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
    probability = np.repeat(np.array([0.1, 0.5, 0.9], np.float32), [100, 50, 10])
    rank = np.where(np.arange(160) % 2, 1, 30)
    return Report(rank, np.ones(160, int), np.full(160, 7), probability, 1.5, 200.0, "mlp", curves)


def test_the_report_loads_nothing_and_has_a_dark_mode() -> None:
    text = render_report(
        report({"logit": [Point(1, 3.0, 3.2), Point(2, 2.5, 2.9)]}), 20, {"command": "shopwindow evaluate"}
    )
    parsed = ParsedReport(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags) and not parsed.loads
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"var\((--\w+)\)", text)) == set(re.findall(r"(--\w+):", text)), "every colour is defined"


def test_the_tables_hold_losses_bins_groups_and_figures() -> None:
    curves = {"logit": [Point(1, 3.0, 3.25)], "history model": [Point(1, 4.5, 4.75), Point(2, 4.125, NAN)]}
    parsed = ParsedReport(render_report(report(curves), 20, {"command": "shopwindow evaluate --train 'a <b>'"}))
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
        assert any(parsed.cells[k : k + len(row)] == row for k in range(len(parsed.cells))), (row, parsed.cells)
    assert parsed.circles.count("training") == 3, "one point for each epoch"
    assert parsed.circles.count("held") == 2 + 3, "one for each held-out loss and for each bin"


def test_the_command_checks_the_path_before_training_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, clicks in (("train", stride_clicks(1, 300, 1)), ("test", stride_clicks(2, 40, 1, 2e9))):
        write_clickstream(clicks, tmp_path / name)
    given = ["evaluate", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--limit", "60"]
    assert main([*given, "--report", str(tmp_path / "none" / "r.html")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "none" / "r.html") in error and "signals" not in error, "nothing was trained"
    assert main([*given, "--report", str(tmp_path / "r.html")]) == 0
    cells = ParsedReport((tmp_path / "r.html").read_text()).cells
    assert cells[cells.index("positions") + 1] == "60"
    assert cells[cells.index("command") + 1].startswith("shopwindow evaluate --train ")
    assert ["logit", "1"] in [cells[k : k + 2] for k in range(len(cells))]
