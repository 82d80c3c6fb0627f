"""Profiles in RocksDB: the rows after a process ends at any moment, and the errors that an operator sees."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stream.kafka.tables.disk_store import DiskError, DiskProfileStore
from stream.profile.store import CLOCK_KEY, MemoryProfileStore

ROOT = Path(__file__).parents[4]


def test_staged_rows_are_readable_and_reach_the_disk_with_their_offset(tmp_path: Path) -> None:
    store = DiskProfileStore(tmp_path)
    assert store.open(3) is None
    first = [(b"u1", b"one"), (b"u2", b"two")]
    store.persist(3, first, {("clicks", 3): 10}, 41)
    changed = [(b"u1", b"more"), (b"u2", None), (b"u3", b"new")]
    store.apply(3, changed)
    rows = store.partitions[3]
    assert [rows.get(key) for key in (b"u1", b"u2", b"u3", b"u4")] == [b"more", None, b"new", None]
    assert (b"u1" in rows, b"u2" in rows) == (True, False) and rows[b"u3"] == b"new" and set(rows) == {b"u1", b"u3"}
    store.serve([3], 0.0)
    assert store.owned({b"u1": 1, b"u2": 1, b"u3": 1}) == [b"u1", b"u3"]

    store.drop(3)  # a run that never reached the changelog
    state = store.open(3)
    assert state is not None and (state.offset, state.watermarks) == (41, {("clicks", 3): 10})
    assert dict(store.partitions[3]) == dict(first)

    store.apply(3, changed)
    store.persist(3, changed, {("clicks", 3): 12, ("purchases", 3): 1}, 45)
    assert not store.partitions[3].staged
    store.drop(3)
    state = store.open(3)
    assert state is not None and (state.offset, state.watermarks) == (45, {("clicks", 3): 12, ("purchases", 3): 1})
    assert dict(store.partitions[3]) == {b"u1": b"more", b"u3": b"new"}
    store.close()


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_profiles_and_their_bytes_are_counted_exactly(is_on_disk: bool, tmp_path: Path) -> None:
    store = DiskProfileStore(tmp_path) if is_on_disk else MemoryProfileStore()
    if isinstance(store, DiskProfileStore):
        store.open(0)
    store.apply(0, [(b"u1", b"12345"), (b"u2", b"123"), (CLOCK_KEY, b"1.0")])
    assert (store.count(), store.size()) == (0, 0), "a standby copy is not served"
    store.serve([0], 0.0)
    assert (store.count(), store.size()) == (2, 8)
    for number in range(50):  # RocksDB's estimate counts each write
        changes = [(b"u1", b"x" * number), (CLOCK_KEY, b"%d" % number), (b"u1", b"y" * (1 + number)), (b"gone", None)]
        store.apply(0, changes)
        if isinstance(store, DiskProfileStore):
            store.persist(0, changes, {}, number)
        assert (store.count(), store.size()) == (2, 4 + number)
    store.apply(0, [(b"u2", None), (b"u3", b"")])
    assert (store.count(), store.size()) == (2, 50)
    store.serve([], 0.0)
    assert (store.count(), store.size()) == (0, 0)
    store.serve([0], 0.0)
    assert (store.count(), store.size()) == (2, 50)
    store.drop(0)
    assert (store.count(), store.size()) == (0, 0)
    store.close()


def test_a_newer_row_stays_staged_when_an_older_one_is_durable(tmp_path: Path) -> None:
    store = DiskProfileStore(tmp_path)
    store.open(0)
    older, newer = [(b"u", b"1")], [(b"u", b"2")]
    store.apply(0, older)
    store.apply(0, newer)
    store.persist(0, older, {}, 1)
    assert store.partitions[0][b"u"] == b"2"
    store.drop(0)
    store.open(0)
    assert store.partitions[0][b"u"] == b"1"
    store.close()


def test_wiping_a_partition_leaves_the_others(tmp_path: Path) -> None:
    store = DiskProfileStore(tmp_path)
    for partition in (0, 1):
        store.open(partition)
        store.persist(partition, [(b"u", b"x")], {}, 5)
    store.wipe(0)
    assert store.open(0) is None and dict(store.partitions[0]) == {}
    assert dict(store.partitions[1]) == {b"u": b"x"}
    store.close()


WRITER = """
import sys
from pathlib import Path
from stream.kafka.tables.disk_store import DiskProfileStore
store = DiskProfileStore(Path(sys.argv[1]))
store.open(0)
for offset in range(1 << 30):
    store.persist(0, [(b"u%d" % k, b"%d" % offset) for k in range(50)], {("clicks", 0): offset}, offset)
    print(offset, flush=True)
"""


@pytest.mark.slow
def test_a_kill_leaves_all_rows_of_a_write_or_none(tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        written = [int(process.stdout.readline()) for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        written += [int(line) for line in process.stdout.read().split()]
        process.wait()
        store = DiskProfileStore(tmp_path)
        state = store.open(0)
        assert state is not None and state.offset >= written[-1], "a write that returned is on the disk"
        assert state.watermarks == {("clicks", 0): state.offset}
        rows = dict(store.partitions[0])
        assert rows == {b"u%d" % k: b"%d" % state.offset for k in range(50)}
        store.close()


def test_files_in_use_by_another_worker_are_refused(tmp_path: Path) -> None:
    one, other = DiskProfileStore(tmp_path), DiskProfileStore(tmp_path)
    one.open(0)
    with pytest.raises(BlockingIOError, match=r"in use by another worker; give each .* its own SHOPWINDOW_DATA_DIR"):
        other.open(0)
    one.close()
    other.open(0)
    other.close()


def test_a_full_disk_raises_an_error_with_a_solution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskProfileStore(tmp_path)
    store.open(0)
    store.persist(0, [(b"u", b"1")], {}, 1)

    def full(db: object, batch: object) -> None:
        raise Exception(
            "IO error: No space left on device: While appending to file: /x/000004.log: No space left on device"
        )

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(
        DiskError, match=r"the disk of '.*/0' is full; free some of it, or .*SHOPWINDOW_DATA_DIR"
    ) as raised:
        store.persist(0, [(b"u", b"2")], {}, 2)
    assert "\n" not in str(raised.value)
    assert store.partitions[0].state is not None and store.partitions[0].state.offset == 1
    store.close()


def test_a_folder_that_cannot_be_created_raises_an_error_with_a_solution(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="check the disk and its permissions"):
        DiskProfileStore(tmp_path / "file" / "below").open(0)


def test_damaged_files_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskProfileStore(tmp_path)
    store.open(0)
    store.persist(0, [(b"u%d" % k, b"x" * 100) for k in range(1000)], {}, 7)
    store.close()
    (manifest,) = (tmp_path / "0").glob("MANIFEST-*")
    manifest.write_bytes(b"nonsense" * 100)
    assert store.open(0) is None
    assert "are damaged" in caplog.text and "the changelog is read from its beginning" in caplog.text
    store.close()


def test_the_state_is_stored_as_readable_json(tmp_path: Path) -> None:
    store = DiskProfileStore(tmp_path)
    store.open(0)
    store.persist(0, [], {("clicks", 0): 3}, 9)
    stored = json.loads(store.partitions[0].db.get(b"\x00wm:state") or "")
    assert (stored["offset"], stored["watermarks"]) == (9, [["clicks", 0, 3]]) and stored["at"] > 1.7e9
    store.close()
