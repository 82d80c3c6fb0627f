"""Files that commands read: what is accepted, the records they become, and errors that name file, line and value."""

import base64
import gzip
import json
from hashlib import blake2b
from pathlib import Path

import pytest

from deploy.io.event_log import read_log
from deploy.io.files import InputError, event_records, open_text
from models.data.clickstream import read_clicks
from stream.events.decode import decode
from tests.harness.events import record


def file_of(folder: Path, text: str, name: str = "clicks.tsv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def clicks_of(folder: Path, text: str) -> list[tuple[float, str, str]]:
    """Time, session and item of each record that the text becomes."""
    log = read_log(file_of(folder, text), 0)
    sessions = [str(json.loads(out.value)["data"]["session_id"]) for out in log.records]
    return list(zip(log.times, sessions, log.items, strict=True))


def test_event_lines_find_their_topic_and_key() -> None:
    lines = [
        record("purchase", "u1", item="a", transaction_id="t")[1].decode(),
        record("view_item", "u2", item="a")[1].decode(),
        "",
        "{garbage",
        "[]",
        '{"type": 7, "data": null}',
        record("consent", "u3")[1].decode(),
    ]
    assert [(out.topic, out.key) for out in event_records(lines)] == [
        ("purchases", b"u1"),
        ("clicks", b"u2"),
        ("clicks", None),
        ("clicks", None),
        ("clicks", None),
        ("privacy", b"u3"),
    ]


def test_lenient_event_lines_have_the_key_that_the_worker_expects(tmp_path: Path) -> None:
    """The decoder gets each line as `send` and `replay` would send it."""
    lines = [json.loads(record("view_item", "7", item="a")[1]) for _ in range(4)]
    lines[1]["data"]["user_id"] = 7
    lines[2]["data"] |= {"user_id": "", "anonymous_id": "7"}
    lines[3]["data_base64"] = base64.b64encode(json.dumps(lines[3].pop("data")).encode()).decode()
    for line, time in zip(lines, ("2026-01-01T00:00:00Z", 1_767_225_600, 1_767_225_600_000, "1767225600"), strict=True):
        line["time"] = time
    log = read_log(file_of(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "events.jsonl"), 0)
    assert log.times == [1_767_225_600.0] * 4
    for sent in log.records:
        assert sent.key == b"7" and decode(sent.value, sent.key, sent.topic).type == "view_item"


@pytest.mark.parametrize(
    "text",
    [
        "SessionId\tItemId\tTime\ns1\ta\t1400000001\ns1\tb\t1400000000.0\ns2\tc\t1767225600\n",
        "Time,SessionId,ItemId\n1400000001,s1,a\n1400000000,s1,b\n2026-01-01T00:00:00,s2,c\n",
        "sessionid;itemid;time\ns1;a;1400000001000\ns1;b;1400000000000\ns2;c;2026-01-01T00:00:00Z\n",
    ],
)
def test_a_clickstream_is_sent_in_order_of_time(tmp_path: Path, text: str) -> None:
    assert clicks_of(tmp_path, text) == [(1.4e9, "s1", "b"), (1.4e9 + 1, "s1", "a"), (1767225600.0, "s2", "c")]


def test_equal_times_of_a_session_are_spread_as_in_training(tmp_path: Path) -> None:
    text = "SessionId,ItemId,Time\ns1,b,1400000000\ns1,a,1400000000\ns2,c,1400000000\ns1,d,1400000001\n"
    clicks = clicks_of(tmp_path, text)
    assert clicks == [(1.4e9, "s1", "b"), (1.4e9, "s2", "c"), (1.4e9 + 0.5, "s1", "a"), (1.4e9 + 1, "s1", "d")]
    assert [time for time, _, _ in clicks] == [click.time for click in read_clicks(tmp_path / "clicks.tsv")]


def test_a_click_becomes_the_record_that_it_always_became(tmp_path: Path) -> None:
    log = read_log(file_of(tmp_path, "SessionId\tItemId\tTime\ns1\ta\t1400000000.25\n"), 0)
    id_ = blake2b(b"s1\x000\x00a\x001400000000.25", digest_size=10).hexdigest()
    assert log.records[0] == (
        "clicks",
        b"s1",
        b'{"specversion":"1.0","id":"' + id_.encode() + b'","source":"/replay","type":"view_item",'
        b'"time":"2014-05-13T16:53:20.250000+00:00",'
        b'"data":{"user_id":"s1","session_id":"s1","items":[{"item_id":"a"}]}}',
    )


def test_clicks_become_valid_events_with_ids_of_their_content(tmp_path: Path) -> None:
    text = "SessionId\tItemId\tTime\ns1\ta\t1400000000\ns1\ta\t1400000000\n"
    records = read_log(file_of(tmp_path, text), 0).records
    assert len({decode(out.value, out.key, "clicks").id for out in records}) == 2
    assert records == read_log(file_of(tmp_path, text, "other.tsv"), 0).records


def test_event_lines_keep_their_order_and_borrow_missing_times(tmp_path: Path) -> None:
    lines = ['{"data":{}}', '{"time":"2026-01-01T00:00:05Z"}', '{"time":7}', '{"time":"2026-01-01T00:00:01+00:00"}']
    log = read_log(file_of(tmp_path, "\n".join(lines)), 0)
    assert log.times == [1767225605.0, 1767225605.0, 1767225605.0, 1767225601.0]
    assert len(read_log(file_of(tmp_path, "\n".join(lines)), 2).records) == 2


@pytest.mark.parametrize("time", ["soon", "1400000000000000000000", "1", ""])
def test_a_bad_time_is_named_with_file_line_and_value(tmp_path: Path, time: str) -> None:
    path = file_of(tmp_path, f"SessionId,ItemId,Time\ns,i,1400000000\ns,i,{time}\n")
    with pytest.raises(InputError, match=rf"clicks\.tsv line 3: Time is .*{time}"):
        read_log(path, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"clicks\.tsv line 1: there is no column SessionId in 'a,b'.*JSON lines of events"),
        ("SessionId,ItemId,Time\ns,i\n", "line 2: 2 columns"),
        ("\n", "is empty"),
        ("", "is empty"),
        ("SessionId,ItemId,Time\n", "no clicks"),
    ],
)
def test_a_file_that_is_not_a_log_is_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_log(file_of(tmp_path, text), 0)


def test_a_log_keeps_the_lines_of_its_events(tmp_path: Path) -> None:
    event = record(item="a")[1].decode()
    assert read_log(file_of(tmp_path, f"{event}\n\n{event}\n"), 0).lines == [1, 3]
    text = "SessionId,ItemId,Time\ns1,a,1400000001\ns1,b,1400000000\n"
    assert read_log(file_of(tmp_path, text), 0).lines == [3, 2]


def test_a_clickstream_that_is_not_utf_8_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("SessionId,ItemId,Time\ns1,a,1400000000\ns1,caf\xe9,1400000001\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv line 3 is not UTF-8: .*iconv -f LATIN1"):
        read_log(str(path), 0)
    assert read_log(str(path), 1).items == ["a"], "only events that are sent need to be UTF-8"


def test_items_of_events_that_are_not_text_are_left_out(tmp_path: Path) -> None:
    lines = [
        b'{"id":"e","type":"view_item","data":{"user_id":"u","items":[{"item_id":"\\ud800"}]}}',
        b'{"id":"e","type":"view_item","data":{"user_id":"u","items":[{"item_id":"caf\xe9"}]}}',
        b'{"id":"e","type":"view_item","data":{"user_id":"u","items":[{"item_id":7},{"item_id":""},null]}}',
        b'{"id":"e","type":"view_item","data":{"user_id":"u","items":[{"item_id":7}]}}',
    ]
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert read_log(str(path), 0).items == ["7"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.tsv cannot be read"), open_text(str(tmp_path / "none.tsv")):
        pass
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd...")
    with pytest.raises(InputError, match="zstd -d"), open_text(str(tmp_path / "a.zst")):
        pass


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    flipped = bytearray(gzip.compress(bytes(range(256)) * 400))
    flipped[len(flipped) // 2] ^= 0xFF
    for content in (bytes(flipped), gzip.compress(b"x" * 1000)[:20]):
        path = tmp_path / "broken.gz"
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged gzip"), open_text(str(path)) as file:
            file.read()
