"""What a server lets in: limits, keys and origins."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from manta.errors import ConfigError, UsageError

LEAST_KEY = 16
"""Characters of the shortest key."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server is run."""

    host: str = "127.0.0.1"
    """Address it listens on; the loopback one is reached from this machine alone."""
    port: int = 8000
    """Port it listens on; 0 takes a free one."""
    api_key: str = ""
    """Key that every request has to bring (`Authorization: Bearer KEY`), but for the page itself and /health; empty:
    none, on loopback alone. The environment variable MANTA_API_KEY says it, too, unseen by other users."""
    origin: tuple[str, ...] = ()
    """An origin whose pages may call the server from a browser, such as https://example.org; may be repeated. The
    server's own page always may."""
    batch_size: int = 64
    """Most texts written at once; it does not change them."""
    patience_ms: float = 4.0
    """Milliseconds that a request waits for others to be written with, where none is being written."""
    queue: int = 1024
    """Most texts that wait or are being written; further requests are answered with 429."""
    max_texts: int = 64
    """Most texts of one request, those chosen from among them."""
    max_calls: int = 1024
    """Most network calls of a text that a request may ask for (`num_steps`, `rounds`, `think` and their like)."""
    max_new_tokens: int = 4096
    """Most tokens of a text that a request may ask for, or a blank may hold."""
    max_body: int = 1 << 20
    """Most bytes of a request."""

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "queue": 1, "max_texts": 1, "max_calls": 1, "max_new_tokens": 1, "max_body": 1024}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} should be at least {lowest}, received {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port should lie between 0 and 65535, received {self.port}")
        if not 0 <= self.patience_ms <= 1000:
            raise ConfigError(f"patience_ms should lie between 0 and 1000, received {self.patience_ms:g}")

    @property
    def loopback(self) -> bool:
        """Whether the address is reached from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def check_settings(settings: ServeSettings) -> None:
    """Refuse to be reached from elsewhere without a key and a list of origins.

    Raises:
        UsageError: as said, or a key or an origin that is none.
    """
    key = settings.api_key
    if not settings.loopback and not key:
        raise UsageError(
            f"--host {settings.host} is reached from other machines, so it takes a key that requests have to bring: "
            "set the environment variable MANTA_API_KEY, or --api-key"
        )
    if key and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError(f"a key has {LEAST_KEY} printable characters or more, without spaces; choose another")
    if not settings.loopback and not settings.origin:
        raise UsageError(
            f"--host {settings.host} is reached from other machines, so say which origins' pages may call it: "
            "--origin https://example.org, or the server's own address, may be repeated"
        )
    for origin in settings.origin:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
            raise UsageError(f"--origin should be like https://example.org or http://localhost:3000, received {origin}")
