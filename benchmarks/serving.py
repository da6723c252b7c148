"""A server under load: texts a second beside one at a time, waiting times, overload, and the first paint of the page.

    python benchmarks/serving.py --num 64 --out benchmarks/results/serving.json

Everything runs on this machine: the server in a process of its own, the clients in this one, over the loopback address.
A request asks for one text; every text is compared with the one that its seed has offline. Rows: clients that each ask
again as soon as they are answered.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from manta.families.events import Request
from manta.families.options import read_options
from manta.hub import load_writer
from manta.runtime import atomic_write

ROADS: dict[str, dict[str, Any]] = {
    "Manta-LM, 8 calls": {"model": "builtin:e2e", "num_steps": 8},
    "aligned, 1 call": {"model": "builtin:e2e-aligned", "num_steps": 1},
    "left to right": {"model": "builtin:e2e-aligned", "decoder": "sequential"},
}
CLIENTS = (1, 8, 32, 64)
PROMPTS = [
    f"name[{name}], eatType[{kind}]{more}"
    for name in ("Blue Spice", "The Mill", "Cotto", "Fitzbillies", "The Golden Palace")
    for kind in ("pub", "coffee shop", "restaurant")
    for more in ("", ", area[riverside]", ", food[Italian], priceRange[cheap], familyFriendly[yes], near[Café Sicilia]")
]
"""Short and long ones, mixed."""


@contextmanager
def server(*flags: str) -> Iterator[str]:
    """A server on a free port: its address."""
    command = [sys.executable, "-m", "manta", "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r" on (http://[\d.:]+)", line):
                yield found[1]
                return
        raise SystemExit("the server did not begin")
    finally:
        process.terminate()
        process.wait()


def body_of(road: dict[str, Any], k: int) -> dict[str, Any]:
    return {**road, "prompt": PROMPTS[k % len(PROMPTS)], "seed": k}


async def load(url: str, road: dict[str, Any], clients: int, num: int) -> tuple[list[float], dict[int, str], float]:
    """`num` texts asked for by some clients: seconds of each, the texts by their seeds, and seconds in all."""
    waits, texts, left = [], {}, iter(range(num))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def work() -> None:
            for k in left:
                began = time.perf_counter()
                answer = await client.post("/v1/completions", json=body_of(road, k))
                waits.append(time.perf_counter() - began)
                texts[k] = answer.json()["choices"][0]["text"]

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return waits, texts, time.perf_counter() - began


def offline(road: dict[str, Any], num: int) -> dict[int, str]:
    """The same texts, written without a server."""
    options = read_options({name: value for name, value in road.items() if name != "model"})
    requests = [Request(prompt=PROMPTS[k % len(PROMPTS)], seed=k, options=options) for k in range(num)]
    events = load_writer(road["model"]).generate(requests)
    return {event.index: event.text for event in events if event.kind == "done"}


async def at_once(url: str, road: dict[str, Any], num: int) -> tuple[list[int], dict[int, str], list[float]]:
    """`num` requests at the same moment: their statuses, the texts, and the seconds of those that were served."""
    limits = httpx.Limits(max_connections=num)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        began = time.perf_counter()

        async def ask(k: int) -> tuple[int, str, float]:
            answer = await client.post("/v1/completions", json=body_of(road, k))
            seconds = time.perf_counter() - began
            return answer.status_code, answer.json()["choices"][0]["text"] if answer.status_code == 200 else "", seconds

        answers = await asyncio.gather(*(ask(k) for k in range(num)))
    served = {k: text for k, (status, text, _) in enumerate(answers) if status == 200}
    return [status for status, _, _ in answers], served, [s for status, _, s in answers if status == 200]


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 99)}


def freed(url: str, rounds: int = 20) -> list[float]:
    """Seconds from a client's leaving to its place's being free."""
    found = []
    for k in range(rounds):
        with httpx.Client(base_url=url, timeout=60) as asking, httpx.Client(base_url=url, timeout=60) as watching:
            body = {"model": "builtin:e2e", "num_steps": 1000, "seed": k, "stream": True, "diffusing": True}
            with asking.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
            began = time.perf_counter()
            while watching.get("/health").json()["running"]:
                pass
            found.append(time.perf_counter() - began)
    return found


def first_paint(url: str, browser: str, rounds: int = 10) -> list[float]:
    """Milliseconds to the page's first contentful paint, each time in a new browser context."""
    from playwright.sync_api import sync_playwright

    script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    with sync_playwright() as driver:
        opened, found = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]), []
        for _ in range(rounds):
            context = opened.new_context()
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector("#voices input")
            found.append(float(page.evaluate(script)))
            context.close()
        opened.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=400, help="texts of a row")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    result: dict[str, Any] = {"rows": [], "num": given.num}
    with server("--queue", "2000") as url:
        for name, road in ROADS.items():
            expected = offline(road, given.num)
            asyncio.run(load(url, road, 4, 32))  # warm
            alone = 0.0
            for clients in CLIENTS:
                num = given.num if clients > 1 else given.num // 4
                waits, texts, seconds = asyncio.run(load(url, road, clients, num))
                rate = num / seconds
                alone = rate if clients == 1 else alone
                wrong = sum(text != expected[k] for k, text in texts.items())
                row = {"road": name, "clients": clients, "texts": num, "wrong": wrong, "texts_a_second": round(rate, 2)}
                result["rows"].append({**row, "times_one": round(rate / alone, 2), **quantiles(waits)})
                print(result["rows"][-1], flush=True)
                atomic_write(given.out, (json.dumps(result, indent=1) + "\n").encode())
        road = ROADS["Manta-LM, 8 calls"]
        expected = offline(road, 1000)
        statuses, texts, seconds = asyncio.run(at_once(url, road, 1000))
        wrong = sum(texts[k] != expected[k] for k in texts)
        result["at_once"] = {"requests": 1000, "served": statuses.count(200), "wrong": wrong, **quantiles(seconds)}
        print(result["at_once"], flush=True)
        atomic_write(given.out, (json.dumps(result, indent=1) + "\n").encode())
        gone = freed(url)
        result["freed"] = {"rounds": len(gone), **quantiles(gone), "most_ms": round(1000 * max(gone), 1)}
        if Path(given.browser).exists():
            paints = first_paint(url, given.browser)
            result["first_paint_ms"] = [round(paint, 1) for paint in paints]
        atomic_write(given.out, (json.dumps(result, indent=1) + "\n").encode())
    with server("--queue", "64") as url:
        asyncio.run(load(url, road, 4, 32))
        statuses, _, seconds = asyncio.run(at_once(url, road, 1000))
        counts = {str(status): statuses.count(status) for status in sorted(set(statuses))}
        result["overload"] = {"requests": 1000, "queue": 64, "statuses": counts, **quantiles(seconds)}
        print(result["overload"], flush=True)
    atomic_write(given.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
