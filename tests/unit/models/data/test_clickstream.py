"""Clickstreams as the world writes them: any order of columns, ids of text, ties in time, gzip; and what is wrong with the rest."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from models.data.clickstream import Clicks, ClickstreamError, apart, read

LINES = [("b", "x", 30.0), ("a", "y", 10.0), ("b", "y", 20.0), ("c", "z", 25.0), ("a", "x", 10.0), ("a", "x", 40.5)]


def written(path: Path, between: str = "\t", order: tuple[int, ...] = (0, 1, 2), pack: bool = False) -> Path:
    names = ["SessionId", "ItemId", "Time"]
    rows = [names, *([session, item, f"{time}"] for session, item, time in LINES)]
    text = "\n".join(between.join(["-", *(row[k] for k in order)]) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    return path


@pytest.mark.parametrize(
    ("between", "order", "pack"), [("\t", (0, 1, 2), False), (",", (2, 0, 1), True), (";", (1, 2, 0), False)]
)
def test_sessions_come_in_the_order_of_their_last_clicks_and_clicks_in_that_of_time(
    tmp_path: Path, between: str, order: tuple[int, ...], pack: bool
) -> None:
    items, [clicks] = read([written(tmp_path / "some", between, order, pack)])
    assert items == ["x", "y", "z"]
    # c has one click, at 25; b ends at 30, a at 40.5, and its two clicks of one moment are in the file's order.
    assert clicks.ends.tolist() == [1, 3, 6]
    assert [items[k] for k in clicks.item] == ["z", "y", "x", "y", "x", "x"]
    assert clicks.time.tolist() == [25, 20, 30, 10, 10.0005, 40.5]


@pytest.mark.parametrize(
    "text", ["1397239822.5", "1397239822500", "2014-04-11T18:10:22.5Z", "2014-04-11 20:10:22.500+02:00"]
)
def test_a_time_is_in_seconds_in_milliseconds_or_of_iso_8601(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text(f"SessionId,ItemId,Time\n1,2,{text}\n")
    assert read([path]).files[0].time.tolist() == [1397239822.5]


@pytest.mark.parametrize(
    ("tick", "times", "spread"),
    [
        (86_400.0, [0, 0, 0, 1, 1], [0, 30, 60, 86_400, 86_430]),  # a clock of days
        (3_600.0, [1, 1, 1, 1, 2], [3_600, 3_630, 3_660, 3_690, 7_200]),
        (60.0, [1, 1, 1, 2, 2], [60, 80, 100, 120, 150]),
        (1.0, [5, 7, 7, 8, 8], [5, 7, 7.5, 8, 8.5]),
        (1e-3, [5, 5, 6, 7, 7], [0.005, 0.0055, 0.006, 0.007, 0.0075]),
    ],
)
def test_clicks_of_one_tick_are_spread_in_it_in_their_order(tick: float, times: list[int], spread: list[float]) -> None:
    whole = apart(np.zeros(5, np.int64), tick * np.array(times))
    assert whole == pytest.approx(spread) and (np.diff(whole) > 0).all()
    alone = apart(np.arange(5), tick * np.array(times))
    assert alone.tolist() == (tick * np.array(times)).tolist(), "other sessions' times are their own"


def test_items_of_several_files_are_numbered_together(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("Time,SessionId,ItemId\n2014-04-01T00:00:07.5Z,1,y\n2014-04-01T02:00:00+02:00,1,new\n\n")
    items, [_, clicks] = read([written(tmp_path / "some"), other])
    assert items == ["x", "y", "z", "new"]
    assert [items[k] for k in clicks.item] == ["new", "y"]
    assert clicks.time.tolist() == [1_396_310_400.0, 1_396_310_407.5]


def test_files_of_a_coarse_clock_keep_their_order_as_one(tmp_path: Path) -> None:
    for name, sessions in (("one", "aabbbc"), ("two", "dddef")):
        rows = [f"{session},{session}{k},{86_400 * (session in 'cf')}" for k, session in enumerate(sessions)]
        (tmp_path / name).write_text("\n".join(["SessionId,ItemId,Time", *rows]))
    streams = read([tmp_path / "one", tmp_path / "two"])
    joined = streams.joined()
    assert [streams.items[k] for k in joined.item] == ["a0", "a1", "b2", "b3", "b4", "d0", "d1", "d2", "e3", "c5", "f4"]
    assert joined.time.tolist() == [0, 30, 0, 30, 60, 0, 30, 60, 0, 86_400, 86_400]


def test_a_part_is_some_sessions_and_their_clicks() -> None:
    clicks = Clicks(np.array([1, 3, 6]), np.arange(6, dtype=np.int32), np.arange(6.0))
    part = clicks.part(1, 3)
    assert (part.ends.tolist(), part.starts.tolist(), part.item.tolist()) == ([2, 5], [0, 2], [1, 2, 3, 4, 5])
    assert clicks.part(0, 1).item.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: there is no column SessionId"),
        (b"SessionId,Item,Time\n1,2,3\n", r"line 1: there is no column ItemId in 'SessionId,Item,Time'"),
        (b"SessionId,ItemId,Time\n", "holds no clicks"),
        (b"SessionId,ItemId,Time\n1,2,3\n1,2\n", "line 3: 2 columns where 3 are expected"),
        (b"SessionId,ItemId,Time\n1,,3\n", "line 2: ItemId is empty"),
        (b"SessionId,ItemId,Time\n1,2,soon\n", "line 2: Time is 'soon', expected seconds"),
        (b"SessionId,ItemId,Time\n1,2,nan\n", "line 2: Time is 'nan'"),
        (b"SessionId,ItemId,Time\n1,2,-5\n", "line 2: Time is '-5'"),
        (b"SessionId,ItemId,Time\n1,2,1397239822123000\n", "line 2: Time is '1397239822123000'"),
        (b"SessionId,ItemId,Time\n1,\xff,3\n", "cannot be read as text"),
        (gzip.compress(b"SessionId,ItemId,Time\n1,2,3\n")[:-9], "cannot be read as text"),
        (gzip.compress(b"")[:10] + b"\xff" * 9, "cannot be read as text: .* invalid block type"),
    ],
)  # fmt: skip
def test_what_is_no_clickstream_is_refused_by_line_and_value(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "wrong.tsv"
    path.write_bytes(content)
    with pytest.raises(ClickstreamError, match=said) as error:
        read([path])
    assert str(path) in str(error.value)
