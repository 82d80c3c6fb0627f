"""Consent by event time over three topics: however their runs interleave, a shopper's page respects it."""

import json
import random
from typing import Any

import pytest

from stream.profile.codec import decode_records
from stream.settings import Settings
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import agent_of, process, profile_store, run_of

SHOPPERS = 40
Events = dict[str, list[tuple[bytes, bytes]]]  # records by topic
Statement = tuple[float, bool]  # time in seconds after NOW, True for a refusal
FIELDS = ("consent", "consent_time", "refused_time", "locale", "locale_time")


def events_of(chance: random.Random) -> tuple[Events, dict[str, list[Statement]]]:
    """Events of three topics in random order, and the statements on consent of each shopper."""
    events: Events = {"clicks": [], "purchases": [], "privacy": []}
    statements: dict[str, list[Statement]] = {}
    for n in range(SHOPPERS * 8):
        shopper, at = f"u{n % SHOPPERS}", chance.randrange(40) / 4
        topic = chance.choice(("clicks", "purchases", "privacy"))
        data: dict[str, Any] = {"locale": chance.choice(("en", "zh"))}
        if topic == "privacy" or chance.random() < 0.4:
            refuses = chance.random() < 0.4
            data["consent"] = {"personalization": not refuses}
            statements.setdefault(shopper, []).append((at, refuses))
        if topic != "privacy":
            data["item"] = f"i{n % 60}"
        if topic == "purchases":
            data["transaction_id"] = f"t{n}"
        kind = {"clicks": "view_item", "purchases": "purchase", "privacy": "consent"}[topic]
        events[topic].append(record(kind, shopper, f"e{n}", NOW + at, **data))
    return events, statements


def runs_of(events: Events, chance: random.Random) -> list[Any]:
    """The records of each topic in random order, in runs of random length that follow each other at random."""
    runs, position = [], dict.fromkeys(events, 0)
    waiting = {topic: chance.sample(records, len(records)) for topic, records in events.items()}
    for records in waiting.values():
        records.extend(chance.choices(records, k=len(records) // 3))  # redelivered
    while any(waiting.values()):
        topic = chance.choice([topic for topic, records in waiting.items() if records])
        length = chance.randint(1, 60)
        taken, waiting[topic] = waiting[topic][:length], waiting[topic][length:]
        runs.append(run_of(taken, topic, first=position[topic]))
        position[topic] += len(taken)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_consent_over_three_topics_has_one_outcome_in_profiles_and_pages(seed: int) -> None:
    chance = random.Random(seed)
    events, statements = events_of(chance)
    refused = {f"u{n}": False for n in range(SHOPPERS)}
    refused |= {shopper: max(stated)[1] for shopper, stated in statements.items()}
    assert 5 < sum(refused.values()) < 35
    outcomes = []
    for _ in range(4):
        profiles = profile_store()
        modes: dict[str, str] = {}
        agent = agent_of(path_of(), profiles, Settings())
        for run in runs_of(events, chance):
            [(result, outputs)] = process(agent, run)
            assert not [output for output in outputs if output.topic == "dead-letters"]
            modes |= {key.decode(): json.loads(value)["serving"]["mode"] for key, value in result.page_records()}
        rows = decode_records([profiles.rows_of(0)[shopper.encode()] for shopper in refused])[0]
        assert {s for s, consent in zip(refused, rows["consent"].tolist(), strict=True) if consent < 0} == {
            shopper for shopper, is_refused in refused.items() if is_refused
        }
        assert all(modes[shopper] == "popular" for shopper, is_refused in refused.items() if is_refused)
        assert not rows["recent_item"][rows["consent"] < 0].any()
        outcomes.append([rows[field].tolist() for field in FIELDS])
    assert all(outcome == outcomes[0] for outcome in outcomes)
