"""Checks the invariants of a demo run from the records of its topics; all functions here are pure."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jsonschema
import msgspec

from deploy.rate import Rate
from stream.events.decode import Event, decode, shopper_key
from stream.events.errors import EventError
from stream.page.schemas import Homepage, schemas
from stream.times import parse_rfc3339

TIME_ROUNDING_S = 0.001  # pages give event times in milliseconds
Pages = Sequence[tuple[Any, dict[str, Any]]]  # records of `homepages` with their decoded pages


class Readback(NamedTuple):
    """Records of the topics, each with .key .value .offset .partition .timestamp (ms) .headers."""

    event_records: Mapping[str, Sequence[Any]]  # of clicks and purchases, by topic
    homepages: Sequence[Any]
    impressions: Sequence[Any]
    dead_letters: Sequence[Any]
    catalog: Sequence[Any]
    profiles: Mapping[bytes, Any]  # PROFILE rows by shopper key
    copy: Sequence[Any]


class Audit(NamedTuple):
    invariants: dict[str, bool]  # whether each holds
    problems: list[str]  # the first violation of each, and how many there are
    events: int  # records in the event topics
    accepted: int  # valid events, distinct by shopper, source and id


def audit(read: Readback, malformed: Mapping[tuple[str, bytes], str]) -> Audit:
    """Check all invariants. `malformed` maps (topic, value) of each malformed record to its error code."""
    accepted = accepted_events(read.event_records)
    pages, invalid = _valid_pages(read.homepages)
    found = {
        "every_event_in_one_profile": _check_event_counts(accepted, read.profiles),
        "pages_valid": invalid,
        "no_item_twice_sold_out_or_hidden": _check_shown_items(pages, read, accepted),
        "versions_rise": _check_versions(pages),
        "impressions_match_pages": _check_impressions(pages, read.impressions),
        "malformed_in_dead_letters": _check_dead_letters(read.dead_letters, malformed),
        "slot_probabilities_sum_to_one": _check_probabilities(pages),
        "headlines_name_what_leads_their_slot": _check_headlines(pages, read.copy),
    }
    problems = [
        f"{name}: {violations[0]} ({len(violations)} in all)" for name, violations in found.items() if violations
    ]
    events = sum(map(len, read.event_records.values()))
    return Audit({name: not violations for name, violations in found.items()}, problems, events, len(accepted))


def accepted_events(event_records: Mapping[str, Sequence[Any]]) -> dict[tuple[bytes, str, str], Event]:
    """Return the valid events by (shopper key, source, id), the identity that profiles use; of duplicates the first."""
    found: dict[tuple[bytes, str, str], Event] = {}
    for topic, records in event_records.items():
        for record in records:
            try:
                event = decode(record.value, record.key, topic, record.headers)
            except EventError:
                continue
            found.setdefault((shopper_key(event).encode(), event.source, event.id), event)
    return found


def _check_event_counts(accepted: Iterable[tuple[bytes, str, str]], profiles: Mapping[bytes, Any]) -> list[str]:
    """Every accepted event is counted once, in the profile of its shopper."""
    problems = []
    expected = Counter(key for key, _, _ in accepted)
    for key in expected.keys() | profiles.keys():
        counted = int(profiles[key]["events"]) if key in profiles else 0
        if counted != expected[key]:
            problems.append(f"{key.decode()} sent {expected[key]} events, their profile counts {counted}")
    return problems


def _valid_pages(records: Sequence[Any]) -> tuple[list[tuple[Any, dict[str, Any]]], list[str]]:
    """Return the valid pages with their records, and what is wrong with the others.

    Every page is converted to the `Homepage` type; JSON Schema validates one page of each structure. Type and schema
    describe the same format, and the schema alone would take minutes for thousands of pages.
    """
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    validated: set[tuple[Any, ...]] = set()
    pages, problems = [], []
    for record in records:
        try:
            page = json.loads(record.value)
            msgspec.convert(page, Homepage)
            structure = (
                page["serving"]["mode"],
                *((slot["slot"], slot["title_source"], len(slot["items"])) for slot in page["slots"]),
            )
            if structure not in validated:
                validated.add(structure)
                validator.validate(page)
            if page["user_key"].encode() != record.key:
                raise ValueError(f"user_key {page['user_key']} under the key {record.key!r}")
        except (ValueError, TypeError, jsonschema.ValidationError) as error:
            problems.append(f"{record.value[:80]!r}: {str(error).splitlines()[0]}")
            continue
        pages.append((record, page))
    return pages, problems


def _check_shown_items(pages: Pages, read: Readback, accepted: Mapping[tuple[bytes, str, str], Event]) -> list[str]:
    """No page shows an item twice, nor one that is sold out, expired or hidden by the shopper."""
    problems = []
    items = {record.key.decode(): json.loads(record.value) for record in read.catalog if record.value is not None}
    hidden: dict[str, dict[str, float]] = defaultdict(dict)  # shopper -> item -> when it was hidden first
    for (key, _, _), event in accepted.items():
        if event.type == "hide_item" and event.time is not None:
            for item in event.data.items or ():
                hidden[key.decode()].setdefault(item.item_id, event.time.timestamp())
    for _, page in pages:
        shown = [item["item_id"] for slot in page["slots"] for item in slot["items"]]
        if len(set(shown)) != len(shown):
            problems.append(f"page {page['page_id']} shows an item twice")
        # An item hidden after the event that triggered the page may still be on it.
        hidden_before = parse_rfc3339(page["trigger"]["event_time"]) - TIME_ROUNDING_S
        for item_id in shown:
            listed = items.get(item_id)
            if listed is None or not listed.get("available", True):
                problems.append(f"page {page['page_id']} shows {item_id}, which is not for sale")
            elif listed.get("expires_at") and parse_rfc3339(listed["expires_at"]) <= parse_rfc3339(
                page["generated_at"]
            ):
                problems.append(f"page {page['page_id']} shows {item_id}, which has expired")
            elif hidden[page["user_key"]].get(item_id, float("inf")) <= hidden_before:
                problems.append(f"page {page['page_id']} shows {item_id}, which the shopper hid")
    return problems


def _check_versions(pages: Pages) -> list[str]:
    """Each page of a shopper has a larger version than the one before, in the order of the log."""
    problems = []
    newest: dict[str, int] = defaultdict(int)
    for record, page in sorted(pages, key=lambda pair: (pair[0].partition, pair[0].offset)):
        user = page["user_key"]
        if page["version"] <= newest[user]:
            problems.append(f"{user}: version {page['version']} after {newest[user]} (offset {record.offset})")
        newest[user] = page["version"]
    return problems


def _check_impressions(pages: Pages, records: Sequence[Any]) -> list[str]:
    """Every page has exactly one impression, with the same items in the same slots."""
    problems = []
    shown = {
        page["page_id"]: [(s["slot"], i["item_id"]) for s in page["slots"] for i in s["items"]] for _, page in pages
    }
    logged: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        impression = json.loads(record.value)
        if impression["page_id"] in logged:
            problems.append(f"two impressions of page {impression['page_id']}")
        logged[impression["page_id"]] = [(item["slot"], item["item_id"]) for item in impression["items"]]
    for page_id in shown.keys() | logged.keys():
        if shown.get(page_id) != logged.get(page_id):
            problems.append(
                f"page {page_id} shows {len(shown.get(page_id, []))} items, "
                f"its impression has {len(logged.get(page_id, []))}"
            )
    return problems


def _check_dead_letters(records: Sequence[Any], malformed: Mapping[tuple[str, bytes], str]) -> list[str]:
    """The dead letters are exactly the malformed records, each with the expected error code."""
    problems = []
    found: dict[tuple[str, bytes], str] = {}
    for record in records:
        headers = {name: value.decode() for name, value in record.headers}
        found[headers.get("topic", ""), record.value] = headers.get("error", "")
    for topic, value in malformed.keys() | found.keys():
        expected, actual = malformed.get((topic, value)), found.get((topic, value))
        if expected != actual:
            problems.append(f"{value[:60]!r} of {topic}: expected the error {expected}, found {actual}")
    return problems


def _check_probabilities(pages: Pages) -> list[str]:
    """The scores of each slot sum to one, and propensities are in (0, 1]."""
    problems = []
    for _, page in pages:
        for slot in page["slots"]:
            total = sum(item["score"] for item in slot["items"])
            if abs(total - 1) > 1e-4 or any(not 0 < item["propensity"] <= 1 for item in slot["items"]):
                problems.append(f"page {page['page_id']}, {slot['slot']}: scores sum to {total}")
    return problems


def _check_headlines(pages: Pages, records: Sequence[Any]) -> list[str]:
    """A headline that names an item is used only for slots that this item leads."""
    problems = []
    general: set[str] = set()
    named: dict[str, set[str]] = defaultdict(set)  # text -> the items that it names
    for record in records:
        headline = json.loads(record.value)
        if headline["item"]:
            named[headline["text"]].add(headline["item"])
        else:
            general.add(headline["text"])
    for _, page in pages:
        for slot in page["slots"]:
            title, first = slot["title"], slot["items"][0]["item_id"]
            if title in named and title not in general and first not in named[title]:
                problems.append(f"page {page['page_id']} has '{title}' above {slot['slot']}, which {first} leads")
    return problems


def click_rates(events: Iterable[tuple[bytes, Event]], group_of: Callable[[bytes], str]) -> dict[str, Rate]:
    """Return the share of views of published pages that led to a click, by group of shoppers.

    A view is a (shopper, page) pair: a shopper who comes back to the same page counts once.
    """
    views: dict[str, set[tuple[bytes, str]]] = defaultdict(set)
    clicks: dict[str, set[tuple[bytes, str]]] = defaultdict(set)
    for key, event in events:
        page = event.data.attribution.page_id if event.data.attribution else None
        if page and event.type in ("view_homepage", "select_item"):
            (views if event.type == "view_homepage" else clicks)[group_of(key)].add((key, page))
    return {group: Rate(len(clicks[group] & views[group]), len(views[group])) for group in ("personal", "popular")}
