"""Events that cannot be distinguished from redeliveries: dead letters with a reason, or folded, by setting."""

import pytest

from agents.page.fold_step import FoldRules
from stream import metrics
from stream.profile.row import EVENT_IDS
from stream.settings import Settings
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import agent_of, process, run_of


@pytest.mark.parametrize("policy", ["refuse", "fold"])
def test_a_too_late_event_is_a_dead_letter_or_folded_by_setting(policy: str) -> None:
    agent = agent_of(path_of(fold=FoldRules(refuses_late=policy == "refuse")), settings=Settings(late_events=policy))
    views = [record("view_homepage", "u1", f"e{k}", NOW + k) for k in range(EVENT_IDS)]
    process(agent, run_of(views))
    duplicates, windows = metrics.DUPLICATES._value.get(), metrics.ID_WINDOW._sum.get()
    late = [record("view_item", "u1", "late", NOW - 9, item="i1"), record("view_item", "u2", "new", NOW - 9, item="i1")]
    [(result, outputs)] = process(agent, run_of(late, first=EVENT_IDS))
    letters = [output for output in outputs if output.topic == "dead-letters"]
    assert metrics.DUPLICATES._value.get() == duplicates
    assert metrics.ID_WINDOW._sum.get() == windows + EVENT_IDS - 1
    if policy == "fold":
        assert not letters and result.fresh.tolist() == [True, True]
        return
    assert [page.key for page in result.pages] == [b"u2"]
    [output] = letters
    assert output.headers is not None
    headers = {name: value.decode() for name, value in output.headers[0]}
    assert (headers["error"], headers["field"], headers["offset"]) == ("too_late", "time", str(EVENT_IDS))
    assert headers["message"].startswith("time is 2025-12-31T23:59:51.000Z, older than the newest 128 events")
    assert output.records == [late[0]]


def test_a_purchase_repeated_under_a_new_id_gets_no_page_and_counts_as_a_duplicate() -> None:
    agent = agent_of(path_of(), settings=Settings())
    sold = [record("purchase", "u1", id, NOW, item="i1", transaction_id="t1") for id in ("a", "b")]
    process(agent, run_of(sold[:1], "purchases"))
    duplicates = metrics.DUPLICATES._value.get()
    [(result, outputs)] = process(agent, run_of(sold[1:], "purchases", first=1))
    assert not result.pages and not outputs and metrics.DUPLICATES._value.get() == duplicates + 1
