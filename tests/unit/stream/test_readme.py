"""The tables of the README are what the program has, no more and no less."""

from dataclasses import fields

import pytest
from prometheus_client import Metric

from deploy.cli.main import main
from stream.metrics import METRIC_DESCRIPTIONS, REGISTRY
from stream.settings import Settings
from tests.harness.worker_process import ROOT

README = (ROOT / "README.md").read_text()


def table(first: str) -> list[str]:
    """The rows of the table whose first column is named so, head included."""
    lines = README[README.index(f"| {first} |") :].splitlines()
    return lines[: next(at for at, line in enumerate(lines) if not line.startswith("|"))]


def test_the_metrics_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, kinds, labels and meanings; `shopwindow metrics --markdown` writes it anew."""
    assert main(["metrics", "--markdown"]) == 0
    assert table("metric") == capsys.readouterr().out.splitlines()


def test_every_setting_is_told_with_what_is_expected_of_it() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in table("variable")}
    names = {f"SHOPWINDOW_{field.name.upper()}": field.metadata for field in fields(Settings)}
    assert rows.keys() - {"variable", "---"} == names.keys()
    for name, declared in names.items():
        assert f"| {declared['kind'].expected} | {declared['meaning']} |" in rows[name], name


def test_every_metric_is_described_and_has_help_in_base_units() -> None:
    found: dict[str, Metric] = {metric.name: metric for metric in REGISTRY.collect()}
    assert found.keys() == {row.name.removesuffix("_total") for row in METRIC_DESCRIPTIONS}
    for name, kind, _, meaning in METRIC_DESCRIPTIONS:
        metric = found[name.removesuffix("_total")]
        assert (metric.type, metric.documentation) == (kind, meaning)
        assert len(meaning.split()) >= 2 and not meaning.endswith("."), name
        assert not name.endswith(("_ms", "_milliseconds", "_kb", "_mb", "_percent")), "base units: s, bytes, ratios"
        assert kind != "gauge" or not name.endswith(("_total", "_count", "_sum")), name
