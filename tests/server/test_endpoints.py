"""The endpoints: texts as they are written offline, streams, refusals, and who is let in."""

import concurrent.futures
import dataclasses
import json
import re
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from openai import BadRequestError, OpenAI

from manta.families import FAMILIES
from manta.families.events import Request
from manta.families.options import read_options
from manta.hub import load_foreign
from manta.server import ServeSettings
from manta.text import automaton

from ..families.test_decoder import make
from ..hub.published import write
from ..hub.test_foreign_writing import CHATML, framed
from .conftest import PROMPTS, running

ROOT = Path(__file__).parents[2]


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [json.loads(part) for part in parts[:-1]]


def text_of(lm: Any, prompt: str | None, seed: int, infill: str | None = None, **options: Any) -> str:
    request = Request(prompt=prompt, seed=seed, infill=infill, options=read_options(options))
    *_, done = lm.generate([request])
    return done.text


def test_texts_are_those_of_their_seeds(served):
    answer = served.post("/v1/completions", prompt=list(PROMPTS), n=2, seed=5, num_steps=4).json()
    assert answer["object"] == "text_completion" and answer["model"] == "builtin:e2e"
    expected = [
        text_of(served.models["builtin:e2e"], prompt, 5 + 2 * i + j, num_steps=4)
        for i, prompt in enumerate(PROMPTS)
        for j in range(2)
    ]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["manta"]["seed"] for choice in answer["choices"]] == list(range(5, 11))
    usage, encode = answer["usage"], served.models["builtin:e2e"].tokenizer.encode
    assert usage["prompt_tokens"] == sum(len(encode(prompt)) for prompt in PROMPTS)
    assert usage["completion_tokens"] == sum(len(served.models["builtin:e2e"].tokenizer.encode(t)) for t in expected)
    blank = served.post("/v1/completions", prompt="  ", num_steps=1).json()["usage"]
    assert blank["prompt_tokens"] == 0, "white space alone is no prompt"
    assert usage["network_calls"] == 4 and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_drawn_seed_is_told_and_writes_the_text_again(served):
    one, two = (served.post("/v1/completions", prompt=PROMPTS[0]).json()["choices"][0] for _ in range(2))
    assert one["manta"]["seed"] != two["manta"]["seed"]
    again = served.post("/v1/completions", prompt=PROMPTS[0], seed=one["manta"]["seed"]).json()
    assert again["choices"][0]["text"] == one["text"]


def test_many_at_once_each_have_their_own_text(served):
    """Different models, lengths, seeds and options at the same time: none is lost, and none is mixed up."""
    jobs = []
    for k in range(12):
        model = ("builtin:e2e", "builtin:e2e-aligned")[k % 2]
        options: dict[str, Any] = {"num_steps": (2, 4, 8)[k % 3]}
        if k % 4 == 1:
            options = {"decoder": "sequential", "temperature": 1.0}
        jobs.append((model, PROMPTS[k % len(PROMPTS)], 100 + k, options))

    def ask(job: tuple[str, str, int, dict[str, Any]]) -> str:
        model, prompt, seed, options = job
        answer = served.post("/v1/completions", model=model, prompt=prompt, seed=seed, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(ask, jobs))
    expected = [text_of(served.models[model], prompt, seed, **options) for model, prompt, seed, options in jobs]
    assert texts == expected


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("builtin:e2e", {"num_steps": 4}),
        ("builtin:e2e-aligned", {"num_steps": 2}),
        ("builtin:e2e-aligned", {"decoder": "sequential", "temperature": 1.0}),
        ("builtin:e2e-aligned", {"decoder": "verified", "stop": [" is", "pub"]}),
    ],
)
def test_a_stream_adds_up_to_the_text(served, model, options):
    body = {"model": model, "prompt": list(PROMPTS), "seed": 9, **options}
    whole = served.post("/v1/completions", **body).json()
    events = events_of(served.post("/v1/completions", **body, stream=True, diffusing=True))
    texts, ends, frames = [""] * 3, [None] * 3, [[] for _ in PROMPTS]
    for event in events[:-1]:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
        if event.get("type") == "diffusion_frame":
            assert choice["text"] == "" and choice["index"] == event["index"]
            frames[event["index"]].append(event)
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    assert events[-1]["choices"] == []
    keys = ("prompt_tokens", "completion_tokens", "network_calls")
    assert {key: events[-1]["usage"][key] for key in keys} == {key: whole["usage"][key] for key in keys}
    for told in frames:
        assert [frame["step"] for frame in told] == sorted(frame["step"] for frame in told)
        last = "".join(word or "" for word, _ in told[-1]["words"]).strip()
        through_alignments = model == "builtin:e2e-aligned" and "decoder" not in options
        assert last == told[-1]["text"]
        for _, chance in told[-1]["words"]:
            assert chance is None if through_alignments else 0 <= chance <= 1


def test_left_to_right_is_streamed_word_by_word(served):
    body = {"model": "builtin:e2e-aligned", "prompt": PROMPTS[1], "decoder": "sequential"}
    events = events_of(served.post("/v1/completions", **body, stream=True, stream_options={"include_usage": False}))
    assert len(events) > 8 and "usage" not in events[-1]
    assert sum(bool(event["choices"][0]["text"]) for event in events) > 8


def test_blanks_are_filled_and_texts_changed_as_offline(served):
    lm = served.models["builtin:e2e"]
    filled = served.post("/v1/infill", text="The ___ is near the ___{3}.", prompt=PROMPTS[1], seed=2).json()
    assert filled["object"] == "infill"
    assert filled["choices"][0]["text"] == text_of(lm, PROMPTS[1], 2, "The ___ is near the ___{3}.")
    edited = served.post("/v1/edit", text="The Mill is a [[cheap pub]].", prompt=PROMPTS[1], seed=2, strength=0.9)
    assert edited.json()["choices"][0]["text"] == text_of(
        lm, PROMPTS[1], 2, "The Mill is a [[cheap pub]].", strength=0.9
    )
    whole = served.post("/v1/edit", text="The Mill is cheap.", prompt=PROMPTS[1], seed=2).json()
    assert whole["choices"][0]["text"] == text_of(lm, PROMPTS[1], 2, "[[The Mill is cheap.]]")


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("completions", {"prompt": PROMPTS[0], "promt": "x"}, 400, "did you mean 'prompt'"),
        ("completions", {"prompt": 3}, 400, "prompt: "),
        ("completions", {"prompt": []}, 400, "prompt: "),
        ("completions", {"prompt": "a\0b"}, 400, "NUL"),
        ("completions", {"prompt": "x", "num_steps": 0}, 400, "num_steps"),
        ("completions", {"prompt": "x", "num_steps": True}, 400, "num_steps"),
        ("completions", {"prompt": "x", "num_steps": 2000}, 400, "at most 1024"),
        ("completions", {"prompt": "x", "n": 65}, 400, "64 texts"),
        ("completions", {"prompt": "x", "n": 9, "choose": 8}, 400, "64 texts"),
        ("completions", {"prompt": "x", "top_k": 5}, 400, "means nothing to Manta-LM"),
        ("completions", {"prompt": "x", "seed": -1}, 400, "seed"),
        ("completions", {"prompt": "x", "logprobs": 0}, 400, "not told"),
        ("completions", {"prompt": "x", "echo": True}, 400, "echo"),
        ("completions", {"prompt": "x", "suffix": "y"}, 400, "/v1/infill"),
        ("completions", {"prompt": "x", "best_of": 2}, 400, "choose"),
        ("completions", {"prompt": "x", "presence_penalty": 0.5}, 400, "presence_penalty"),
        ("completions", {"prompt": "x", "diffusing": True, "stream": False}, 400, "set `stream`"),
        ("completions", {"prompt": "x", "model": "builtin:e2"}, 404, "builtin:e2e"),
        ("completions", {"prompt": "x " * 5000}, 400, "64 tokens"),
        ("completions", {"prompt": "x", "model": "builtin:e2e-aligned", "decoder": "sequential",
                         "temperature": 1.0, "pattern": "("}, 400, "pattern"),
        ("completions", {"prompt": "x", "max_tokens": 99999, "model": "builtin:e2e-aligned"}, 400, "at most 4096"),
        ("completions", {"prompt": "x", "stop": "x" * 201}, 400, "stop: String should have at most 200"),
        ("completions", {"prompt": "x", "stop": ["x"] * 17}, 400, "stop: List should have at most 16"),
        ("infill", {"text": "no blank"}, 400, "no blank"),
        ("infill", {"text": "a ___{5000}"}, 400, "at most 4096 tokens"),
        ("infill", {"text": "a [[word]]"}, 400, "/v1/edit"),
        ("infill", {}, 400, "text"),
        ("edit", {"text": "a word", "strength": 2.0}, 400, "strength"),
        ("edit", {"text": "a word", "model": "builtin:e2e-aligned"}, 400, "cannot change"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}, 400, "no chat frame"),
        ("chat/completions", {"messages": []}, 400, "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(served, path, body, status, says):
    for stream in (False, True):
        answer = served.post(f"/v1/{path}", **{"stream": stream, **body})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert says in error["message"] and error["type"] == "invalid_request_error" and "\n" not in error["message"]


def test_a_pattern_that_takes_too_long_is_refused(served, monkeypatch):
    monkeypatch.setattr(automaton, "MOST_CALLS", 20_000)  # a call is counted in a microsecond, but not under tests
    body = {"prompt": "x", "model": "builtin:e2e-aligned", "decoder": "sequential"}
    for pattern, status in (("(a|b){9}", 200), ("(a|b|ab|ba|[a-z]*q){100}", 400)):
        answer = served.post("/v1/completions", **body, max_tokens=9, pattern=pattern)
        assert answer.status_code == status, answer.text
    assert "too many steps" in answer.json()["error"]["message"]


def test_what_is_no_json_is_refused(served):
    for content in (b"{", b"[]", b"3", b""):
        answer = served.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        error = answer.json()["error"]
        assert answer.status_code == 400 and "one JSON object" in error["message"] and error["param"] is None
    broken = served.client.post("/v1/completions", content=b"\xff", headers={"content-type": "application/json"})
    assert broken.status_code == 400 and broken.json()["error"]["message"]
    # As curl sends it where nobody says what it is.
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = served.client.post("/v1/completions", content=b'{"prompt": "x"}', headers=form)
    assert answer.status_code == 400 and "content-type: application/json" in answer.json()["error"]["message"]
    assert served.client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert served.client.get("/v1/completions").status_code == 405


def test_a_bound_is_followed_or_cuts(served):
    sequential = served.post(
        "/v1/completions", model="builtin:e2e-aligned", prompt=PROMPTS[2], decoder="sequential", max_tokens=5
    ).json()
    cut = served.post("/v1/completions", prompt=PROMPTS[2], max_tokens=5, seed=1).json()
    for answer in (sequential, cut):
        assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 5
    whole = text_of(served.models["builtin:e2e"], PROMPTS[2], 1)
    assert whole.startswith(cut["choices"][0]["text"]) and len(cut["choices"][0]["text"]) < len(whole)


def test_the_models_say_what_they_follow(served):
    rows = served.client.get("/v1/models").json()["data"]
    assert [row["id"] for row in rows] == ["builtin:e2e", "builtin:e2e-aligned"]
    for row in rows:
        told = row["manta"]
        known = {known.name: known for known in dataclasses.fields(FAMILIES[told["family"]].options)}
        assert {option["name"] for option in told["options"]} == set(known)
        assert served.client.get(f"/v1/models/{row['id']}").json() == row
        for option in told["options"]:
            assert option["help"] and option["default"] == known[option["name"]].default
    by_name = {option["name"]: option for option in rows[0]["manta"]["options"]}
    assert by_name["style"]["choices"] == ["consensus", "diverse"] and by_name["num_steps"]["type"] == "int"
    assert by_name["noise_scale"]["type"] == "float" and by_name["noise_scale"]["default"] is None
    assert served.client.get("/v1/models/nobody").status_code == 404


def test_openais_client_completes_and_streams(served):
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    how: dict[str, Any] = {"model": "builtin:e2e", "prompt": PROMPTS[0], "seed": 3, "extra_body": {"num_steps": 4}}
    answer = client.completions.create(**how)
    expected = text_of(served.models["builtin:e2e"], PROMPTS[0], 3, num_steps=4)
    assert answer.choices[0].text == expected and answer.choices[0].finish_reason == "stop"
    told = list(client.completions.create(**how, stream=True))
    assert "".join(chunk.choices[0].text for chunk in told if chunk.choices) == expected
    assert told[-1].usage is not None and told[-1].usage.completion_tokens > 0
    assert [model.id for model in client.models.list()] == ["builtin:e2e", "builtin:e2e-aligned"]
    with pytest.raises(BadRequestError, match="not told"):
        client.completions.create(model="builtin:e2e", prompt="x", logprobs=1)


def test_a_conversation_is_framed_as_the_template_says(tmp_path):
    write(tmp_path, "llada", mask_token_id=53)
    framed(tmp_path, CHATML, ("<|im_end|>", "<|im_start|>"))
    lm = load_foreign(tmp_path, "cpu", dtype=torch.float32)
    turns = [
        {"role": "system", "content": "w9"},
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3"},
        {"role": "user", "content": [{"type": "text", "text": "w4"}]},
    ]
    how = {"temperature": 1.0, "num_steps": 4, "max_tokens": 6}
    with running({"chat": (str(tmp_path), lm)}) as served:
        answer = served.post("/v1/chat/completions", messages=turns, seed=8, **how).json()
        assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["role"] == "assistant"
        history = (("system", "w9"), ("user", "w1 w2"), ("assistant", "w3"))
        *_, done = lm.generate([Request(prompt="w4", history=history, seed=8, options=read_options(how))])
        assert answer["choices"][0]["message"]["content"] == done.text
        shorter = served.post("/v1/chat/completions", messages=turns[3:], seed=8, **how).json()
        assert shorter["choices"][0]["message"]["content"] == text_of(lm, "w4", 8, **how) != done.text
        client = OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        chunks = client.chat.completions.create(
            model="chat", messages=turns, seed=8, stream=True, max_completion_tokens=6, temperature=1.0,
            extra_body={"num_steps": 4},
        )  # pyright: ignore[reportCallIssue, reportArgumentType]  # fmt: skip
        chunks = list(chunks)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == done.text
        assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices].count("assistant") == 1
        for wrong in (turns[:1], turns[1:3], [*turns, turns[3]], [turns[1], turns[0], turns[3]]):
            assert served.post("/v1/chat/completions", messages=wrong).status_code == 400


def raw(url: str, text: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(text.encode())
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(served, stream):
    """A text of a thousand calls, left after its first draft or before."""
    body = json.dumps({"prompt": PROMPTS[0], "num_steps": 1000, "n": 64, "stream": stream, "diffusing": stream})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = raw(served.url, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
    start = time.monotonic()
    while served.client.get("/health").json()["running"] != 64:
        assert time.monotonic() - start < 10
    if stream:
        connection.recv(100)
    connection.close()
    start = time.monotonic()
    while served.client.get("/health").json()["running"]:
        assert time.monotonic() - start < 2
    left = time.monotonic() - start
    again = served.post("/v1/completions", prompt=PROMPTS[0], num_steps=2)
    assert again.status_code == 200 and time.monotonic() - start < 10
    assert left < 1, "freed at once, not when the text is written"


def test_a_full_queue_says_when_to_come_again(served):
    with running({"one": ("builtin:e2e", served.models["builtin:e2e"])}, ServeSettings(queue=4)) as small:
        assert small.post("/v1/completions", prompt=PROMPTS[0], n=4, num_steps=2).status_code == 200
        assert small.post("/v1/completions", prompt=PROMPTS[0], n=5).status_code == 400
        body = json.dumps({"prompt": PROMPTS[0], "num_steps": 1000, "n": 4})
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        holding = raw(small.url, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
        while small.client.get("/health").json()["running"] < 4:
            time.sleep(0.01)
        answer = small.post("/v1/completions", prompt=PROMPTS[0], n=1)
        holding.close()
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"


def test_only_those_are_let_in_who_may_be(served):
    key, origin = "a-key-of-twenty-letters", "https://example.org"
    settings = ServeSettings(api_key=key, origin=(origin,), max_body=2000)
    with running({"one": ("builtin:e2e", served.models["builtin:e2e"])}, settings) as guarded:
        ask, bearer = guarded.client, {"authorization": f"Bearer {key}"}
        body = {"prompt": PROMPTS[0], "num_steps": 2}
        for headers in ({}, {"authorization": key}, {"authorization": "Bearer no"}, {"authorization": "Basic " + key}):
            answer = ask.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert ask.get("/v1/models", headers=headers).status_code == 401
            assert ask.get("/metrics", headers=headers).status_code == 401
        assert ask.post("/v1/completions", json=body, headers=bearer).status_code == 200
        assert ask.get("/health").status_code == ask.get("/").status_code == ask.get("/app.js").status_code == 200
        allowed = ask.post("/v1/completions", json=body, headers={**bearer, "origin": origin})
        assert allowed.headers["access-control-allow-origin"] == origin
        for stranger in ("https://evil.example", "null", "http://["):
            foreign = ask.post("/v1/completions", json=body, headers={**bearer, "origin": stranger})
            assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers
        assert ask.post("/v1/completions", json=body, headers={**bearer, "host": "evil.example"}).status_code == 403
        assert ask.post("/v1/completions", json=body, headers={**bearer, "host": "LocalHost:9"}).status_code == 200
        assert allowed.headers["access-control-expose-headers"] == "retry-after"
        asks = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        assert ask.options("/v1/completions", headers=asks).headers["access-control-allow-origin"] == origin
        assert ask.post("/v1/completions", json={"prompt": "x" * 3000}, headers=bearer).status_code == 413
        chunks = iter([b'{"prompt": "'] + [b"x" * 500] * 5 + [b'"}'])  # its length is not told
        assert ask.post("/v1/completions", content=chunks, headers=bearer).status_code == 413


def test_the_counters_count(served):
    def of(name: str) -> float:
        text = served.client.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    texts, calls = of('manta_texts_total{model="builtin:e2e"'), of('manta_network_calls_total{model="builtin:e2e"')
    served.post("/v1/completions", prompt=PROMPTS[0], n=3, num_steps=4)
    assert of('manta_texts_total{model="builtin:e2e"') == texts + 3
    assert of('manta_network_calls_total{model="builtin:e2e"') == calls + 12
    assert of('manta_requests_total{path="/v1/completions",status="200"}') >= 1
    served.client.get("/invented/by/anybody")
    assert "invented" not in served.client.get("/metrics").text


def test_every_curl_line_of_the_docs_runs(served):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^curl .*$", page, re.M)
    assert len(lines) >= 7
    for line in lines:
        command = [word.replace("http://127.0.0.1:8000", served.url) for word in shlex.split(line)]
        found = subprocess.run([*command, "--fail"], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0 and found.stdout.strip(), (line, found.stderr)


def test_the_python_of_the_docs_runs(served, capsys):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(block.replace("http://127.0.0.1:8000", served.url), "serving.md", "exec"), {})
    assert "Blue Spice" in capsys.readouterr().out


def test_a_diagnosis_can_be_stopped_and_makes_way_for_another(served):
    for _ in range(2):
        begun = served.post("/v1/diagnoses", num_steps=64)
        assert begun.status_code == 202
        path = f"/v1/diagnoses/{begun.json()['id']}"
        assert served.client.get(path).json()["state"] == "running"
        stopped = served.client.delete(path).json()
        assert stopped["state"] == "failed" and stopped["lines"][-1] == "stopped"
    assert served.client.delete(path).json() == stopped
    assert served.client.delete("/v1/diagnoses/none").status_code == 404


@pytest.mark.slow
def test_a_diagnosis_is_made_beside_the_server(served):
    begun = served.post("/v1/diagnoses", prompts=list(PROMPTS[:2]), num_steps=2)
    assert begun.status_code == 202
    busy = served.post("/v1/diagnoses", num_steps=2)
    assert busy.status_code == 429 and "a diagnosis is under way" in busy.json()["error"]["message"]
    name = begun.json()["id"]
    for _ in range(600):
        found = served.client.get(f"/v1/diagnoses/{name}").json()
        if found["state"] != "running":
            break
        time.sleep(0.5)
    assert found["state"] == "done" and found["lines"]
    page = served.client.get(f"/v1/diagnoses/{name}/page")
    assert page.text.startswith("<!doctype html>") and "builtin:e2e" in page.text
    assert served.client.get("/v1/diagnoses/none").status_code == 404
    assert served.post("/v1/diagnoses", prompts=["one"]).status_code == 400


def test_a_family_that_cannot_be_diagnosed_is_refused():
    with running({"published": ("", make())}) as found:
        refused = found.post("/v1/diagnoses", prompts=["the cat", "some old river"])
    assert refused.status_code == 400
    assert "family decoder cannot be diagnosed" in refused.json()["error"]["message"]


def test_a_model_with_tasks_is_asked_for_one_of_them(served):
    from ..families.test_tasks import tasked

    lm = tasked()
    with running({"tasks": ("tasks", lm)}) as server:
        (row,) = server.client.get("/v1/models").json()["data"]
        assert row["manta"]["tasks"] == list(lm.tasks)
        answer = server.post("/v1/completions", prompt="the cat sat", task="fill", seed=3).json()
        (done,) = [e for e in lm.generate([Request(prompt="the cat sat", task="fill", seed=3)]) if e.kind == "done"]
        assert answer["choices"][0]["text"] == done.text
        for asked in ({}, {"task": "translate"}):
            refused = server.post("/v1/completions", prompt="the cat sat", **asked)
            assert refused.status_code == 400 and "continue, fill, shorten" in refused.json()["error"]["message"]
    refused = served.post("/v1/completions", prompt=PROMPTS[0], task="fill")
    assert refused.status_code == 400 and "no tasks" in refused.json()["error"]["message"]
