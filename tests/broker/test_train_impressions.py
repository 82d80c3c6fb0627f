"""Choices read from a broker's topics equal those read from files with the same records."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from deploy.io.files import InputError, event_records
from deploy.train.impressions import from_files, from_topics, train_on_impressions
from deploy.train.simulation import UniformScorer, simulate
from models.train.step_cache import FOLDER
from stream.kafka import topics
from tests.harness.counting import scenario, send
from tests.harness.events import record
from tests.harness.training import ignore_line
from tests.harness.worker_process import settings_for


@scenario
async def test_topics_and_files_give_the_same_choices(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    with pytest.raises(InputError, match="no clicks at all"):
        await from_topics(settings, ignore_line)
    simulation = await asyncio.to_thread(simulate, UniformScorer(), 12, 8, 3)
    refusal = record("consent", "demo-3-00001", "no", 1.9e9, consent={"personalization": False})[1]
    lines = [line.decode() for line in (*simulation.events, refusal)]
    by_topic: dict[str, list[tuple[bytes, bytes]]] = {}
    for outgoing in event_records(lines):
        by_topic.setdefault(outgoing.topic, []).append((outgoing.key or b"", outgoing.value))
    for topic, records in by_topic.items():
        await send(settings, topic, records)
    pages = [(msgspec.json.decode(value)["user_key"].encode(), value) for value in simulation.impressions]
    await send(settings, "impressions", [*pages, (b"x", b"broken")])
    await send(settings, "clicks", [(b"x", b"broken")])
    log: list[str] = []
    found = await from_topics(settings, log.append)
    path = tmp_path / "dump.jsonl"
    path.write_bytes(b"\n".join([*simulation.events, refusal, *simulation.impressions]))
    expected = from_files([path], ignore_line)
    assert found.left_out == expected.left_out and found.left_out["consent was refused"] > 0
    assert {name: array.tobytes() for name, array in found.choices.arrays().items()} == {
        name: array.tobytes() for name, array in expected.choices.arrays().items()
    }
    text = "\n".join(log)
    assert "1 records are not valid events" in text and "1 impressions were refused" in text
    assert "impressions partition" in text and "not an impression" in text
    # Too few choices end the training, so the second run reads the topics again: there may be more clicks by then.
    for _ in range(2):
        log.clear()
        with pytest.raises(ValueError, match=f"^{len(found.choices.chosen)} choices are too few"):
            await asyncio.to_thread(train_on_impressions, settings, [], tmp_path, 1, "", log.append)
        assert not (tmp_path / "ranker" / FOLDER).exists()
        assert not any("resuming" in line for line in log)
