"""Addresses of hosts, with IPv6 addresses in brackets."""

import pytest

from stream.addresses import Address, parse_address, parse_brokers, parse_host
from stream.kafka.client.connection import bootstrap
from stream.settings import Settings, SettingsError, load


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("kafka-1", ("kafka-1", 9092)),
        ("kafka-1:19092", ("kafka-1", 19092)),
        (" 10.0.0.1:1 ", ("10.0.0.1", 1)),
        ("[::1]:9093", ("::1", 9093)),
        ("[2001:db8::1]", ("2001:db8::1", 9092)),
        ("[fe80::1%eth0]:9093", ("fe80::1%eth0", 9093)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    parsed = parse_address(text)
    assert parsed == address and parse_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["", ":9092", "a:", "a:0", "a:65536", "a:x", "a:+1", "a:1 2", "a/b", "::1", "::1:9092", "[::1", "[a]:1",
             "[::1]9092", "[]:1", "a b:1", "user@a:1", "a,b:1", "a\nb:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_brokers_may_have_names_and_addresses_of_both_kinds() -> None:
    text = "kafka://[::1]:9092, kafka://[::2] ,kafka-3:1,10.0.0.1"
    assert parse_brokers(text) == [("::1", 9092), ("::2", 9092), ("kafka-3", 1), ("10.0.0.1", 9092)]
    settings = load({"SHOPWINDOW_BROKER": text})
    assert bootstrap(settings) == ["[::1]:9092", "[::2]:9092", "kafka-3:1", "10.0.0.1:9092"]
    with pytest.raises(
        SettingsError, match=r"SHOPWINDOW_BROKER is 'kafka://::1:9092', expected .*\[::1\]:9092 for IPv"
    ):
        load({"SHOPWINDOW_BROKER": "kafka://::1:9092"})


def test_an_address_to_listen_on_may_have_brackets() -> None:
    assert load({"SHOPWINDOW_WEB_HOST": "[::]"}).web_host == load({"SHOPWINDOW_WEB_HOST": "::"}).web_host == "::"
    assert str(Address("::", 6066)) == "[::]:6066"
    for wrong in ("", "a:1", "[a]", "1::2::3"):
        with pytest.raises(ValueError):
            parse_host(wrong)
        with pytest.raises(SettingsError, match="SHOPWINDOW_WEB_HOST"):
            load({"SHOPWINDOW_WEB_HOST": wrong})


def test_settings_without_a_port_connect_to_kafkas_own() -> None:
    assert bootstrap(Settings(broker="kafka://[::1]")) == ["[::1]:9092"]
