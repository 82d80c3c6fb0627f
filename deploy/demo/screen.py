"""What the demo shows: a live screen of 80 columns, or plain lines where the output is no terminal; and the summary."""

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

LINE_EVERY = 2.0  # s between plain lines


@dataclass
class View:
    """Figures of one moment."""

    elapsed: float = 0.0  # s
    seconds: float | None = None  # that the demo is to last
    events: int = 0
    pages: int = 0
    events_per_second: float = 0.0
    pages_per_second: float = 0.0
    freshness: tuple[float, float] = (0.0, 0.0)  # p50, p99 of the last seconds, ms
    dead_letters: int = 0
    copies: int = 0
    rates: dict[str, Rate] = field(default_factory=dict)
    name: str = ""  # of the shopper who is followed
    did: str = ""  # what she did last
    changed: list[str] = field(default_factory=list)  # how her page changed because of it
    headline: str = ""


def rate_text(rate: Rate | None) -> str:
    if rate is None or not rate.looks:
        return "no looks yet"
    low, high = wilson(rate)
    return f"{rate.value:6.1%}  [{low:.1%}, {high:.1%}]  {rate.clicked} of {rate.looks} looks"


class Screen:
    """Use as a context manager; `show` whenever figures have changed."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain or not sys.stdout.isatty()
        self._live = Live(console=Console(width=80), auto_refresh=False, transient=True) if not self._plain else None
        self._shown = -LINE_EVERY

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
            self._live.update(drawn(view), refresh=True)
        elif view.elapsed - self._shown >= LINE_EVERY:
            self._shown = view.elapsed
            personal, popular = (view.rates.get(group, Rate(0, 0)).value for group in ("personal", "popular"))
            print(
                f"{view.elapsed:5.0f} s  {view.events_per_second:5.0f} events/s  {view.pages_per_second:5.0f} pages/s  "
                f"freshness p50 {view.freshness[0]:.0f} p99 {view.freshness[1]:.0f} ms  CTR {personal:.1%} personal "
                f"{popular:.1%} popular  {view.dead_letters} dead letters",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def drawn(view: View) -> Panel:
    """The screen, 80 columns wide."""
    figures = Table.grid(padding=(0, 2), expand=True)
    figures.add_row(
        f"events/s [bold]{view.events_per_second:7.0f}[/]", f"pages/s [bold]{view.pages_per_second:7.0f}[/]",
        f"freshness p50 [bold]{view.freshness[0]:.0f}[/] ms  p99 [bold]{view.freshness[1]:.0f}[/] ms",
    )  # fmt: skip
    figures.add_row(
        f"events   {view.events:7d}",
        f"pages   {view.pages:7d}",
        f"dead letters {view.dead_letters}   headlines by GPT-2 {view.copies}",
    )
    rates = Table.grid(padding=(0, 2))
    rates.add_row("CTR personal", f"[bold green]{rate_text(view.rates.get('personal'))}[/]")
    rates.add_row("CTR popular", rate_text(view.rates.get("popular")))
    story: list[Any] = [
        Text(f"{view.name}: {view.did}" if view.did else f"{view.name} has not done anything yet", style="bold")
    ]
    story += [Text(f"  {line}"[:76], overflow="ellipsis", no_wrap=True) for line in view.changed]
    if view.headline:
        story.append(Text(f"  GPT-2: {view.headline}", style="italic cyan", overflow="ellipsis", no_wrap=True))
    left = f"{view.elapsed:.0f} s" + (f" of {view.seconds:g}" if view.seconds else "  (Ctrl-C ends)")
    return Panel(Group(figures, Text(""), rates, Text(""), *story), title=f"Shopwindow demo   {left}", width=80)


def summary(result: dict[str, Any], problems: list[str]) -> str:
    """The end of the demo in words."""
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
    lines += [f"  {'ok ' if held else 'NOT'}  {name.replace('_', ' ')}" for name, held in result["invariants"].items()]
    lines += [f"  {problem}" for problem in problems]
    lines.append("all invariants hold" if result["ok"] else "THE DEMO FAILED")
    return "\n".join(lines)
