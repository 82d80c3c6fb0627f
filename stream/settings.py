"""Everything an operator can set: one typed object, read once from SHOPWINDOW_* variables."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "SHOPWINDOW_"
SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "models" / "default"
# Read by other parts before the settings are: where downloads and compiled kernels are kept.
ALSO_KNOWN = frozenset({"SHOPWINDOW_CACHE"})


HEADS = ("logit", "mlp")  # what a ranker may score by


class SettingsError(ValueError):
    """One line for each variable with a bad value: what it is, what was expected."""


class _Kind(NamedTuple):
    parse: Callable[[str], Any]
    expected: str


def _number(parse: Callable[[str], float], low: float, high: float, unit: str) -> _Kind:
    def read(text: str) -> float:
        value = parse(text)
        if not low <= value <= high:
            raise ValueError
        return value

    name = "a whole number" if parse is int else "a number"
    return _Kind(read, f"{name} from {low:g} to {high:g}{' ' + unit if unit else ''}")


def _whole(low: int, high: int, unit: str = "") -> _Kind:
    return _number(int, low, high, unit)


def _real(low: float, high: float, unit: str = "") -> _Kind:
    return _number(float, low, high, unit)


def _one_of(*values: str) -> _Kind:
    def read(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return _Kind(read, "one of " + ", ".join(values))


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


def _address(text: str) -> str:
    for host in text.split(","):
        name, _, port = host.strip().removeprefix("kafka://").partition(":")
        if not name or "/" in name or (port and not 0 < int(port) < 65536):
            raise ValueError
    return text


def _topic_part(text: str) -> str:
    if len(text) > 100 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in text):
        raise ValueError
    return text


def _folder(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text).expanduser()


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


_BOOL = _Kind(_flag, "true or false")
_PATH = _Kind(_folder, "a path")
_TEXT = _Kind(str, "text")
_MODEL = _Kind(_named, "a folder or a name")
_TOPIC = _Kind(_topic_part, "letters, digits, '.', '_' and '-', at most 100")


def _data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "shopwindow"


def _setting(default: Any, kind: _Kind, meaning: str, secret: bool = False) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See `describe` for what each one means."""

    broker: str | None = _setting(
        None, _Kind(_address, "kafka://host:port, several with commas between"),
        "Kafka to use; without it the embedded broker serves",
    )  # fmt: skip
    prefix: str = _setting("", _TOPIC, "put before every topic's name")
    app_id: str = _setting("shopwindow", _TOPIC, "name of the workers' consumer group; that of headlines ends in -copy")
    role: str = _setting(
        "all", _one_of("all", "pages", "copy"), "what a worker makes: pages, their headlines (copy), or both"
    )
    partitions: int = _setting(8, _whole(1, 4096), "partitions of each topic")
    replication: int = _setting(1, _whole(1, 15), "replicas of each topic that is created")
    security_protocol: str = _setting(
        "PLAINTEXT", _one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"), "how to talk to the brokers"
    )
    ssl_ca_file: Path | None = _setting(None, _PATH, "PEM file of the authority that signed the brokers' certificates")
    ssl_cert_file: Path | None = _setting(None, _PATH, "PEM file of our own certificate")
    ssl_key_file: Path | None = _setting(None, _PATH, "PEM file of its key")
    sasl_mechanism: str = _setting("PLAIN", _one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"), "how to log in")
    sasl_username: str | None = _setting(None, _TEXT, "user to log in as")
    sasl_password: str | None = _setting(None, _TEXT, "password of that user", secret=True)
    session_timeout: float = _setting(6.0, _real(1, 300, "s"), "a worker silent for this long has lost its partitions")
    heartbeat: float = _setting(0.5, _real(0.1, 60, "s"), "time between signs of life; a third of the above at most")
    fetch_timeout: float = _setting(
        60.0,
        _real(1, 3600, "s"),
        "a worker whose fetches go unanswered for this long, though Kafka answers, ends itself",
    )
    store: str = _setting("memory", _one_of("memory", "rocksdb"), "where profiles lie; rocksdb: under the data folder")
    standbys: int = _setting(
        1, _whole(0, 2), "other workers that keep a warm copy of each profile, to take over at once"
    )
    data_dir: Path = _setting(_data_dir(), _PATH, "data of `shopwindow broker`, and profiles in RocksDB")
    models_dir: Path = _setting(SHIPPED_MODELS, _PATH, "folder with the ranker, the history model and the copywriter")
    copywriter: str | None = _setting(
        None,
        _MODEL,
        "another copywriter: its folder, that of a Hugging Face GPT-2, or the name of one, such as gpt2",
    )
    web_host: str = _setting("127.0.0.1", _TEXT, "address of /metrics, /healthz and /readyz")
    web_port: int = _setting(6066, _whole(0, 65535), "port of the same; 0 takes a free one")
    run_records: int = _setting(512, _whole(1, 4096), "records that an agent takes at once, at most")
    overload_lag: float = _setting(
        2.0,
        _real(0.05, 86_400, "s"),
        "events that wait longer are overload: work is shed, more at twice and at four times",
    )
    future_tolerance: float = _setting(
        300.0, _real(0, 86_400, "s"), "an event further ahead of its record's time is clamped to that"
    )
    profile_ttl: float = _setting(
        7_776_000.0, _real(0, 315_360_000, "s"), "a profile is forgotten after so long without an event; 0: never"
    )
    default_locale: str = _setting("en", _one_of("en", "zh"), "language for shoppers who said none")
    page_ttl: float = _setting(3600.0, _real(1, 2_592_000, "s"), "a page expires so long after it was generated")
    brand_cap: int = _setting(2, _whole(1, 40), "items of one brand in a slot, at most")
    explore: bool = _setting(True, _BOOL, "give one position of each page to an item drawn by chance")
    popular_share: float = _setting(0.0, _real(0, 1), "share of shoppers who get the popular page, as a control group")
    head: str = _setting(
        "mlp", _one_of(*HEADS), "what scores candidates: theta . phi, or a small MLP over the same phi"
    )
    history: bool = _setting(
        True, _BOOL, "GPT-2 over items proposes candidates and judges them, where the models have one"
    )
    copy: bool = _setting(True, _BOOL, "headlines by GPT-2; without it, templates")
    copy_items: float = _setting(
        10.0,
        _real(0, 1000),
        "headlines that name an item: so many a second are asked for by a worker, at most; 0: none",
    )
    copy_ttl: float = _setting(3600.0, _real(1, 2_592_000, "s"), "a generated headline is used for so long")
    copy_temperature: float = _setting(0.9, _real(0.05, 5), "sampling: below 1 plays safe, above 1 takes risks")
    copy_top_k: int = _setting(50, _whole(1, 50), "sampling: among so many likeliest tokens")
    copy_top_p: float = _setting(0.95, _real(0.01, 1), "sampling: among the likeliest tokens of this total probability")
    copy_max_tokens: int = _setting(50, _whole(4, 64), "length of a headline, at most")
    copy_samples: int = _setting(8, _whole(1, 16), "headlines drawn, of which the likeliest good one is kept")
    log_level: str = _setting("WARNING", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "what is logged to stderr")
    log_format: str = _setting("text", _one_of("text", "json"), "lines for people, or a JSON object a line")


def load(environ: Mapping[str, str]) -> Settings:
    """The settings of this process.

    Raises SettingsError with a line for each variable that is unknown or has a bad value.
    """
    known = {PREFIX + f.name.upper(): f for f in fields(Settings)}
    problems, values = [], {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in ALSO_KNOWN:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `shopwindow settings` lists those there are"
            problems.append(f"{name} is no setting{hint}")
            continue
        setting = known[name]
        kind: _Kind = setting.metadata["kind"]
        try:
            values[setting.name] = kind.parse(environ[name])
        except (ValueError, KeyError, OverflowError):
            shown = "***" if setting.metadata["secret"] else repr(environ[name][:100])
            problems.append(f"{name} is {shown}, expected {kind.expected}")
    if not problems:
        settings = Settings(**values)
        problems = _contradictions(settings)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.security_protocol.startswith("SASL") and not (settings.sasl_username and settings.sasl_password):
        problems.append(
            f"SHOPWINDOW_SECURITY_PROTOCOL is {settings.security_protocol}, "
            "it needs SHOPWINDOW_SASL_USERNAME and SHOPWINDOW_SASL_PASSWORD"
        )
    if settings.role == "copy" and not settings.copy:
        problems.append(
            "SHOPWINDOW_ROLE is copy and SHOPWINDOW_COPY is false: a worker that writes nothing but headlines would write "
            "none; set one of them otherwise"
        )
    for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            problems.append(f"{PREFIX}{name.upper()} is '{path}', expected a file that exists")
    if settings.heartbeat > settings.session_timeout / 3:
        problems.append(
            f"SHOPWINDOW_HEARTBEAT is {settings.heartbeat:g}, expected at most a third of "
            f"SHOPWINDOW_SESSION_TIMEOUT ({settings.session_timeout:g})"
        )
    return problems


class Described(NamedTuple):
    name: str  # of the variable
    value: str  # masked where secret
    source: str  # "default" or "environment"
    meaning: str
    expected: str


def describe(settings: Settings, environ: Mapping[str, str]) -> list[Described]:
    """Every setting as text, secrets masked."""
    rows = []
    for f in fields(Settings):
        name = PREFIX + f.name.upper()
        value = getattr(settings, f.name)
        shown = "" if value is None else "***" if f.metadata["secret"] else str(value)
        source = "environment" if name in environ else "default"
        rows.append(Described(name, shown, source, f.metadata["meaning"], f.metadata["kind"].expected))
    return rows
