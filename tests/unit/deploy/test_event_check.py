"""Events are checked as workers check them, and refused ones are reported by reason before anything is sent."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.io import send
from deploy.io.event_check import MAX_REASONS, BadEvents, EventCheck, NumberedRecord
from deploy.io.event_log import read_log
from deploy.io.files import InputError, Outgoing, event_records
from deploy.io.formats import event_format, feed_format, table_format
from stream.settings import Settings
from tests.harness.events import record

GOLDEN = Path(__file__).parents[1] / "golden"
FOREIGN_KEYS = (
    "type", "event", "events", "session", "schema", "properties", "kind", "@type", "payload", "data", "id", "messageId",
    "event_name", "event_timestamp", "userId", "variants", "handle", "products", "specversion", "data_base64",
)  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FOREIGN_KEYS), inner, max_size=2),
    max_leaves=4,
)
GOOD = record("view_item", item="a")[1].decode()
NO_ITEMS = record("view_item")[1].decode()
UNKNOWN = record("foo")[1].decode()
IGNORED = record("page_view")[1].decode()


def checked(*lines: str) -> EventCheck:
    check = EventCheck(Settings())
    check.good([NumberedRecord(at, one) for at, line in enumerate(lines, 1) for one in event_records([line])])
    return check


def test_refused_events_are_counted_by_reason_with_their_first_line() -> None:
    check = checked(GOOD, UNKNOWN, NO_ITEMS, "{half", IGNORED, NO_ITEMS)
    assert (check.checked, check.refused, dict(check.ignored)) == (6, 4, {"page_view": 1})
    first, *others = check.report()
    assert first.startswith("2 missing data.items, first line 3: view_item needs data.items")
    assert others[0].startswith("1 unknown_type 'foo', first line 2: ")
    assert others[1].startswith("1 not_json, first line 4: ")


def test_misspelt_fields_are_named_and_fields_of_others_are_not() -> None:
    event = json.loads(GOOD)
    event["data"] |= {"chanel": "web", "sessionId": "s", "consent": {"personalisation": True}, "coupon": "x"}
    event["data"]["items"] = [
        {"item_id": "a", "itemCategory": "c", "item_name": "A", "item_category2": "d", "item_list_name": "l"},
        {"item_id": "b", "item_category": "c", "itemCategory": "c"},
    ]
    assert [*checked(GOOD, json.dumps(event), json.dumps(event | {"id": "e2"})).report()] == [
        f"'data.{wrong}' in 2 of 3 events is not a field of event/1 and is not read; did you mean 'data.{right}'?"
        for wrong, right in (
            ("chanel", "channel"),
            ("consent.personalisation", "consent.personalization"),
            ("items.itemCategory", "items.item_category"),
            ("sessionId", "session_id"),
        )
    ]
    event["data"]["channel"] = "web"
    assert not any("chanel" in sentence for sentence in checked(json.dumps(event)).report())


def test_every_field_of_an_event_is_known() -> None:
    event = json.loads((GOLDEN / "event-1.json").read_text())
    assert not [*checked(json.dumps(event)).report()]


def test_many_unknown_types_make_a_short_report() -> None:
    check = checked(*(record(f"foo{k}")[1].decode() for k in range(3 * MAX_REASONS)))
    assert check.refused == 3 * MAX_REASONS and len(list(check.report())) == MAX_REASONS + 1


def test_only_good_events_are_returned_in_their_order() -> None:
    lines = [GOOD, UNKNOWN, record("consent", consent={"personalization": True})[1].decode(), GOOD]
    numbered = [NumberedRecord(at, one) for at, line in enumerate(lines, 1) for one in event_records([line])]
    check = EventCheck(Settings())
    assert [line for line, _ in check.good(numbered[:2]) + check.good(numbered[2:])] == [1, 3, 4]
    assert check.checked == 4


class SentRecords:
    """Takes the place of the producer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.opened = 0

        @asynccontextmanager
        async def sender(settings: Settings) -> AsyncIterator[SentRecords]:
            self.opened += 1
            yield self

        monkeypatch.setattr(send, "sender", sender)

    def refusal(self, record: Outgoing) -> str | None:
        return None

    async def send(self, record: Outgoing) -> None:
        self.lines.append(record.value.decode())


@pytest.mark.parametrize(
    ("bad", "sent"),
    [(BadEvents.REFUSE, []), (BadEvents.SKIP, [GOOD, GOOD]), (BadEvents.SEND, [GOOD, UNKNOWN, GOOD])],
)
def test_a_file_with_a_bad_event_is_sent_only_on_request(
    bad: BadEvents, sent: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SentRecords(monkeypatch)
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join([GOOD, UNKNOWN, GOOD]))
    done = asyncio.run(send.send_events(Settings(), str(path), bad))
    assert fake.lines == sent and done.events == len(sent) and done.check.refused == 1
    assert fake.opened == (1 if sent else 0)


def test_an_empty_file_is_not_reported_as_sent(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"events\.jsonl is empty"):
        asyncio.run(send.send_events(Settings(), str(tmp_path / "events.jsonl"), BadEvents.REFUSE))


def test_a_good_file_of_several_chunks_is_sent_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "CHECKED_TOGETHER", 3)
    fake = SentRecords(monkeypatch)
    lines = [record("view_item", id=f"e{k}", item="a")[1].decode() for k in range(10)]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines) + "\n")
    assert asyncio.run(send.send_events(Settings(), str(path), BadEvents.REFUSE)).events == 10
    assert fake.lines == lines


@pytest.mark.parametrize(
    ("line", "name", "advice"),
    [
        ('[{"id":"e1"}]', "a JSON array", "jq -c '.[]' FILE"),
        ("{", "JSON on several lines", "jq -c . FILE"),
        ('{"event_date":"20260101","event_timestamp":"1","event_name":"purchase","user_pseudo_id":"1"}',
         "a GA4 export from BigQuery", "CloudEvent"),
        ('{"client_id":"x.y","events":[{"name":"purchase"}]}', "requests of GA4's Measurement Protocol", ""),
        ('{"type":"track","event":"Product Viewed","userId":"u","messageId":"m"}', "calls of Segment", "No command"),
        ('{"type":"track","event":"x","messageId":"m","context":{"library":{"name":"RudderLabs JS"}}}',
         "calls of RudderStack", "No command"),
        ('{"app_id":"shop","collector_tstamp":"2026-01-01","event":"page_view"}', "events of Snowplow", ""),
        ("\t".join("x" * 131), "enriched events of Snowplow", ""),
        ('{"event":"view","properties":{"distinct_id":"u"}}', "events of Mixpanel or PostHog", ""),
        ('{"event_type":"view","device_id":"d"}', "events of Amplitude", ""),
        ('{"session":1,"events":[{"aid":2,"ts":1659304800025,"type":"clicks"}]}', "sessions of OTTO", "`replay`"),
        ("1,2014-04-07T10:51:09.277Z,214536502,0", "clicks of YooChoose", "sed '1i SessionId,Time,ItemId,Category'"),
        ("timestamp,visitorid,event,itemid,transactionid", "events of RetailRocket", "visitorid/SessionId"),
        ("sessionId;userId;itemId;timeframe;eventdate", "views of Diginetica", "eventdate/Time"),
        ('{"item_id":"a","title":"A"}', "items of the catalogue", "shopwindow catalog load FILE"),
        ("SessionId\tItemId\tTime", "a clickstream", "`shopwindow replay FILE`"),
        ("a,b,c", "a table separated by commas", "SessionId, ItemId and Time"),
        ("<rss>", "XML", ""),
    ],
)  # fmt: skip
def test_events_of_another_system_are_named(line: str, name: str, advice: str) -> None:
    last = [*checked(line, line).report()][-1]
    assert last.startswith(f"this looks like {name}. ") and advice in last, last


@pytest.mark.parametrize("line", ["", "hello", "{half", "{}", "null", '"text"', "7", NO_ITEMS, UNKNOWN])
def test_other_lines_have_no_known_format(line: str) -> None:
    assert event_format(line) is None and table_format(line) is None


@given(st.one_of(st.text(), st.dictionaries(st.sampled_from(FOREIGN_KEYS), JSON_VALUES).map(json.dumps)))
def test_no_line_breaks_the_check_or_the_recognition_of_formats(line: str) -> None:
    check = checked(line.replace("\n", " "))
    assert check.checked == check.refused + check.ignored.total() <= 1
    assert all(isinstance(sentence, str) for sentence in check.report())
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    feed_format(line, document)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("1,2014-04-07T10:51:09.277Z,214536502,0\n", ["1i SessionId,Time,ItemId,Category"]),
        ("timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n",
         ["1s/timestamp/Time/;1s/visitorid/SessionId/"]),
        ("sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n", ["1s/eventdate/Time/"]),
    ],
)  # fmt: skip
def test_a_table_can_be_replayed_after_the_command_that_the_message_gives(
    text: str, command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "raw.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="looks like"):
        read_log(str(path), 0)
    found = event_format(text.split("\n")[0])
    assert found is not None and f"sed '{command[0]}'" in found.advice
    (tmp_path / "clicks.csv").write_bytes(subprocess.check_output(["sed", *command, str(path)]))
    assert len(read_log(str(tmp_path / "clicks.csv"), 0).records) == 1
