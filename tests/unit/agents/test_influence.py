"""Pages of shoppers who have no influence on others, and how often that is counted."""

from agents.page.fold_step import FoldRules
from agents.worker import policy_of
from stream import metrics
from stream.name_patterns import NamePatterns
from stream.settings import Settings, load
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import agent_of, process, run_of


def without_influence(reason: str) -> float:
    return float(metrics.WITHOUT_ACTIVITY.labels(reason)._value.get())


def test_an_excluded_shopper_gets_a_page_and_changes_no_item() -> None:
    rules = FoldRules(excluded_shoppers=NamePatterns(["monitor-*", "qa"]))
    agent = agent_of(path_of(fold=rules), settings=Settings())
    before = without_influence("excluded")
    sent = [record("view_item", key, f"{key}-1", NOW, item="i1") for key in ("monitor-7", "qa", "qa2", "monitor")]
    [(result, outputs)] = process(agent, run_of(sent))
    assert [page.key for page in result.pages] == [b"monitor-7", b"qa", b"qa2", b"monitor"]
    assert len(result.activity) == 2 and [output.topic for output in outputs].count("item-activity") == 1
    assert without_influence("excluded") == before + 2


def test_interactions_without_influence_are_counted_by_reason() -> None:
    agent = agent_of(path_of(fold=FoldRules(robot_events=10)), settings=Settings())
    before = {reason: without_influence(reason) for reason in ("repeat", "robot")}
    calm = [record("view_item", "calm", f"c{k}", NOW + 60 * k, item="i1") for k in range(5)]
    robot = [record("view_item", "robot", f"r{k}", NOW + k, item=f"i{k}") for k in range(25)]
    [(result, _)] = process(agent, run_of([*calm, *robot]))
    assert len(result.pages) == 2
    # The second view of the same item still makes the transition from the item to itself.
    assert {reason: without_influence(reason) - before[reason] for reason in before} == {"repeat": 3, "robot": 15}


def test_a_worker_takes_the_rules_from_its_settings() -> None:
    environ = {"SHOPWINDOW_ROBOT_EVENTS_PER_MINUTE": "90", "SHOPWINDOW_EXCLUDE_SHOPPERS": " monitor-*, qa ,"}
    rules = policy_of(load(environ)).fold
    assert rules.robot_events == 90
    assert [rules.excluded_shoppers.match(name) for name in ("monitor-1", "qa", "other", "")] == [
        "monitor-*", "qa", None, None
    ]  # fmt: skip
    assert not policy_of(Settings()).fold.excluded_shoppers
