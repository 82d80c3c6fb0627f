"""What keeps the embedded broker from being had is one sentence that says what to do."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.broker import embedded as broker
from deploy.broker.embedded import BrokerError


def test_without_a_network_the_first_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPWINDOW_CACHE", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(BrokerError, match=r"could not be downloaded .* check the network") as error:
        broker.prepare()
    assert len(str(error.value).splitlines()) == 1


def test_a_cache_that_cannot_be_written_is_named_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPWINDOW_CACHE", "/proc/nowhere")
    with pytest.raises(BrokerError, match=r"/proc/nowhere cannot be written; set SHOPWINDOW_CACHE"):
        broker.prepare()


def test_a_full_disk_is_named_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, (1 << 40) - (5 << 20), 5 << 20))
    with pytest.raises(BrokerError, match=r"has 5 MB free, Kafka needs 1024; free some"):
        broker.Broker(data=tmp_path).start()


def test_a_data_folder_that_cannot_be_written_is_named_with_the_setting() -> None:
    with pytest.raises(BrokerError, match=r"/proc/nowhere cannot be written .*; set SHOPWINDOW_DATA_DIR"):
        broker.Broker(data=Path("/proc/nowhere")).start()


def test_jars_that_do_not_fit_are_named_with_what_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPWINDOW_CACHE", str(tmp_path))
    folder = tmp_path / f"kafka-{broker.KAFKA}"
    folder.mkdir()
    (folder / "kafka-clients-3.9.1.jar").write_bytes(b"old")
    (folder / "jars.json").write_text('{"kafka-clients-3.9.1.jar": 3}')
    with pytest.raises(BrokerError, match=r"hold kafka-clients-3\.9\.1\.jar, expected .*; remove .* and run again"):
        broker.prepare()
