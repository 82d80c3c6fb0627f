"""The clickstream reader: any order of columns, text ids, equal times, gzip; and errors with line and value."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.data.clickstream import (
    Click,
    Clicks,
    ClickstreamError,
    parse_clicks,
    read,
    read_clicks,
    spread_equal_times,
)

LINES = [("b", "x", 30.0), ("a", "y", 10.0), ("b", "y", 20.0), ("c", "z", 25.0), ("a", "x", 10.0), ("a", "x", 40.5)]
LAYOUTS = [("\t", (0, 1, 2), False), (",", (2, 0, 1), True), (";", (1, 2, 0), False)]


def write_clicks(path: Path, separator: str = "\t", order: tuple[int, ...] = (0, 1, 2), pack: bool = False) -> Path:
    """LINES as a file, with a first column that the reader ignores."""
    names = ["SessionId", "ItemId", "Time"]
    rows = [names, *([session, item, f"{time}"] for session, item, time in LINES)]
    text = "\n".join(separator.join(["-", *(row[k] for k in order)]) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    return path


@pytest.mark.parametrize(("separator", "order", "pack"), LAYOUTS)
def test_sessions_are_ordered_by_last_click_and_clicks_by_time(
    tmp_path: Path, separator: str, order: tuple[int, ...], pack: bool
) -> None:
    items, [clicks] = read([write_clicks(tmp_path / "some", separator, order, pack)])
    assert items == ["x", "y", "z"]
    # c has one click, at 25; b ends at 30 and a at 40.5. The two clicks of a at 10 keep the order of the file.
    assert clicks.ends.tolist() == [1, 3, 6]
    assert [items[k] for k in clicks.item] == ["z", "y", "x", "y", "x", "x"]
    assert clicks.time.tolist() == [25, 20, 30, 10, 10.0005, 40.5]


@pytest.mark.parametrize(("separator", "order", "pack"), LAYOUTS)
def test_single_clicks_are_read_in_order_of_time(
    tmp_path: Path, separator: str, order: tuple[int, ...], pack: bool
) -> None:
    expected = [
        Click("a", "y", 10.0, 0, "10.0", 3),
        Click("a", "x", 10.0005, 1, "10.0", 6),
        Click("b", "y", 20.0, 1, "20.0", 4),
        Click("c", "z", 25.0, 0, "25.0", 5),
        Click("b", "x", 30.0, 0, "30.0", 2),
        Click("a", "x", 40.5, 2, "40.5", 7),
    ]
    path = write_clicks(tmp_path / "some", separator, order, pack)
    assert read_clicks(path) == expected
    if not pack:
        with path.open() as lines:
            assert parse_clicks(lines, "stdin") == expected


def test_single_clicks_have_the_times_of_the_sessions(tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    rows = [f"{'abc'[k % 3]},i{k % 7},{86_400 * (k // 10)}" for k in range(60)]
    path.write_text("\n".join(["SessionId,ItemId,Time", *rows]))
    items, [clicks] = read([path])
    of_sessions = sorted(zip(clicks.time.tolist(), (items[k] for k in clicks.item), strict=True))
    assert sorted((click.time, click.item) for click in read_clicks(path)) == of_sessions


def test_errors_of_open_lines_name_their_source() -> None:
    with pytest.raises(ClickstreamError, match="stdin line 2: Time is 'soon'"):
        parse_clicks(["SessionId,ItemId,Time\n", "1,2,soon\n"], "stdin")
    with pytest.raises(ClickstreamError, match="stdin holds no clicks"):
        parse_clicks(["SessionId,ItemId,Time\n"], "stdin")


@pytest.mark.parametrize(
    "text", ["1397239822.5", "1397239822500", "2014-04-11T18:10:22.5Z", "2014-04-11 20:10:22.500+02:00"]
)
def test_times_may_be_seconds_milliseconds_or_iso_8601(tmp_path: Path, text: str) -> None:
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
def test_equal_times_of_a_session_are_spread_in_order(tick: float, times: list[int], spread: list[float]) -> None:
    one_session = spread_equal_times(np.zeros(5, np.int64), tick * np.array(times))
    assert one_session == pytest.approx(spread) and (np.diff(one_session) > 0).all()
    five_sessions = spread_equal_times(np.arange(5), tick * np.array(times))
    assert five_sessions.tolist() == (tick * np.array(times)).tolist(), "times of different sessions may be equal"


def test_several_files_share_one_numbering_of_items(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("Time,SessionId,ItemId\n2014-04-01T00:00:07.5Z,1,y\n2014-04-01T02:00:00+02:00,1,new\n\n")
    items, [_, clicks] = read([write_clicks(tmp_path / "some"), other])
    assert items == ["x", "y", "z", "new"]
    assert [items[k] for k in clicks.item] == ["new", "y"]
    assert clicks.time.tolist() == [1_396_310_400.0, 1_396_310_407.5]


def test_joined_files_with_coarse_clocks_keep_their_order(tmp_path: Path) -> None:
    for name, sessions in (("one", "aabbbc"), ("two", "dddef")):
        rows = [f"{session},{session}{k},{86_400 * (session in 'cf')}" for k, session in enumerate(sessions)]
        (tmp_path / name).write_text("\n".join(["SessionId,ItemId,Time", *rows]))
    streams = read([tmp_path / "one", tmp_path / "two"])
    joined = streams.joined()
    assert [streams.items[k] for k in joined.item] == ["a0", "a1", "b2", "b3", "b4", "d0", "d1", "d2", "e3", "c5", "f4"]
    assert joined.time.tolist() == [0, 30, 0, 30, 60, 0, 30, 60, 0, 86_400, 86_400]


def test_a_part_holds_the_clicks_of_its_sessions() -> None:
    clicks = Clicks(np.array([1, 3, 6]), np.arange(6, dtype=np.int32), np.arange(6.0))
    part = clicks.part(1, 3)
    assert (part.ends.tolist(), part.starts.tolist(), part.item.tolist()) == ([2, 5], [0, 2], [1, 2, 3, 4, 5])
    assert clicks.part(0, 1).item.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "message"),
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
        (b"\xff,ItemId,Time\n1,2,3\n", "cannot be read as text"),
        (gzip.compress(b"SessionId,ItemId,Time\n1,2,3\n", mtime=0)[:-9], "cannot be read as text"),
        (gzip.compress(b"", mtime=0)[:10] + b"\xff" * 9, "cannot be read as text: .* invalid block type"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reader", [lambda path: read([path]), read_clicks], ids=["replay", "train"])
def test_a_wrong_file_is_refused_by_line_and_value(
    tmp_path: Path, content: bytes, message: str, reader: Callable[[Path], object]
) -> None:
    path = tmp_path / "wrong.tsv"
    path.write_bytes(content)
    with pytest.raises(ClickstreamError, match=message) as error:
        reader(path)
    assert str(path) in str(error.value)
