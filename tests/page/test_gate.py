"""Who is let in, by name and by origin."""

from email.message import Message

import pytest

from varlit.page.gate import RefusedError, body_size, check_host, check_own, is_loopback


def headers(**given: str) -> Message:
    made = Message()
    for name, value in given.items():
        made[name.replace("_", "-")] = value
    return made


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *(("localhost", True), ("LOCALHOST", True), ("127.0.0.1", True), ("127.8.8.8", True)),
        *(("::1", True), ("[::1]", True), ("0.0.0.0", False), ("::", False), ("", False)),
        *(("192.168.1.7", False), ("localhost.evil.org", False), ("127.0.0.1.nip.io", False)),
    ],
)
def test_loopback_is_this_machine_alone(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:9000", "localhost:1"])
def test_any_port_of_this_machine_is_answered(host: str) -> None:
    check_host(headers(Host=host))


@pytest.mark.parametrize(
    "host",
    [
        *("evil.org", "evil.org:7860", "", "localhost@evil.org", "a:b:c", "192.168.1.7"),
        *("[::1", "a]b[", "[", "]", "[]", "[evil.org]"),
    ],
)
def test_a_name_that_was_bent_to_this_machine_is_not(host: str) -> None:
    with pytest.raises(RefusedError, match="localhost only"):
        check_host(headers(Host=host))


@pytest.mark.parametrize(
    ("given", "host", "is_answered"),
    [
        *(("0.0.0.0", "localhost:7860", True), ("0.0.0.0", "192.168.1.7:7860", True)),
        *(("0.0.0.0", "[fe80::1]:7860", True), ("0.0.0.0", "Box", True), ("0.0.0.0", "box", True)),
        *(("0.0.0.0", "box.lan:1", False), ("0.0.0.0", "evil.org", False), ("0.0.0.0", "", False)),
        *(("0.0.0.0", "192.168.1.7.nip.io", False), ("0.0.0.0", "[::1", False)),
        *(("Box.lan", "box.lan:7860", True), ("box.lan", "box", True), ("::", "evil.org", False)),
        *(("", "box", True), ("", "evil.org", False), ("", "", False)),
        *(("127.0.0.1", "box", False), ("localhost", "192.168.1.7", False)),
    ],
)
def test_beyond_loopback_addresses_and_own_names_are_answered(
    given: str, host: str, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varlit.page.gate.socket.gethostname", lambda: "box")
    if is_answered:
        check_host(headers(Host=host), given)
    else:
        with pytest.raises(RefusedError, match="only; see --host"):
            check_host(headers(Host=host), given)


def test_our_own_page_may_ask() -> None:
    plain = {"Host": "localhost:7860", "Content_Type": "application/json; charset=utf-8"}
    check_own(headers(**plain))
    check_own(headers(**plain, Origin="http://localhost:7860", Sec_Fetch_Site="same-origin"))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Origin": "http://evil.org"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_another_site_may_not(changes: dict[str, str], status: int) -> None:
    plain = {"Host": "localhost:7860", "Content_Type": "application/json"}
    with pytest.raises(RefusedError) as refused:
        check_own(headers(**plain | changes))
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "5", "Transfer_Encoding": "chunked"}, 411),
        ({"Content_Length": "4194305"}, 413),
        ({"Content_Length": "9" * 5000}, 413),
    ],
)
def test_bodies_say_how_long_they_are(given: dict[str, str], status: int) -> None:
    assert body_size(headers(Content_Length="4194304")) == 2**22
    with pytest.raises(RefusedError) as refused:
        body_size(headers(**given))
    assert refused.value.status == status
