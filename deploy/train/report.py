"""What `shopwindow evaluate` found, as one HTML file: no scripts, nothing loaded from elsewhere, light or dark as the reader's screen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

from deploy.rate import Rate, wilson
from models.evaluation.evaluate import Calibration, Report
from models.train.learning_curve import Point

NARROW, WIDE, HEIGHT = 300, 440, 230  # of charts, px
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 12, 42  # px beside the plot
_COUNTS = 56  # px that the bars of the counts take


class _Axis(NamedTuple):
    """Numbers from `low` to `high` along the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int, whole: bool = False) -> list[float]:
        """Round numbers within, about so many."""
        span = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(span))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= span * 0.999)
        step = max(1.0, round(step)) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def page(report: Report, k: int, told: Mapping[str, str]) -> str:
    """The whole file. k: places that count; told: what else is to be said of the run, by name."""
    figures = report.figures(k)
    tiles = {
        f"HR@{k}": f"{figures[f'HR@{k}']:.1f}%", f"MRR@{k}": f"{figures[f'MRR@{k}']:.1f}%",
        "positions": f"{len(report.rank):,}", "among the candidates": f"{figures['recall_candidates']:.1f}%",
        "calibration error": f"{figures['calibration_error']:.2f}%",
    }  # fmt: skip
    curves = {name: points for name, points in report.curves.items() if points}
    bins = _bins(report.calibration)
    return _PAGE.substitute(
        tiles="".join(f"<div><b>{value}</b>{escape(name)}</div>" for name, value in tiles.items()),
        curves="".join(_learning(name, points) for name, points in curves.items()),
        losses=_table(
            ("model", "epoch", "of what was learnt from", "held out"),
            [
                (name, str(point.epoch), _nats(point.learnt), _nats(point.held_out))
                for name, points in curves.items()
                for point in points
            ],
        ),
        calibration=_calibration(bins),
        error=f"{figures['calibration_error']:.2f}",
        missed=f"{100 - figures['recall_candidates']:.1f}",
        among=f"{figures['calibration_error_among_candidates']:.2f}",
        bins=_table(("probability", "positions", "mean probability", "clicked", "95% interval"), map(_bin_cells, bins)),
        rows=_table(
            ("", "positions", f"HR@{k}, %", f"MRR@{k}, %"),
            [(row.what, f"{row.positions:,}", f"{row.hit:.2f}", f"{row.gain:.2f}") for row in report.rows(k)],
        ),
        figures=_table(("figure", "value"), [(name, f"{value:,}") for name, value in figures.items()]),
        told=_table(("", ""), [("scored by", report.head), *told.items()]),
    )


def _nats(loss: float) -> str:
    return "-" if math.isnan(loss) else f"{loss:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """All but the first column to the right, where the head names them."""
    top = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table{'' if top else ' class=told'}>{top}<tbody>{body}</tbody></table>"


def _svg(width: float, height: float, what: str, drawn: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(what)}">{"".join(drawn)}</svg>'


def _line(kind: str, points: Sequence[tuple[float, float]]) -> str:
    """points: px."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _frame(x: _Axis, y: _Axis, across: Sequence[float], up: Sequence[float], form: str) -> list[str]:
    """Grid and numbers; y.start is below."""
    drawn = []
    for value in up:
        drawn.append(_line("grid", [(x.start, y.at(value)), (x.end, y.at(value))]))
        drawn.append(_text(x.start - 7, y.at(value) + 4, format(value, form), "end"))
    drawn.append(_line("axis", [(x.start, y.start), (x.end, y.start)]))
    drawn += [_text(x.at(value), y.start + 16, f"{value:g}") for value in across]
    return drawn


def _learning(name: str, points: Sequence[Point]) -> str:
    """A model's losses by epoch, what was learnt from and what was held out."""
    losses = [loss for point in points for loss in (point.learnt, point.held_out) if not math.isnan(loss)]
    room = max(max(losses) - min(losses), 0.01) * 0.08 if losses else 1.0
    low, high = (min(losses) - room, max(losses) + room) if losses else (0.0, 1.0)
    x = _Axis(points[0].epoch, max(points[-1].epoch, points[0].epoch + 1), _LEFT, NARROW - _RIGHT)
    y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP)
    up = y.ticks(5)
    step = up[1] - up[0] if len(up) > 1 else 1.0
    drawn = _frame(x, y, x.ticks(6, whole=True), up, f".{max(0, -math.floor(math.log10(step)))}f")
    drawn.append(_text((x.start + x.end) / 2, HEIGHT - 6, "epoch", kind="name"))
    for kind, value in (("learnt", 1), ("held", 2)):
        there = [(x.at(point.epoch), y.at(point[value])) for point in points if not math.isnan(point[value])]
        drawn.append(_line(kind, there))
        drawn += [f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in there]
    what = f"Loss of the {name} by epoch"
    return f"<figure><figcaption>{escape(name)}, nats</figcaption>{_svg(NARROW, HEIGHT, what, drawn)}</figure>"


class _Bin(NamedTuple):
    """Favourites that were given a probability from `low` to `high`."""

    low: float
    high: float
    positions: int
    said: float  # their mean probability
    clicked: float  # share of them
    interval: tuple[float, float]  # 95%, of that share


def _bins(calibration: Calibration) -> list[_Bin]:
    """Those that are not empty, in order."""
    width = 1 / len(calibration.positions)
    columns = zip(*(of.tolist() for of in calibration), strict=True)
    return [
        _Bin(at * width, (at + 1) * width, count, said / count, came / count, wilson(Rate(int(came), count)))
        for at, (said, came, count) in enumerate(columns)
        if count
    ]


def _bin_cells(of: _Bin) -> tuple[str, ...]:
    low, high = of.interval
    span = f"{of.low:.3f} to {of.high:.3f}"
    return span, f"{of.positions:,}", f"{of.said:.3f}", f"{of.clicked:.3f}", f"{low:.3f} to {high:.3f}"


def _calibration(bins: Sequence[_Bin]) -> str:
    """What was clicked against what was said, each bin with its interval; below how many positions each bin has."""
    height = HEIGHT + 120
    x, bottom = _Axis(0.0, 1.0, _LEFT, WIDE - _RIGHT), height - _BOTTOM - _COUNTS
    y, most = _Axis(0.0, 1.0, bottom - 14, _TOP), max((one.positions for one in bins), default=1)
    bars = _Axis(0.0, most, height - _BOTTOM, bottom)
    fifths = [number / 5 for number in range(6)]
    drawn = _frame(x, y, [], fifths, ".1f")
    drawn.append(_line("right", [(x.start, y.start), (x.end, y.end)]))
    for one in bins:
        at, top = x.at(one.said), bars.at(one.positions)
        drawn.append(_line("interval", [(at, y.at(bound)) for bound in one.interval]))
        tip = f"said {one.said:.3f}, clicked {one.clicked:.3f}, {one.positions:,} positions"
        left, right = x.at(one.low) + 1, x.at(one.high) - 1
        drawn.append(
            f'<rect class="count" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bars.start - top:.1f}">'
            f"<title>{tip}</title></rect>"
        )
    shares = [(x.at(one.said), y.at(one.clicked)) for one in bins]
    drawn.append(_line("held", shares))
    drawn += [f'<circle class="held" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b in shares]
    drawn += _frame(x, bars, fifths, [0, most], ",.0f")
    drawn.append(_text((x.start + x.end) / 2, height - 6, "probability of the favourite", kind="name"))
    what = "Share of favourites clicked by their probability"
    return f"<figure><figcaption>clicked</figcaption>{_svg(WIDE, height, what, drawn)}</figure>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>How well the next click is foreseen</title>
<style>
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1d1d1b; --quiet: #5f5e59; --rule: #dddcd6; --blue: #2468b8; --orange: #c2520c }
@media (prefers-color-scheme: dark) { :root { --ground: #1a1a19; --ink: #ecebe6; --quiet: #a9a89f; --rule: #3a3a37; --blue: #6aa9ee; --orange: #f08a4b } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } p, figcaption, summary { color: var(--quiet) }
.tiles, .charts { display: flex; flex-wrap: wrap; gap: 1rem } .tiles div { flex: 1 1 8rem; color: var(--quiet) } .tiles b { display: block; font-size: 1.5rem; color: var(--ink) }
figure { flex: 1 1 17rem; max-width: 28rem; margin: 0 } figcaption { margin-bottom: .25rem }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif } svg text { fill: var(--quiet) }
polyline { fill: none } .grid, .axis { stroke: var(--rule) } .axis { stroke: var(--quiet) } .right { stroke: var(--quiet); stroke-dasharray: 2 4 }
.learnt { stroke: var(--blue); stroke-width: 2; stroke-dasharray: 6 3 } circle.learnt { fill: var(--blue); stroke: none }
.held { stroke: var(--orange); stroke-width: 2 } circle.held { fill: var(--orange); stroke: none } .interval { stroke: var(--orange); stroke-width: 1.5; opacity: .55 } .count { fill: var(--blue) }
.key { display: inline-block; width: 1.8rem; height: 0; margin: 0 .4rem .25rem 1rem; border-top: 2px solid var(--orange) } .key.blue { border-top: 2px dashed var(--blue) }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums } th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--rule) }
th { font-weight: 600 } th:first-child, td:first-child, .told td { text-align: left } .told td:last-child { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere }
</style>
</head>
<body>
<h1>How well the next click is foreseen</h1>
<div class="tiles">$tiles</div>
<h2>Learning</h2>
<p>Mean cross-entropy at the end of each epoch:<span class="key blue"></span>of what was learnt from, while it was<span class="key"></span>of what was held out.
The history model is compared with a sample of items, so its losses are not those of the heads; its last epochs go on from the newest sessions, where nothing is held out. What serves learns from all sessions anew.</p>
<div class="charts">$curves</div>
<details><summary>All losses</summary><div class="wide">$losses</div></details>
<h2>Calibration</h2>
<p>How often the favourite was clicked, against the probability that it was given. On the dotted line what is said comes true; a vertical line is a 95% interval (Wilson), bars count the positions. Expected calibration error: $error%. $missed% of the next clicks were no candidate, so that none could come true; among the others the error is $among%.</p>
<div class="charts">$calibration</div>
<details><summary>All bins</summary><div class="wide">$bins</div></details>
<h2>By length of the session and popularity of the item</h2>
<div class="wide">$rows</div>
<h2>Figures</h2>
<div class="wide">$figures</div>
<h2>What was measured</h2>
<div class="wide">$told</div>
</body>
</html>
""")
