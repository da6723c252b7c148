"""`manta serve` as a process: it says where it is, finishes what it has accepted, and keeps its promises under fire."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from manta.hub import shipped

from .conftest import PROMPTS

pytestmark = pytest.mark.skipif(not (shipped() / "config.json").exists(), reason="no model ships with this copy")


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    source = Path(__file__).parents[2] / "src"
    command = [sys.executable, "-m", "manta", "serve", "one=builtin:e2e-aligned", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    found = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert found.stderr is not None
    url = ""
    for line in found.stderr:
        if where := re.search(r"serving one on (http://127\.0\.0\.1:\d+)", line):
            url = where[1]
            break
    assert url, "it did not begin to serve"
    yield found, url
    if found.poll() is None:
        found.kill()
    found.wait()


def accepted(url: str) -> float:
    """Texts that the server has let in, written ones among them."""
    names = ("manta_waiting_texts", "manta_running_texts", "manta_texts_total")
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_nothing_that_was_accepted(process, number):
    server, url = process

    def ask(seed: int) -> httpx.Response:
        body = {"prompt": PROMPTS[seed % 3], "seed": seed, "decoder": "sequential", "temperature": 1.0, "n": 8}
        return httpx.post(f"{url}/v1/completions", json={**body, "choose": 4, "stream": seed % 2 == 0}, timeout=120)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, seed) for seed in range(12)]
        start = time.monotonic()
        while accepted(url) < 8 * 12:
            assert time.monotonic() - start < 120
        server.send_signal(number)
        answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 12
    for answer in answers[::2]:
        assert answer.text.rstrip().endswith("data: [DONE]") and answer.text.count('"finish_reason": "stop"') == 8
    assert all(len(answer.json()["choices"]) == 8 for answer in answers[1::2])
    assert server.wait(60) == 0
    assert server.stderr is not None and "finished what was accepted" in server.stderr.read()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.slow
def test_a_taken_port_is_one_line(process):
    _, url = process
    command = [sys.executable, "-m", "manta", "serve", "--port", url.rpartition(":")[2]]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2 and "choose another --port" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_whatever_the_schema_allows_is_answered(served):
    """Cases made from the published schema: no server error, and nothing that the schema does not say."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    checked = threading.Event()
    for operation in schema.get_all_operations():
        made = operation.ok()
        if made.path == "/v1/diagnoses":  # which would begin processes
            continue

        @given(case=made.as_strategy())
        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
        )
        def play(case):
            answer = case.call(base_url=served.url, timeout=120)
            assert answer.status_code < 500, (case.path, case.body, answer.text)
            assert answer.status_code in (200, 202, 400, 404, 405, 413), (case.path, case.body, answer.text)
            if answer.status_code == 400:
                assert answer.json()["error"]["message"]
            checked.set()

        play()
    assert checked.is_set()
