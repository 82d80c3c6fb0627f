"""HTML report of `shopwindow evaluate`: one file without scripts that loads nothing and has a light and a dark mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

from deploy.rate import Rate, wilson
from models.evaluation.evaluate import Calibration, Report
from models.train.learning_curve import Point

# Sizes of the charts, in pixels.
CURVE_WIDTH, CALIBRATION_WIDTH, CHART_HEIGHT = 300, 440, 230
LEFT_MARGIN, RIGHT_MARGIN, TOP_MARGIN, BOTTOM_MARGIN = 48, 14, 12, 42
COUNTS_HEIGHT = 56  # of the bars below the calibration curve
COUNTS_GAP = 14  # between curve and bars


class _Axis(NamedTuple):
    """Values from `low` to `high` along the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def pixel(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int, integers: bool = False) -> list[float]:
        """About `count` round numbers within the axis."""
        span = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(span))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span * 0.999)
        step = max(1.0, round(step)) if integers else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def render_report(report: Report, k: int, run: Mapping[str, str]) -> str:
    """The whole HTML file. k: of HR@k and MRR@k. run: facts about the run, by name."""
    figures = report.figures(k)
    tiles = {
        f"HR@{k}": f"{figures[f'HR@{k}']:.1f}%",
        f"MRR@{k}": f"{figures[f'MRR@{k}']:.1f}%",
        "positions": f"{len(report.rank):,}",
        "among the candidates": f"{figures['recall_candidates']:.1f}%",
        "calibration error": f"{figures['calibration_error']:.2f}%",
    }
    curves = {name: points for name, points in report.curves.items() if points}
    bins = _bins(report.calibration)
    return _PAGE.substitute(
        tiles="".join(f"<div><b>{value}</b>{escape(name)}</div>" for name, value in tiles.items()),
        curves="".join(_learning_curve(name, points) for name, points in curves.items()),
        losses=_table(
            ("model", "epoch", "training", "held out"),
            [
                (name, str(point.epoch), _nats(point.training), _nats(point.held_out))
                for name, points in curves.items()
                for point in points
            ],
        ),
        calibration=_calibration_curve(bins),
        error=f"{figures['calibration_error']:.2f}",
        missed=f"{100 - figures['recall_candidates']:.1f}",
        among=f"{figures['calibration_error_among_candidates']:.2f}",
        bins=_table(("probability", "positions", "mean probability", "clicked", "95% interval"), map(_bin_cells, bins)),
        rows=_table(
            ("", "positions", f"HR@{k}, %", f"MRR@{k}, %"),
            [(row.group, f"{row.positions:,}", f"{row.hit_rate:.2f}", f"{row.mrr:.2f}") for row in report.rows(k)],
        ),
        figures=_table(("figure", "value"), [(name, f"{value:,}") for name, value in figures.items()]),
        run=_table(("", ""), [("scored by", report.head), *run.items()]),
    )


def _nats(loss: float) -> str:
    return "-" if math.isnan(loss) else f"{loss:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. With names in `head`, all columns but the first are aligned to the right."""
    top = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table{'' if top else ' class=facts'}>{top}<tbody>{body}</tbody></table>"


def _svg(width: float, height: float, label: str, elements: Iterable[str]) -> str:
    box = f"0 0 {width:g} {height:g}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(elements)}</svg>'


def _line(kind: str, points: Sequence[tuple[float, float]]) -> str:
    """points: in pixels."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _dots(kind: str, points: Sequence[tuple[float, float]], radius: float) -> list[str]:
    """points: in pixels."""
    return [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>' for x, y in points]


def _frame(x: _Axis, y: _Axis, x_ticks: Sequence[float], y_ticks: Sequence[float], y_format: str) -> list[str]:
    """Grid lines, the x axis and the numbers; y.start is the bottom."""
    elements = []
    for value in y_ticks:
        elements.append(_line("grid", [(x.start, y.pixel(value)), (x.end, y.pixel(value))]))
        elements.append(_text(x.start - 7, y.pixel(value) + 4, format(value, y_format), "end"))
    elements.append(_line("axis", [(x.start, y.start), (x.end, y.start)]))
    elements += [_text(x.pixel(value), y.start + 16, f"{value:g}") for value in x_ticks]
    return elements


def _learning_curve(name: str, points: Sequence[Point]) -> str:
    """Training and held-out losses of a model by epoch."""
    losses = [loss for point in points for loss in (point.training, point.held_out) if not math.isnan(loss)]
    padding = max(max(losses) - min(losses), 0.01) * 0.08 if losses else 1.0
    low, high = (min(losses) - padding, max(losses) + padding) if losses else (0.0, 1.0)
    first_epoch = points[0].epoch
    x = _Axis(first_epoch, max(points[-1].epoch, first_epoch + 1), LEFT_MARGIN, CURVE_WIDTH - RIGHT_MARGIN)
    y = _Axis(low, high, CHART_HEIGHT - BOTTOM_MARGIN, TOP_MARGIN)
    y_ticks = y.ticks(5)
    step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else 1.0
    elements = _frame(x, y, x.ticks(6, integers=True), y_ticks, f".{max(0, -math.floor(math.log10(step)))}f")
    elements.append(_text((x.start + x.end) / 2, CHART_HEIGHT - 6, "epoch", kind="name"))
    series = {"training": [point.training for point in points], "held": [point.held_out for point in points]}
    for kind, values in series.items():
        pixels = [
            (x.pixel(point.epoch), y.pixel(loss))
            for point, loss in zip(points, values, strict=True)
            if not math.isnan(loss)
        ]
        elements.append(_line(kind, pixels))
        elements += _dots(kind, pixels, 2.5)
    svg = _svg(CURVE_WIDTH, CHART_HEIGHT, f"Loss of the {name} by epoch", elements)
    return f"<figure><figcaption>{escape(name)}, nats</figcaption>{svg}</figure>"


class _Bin(NamedTuple):
    """Positions whose top candidate had a probability from `low` to `high`."""

    low: float
    high: float
    positions: int
    probability: float  # mean probability
    clicked: float  # share of the positions
    interval: tuple[float, float]  # 95%, of that share


def _bins(calibration: Calibration) -> list[_Bin]:
    """The bins that have positions, in order."""
    width = 1 / len(calibration.positions)
    columns = zip(*(column.tolist() for column in calibration), strict=True)
    return [
        _Bin(
            low=number * width,
            high=(number + 1) * width,
            positions=count,
            probability=probability_sum / count,
            clicked=clicks / count,
            interval=wilson(Rate(int(clicks), count)),
        )
        for number, (probability_sum, clicks, count) in enumerate(columns)
        if count
    ]


def _bin_cells(bin: _Bin) -> tuple[str, ...]:
    low, high = bin.interval
    span = f"{bin.low:.3f} to {bin.high:.3f}"
    return span, f"{bin.positions:,}", f"{bin.probability:.3f}", f"{bin.clicked:.3f}", f"{low:.3f} to {high:.3f}"


def _calibration_curve(bins: Sequence[_Bin]) -> str:
    """Share of clicked top candidates against their probability, with intervals; below, bars of the positions."""
    height = CHART_HEIGHT + 120
    x = _Axis(0.0, 1.0, LEFT_MARGIN, CALIBRATION_WIDTH - RIGHT_MARGIN)
    bars_top = height - BOTTOM_MARGIN - COUNTS_HEIGHT
    y = _Axis(0.0, 1.0, bars_top - COUNTS_GAP, TOP_MARGIN)
    most = max((bin.positions for bin in bins), default=1)
    bars = _Axis(0.0, most, height - BOTTOM_MARGIN, bars_top)
    fifths = [number / 5 for number in range(6)]
    elements = _frame(x, y, [], fifths, ".1f")
    elements.append(_line("right", [(x.start, y.start), (x.end, y.end)]))
    for bin in bins:
        middle, top = x.pixel(bin.probability), bars.pixel(bin.positions)
        elements.append(_line("interval", [(middle, y.pixel(bound)) for bound in bin.interval]))
        tip = f"probability {bin.probability:.3f}, clicked {bin.clicked:.3f}, {bin.positions:,} positions"
        left, right = x.pixel(bin.low) + 1, x.pixel(bin.high) - 1
        size = f'width="{right - left:.1f}" height="{bars.start - top:.1f}"'
        elements.append(f'<rect class="count" x="{left:.1f}" y="{top:.1f}" {size}><title>{tip}</title></rect>')
    shares = [(x.pixel(bin.probability), y.pixel(bin.clicked)) for bin in bins]
    elements.append(_line("held", shares))
    elements += _dots("held", shares, 3.5)
    elements += _frame(x, bars, fifths, [0, most], ",.0f")
    elements.append(_text((x.start + x.end) / 2, height - 6, "probability of the top candidate", kind="name"))
    svg = _svg(CALIBRATION_WIDTH, height, "Share of top candidates clicked, by their probability", elements)
    return f"<figure><figcaption>clicked</figcaption>{svg}</figure>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of next-click prediction</title>
<style>
:root {
  color-scheme: light dark;
  --ground: #fcfcfb; --ink: #1d1d1b; --quiet: #5f5e59; --rule: #dddcd6; --blue: #2468b8; --orange: #c2520c
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #1a1a19; --ink: #ecebe6; --quiet: #a9a89f; --rule: #3a3a37; --blue: #6aa9ee; --orange: #f08a4b
  }
}
body {
  margin: 0 auto; max-width: 60rem; padding: 1.5rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif
}
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } p, figcaption, summary { color: var(--quiet) }
.tiles, .charts { display: flex; flex-wrap: wrap; gap: 1rem }
.tiles div { flex: 1 1 8rem; color: var(--quiet) } .tiles b { display: block; font-size: 1.5rem; color: var(--ink) }
figure { flex: 1 1 17rem; max-width: 28rem; margin: 0 } figcaption { margin-bottom: .25rem }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif } svg text { fill: var(--quiet) }
polyline { fill: none } .grid, .axis { stroke: var(--rule) } .axis { stroke: var(--quiet) }
.right { stroke: var(--quiet); stroke-dasharray: 2 4 }
.training { stroke: var(--blue); stroke-width: 2; stroke-dasharray: 6 3 }
circle.training { fill: var(--blue); stroke: none }
.held { stroke: var(--orange); stroke-width: 2 } circle.held { fill: var(--orange); stroke: none }
.interval { stroke: var(--orange); stroke-width: 1.5; opacity: .55 } .count { fill: var(--blue) }
.key {
  display: inline-block; width: 1.8rem; height: 0; margin: 0 .4rem .25rem 1rem; border-top: 2px solid var(--orange)
}
.key.blue { border-top: 2px dashed var(--blue) }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--rule) }
th { font-weight: 600 } th:first-child, td:first-child, .facts td { text-align: left }
.facts td:last-child { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere }
</style>
</head>
<body>
<h1>Evaluation of next-click prediction</h1>
<div class="tiles">$tiles</div>
<h2>Learning</h2>
<p>Mean cross-entropy at the end of each epoch:<span class="key blue"></span>training loss<span class="key"></span>
held-out loss. The history model is compared with a sample of items, so its losses cannot be compared with those of the
heads. In its last epochs it continues on the newest sessions, where nothing is held out. The history model that serves
is trained separately, on all sessions.</p>
<div class="charts">$curves</div>
<details><summary>All losses</summary><div class="wide">$losses</div></details>
<h2>Calibration</h2>
<p>How often the top candidate was clicked, against its probability. On the dotted line, probabilities are exactly
right; a vertical line is a 95% interval (Wilson), and bars count the positions. Expected calibration error: $error%.
$missed% of the next clicks were not among the candidates, so no prediction there could be right; at the other
positions the error is $among%.</p>
<div class="charts">$calibration</div>
<details><summary>All bins</summary><div class="wide">$bins</div></details>
<h2>By length of the session and popularity of the item</h2>
<div class="wide">$rows</div>
<h2>Figures</h2>
<div class="wide">$figures</div>
<h2>Data and command</h2>
<div class="wide">$run</div>
</body>
</html>
""")
