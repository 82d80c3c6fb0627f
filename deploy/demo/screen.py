"""The demo's output: a live screen of 80 columns, or plain lines if stdout is not a terminal; and the final summary."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.rate import Rate, wilson

LINE_INTERVAL_S = 2.0  # between plain lines


@dataclass
class View:
    """The figures of one moment, and the story of one shopper."""

    elapsed: float = 0.0  # s
    seconds: float | None = None  # duration of the demo; None: until Ctrl-C
    events: int = 0
    pages: int = 0
    events_per_second: float = 0.0
    pages_per_second: float = 0.0
    freshness: tuple[float, float] = (0.0, 0.0)  # p50 and p99 of the last pages, ms
    dead_letters: int = 0
    headlines: int = 0
    rates: dict[str, Rate] = field(default_factory=dict)  # by group: "personal", "popular"
    shopper: str = ""  # name of the followed shopper
    last_action: str = ""  # of that shopper
    page_changes: list[str] = field(default_factory=list)  # items that are new on their page after it
    headline: str = ""  # the newest one by GPT-2 on their page


def rate_text(rate: Rate | None) -> str:
    if rate is None or not rate.views:
        return "no views yet"
    low, high = wilson(rate)
    return f"{rate.value:6.1%}  [{low:.1%}, {high:.1%}]  {rate.clicks} of {rate.views} views"


class Screen:
    """Prints views. Use as a context manager and call `show` whenever figures have changed."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain or not sys.stdout.isatty()
        self._live = Live(console=Console(width=80), auto_refresh=False, transient=True) if not self._plain else None
        self._last_line_at = -LINE_INTERVAL_S

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, view: View) -> None:
        if self._live:
            self._live.update(draw(view), refresh=True)
        elif view.elapsed - self._last_line_at >= LINE_INTERVAL_S:
            self._last_line_at = view.elapsed
            print(plain_line(view), file=sys.stderr, flush=True)


def plain_line(view: View) -> str:
    personal, popular = (view.rates.get(group, Rate(0, 0)).value for group in ("personal", "popular"))
    return (
        f"{view.elapsed:5.0f} s  {view.events_per_second:5.0f} events/s  {view.pages_per_second:5.0f} pages/s  "
        f"freshness p50 {view.freshness[0]:.0f} p99 {view.freshness[1]:.0f} ms  CTR {personal:.1%} personal "
        f"{popular:.1%} popular  {view.dead_letters} dead letters"
    )


def draw(view: View) -> Panel:
    """Return the live screen, 80 columns wide."""
    figures = Table.grid(padding=(0, 2), expand=True)
    figures.add_row(
        f"events/s [bold]{view.events_per_second:7.0f}[/]", f"pages/s [bold]{view.pages_per_second:7.0f}[/]",
        f"freshness p50 [bold]{view.freshness[0]:.0f}[/] ms  p99 [bold]{view.freshness[1]:.0f}[/] ms",
    )  # fmt: skip
    figures.add_row(
        f"events   {view.events:7d}",
        f"pages   {view.pages:7d}",
        f"dead letters {view.dead_letters}   headlines by GPT-2 {view.headlines}",
    )
    rates = Table.grid(padding=(0, 2))
    rates.add_row("CTR personal", f"[bold green]{rate_text(view.rates.get('personal'))}[/]")
    rates.add_row("CTR popular", rate_text(view.rates.get("popular")))
    action = f"{view.shopper}: {view.last_action}" if view.last_action else f"{view.shopper} has not done anything yet"
    story: list[Any] = [Text(action, style="bold")]
    story += [Text(f"  {line}"[:76], overflow="ellipsis", no_wrap=True) for line in view.page_changes]
    if view.headline:
        story.append(Text(f"  GPT-2: {view.headline}", style="italic cyan", overflow="ellipsis", no_wrap=True))
    progress = f"{view.elapsed:.0f} s" + (f" of {view.seconds:g}" if view.seconds else "  (Ctrl-C ends)")
    return Panel(Group(figures, Text(""), rates, Text(""), *story), title=f"Shopwindow demo   {progress}", width=80)


def summary(result: dict[str, Any], problems: list[str]) -> str:
    """Return the result of the demo as text."""
    lines = [
        "",
        f"events      {result['events']} sent, {result['accepted']} accepted, {result['dead_letters']} dead letters",
        f"pages       {result['pages']} for {result['shoppers']} shoppers",
        f"freshness   p50 {result['freshness_p50_ms']:.1f} ms, p99 {result['freshness_p99_ms']:.1f} ms",
        f"headlines   {result['copies_generated']} by GPT-2",
    ]
    for group in ("personal", "popular"):
        low, high = result[f"ctr_{group}_ci"]
        lines.append(f"CTR         {group:9} {result[f'ctr_{group}']:.1%}  [{low:.1%}, {high:.1%}]")
    lines += [
        f"  {'ok ' if holds else 'NOT'}  {name.replace('_', ' ')}" for name, holds in result["invariants"].items()
    ]
    lines += [f"  {problem}" for problem in problems]
    lines.append("all invariants hold" if result["ok"] else "THE DEMO FAILED")
    return "\n".join(lines)
