"""`manta serve [MODEL ...]`: models behind HTTP, and a page."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from manta.cli.options import argument, parse_options
from manta.cli.writing import family_of
from manta.errors import UsageError
from manta.families import DRAWING
from manta.server.settings import ServeSettings, check_settings


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServeSettings):
    """Serve models of texts over HTTP, as OpenAI's clients speak it, and a page at / to try them."""

    models: tuple[str, ...] = argument(())
    """Model folders, run folders of `manta train`, hub names, or `builtin:NAME`; the two that ship if none is named.
    NAME=MODEL serves one under another name."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Run the verb: it serves until a signal ends it, and then finishes what it has accepted."""
    options = parse_options(ServeOptions, argv, "serve")
    options = replace(options, api_key=options.api_key or os.environ.get("MANTA_API_KEY", ""))
    check_settings(options)
    sources = _named(options.models or ("builtin:e2e", "builtin:e2e-aligned"))
    socket = _bound(options)
    from manta.hub import load_writer
    from manta.server.app import create_app
    from manta.server.process import serve

    models: dict[str, tuple[str, Any]] = {}
    for name, source in sources.items():
        print(f"loading {source}", file=sys.stderr, flush=True)
        models[name] = source, load_writer(source, device=options.device)
    settings = ServeSettings(**{known.name: getattr(options, known.name) for known in fields(ServeSettings)})
    app = create_app(models, settings)
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(models)} on http://{shown}:{port}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    serve(app, socket)
    print("finished what was accepted, and left", file=sys.stderr)
    return 0


def _bound(options: ServeOptions) -> Any:
    """The socket it listens on.

    Raises:
        UsageError: the address is taken, or none of this machine's.
    """
    import socket

    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((options.host, options.port))
        found.listen(2048)  # who comes while models load waits
    except OSError as error:
        found.close()
        where, reason = f"{options.host} port {options.port}", error.strerror or str(error)
        raise UsageError(f"cannot listen on {where} ({reason}); choose another --port, or 0 for a free one") from error
    found.set_inheritable(True)
    return found


def _named(given: Sequence[str]) -> dict[str, str]:
    """From the name a model is served under to what loads it.

    Raises:
        UsageError: two have one name, or it is a model of images.
    """
    found: dict[str, str] = {}
    for text in given:
        head, equals, tail = text.partition("=")
        plain = not equals or Path(text).exists()
        source = text if plain else tail
        name = _name_of(source) if plain else head
        if not name or not source:
            raise UsageError(f"{text!r} is no model; write a folder, or NAME=FOLDER")
        if name in found:
            raise UsageError(f"two models are called {name!r}; write NAME=FOLDER to call one otherwise")
        family = family_of([source])
        if family is not None and family in DRAWING:
            raise UsageError(f"{source} is a model of {DRAWING[family].words}, and manta serve takes models of texts")
        found[name] = source
    return found


def _name_of(source: str) -> str:
    """The last part of a folder's path, or a name as it is."""
    if not Path(source).exists():
        return source
    path = Path(source).resolve()
    return path.parent.name if path.name == "model" else path.name
