"""The rule of addresses and the form of URLs, as data."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import PageError
from appliance.search.address_rule import AddressRule
from appliance.search.page_url import read_page_url

RULE = AddressRule()


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "100.63.255.255", "2606:4700::1", "2a00:1450::8"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert RULE.allows(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.77.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"),
        *("192.0.0.8", "192.0.2.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:10.0.0.1", "::ffff:1.1.1.1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2002:a00:1::", "2001::1"),
        *("::10.0.0.1", "", "localhost", "1", "127.1", "0177.0.0.1", "1.1.1.1 ", "2130706433"),
    ],
)
def test_any_other_address_is_refused(address: str) -> None:
    assert not RULE.allows(address)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_no_address_is_allowed_that_python_calls_private(address: IPv4Address | IPv6Address) -> None:
    if RULE.allows(str(address)):
        assert address.is_global
        assert not address.is_multicast


def test_networks_of_a_site_are_denied_as_well() -> None:
    rule = AddressRule(denied=[ip_network("1.1.1.0/24"), ip_network("2606:4700::/32")])
    assert not rule.allows("1.1.1.1")
    assert not rule.allows("2606:4700::1")
    assert rule.allows("1.1.2.1")


@pytest.mark.parametrize(
    ("text", "host", "shown"),
    [
        ("https://Example.COM./a b", "example.com", None),
        ("https://example.com:443/?q=1#part", "example.com", "https://example.com/?q=1"),
        ("http://пример.рф/ж", "xn--e1afmkfd.xn--p1ai", "http://xn--e1afmkfd.xn--p1ai/%D0%B6"),
        ("http://[2606:4700::1]/", "2606:4700::1", "http://[2606:4700::1]/"),
        ("http://1.2.3.4/", "1.2.3.4", "http://1.2.3.4/"),
    ],
)
def test_a_url_has_one_host(text: str, host: str, shown: str | None) -> None:
    if shown is None:
        with pytest.raises(PageError):
            read_page_url(text)
        text, shown = text.replace(" ", "%20"), "https://example.com/a%20b"
    found = read_page_url(text)
    assert found.host == host
    assert str(found) == shown


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("http://user@example.com/", "invalid_url"),
        ("http://user:secret@example.com/", "invalid_url"),
        ("http://2130706433/", "invalid_url"),
        ("http://0x7f000001/", "invalid_url"),
        ("http://0177.0.0.1/", "invalid_url"),
        ("http://127.1/", "invalid_url"),
        ("http://1.2.3.0x4/", "invalid_url"),
        ("http://127.0.0.1.:80/", None),
        ("http://localhost/", "address_not_allowed"),
        ("http://localhost./", "address_not_allowed"),
        ("http://printer.local/", "address_not_allowed"),
        ("http://metadata.google.internal/", "address_not_allowed"),
        ("http://gpu/", "address_not_allowed"),
        ("http://example.com:22/", "address_not_allowed"),
        ("http://example.com:0/", "address_not_allowed"),
        ("ftp://example.com/", "invalid_url"),
        ("file:///etc/passwd", "invalid_url"),
        ("gopher://example.com/", "invalid_url"),
        ("javascript:alert(1)", "invalid_url"),
        ("//example.com/", "invalid_url"),
        ("example.com", "invalid_url"),
        ("http://", "invalid_url"),
        ("http:///path", "invalid_url"),
        ("http://exa%6dple.com/", "invalid_url"),
        ("http://example..com/", "invalid_url"),
        ("http://example.com\\@10.0.0.1/", "invalid_url"),
        ("http://example.com/\r\nHost: x", "invalid_url"),
        ("http://[::1/", "invalid_url"),
        ("http://[fe80::1%25eth0]/", None),
        ("http://example.com/" + "a" * 5000, "invalid_url"),
    ],
)
def test_a_url_that_is_not_public_is_refused(text: str, code: str | None) -> None:
    if code is None:
        # An address in its usual form passes the form of URLs; the rule of addresses refuses it.
        assert not RULE.allows(read_page_url(text).host)
        return
    with pytest.raises(PageError) as refused:
        read_page_url(text)
    assert refused.value.code == code


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_an_error(text: str) -> None:
    for candidate in (text, f"http://{text}", f"http://a.example/{text}", f"http://{text}@10.0.0.1/"):
        try:
            found = read_page_url(candidate)
        except PageError:
            continue
        assert found.host
        assert "@" not in found.url.netloc.decode()
