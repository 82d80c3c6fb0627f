"""The embedded broker: Apache Kafka in a child process, on loopback only, with a JRE from PyPI and jars from Maven."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.broker.child_process import kill_child, start_child, stop_child
from deploy.broker.folder_lock import FolderLock, is_alive
from deploy.broker.jars import KAFKA_VERSION, BrokerError, Report, ensure_kafka, no_report, require_free_space
from deploy.broker.kafka_log import key_log_line, known_cause, why_kafka_ended
from stream.addresses import parse_address

__all__ = ["Broker", "BrokerError", "Cluster", "announce_broker", "find_running_broker", "free_port", "is_kafka_at"]

FILES = Path(__file__).parent
CLUSTER_ID = "shopwindow0000000000AA"
DEFAULT_PORT = 9092  # Kafka's own, the port that clients try by default
NOTE = "broker.json"  # in SHOPWINDOW_DATA_DIR: where this user's embedded broker answers
PORT_FILE = "port"  # in the data folder: the broker's last port
START_TIMEOUT_S = 60.0
API_VERSIONS_KEY, CORRELATION_ID = 18, 7


def free_port(port: int = 0) -> int:
    """Return `port`, or any free port for 0. Raises BrokerError if `port` is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise BrokerError(
                    f"port {port} of 127.0.0.1 is taken ({error.strerror}); stop its owner, or choose another: --port P"
                ) from None
            raise
        return int(probe.getsockname()[1])


def is_kafka_at(bootstrap: str, timeout_s: float = 1.0) -> bool:
    """Return whether a Kafka at `host:port` answers ApiVersions, the first request of every client."""
    request = struct.pack(">hhih", API_VERSIONS_KEY, 0, CORRELATION_ID, -1)
    try:
        with socket.create_connection(parse_address(bootstrap), timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return connection.recv(8)[4:] == struct.pack(">i", CORRELATION_ID)
    except (OSError, ValueError):
        return False


def choose_port(data: Path) -> int:
    """Return 9092, or if that is taken the last port of the data folder, or if that is taken too any free one."""
    ports = [DEFAULT_PORT]
    with suppress(OSError, ValueError):
        ports.append(int((data / PORT_FILE).read_text()))
    for port in ports:
        with suppress(BrokerError, OverflowError):
            return free_port(port)
    return free_port()


class Broker:
    """One Kafka broker on loopback, used as a context manager or with `start` and `stop`. It dies with this process.

    port: 0 takes any free port; None takes 9092, or if that is taken the last port of the data folder, or any free one.
    data: the data folder, locked until `stop`; None takes a temporary one, which `stop` removes.
    extra: more lines for server.properties; the last line of a name wins.
    users: passwords by user name for SCRAM logins, if `extra` enables them.
    optimize_jvm: use Java's optimising compiler. It pays off after about a minute and costs most of a core until then.
    """

    def __init__(
        self, port: int | None = 0, data: Path | None = None, report: Report = no_report, heap_mb: int = 256,
        extra: str = "", users: Mapping[str, str] | None = None, optimize_jvm: bool = False,
    ) -> None:  # fmt: skip
        self._requested_port = port
        self._optimize_jvm = optimize_jvm
        self._report = report
        self._heap_mb = heap_mb
        self._extra = extra
        self._users = users or {}
        self._is_temporary = data is None
        self._data = data
        self._lock: FolderLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        assert self._data is not None
        return self._data / "kafka.log"

    def start(self) -> None:
        """Start Kafka and wait until it answers. Raises BrokerError with the reason if it does not within 60 s."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start Kafka without waiting for it. Raises BrokerError if it cannot be started, or the folder is in use."""
        java, jars = ensure_kafka(self._report)
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="shopwindow-kafka-"))
        config = self._write_config(self._data)
        classpath = os.pathsep.join(map(str, jars))
        if not (self._data / "log" / "meta.properties").exists():
            self._format_storage(java, classpath, config)
        self._spawn(java, classpath)

    def _write_config(self, data: Path) -> Path:
        """Lock the data folder, choose the port, write server.properties, and return its path."""
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(data)
            self._lock.acquire()
            require_free_space(data)
            self.port = choose_port(data) if self._requested_port is None else free_port(self._requested_port)
            (data / PORT_FILE).write_text(f"{self.port}\n")
            config = data / "server.properties"
            text = (FILES / "server.properties").read_text() + self._extra
            values = {"port": self.port, "controller_port": free_port(), "data": data / "log"}
            for name, value in values.items():
                text = text.replace("{" + name + "}", str(value))
            config.write_text(text)
        except OSError as error:
            raise BrokerError(f"{data} cannot be written ({error.strerror}); set SHOPWINDOW_DATA_DIR") from None
        return config

    def _format_storage(self, java: Path, classpath: str, config: Path) -> None:
        self._report("formatting the broker's storage")
        tool = subprocess.run(
            [java, "-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", classpath,
             "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", config, *self._scram_arguments()],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if tool.returncode:
            output = tool.stdout + tool.stderr
            reason = known_cause(output, config.parent, self.port) or key_log_line(output)
            raise BrokerError(f"Kafka could not format {config.parent}: {reason}")

    def _scram_arguments(self) -> list[str]:
        return [
            word
            for name, password in self._users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]

    def _spawn(self, java: Path, classpath: str) -> None:
        assert self._data is not None and self._lock is not None
        command = [
            # UsePerfData would write a file into /tmp.
            str(java), f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC", "-XX:-UsePerfData",
            *([] if self._optimize_jvm else ["-XX:TieredStopAtLevel=1"]),
            f"-Dlog4j2.configurationFile={FILES / 'log4j2.xml'}", "-Dkafka.log=WARN",
            "-cp", classpath, "kafka.Kafka", str(self._data / "server.properties"),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = start_child(command, log, held=[self._lock.fileno])
        self._report(f"starting Kafka {KAFKA_VERSION} at {self.bootstrap}")

    def wait(self) -> None:
        """Return when Kafka answers. Raises BrokerError with the reason if it does not within 60 s."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_kafka_at(self.bootstrap):
            if self._process.poll() is not None or time.monotonic() > deadline:
                reason = self.end_reason()
                self.terminate()
                raise BrokerError(f"Kafka did not start: {reason}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop Kafka with SIGTERM, wait for its end, unlock the data folder, and remove it if it is temporary."""
        self.terminate()
        if self._lock is not None:
            self._lock.release()
        if self._is_temporary and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def terminate(self) -> None:
        """Stop Kafka with SIGTERM and wait for its end; `restart` starts it again on its data."""
        if self._process is not None:
            stop_child(self._process)
            self._process = None

    def kill(self) -> None:
        """Stop Kafka with SIGKILL; `restart` starts it again on its data."""
        if self._process is not None:
            kill_child(self._process)
            self._process = None

    def restart(self) -> None:
        """Stop Kafka if it runs, and start it on the same port and data."""
        self.terminate()
        java, jars = ensure_kafka(self._report)
        self._spawn(java, os.pathsep.join(map(str, jars)))
        self.wait()

    def poll(self) -> int | None:
        """Return None while Kafka runs, else its exit status."""
        return self._process.poll() if self._process is not None else 0

    def wait_until_exit(self) -> None:
        """Return when Kafka exits by itself."""
        if self._process is not None:
            self._process.wait()

    def end_reason(self) -> str:
        """Return why Kafka ended, and what to do: a known cause, or the last error line of its log."""
        return why_kafka_ended(self.log, self.poll(), self.port)

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


MEMBER_CONFIG = """
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
share.coordinator.state.topic.replication.factor=3
default.replication.factor=3
min.insync.replicas=2
replica.lag.time.max.ms=3000
"""


class Cluster:
    """Three brokers on loopback, each also a controller, so that any one may fail. A context manager."""

    def __init__(self, heap_mb: int = 256) -> None:
        ports = [(free_port(), free_port()) for _ in range(3)]
        voters = ",".join(f"{node}@127.0.0.1:{controller}" for node, (_, controller) in enumerate(ports, 1))
        self.brokers = [
            Broker(
                port,
                heap_mb=heap_mb,
                extra=MEMBER_CONFIG.format(node=node, voters=voters, port=port, controller_port=controller),
            )
            for node, (port, controller) in enumerate(ports, 1)
        ]

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def __enter__(self) -> Cluster:
        try:
            for broker in self.brokers:
                broker.launch()
            # No broker answers until two of them form a quorum, so all are started before the first wait.
            for broker in self.brokers:
                broker.wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for broker in self.brokers:
            # After a clean shutdown of the others, the last broker would wait for a quorum that no longer exists.
            broker.kill()
            broker.stop()


@contextmanager
def announce_broker(broker: Broker, data_dir: Path) -> Iterator[None]:
    """Let other commands of this user find `broker` with `find_running_broker` while the context is open.

    Another broker of this user that runs already stays the one that they find.
    """
    note = data_dir / NOTE
    is_announced = find_running_broker(data_dir) is None
    if is_announced:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"bootstrap": broker.bootstrap, "pid": os.getpid()}))
        except OSError as error:
            raise BrokerError(f"{data_dir} cannot be written ({error.strerror}); set SHOPWINDOW_DATA_DIR") from None
    try:
        yield
    finally:
        if is_announced:
            with suppress(OSError):
                note.unlink()


def find_running_broker(data_dir: Path) -> str | None:
    """Return `host:port` of this user's running embedded broker, or None."""
    try:
        found: Any = json.loads((data_dir / NOTE).read_text())
        bootstrap, pid = str(found["bootstrap"]), int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A note outlives a process that was killed, and another Kafka may listen on its port since.
    return bootstrap if is_alive(pid) and is_kafka_at(bootstrap) else None
