"""The ranker's choices from the topics of a broker are those of files that hold the same."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from deploy.io.files import InputError, event_records
from deploy.train.impressions import from_files, from_topics, train_on_impressions
from deploy.train.simulation import Uniform, simulate
from models.train.step_cache import FOLDER
from stream.kafka import topics
from tests.harness.counting import scenario, send
from tests.harness.events import record
from tests.harness.worker_process import settings_for


@scenario
async def test_choices_are_read_from_the_topics(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    with pytest.raises(InputError, match="no clicks at all"):
        await from_topics(settings, lambda line: None)
    one = await asyncio.to_thread(simulate, Uniform(), 12, 8, 3)
    denied = record("consent", "demo-3-00001", "no", 1.9e9, consent={"personalization": False})[1]
    lines = [line.decode() for line in (*one.events, denied)]
    by_topic: dict[str, list[tuple[bytes, bytes]]] = {}
    for sent in event_records(lines):
        by_topic.setdefault(sent.topic, []).append((sent.key or b"", sent.value))
    for topic, records in by_topic.items():
        await send(settings, topic, records)
    pages = [(msgspec.json.decode(value)["user_key"].encode(), value) for value in one.impressions]
    await send(settings, "impressions", [*pages, (b"x", b"no impression")])
    await send(settings, "clicks", [(b"x", b"no event")])
    said: list[str] = []
    found = await from_topics(settings, said.append)
    path = tmp_path / "dump.jsonl"
    path.write_bytes(b"\n".join([*one.events, denied, *one.impressions]))
    same = from_files([path], lambda line: None)
    assert found.lost == same.lost and found.lost["consent was refused"] > 0
    assert {name: array.tobytes() for name, array in found.choices.arrays().items()} == {
        name: array.tobytes() for name, array in same.choices.arrays().items()
    }
    text = "\n".join(said)
    assert "1 records are no events" in text and "1 impressions were refused" in text
    assert "impressions partition" in text and "no impression" in text
    for _ in range(2):  # the second asks the topics again: more may have been clicked by then
        said.clear()
        with pytest.raises(ValueError, match=f"^{len(found.choices.chosen)} choices are too few"):
            await asyncio.to_thread(train_on_impressions, settings, [], tmp_path, 1, "", said.append)
        assert not (tmp_path / "ranker" / FOLDER).exists()
        assert not any("goes on" in line for line in said)
