"""The tables in deploy/README.md list exactly the settings and metrics of the program."""

import re

import pytest
from prometheus_client import Metric

from deploy.cli.main import main
from stream.metrics import METRIC_DESCRIPTIONS, REGISTRY
from tests.harness.worker_process import ROOT

REFERENCE = (ROOT / "deploy" / "README.md").read_text()


def table(first_column: str) -> list[str]:
    """Return the lines of the table whose first column has this name, including the head."""
    lines = REFERENCE[REFERENCE.index(f"| {first_column} |") :].splitlines()
    return lines[: next(at for at, line in enumerate([*lines, ""]) if not line.startswith("|"))]


@pytest.mark.parametrize(
    ("command", "first_column"), [("metrics", "metric"), ("settings", "variable"), ("kinds", "kind")]
)
def test_a_reference_table_equals_the_output_of_its_command(
    command: str, first_column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`shopwindow metrics --markdown`, `settings --markdown` and `kinds --markdown` print the tables."""
    assert main([command, "--markdown"]) == 0
    assert table(first_column) == capsys.readouterr().out.splitlines()


def test_links_between_readmes_lead_to_files() -> None:
    for readme in [
        ROOT / "README.md",
        *(path for name in ("stream", "models", "agents", "deploy") for path in (ROOT / name).rglob("README.md")),
    ]:
        for target in re.findall(r"\]\(([\w/.]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme.relative_to(ROOT)} links to {target}"


def test_every_metric_is_described_and_uses_base_units() -> None:
    found: dict[str, Metric] = {metric.name: metric for metric in REGISTRY.collect()}
    assert found.keys() == {row.name.removesuffix("_total") for row in METRIC_DESCRIPTIONS}
    for name, kind, _, meaning in METRIC_DESCRIPTIONS:
        metric = found[name.removesuffix("_total")]
        assert (metric.type, metric.documentation) == (kind, meaning)
        assert len(meaning.split()) >= 2 and not meaning.endswith("."), name
        assert not name.endswith(("_ms", "_milliseconds", "_kb", "_mb", "_percent")), "base units: s, bytes, ratios"
        assert kind != "gauge" or not name.endswith(("_total", "_count", "_sum")), name
