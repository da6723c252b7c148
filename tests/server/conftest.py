"""Servers of the models that ship, in this process and on a free port."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn

from manta.hub import load_writer, shipped
from manta.server import ServeSettings, create_app

PROMPTS = (
    "name[Blue Spice], eatType[coffee shop], area[city centre]",
    "name[The Mill], eatType[pub], food[Italian], near[Raja Indian Cuisine]",
    "name[Cotto], eatType[restaurant], priceRange[cheap], customer rating[5 out of 5], familyFriendly[yes]",
)


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    client: httpx.Client
    models: dict[str, Any]
    server: uvicorn.Server

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)


@contextmanager
def running(models: Mapping[str, tuple[str, Any]], settings: ServeSettings | None = None) -> Iterator[Running]:
    server = uvicorn.Server(uvicorn.Config(create_app(models, settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=120) as client:
        yield Running(url, client, {name: lm for name, (_, lm) in models.items()}, server)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="package")
def served() -> Iterator[Running]:
    if not (shipped() / "config.json").exists():
        pytest.skip("no model ships with this copy")
    names = ("builtin:e2e", "builtin:e2e-aligned")
    with running({name: (name, load_writer(name)) for name in names}) as found:
        yield found
