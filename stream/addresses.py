"""Addresses of hosts. An IPv6 address that a port follows is in brackets: `[::1]:9092`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

KAFKA_PORT = 9092  # the port of a broker whose address has none
MAX_PORT = 65_535


class Address(NamedTuple):
    """`str` returns `host:port`, with brackets around an IPv6 address."""

    host: str  # a name or an IP address, without brackets
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host(text: str) -> str:
    """Return a name or an IP address without its brackets. Raises ValueError if it is neither."""
    host = text.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        ipaddress.IPv6Address(host)  # only these have brackets
    elif ":" in host:
        ipaddress.IPv6Address(host)
    if not host or not host.isprintable() or any(c in "/@[], " for c in host):
        raise ValueError(f"'{text}' is not a host")
    return host


def parse_address(text: str, default_port: int = KAFKA_PORT) -> Address:
    """Parse `host`, `host:port`, `[IPv6]` or `[IPv6]:port`. Raises ValueError if it is something else."""
    text = text.strip()
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # the colon of an IPv6 address is no separator
        return Address(parse_host(text), default_port)
    if ":" in host and not host.startswith("["):
        raise ValueError(f"'{text}' may be an IPv6 address, which needs brackets")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        raise ValueError(f"'{port}' is not a port")
    return Address(parse_host(host), int(port))


def parse_brokers(text: str) -> list[Address]:
    """Parse addresses of Kafka brokers with commas between, each with or without kafka://. Raises ValueError."""
    return [parse_address(address.strip().removeprefix("kafka://")) for address in text.split(",")]
