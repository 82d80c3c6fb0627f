"""The cause of Kafka's end, as an operator reads it."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.broker.kafka_log import why_kafka_ended

LOST_DIRECTORY = (
    "12:00:01.000 ERROR LogDirFailureChannel Error while appending records to clicks-0 in dir /d/log\n"
    "java.io.IOException: No space left on device\n"
    "12:00:01.100 WARN ReplicaManager Stopping serving replicas in dir /d/log\n"
    "12:00:01.200 ERROR LogManager Shutdown broker because all log dirs in /d/log have failed\n"
)


def reason(folder: Path, text: str, status: int | None = 1) -> str:
    log = folder / "kafka.log"
    log.write_text(text)
    return why_kafka_ended(log, status, 9092)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (LOST_DIRECTORY, "the disk of {folder} is full; free some space"),
        ("java.lang.OutOfMemoryError: Java heap space\nx\n", "it did not get enough memory; free some, or raise"),
        ("# There is insufficient memory for the Java Runtime Environment to continue.\n", "not get enough memory"),
        ("Error occurred during initialization of VM\nCould not reserve enough space for 262144KB object heap\n",
         "not get enough memory"),
        ("Could not allocate compressed class space: 1073741824 bytes\n", "not get enough memory"),
        ("java.net.BindException: Address already in use\nERROR Exiting Kafka\n", "another program took port 9092"),
        ("ERROR x\njava.io.IOException: Too many open files\n", "raise the limit (ulimit -n 65536)"),
        ("KafkaException: Failed to acquire lock on file .lock in /d/log.\n", "another Kafka runs on {folder}"),
        ("12:00 INFO a\n12:01 ERROR Exiting Kafka due to a fault (KafkaRaftServer)\n12:02 INFO b\n",
         "12:01 ERROR Exiting Kafka due to a fault (KafkaRaftServer) (log: {folder}/kafka.log)"),
        ("", "the log is empty (log: {folder}/kafka.log)"),
    ],
)  # fmt: skip
def test_the_log_gives_the_cause_and_the_remedy(tmp_path: Path, text: str, wanted: str) -> None:
    found = reason(tmp_path, text)
    assert wanted.format(folder=tmp_path) in found and "\n" not in found


def test_a_full_disk_is_named_even_if_the_log_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 4096))
    assert reason(tmp_path, "12:00 INFO a\n").startswith(f"the disk of {tmp_path} is full")


def test_a_signal_is_named() -> None:
    missing = Path("/nowhere/kafka.log")
    assert why_kafka_ended(missing, 137, 1).startswith("it was ended by the signal SIGKILL; the system may have run")
    assert why_kafka_ended(missing, 143, 1) == "it was ended by the signal SIGTERM"
