"""Settings of an operator: one typed object, read once from SHOPWINDOW_* environment variables."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stream.addresses import parse_brokers, parse_host
from stream.secret_files import SecretFileError, read_secret

PREFIX = "SHOPWINDOW_"
SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "models" / "default"
# Variables that are read before the settings: the folder of downloads and compiled kernels.
ALSO_KNOWN = frozenset({"SHOPWINDOW_CACHE"})
FILE_SUFFIX = "_FILE"  # after a secret's variable: the variable with the path of a file that holds the secret
HEADS = ("logit", "mlp")  # heads of the ranker


class SettingsError(ValueError):
    """Invalid settings: one line per variable, with its value and what was expected."""


class _Kind(NamedTuple):
    """Type of a setting."""

    parse: Callable[[str], Any]  # raises ValueError, KeyError or OverflowError
    expected: str  # what the parser accepts, in words


def _number(parse: Callable[[str], float], low: float, high: float, unit: str) -> _Kind:
    def parse_in_range(text: str) -> float:
        value = parse(text)
        if not low <= value <= high:
            raise ValueError
        return value

    name = "a whole number" if parse is int else "a number"
    return _Kind(parse_in_range, f"{name} from {low:g} to {high:g}{' ' + unit if unit else ''}")


def _whole(low: int, high: int, unit: str = "") -> _Kind:
    return _number(int, low, high, unit)


def _real(low: float, high: float, unit: str = "") -> _Kind:
    return _number(float, low, high, unit)


def _one_of(*values: str) -> _Kind:
    def parse_choice(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return _Kind(parse_choice, "one of " + ", ".join(values))


def _parse_flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


def _parse_addresses(text: str) -> str:
    parse_brokers(text)
    return text


def _parse_url(text: str) -> str:
    url = urlsplit(text)
    if not text.isprintable() or " " in text:
        raise ValueError
    # A password in the URL would be printed with it.
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.fragment or url.port == 0:
        raise ValueError
    return text


def _parse_extensions(text: str) -> str:
    # RFC 7628, section 3.1: names are letters, values printable ASCII; `auth` is the token itself.
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not (equals and name.isascii() and name.isalpha() and name.lower() != "auth"):
            raise ValueError
        if not (value.isascii() and value.isprintable()):
            raise ValueError
    return text


def _parse_topic_part(text: str) -> str:
    if len(text) > 100 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in text):
        raise ValueError
    return text


def _parse_folder(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text).expanduser()


def _parse_names(text: str) -> str:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if any("*" in name[:-1] or any(c.isspace() for c in name) for name in names):
        raise ValueError
    return ",".join(names)


def _parse_model(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


_BOOL = _Kind(_parse_flag, "true or false")
_PATH = _Kind(_parse_folder, "a path")
_TEXT = _Kind(str, "text")
_URL = _Kind(_parse_url, "an http:// or https:// URL without a password")
_MODEL = _Kind(_parse_model, "a folder or a name")
_HOST = _Kind(parse_host, "a name or an IP address")
_NAMES = _Kind(_parse_names, "names with commas between; a name may end in *")
_TOPIC = _Kind(_parse_topic_part, "letters, digits, '.', '_' and '-', at most 100")


def _data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "shopwindow"


def _setting(default: Any, kind: _Kind, meaning: str, secret: bool = False) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings with their defaults. The metadata of each field has its meaning and its type."""

    broker: str | None = _setting(
        None, _Kind(_parse_addresses, "kafka://host:port, several with commas between; [::1]:9092 for IPv6"),
        "Kafka brokers; without it, the embedded broker is used",
    )  # fmt: skip
    prefix: str = _setting("", _TOPIC, "prefix of every topic name")
    app_id: str = _setting(
        "shopwindow", _TOPIC, "consumer group of the workers; the group of headline workers ends in -copy"
    )
    role: str = _setting(
        "all", _one_of("all", "pages", "copy"), "what a worker produces: pages, headlines (copy), or both"
    )
    partitions: int = _setting(8, _whole(1, 4096), "partitions of each topic")
    replication: int = _setting(1, _whole(1, 15), "replicas of each topic that Shopwindow creates")
    security_protocol: str = _setting(
        "PLAINTEXT", _one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"), "protocol of broker connections"
    )
    ssl_ca_file: Path | None = _setting(None, _PATH, "PEM file of the authority that signed the broker certificates")
    ssl_cert_file: Path | None = _setting(None, _PATH, "PEM file of the client certificate")
    ssl_key_file: Path | None = _setting(None, _PATH, "PEM file of the client certificate's key")
    ssl_key_password: str | None = _setting(None, _TEXT, "password of that key, if it is encrypted", secret=True)
    sasl_mechanism: str = _setting(
        "PLAIN",
        _one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM", "GSSAPI"),
        "SASL mechanism; AWS_MSK_IAM: OAUTHBEARER with tokens that AWS signs",
    )
    sasl_username: str | None = _setting(None, _TEXT, "SASL user, for PLAIN and SCRAM")
    sasl_password: str | None = _setting(None, _TEXT, "password of the SASL user", secret=True)
    oauth_token_url: str | None = _setting(None, _URL, "token endpoint of the OpenID provider, for OAUTHBEARER")
    oauth_client_id: str | None = _setting(None, _TEXT, "client of the OpenID provider")
    oauth_client_secret: str | None = _setting(None, _TEXT, "secret of that client", secret=True)
    oauth_scope: str | None = _setting(None, _TEXT, "scope to request, if the provider needs one")
    oauth_audience: str | None = _setting(None, _TEXT, "audience to request, if the provider needs one")
    oauth_extensions: str | None = _setting(
        None,
        _Kind(_parse_extensions, "name=value, several with commas between"),
        "SASL extensions to send with each token, such as logicalCluster=lkc-1 for Confluent Cloud",
    )
    oauth_ca_file: Path | None = _setting(
        None, _PATH, "PEM file of the authority that signed the token endpoint's certificate"
    )
    aws_region: str | None = _setting(None, _TEXT, "AWS region of the cluster, for AWS_MSK_IAM")
    kerberos_service: str = _setting("kafka", _TEXT, "service name of the brokers' Kerberos principals, for GSSAPI")
    session_timeout: float = _setting(
        6.0, _real(1, 300, "s"), "a worker without heartbeats for this long loses its partitions"
    )
    heartbeat: float = _setting(
        0.5, _real(0.1, 60, "s"), "interval of heartbeats, at most a third of the session timeout"
    )
    fetch_timeout: float = _setting(
        60.0,
        _real(1, 3600, "s"),
        "a worker exits if its fetches get no answer for this long although Kafka is reachable",
    )
    isolation: str = _setting(
        "read_committed",
        _one_of("read_committed", "read_uncommitted"),
        "read records of transactions once they are committed, or at once, aborted ones too",
    )
    store: str = _setting(
        "memory", _one_of("memory", "rocksdb"), "where profiles are stored; rocksdb: in the data folder"
    )
    standbys: int = _setting(1, _whole(0, 2), "standby workers that keep a copy of each profile, for fast takeover")
    data_dir: Path = _setting(_data_dir(), _PATH, "data of `shopwindow broker` and of profiles in RocksDB")
    models_dir: Path = _setting(SHIPPED_MODELS, _PATH, "folder of the ranker, the history model and the copywriter")
    copywriter: str | None = _setting(
        None,
        _MODEL,
        "copywriter to use instead: its folder, a Hugging Face GPT-2 folder, or a name such as gpt2",
    )
    web_host: str = _setting("127.0.0.1", _HOST, "address of /metrics, /healthz and /readyz")
    web_port: int = _setting(6066, _whole(0, 65535), "port of these; 0 picks a free one")
    run_records: int = _setting(512, _whole(1, 4096), "maximum number of records per run")
    overload_lag: float = _setting(
        2.0,
        _real(0.05, 86_400, "s"),
        "lag of events at which work is shed; more is shed at two and four times this lag",
    )
    future_tolerance: float = _setting(
        300.0, _real(0, 86_400, "s"), "an event time is clamped to at most this long after its record's timestamp"
    )
    ignored_types: str = _setting(
        "ga4",
        _NAMES,
        "types of events to skip if they have no meaning here; ga4: those of Google Analytics 4",
    )
    late_events: str = _setting(
        "refuse",
        _one_of("refuse", "fold"),
        "what becomes of an event that is older than all event ids of a profile with the maximum number of ids",
    )
    profile_ttl: float = _setting(
        7_776_000.0, _real(0, 315_360_000, "s"), "a profile is deleted after this long without an event; 0: never"
    )
    default_locale: str = _setting("en", _one_of("en", "zh"), "language for shoppers without a locale")
    page_ttl: float = _setting(3600.0, _real(1, 2_592_000, "s"), "a page expires this long after it was generated")
    brand_cap: int = _setting(2, _whole(1, 40), "maximum number of items of one brand in a slot")
    explore: bool = _setting(True, _BOOL, "give one position of each page to a random item")
    popular_share: float = _setting(
        0.0, _real(0, 1), "share of shoppers in the control group, which gets the popular page"
    )
    robot_events_per_minute: int = _setting(
        60,
        _whole(0, 127),
        "more events of one shopper in a minute mean a robot, whose interactions change no other shopper's page; 0: no "
        "limit",
    )
    exclude_shoppers: str = _setting(
        "",
        _NAMES,
        "shoppers whose interactions change no other shopper's page and are not learnt from, such as monitors",
    )
    head: str = _setting(
        "mlp", _one_of(*HEADS), "head that scores candidates: theta . phi, or a small MLP on the same phi"
    )
    history: bool = _setting(
        True, _BOOL, "use the history model (GPT-2 over items), if there is one, to propose and score candidates"
    )
    copy: bool = _setting(True, _BOOL, "headlines by GPT-2; if false, by templates")
    copy_items: float = _setting(
        10.0,
        _real(0, 1000),
        "maximum number of headlines that name an item, per second and worker; 0: none",
    )
    copy_ttl: float = _setting(3600.0, _real(1, 2_592_000, "s"), "lifetime of a generated headline")
    copy_temperature: float = _setting(
        0.9, _real(0.05, 5), "sampling: below 1 favours likely tokens, above 1 unlikely ones"
    )
    copy_top_k: int = _setting(50, _whole(1, 50), "sampling: number of most likely tokens to draw from")
    copy_top_p: float = _setting(
        0.95, _real(0.01, 1), "sampling: draw from the most likely tokens with this total probability"
    )
    copy_max_tokens: int = _setting(50, _whole(4, 64), "maximum number of tokens in a headline")
    copy_samples: int = _setting(8, _whole(1, 16), "headlines sampled, of which the most likely valid one is used")
    log_level: str = _setting(
        "WARNING", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "minimum level of log lines, which go to stderr"
    )
    log_format: str = _setting("text", _one_of("text", "json"), "text lines, or one JSON object per line")


def load(environ: Mapping[str, str]) -> Settings:
    """Settings of this process.

    Raises SettingsError with one line per variable that is unknown, invalid or contradicts another.
    """
    known = {PREFIX + f.name.upper(): f for f in fields(Settings)}
    texts, problems = _read_secret_files(environ)
    values = {}
    for name in sorted(texts):
        if not name.startswith(PREFIX) or name in ALSO_KNOWN:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `shopwindow settings` lists all settings"
            problems.append(f"{name} is not a setting{hint}")
            continue
        setting = known[name]
        kind: _Kind = setting.metadata["kind"]
        try:
            values[setting.name] = kind.parse(texts[name])
        except (ValueError, KeyError, OverflowError):
            shown = "***" if setting.metadata["secret"] else repr(texts[name][:100])
            problems.append(f"{name} is {shown}, expected {kind.expected}")
    if not problems:
        settings = Settings(**values)
        problems = _contradictions(settings)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _read_secret_files(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables with each secret's file replaced by its content, and a problem for each bad file."""
    texts, problems = dict(environ), []
    for name in (PREFIX + f.name.upper() for f in fields(Settings) if f.metadata["secret"]):
        file = texts.pop(name + FILE_SUFFIX, None)
        if file is None:
            continue
        if name in texts:
            problems.append(f"{name} and {name + FILE_SUFFIX} are both set; unset one of them")
            continue
        try:
            texts[name] = read_secret(_parse_folder(file))
        except SecretFileError as error:
            problems.append(f"{name + FILE_SUFFIX} is '{file}', expected a file that holds the secret ({error})")
        except ValueError:
            problems.append(f"{name + FILE_SUFFIX} is empty, expected the path of a file that holds the secret")
    return texts, problems


# By SASL mechanism: settings without which there is no login.
_USER = ("sasl_username", "sasl_password")
_LOGIN_NEEDS: dict[str, tuple[str, ...]] = {
    "PLAIN": _USER,
    "SCRAM-SHA-256": _USER,
    "SCRAM-SHA-512": _USER,
    "OAUTHBEARER": ("oauth_token_url", "oauth_client_id", "oauth_client_secret"),
    "AWS_MSK_IAM": ("aws_region",),
    "GSSAPI": ("kerberos_service",),
}


def _contradictions(settings: Settings) -> list[str]:
    """Problems of settings that are valid each but not together."""
    problems = []
    needed = _LOGIN_NEEDS[settings.sasl_mechanism] if settings.security_protocol.startswith("SASL") else ()
    if missing := [PREFIX + name.upper() for name in needed if not getattr(settings, name)]:
        problems.append(
            f"SHOPWINDOW_SECURITY_PROTOCOL is {settings.security_protocol} and SHOPWINDOW_SASL_MECHANISM is "
            f"{settings.sasl_mechanism}, which needs {' and '.join(missing)}"
        )
    if settings.ssl_key_file is not None and settings.ssl_cert_file is None:
        problems.append(
            "SHOPWINDOW_SSL_KEY_FILE is set, which needs SHOPWINDOW_SSL_CERT_FILE: the certificate of the key"
        )
    if settings.role == "copy" and not settings.copy:
        problems.append(
            "SHOPWINDOW_ROLE is copy and SHOPWINDOW_COPY is false: a worker that only writes headlines would have "
            "nothing to do; change one of them"
        )
    for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file", "oauth_ca_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            problems.append(f"{PREFIX}{name.upper()} is '{path}', expected an existing file")
    if settings.heartbeat > settings.session_timeout / 3:
        problems.append(
            f"SHOPWINDOW_HEARTBEAT is {settings.heartbeat:g}, expected at most a third of "
            f"SHOPWINDOW_SESSION_TIMEOUT ({settings.session_timeout:g})"
        )
    return problems


class SettingDescription(NamedTuple):
    name: str  # of the variable
    value: str  # *** for a secret
    source: str  # "default", "environment" or "file"
    meaning: str
    expected: str


def describe(settings: Settings, environ: Mapping[str, str]) -> list[SettingDescription]:
    """All settings as text. Secrets are masked."""
    rows = []
    for f in fields(Settings):
        name = PREFIX + f.name.upper()
        value = getattr(settings, f.name)
        shown = "" if value is None else "***" if f.metadata["secret"] else str(value)
        is_in_file = f.metadata["secret"] and name + FILE_SUFFIX in environ
        source = "file" if is_in_file else "environment" if name in environ else "default"
        rows.append(SettingDescription(name, shown, source, f.metadata["meaning"], f.metadata["kind"].expected))
    return rows


def secrets_of(settings: Settings) -> list[str]:
    """All secrets that are set. They must not be printed or logged."""
    values = (getattr(settings, f.name) for f in fields(Settings) if f.metadata["secret"])
    return [value for value in values if value]


def to_environ(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a child process that is to read exactly these settings, without those of this process."""
    kept = {name: value for name, value in environ.items() if not name.startswith(PREFIX) or name in ALSO_KNOWN}
    default = Settings()
    changed = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    return kept | {
        PREFIX + name.upper(): str(value) for name, value in changed.items() if value != getattr(default, name)
    }
