"""The invariants of a run of the demo, from what can be read back from the topics: pure functions over records."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jsonschema
import msgspec

from deploy.rate import Rate
from stream.events import Event, EventError, decode, shopper_key
from stream.page.schemas import Homepage
from stream.page.schemas import schemas

INVARIANTS = (
    "every_event_in_one_profile",
    "pages_valid",
    "no_item_twice_sold_out_or_hidden",
    "versions_rise_by_one",
    "impressions_match_pages",
    "malformed_in_dead_letters",
    "slot_probabilities_sum_to_one",
    "headlines_name_what_leads_their_slot",
)


class Readback(NamedTuple):
    """Records of the topics, each with .key .value .offset .partition .timestamp (ms) .headers."""

    behaviour: Mapping[str, Sequence[Any]]  # clicks, purchases
    homepages: Sequence[Any]
    impressions: Sequence[Any]
    dead_letters: Sequence[Any]
    catalog: Sequence[Any]
    profiles: Mapping[bytes, Any]  # PROFILE rows
    copy: Sequence[Any]


class Audit(NamedTuple):
    invariants: dict[str, bool]
    problems: list[str]  # the first of each kind
    events: int
    accepted: int  # distinct by shopper, source and id


def audit(read: Readback, malformed: Mapping[tuple[str, bytes], str]) -> Audit:
    """Check everything. malformed: (topic, value) -> error of each broken record that was sent."""
    problems: dict[str, list[str]] = {name: [] for name in INVARIANTS}
    accepted = accepted_events(read.behaviour)
    _events_in_profiles(accepted, read.profiles, problems["every_event_in_one_profile"])
    pages = _valid_pages(read.homepages, problems["pages_valid"])
    _nothing_unfit(pages, read, problems["no_item_twice_sold_out_or_hidden"])
    _versions(pages, problems["versions_rise_by_one"])
    _impressions(pages, read.impressions, problems["impressions_match_pages"])
    _letters(read.dead_letters, malformed, problems["malformed_in_dead_letters"])
    for _, page in pages:
        for slot in page["slots"]:
            total = sum(item["score"] for item in slot["items"])
            if abs(total - 1) > 1e-4 or any(not 0 < item["propensity"] <= 1 for item in slot["items"]):
                problems["slot_probabilities_sum_to_one"].append(
                    f"page {page['page_id']}, {slot['slot']}: scores sum to {total}"
                )
    _headlines(pages, read.copy, problems["headlines_name_what_leads_their_slot"])
    told = [f"{name}: {found[0]} ({len(found)} in all)" for name, found in problems.items() if found]
    events = sum(map(len, read.behaviour.values()))
    return Audit({name: not found for name, found in problems.items()}, told, events, len(accepted))


def accepted_events(behaviour: Mapping[str, Sequence[Any]]) -> dict[tuple[bytes, str, str], Event]:
    """The valid events by shopper, source and id: what the decoder takes, told apart as the profiles do."""
    found: dict[tuple[bytes, str, str], Event] = {}
    for topic, records in behaviour.items():
        for record in records:
            try:
                event = decode(record.value, record.key, topic)
            except EventError:
                continue
            found.setdefault((shopper_key(event).encode(), event.source, event.id), event)
    return found


def _events_in_profiles(
    accepted: Iterable[tuple[bytes, str, str]], profiles: Mapping[bytes, Any], out: list[str]
) -> None:
    expected = Counter(key for key, _, _ in accepted)
    for key in expected.keys() | profiles.keys():
        counted = int(profiles[key]["events"]) if key in profiles else 0
        if counted != expected[key]:
            out.append(f"{key.decode()} did {expected[key]} things, her profile counts {counted}")


def _valid_pages(records: Sequence[Any], out: list[str]) -> list[tuple[Any, dict[str, Any]]]:
    """Records with their pages. Every page is read as the type; JSON Schema judges one page of each structure.

    The schema and the type are one thing in two forms; the schema alone would take minutes for thousands of pages.
    """
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    seen: set[tuple[Any, ...]] = set()
    pages = []
    for record in records:
        try:
            page = json.loads(record.value)
            msgspec.convert(page, Homepage)
            shape = (
                page["serving"]["mode"],
                *((slot["slot"], slot["title_source"], len(slot["items"])) for slot in page["slots"]),
            )
            if shape not in seen:
                seen.add(shape)
                validator.validate(page)
            if page["user_key"].encode() != record.key:
                raise ValueError(f"user_key {page['user_key']} under the key {record.key!r}")
        except (ValueError, TypeError, jsonschema.ValidationError) as error:
            out.append(f"{record.value[:80]!r}: {str(error).splitlines()[0]}")
            continue
        pages.append((record, page))
    return pages


def _nothing_unfit(pages: Sequence[tuple[Any, dict[str, Any]]], read: Readback, out: list[str]) -> None:
    items = {record.key.decode(): json.loads(record.value) for record in read.catalog if record.value is not None}
    hidden: dict[str, dict[str, float]] = defaultdict(dict)
    for (key, _, _), event in accepted_events(read.behaviour).items():
        if event.type == "hide_item":
            for gone in event.data.items or ():
                hidden[key.decode()].setdefault(gone.item_id, event.time.timestamp())
    for _, page in pages:
        shown = [item["item_id"] for slot in page["slots"] for item in slot["items"]]
        if len(set(shown)) != len(shown):
            out.append(f"page {page['page_id']} shows an item twice")
        for item_id in shown:
            item = items.get(item_id)
            if item is None or not item.get("available", True):
                out.append(f"page {page['page_id']} shows {item_id}, which is not for sale")
            elif item.get("expires_at") and _moment(item["expires_at"]) <= _moment(page["generated_at"]):
                out.append(f"page {page['page_id']} shows {item_id}, which has expired")
            # Certain is only what was hidden by an event no later than the one that the page answers.
            elif hidden[page["user_key"]].get(item_id, float("inf")) <= _moment(page["trigger"]["event_time"]) - 0.001:
                out.append(f"page {page['page_id']} shows {item_id}, which the shopper hid")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _versions(pages: Sequence[tuple[Any, dict[str, Any]]], out: list[str]) -> None:
    newest: dict[str, int] = defaultdict(int)
    for record, page in sorted(pages, key=lambda pair: (pair[0].partition, pair[0].offset)):
        user = page["user_key"]
        if page["version"] != newest[user] + 1:
            out.append(f"{user}: version {page['version']} after {newest[user]} (offset {record.offset})")
        newest[user] = page["version"]


def _impressions(pages: Sequence[tuple[Any, dict[str, Any]]], records: Sequence[Any], out: list[str]) -> None:
    shown = {
        page["page_id"]: [(s["slot"], i["item_id"]) for s in page["slots"] for i in s["items"]] for _, page in pages
    }
    logged: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        impression = json.loads(record.value)
        if impression["page_id"] in logged:
            out.append(f"two impressions of page {impression['page_id']}")
        logged[impression["page_id"]] = [(item["slot"], item["item_id"]) for item in impression["items"]]
    for page in shown.keys() | logged.keys():
        if shown.get(page) != logged.get(page):
            out.append(
                f"page {page} shows {len(shown.get(page, []))} items, its impression has {len(logged.get(page, []))}"
            )


def _letters(records: Sequence[Any], malformed: Mapping[tuple[str, bytes], str], out: list[str]) -> None:
    found: dict[tuple[str, bytes], str] = {}
    for record in records:
        headers = {name: value.decode() for name, value in record.headers}
        found[headers.get("topic", ""), record.value] = headers.get("error", "")
    for letter in malformed.keys() | found.keys():
        if malformed.get(letter) != found.get(letter):
            out.append(
                f"{letter[1][:60]!r} of {letter[0]}: sent to fail as {malformed.get(letter)}, found {found.get(letter)}"
            )


def _headlines(pages: Sequence[tuple[Any, dict[str, Any]]], records: Sequence[Any], out: list[str]) -> None:
    """A headline that names an item stands above no slot but one that this item leads."""
    common: set[str] = set()
    named: dict[str, set[str]] = defaultdict(set)  # text -> the items that it names
    for record in records:
        copy = json.loads(record.value)
        if copy["item"]:
            named[copy["text"]].add(copy["item"])
        else:
            common.add(copy["text"])
    for _, page in pages:
        for slot in page["slots"]:
            title, lead = slot["title"], slot["items"][0]["item_id"]
            if title in named and title not in common and lead not in named[title]:
                out.append(f"page {page['page_id']} has '{title}' above {slot['slot']}, which {lead} leads")


def click_rates(events: Iterable[tuple[bytes, Event]], group_of: Callable[[bytes], str]) -> dict[str, Rate]:
    """Share of looks at a published page that led to a click on it, by group of shoppers.

    A look is a (shopper, page) pair: one who comes back to the same page looks once.
    """
    looks: dict[str, set[tuple[bytes, str]]] = defaultdict(set)
    clicks: dict[str, set[tuple[bytes, str]]] = defaultdict(set)
    for key, event in events:
        page = event.data.attribution.page_id if event.data.attribution else None
        if page and event.type in ("view_homepage", "select_item"):
            (looks if event.type == "view_homepage" else clicks)[group_of(key)].add((key, page))
    return {group: Rate(len(clicks[group] & looks[group]), len(looks[group])) for group in ("personal", "popular")}
