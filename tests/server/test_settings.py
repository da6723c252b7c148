"""Who may be let in from where."""

import pytest

from manta.cli import main
from manta.errors import ConfigError, UsageError
from manta.server import ServeSettings, check_settings

KEY = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_loopback_takes_no_key(host):
    assert ServeSettings(host=host).loopback
    check_settings(ServeSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_elsewhere_takes_a_key_and_origins(host):
    settings = {"host": host, "api_key": KEY, "origin": ("https://example.org",)}
    check_settings(ServeSettings(**settings))
    for without in ("api_key", "origin"):
        given = {name: value for name, value in settings.items() if name != without}
        with pytest.raises(UsageError, match="reached from other machines"):
            check_settings(ServeSettings(**given))


@pytest.mark.parametrize("key", ["short", "with a space in it", "ключ-из-букв-не-наших"])
def test_a_key_is_long_and_plain(key):
    with pytest.raises(UsageError, match="a key has"):
        check_settings(ServeSettings(api_key=key))


@pytest.mark.parametrize(
    "origin", ["*", "example.org", "https://example.org/", "https://", "ftp://example.org", "null"]
)
def test_an_origin_is_one(origin):
    with pytest.raises(UsageError, match="--origin"):
        check_settings(ServeSettings(origin=(origin,)))


@pytest.mark.parametrize(
    ("name", "value"), [("queue", 0), ("batch_size", 0), ("port", 70000), ("patience_ms", -1.0), ("max_body", 1)]
)
def test_limits_have_limits(name, value):
    with pytest.raises(ConfigError, match=name):
        ServeSettings(**{name: value})


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--host", "0.0.0.0"], "takes a key"),
        (["--port", "99999"], "port should lie"),
        (["nowhere"], "nowhere"),
        (["a=builtin:e2e", "a=builtin:e2e-aligned"], "two models are called 'a'"),
        (["=builtin:e2e"], "is no model"),
        (["--quue", "3"], "--queue"),
    ],
)
def test_the_command_line_says_in_one_line_what_is_wrong(argv, says, capsys, monkeypatch):
    monkeypatch.delenv("MANTA_API_KEY", raising=False)
    assert main(["serve", *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert says in error and len([line for line in error.splitlines() if line.startswith("manta: error")]) == 1
