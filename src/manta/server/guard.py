"""Who may ask: hosts, origins, keys and sizes, seen to before anything else reads a request."""

import hmac
import json
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from manta.errors import MantaError, RequestError, UsageError
from manta.server.measures import Measures
from manta.server.settings import ServeSettings

OPEN: Final = ("/", "/health", "/style.css", "/app.js", "/replay.js", "/favicon.svg")
"""Paths that take no key: the page holds nothing that a key would guard."""
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
"""Names by which a loopback server is spoken to; another one is a foreign page whose name was made to lead here."""


class Refused(Exception):
    """A request that is not let in.

    Args:
        status: of the answer.
        message: why.
        code: the same for programs.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def status_of(error: MantaError) -> int:
    """The status of an error: 400 where the request is wrong, 500 where the server or its model is."""
    return 400 if isinstance(error, UsageError | RequestError) else 500


def refusal(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an answer that says what was wrong, as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Guard:
    """An ASGI layer that lets in what may ask, and counts the answers.

    Args:
        app: what is guarded.
        settings: keys, origins and sizes.
        measures: where answers are counted.
        paths: of the routes: others are counted together, as anybody may invent them.
    """

    def __init__(self, app: Any, *, settings: ServeSettings, measures: Measures, paths: Sequence[str]) -> None:
        self.app, self.settings, self.measures, self.paths = app, settings, measures, set(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, path = time.perf_counter(), 500, scope["path"] if scope["path"] in self.paths else "other"
        started = False

        async def sending(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, await self._read(receive), sending)
        except Refused as no:
            if not started:
                await _answer(sending, no)
        finally:
            self.measures.requests.labels(path, str(status)).inc()
            self.measures.seconds.labels(path).observe(time.perf_counter() - began)

    def _check(self, scope: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.settings.loopback and _name(host) not in (*LOOPBACK, self.settings.host.lower()):
            raise Refused(
                403, f"this server is spoken to as localhost, and the request names {host[:80]!r}", "unknown_host"
            )
        origin = headers.get(b"origin")
        own = _place(origin or "") == host  # the page itself, whatever carries it
        if origin is not None and not own and origin not in self.settings.origin:
            raise Refused(403, f"pages of {origin[:80]!r} may not call this server; see --origin", "unknown_origin")
        if self.settings.api_key and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            given, wanted = key.strip().encode("latin-1"), self.settings.api_key.encode()
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, wanted):
                raise Refused(401, "send the server's key: `Authorization: Bearer KEY`", "invalid_api_key")
        size = headers.get(b"content-length", "0")
        if not size.isdecimal() or int(size) > self.settings.max_body:
            raise self._too_large()

    async def _read(self, receive: Any) -> Any:
        """Read what a request holds, as long as that is no more than it may.

        Returns:
            A `receive` that hands it on, and then tells when the client leaves.
        """
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self.settings.max_body:
                raise self._too_large()
            if not message.get("more_body"):
                break
        whole = [{"type": "http.request", "body": body}]

        async def receiving() -> Any:
            return whole.pop() if whole else message if message["type"] != "http.request" else await receive()

        return receiving

    def _too_large(self) -> Refused:
        return Refused(413, f"a request holds at most {self.settings.max_body:,} bytes", "request_too_large")


def _place(origin: str) -> str | None:
    """Host and port of an origin; None of one that is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    """A host's name without its port."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower()


async def _answer(send: Any, no: Refused) -> None:
    body = json.dumps(refusal(no.status, no.message, no.code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if no.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": no.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
