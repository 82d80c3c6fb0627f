"""The set-up of the embedded broker: its port and its folder; each failure is one sentence with the remedy."""

import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.broker import embedded
from deploy.broker.embedded import Broker, announce_broker, choose_port, find_running_broker, free_port
from deploy.broker.jars import KAFKA_VERSION, BrokerError, ensure_kafka


def test_first_run_without_network_reports_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPWINDOW_CACHE", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no proxy listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(BrokerError, match=r"could not be downloaded .* check the network") as error:
        ensure_kafka()
    assert len(str(error.value).splitlines()) == 1


def test_unwritable_cache_is_reported_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPWINDOW_CACHE", "/proc/nowhere")
    with pytest.raises(BrokerError, match=r"/proc/nowhere cannot be written; set SHOPWINDOW_CACHE"):
        ensure_kafka()


def test_full_disk_is_reported_with_the_space_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, (1 << 40) - (5 << 20), 5 << 20))
    with pytest.raises(BrokerError, match=r"has 5 MB free, Kafka needs 1024; free some"):
        Broker(data=tmp_path).start()


def test_unwritable_data_folder_is_reported_with_its_setting() -> None:
    with pytest.raises(BrokerError, match=r"/proc/nowhere cannot be written .*; set SHOPWINDOW_DATA_DIR"):
        Broker(data=Path("/proc/nowhere")).start()


def test_jars_of_another_version_are_reported_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPWINDOW_CACHE", str(tmp_path))
    folder = tmp_path / f"kafka-{KAFKA_VERSION}"
    folder.mkdir()
    (folder / "kafka-clients-3.9.1.jar").write_bytes(b"old")
    (folder / "jars.json").write_text('{"kafka-clients-3.9.1.jar": 3}')
    with pytest.raises(BrokerError, match=r"hold kafka-clients-3\.9\.1\.jar, expected .*; remove .* and run again"):
        ensure_kafka()


def test_the_port_is_the_default_then_the_folders_last_then_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, last = free_port(), free_port()
    monkeypatch.setattr(embedded, "DEFAULT_PORT", default)
    (tmp_path / embedded.PORT_FILE).write_text(f"{last}\n")
    assert choose_port(tmp_path) == default
    with socket.create_server(("127.0.0.1", default)):
        assert choose_port(tmp_path) == last
        with socket.create_server(("127.0.0.1", last)):
            assert choose_port(tmp_path) not in (default, last)
        (tmp_path / embedded.PORT_FILE).write_text("not a port")
        assert choose_port(tmp_path) != default


def test_a_second_broker_does_not_replace_the_announced_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "is_kafka_at", lambda bootstrap: True)
    first, second = Broker(), Broker()
    first.port, second.port = 1, 2
    with announce_broker(first, tmp_path):
        with announce_broker(second, tmp_path):
            assert find_running_broker(tmp_path) == "127.0.0.1:1"
        assert find_running_broker(tmp_path) == "127.0.0.1:1"
    assert find_running_broker(tmp_path) is None
