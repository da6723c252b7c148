"""Thousands of requests made from the server's own schema, valid ones and broken ones: is any answered by its fault?

    python benchmarks/schema.py --num 5000 --seconds 480 --out benchmarks/results/schema.json

A server of three nano models with random weights, masked, left to right, and one in LLaDA's layout with a chat's
template, in a thread of this process, as `manta serve` runs it. `schemathesis` makes requests that the schema allows
(`positive`), that it does not (`negative`), and allowed ones of which a few fields are left (`few`), since one with all
options mostly asks for what no model follows at once. Those of the last kind name a model that does what the endpoint
is for, a text to fill has a blank, and the turns of a conversation are a user's and an assistant's, since no schema
says so. Every operation has its turn in rounds of fresh seeds, until the number is reached or the time is over;
beginning a diagnosis, which would start processes, is left out. Figures: answers by status. One of 500 or above, a
refusal that does not say why, a stream that ends neither as it should nor with a refusal, and none at all, is a fault
of the server, and is kept with what was asked.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import hypothesis
import schemathesis
import torch
import uvicorn
from hypothesis.errors import FailedHealthCheck, Unsatisfiable
from schemathesis import GenerationMode

from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.hub import load_foreign
from manta.runtime import atomic_write
from manta.server import create_app
from manta.text import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPE: dict[str, Any] = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1, "max_prompt": 24, "max_text": 24}
TEXT = "the cat sat on a mat near some old river while rain fell over quiet hills and nobody spoke of it again"
LEFT_OUT = "/v1/diagnoses"
NEEDS = {"/v1/chat/completions": "chat", "/v1/infill": "fills", "/v1/edit": "changes"}
"""What a model has to be able to do for an endpoint, as `/v1/models` calls it."""
NAMED = "/v1/models/{name}"
STREAMED = 0.3
"""Share of requests of the kind `few` that are streams, and of those that tell drafts."""
KINDS = ("positive", "few", "negative")
ROUND = 25
"""Cases of an operation before the next has its turn."""
SAID = {"prompt", "text", "messages"}
"""Fields that say what is to be written; the others say how."""
LONGEST_STREAM = 100_000
"""Events of a stream that are read, which is all of them."""
KEPT = 20
"""Faults that are kept in full."""


def nano(folder: Path) -> dict[str, tuple[str, Any]]:
    """Models whose texts cost next to nothing.

    Args:
        folder: an empty one, for a checkpoint.
    """
    from tests.hub.published import write
    from tests.hub.test_foreign_writing import CHATML, framed

    torch.manual_seed(0)
    tokenizer = Tokenizer.train([TEXT] * 3, 512)
    shape = {"vocab_size": tokenizer.vocab_size, **SHAPE}
    write(folder, "llada", mask_token_id=53)
    framed(folder, CHATML, ("<|im_end|>", "<|im_start|>"))
    return {
        "nano-masked": ("", MaskedLM(MaskedModel(MaskedConfig(**shape)), tokenizer)),
        "nano-ar": ("", AutoregressiveLM(AutoregressiveModel(AutoregressiveConfig(**shape)), tokenizer)),
        "nano-chat": ("", load_foreign(folder, "cpu", dtype=torch.float32)),
    }


@contextmanager
def served() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """A server on a free port: its address, and what each of its models is, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        models = nano(Path(folder))
        server = uvicorn.Server(uvicorn.Config(create_app(models), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield url, {row["id"]: row["manta"] for row in httpx.get(f"{url}/v1/models").json()["data"]}
        server.should_exit = True
        thread.join()


def eased(case: Any, models: dict[str, dict[str, Any]], chosen: random.Random) -> None:
    """Leave a few fields of an allowed request, and let it ask for what some model does.

    Args:
        case: is changed.
        models: what each is, by its name.
        chosen: draws what is left.
    """
    if case.path == NAMED:
        case.path_parameters = {"name": chosen.choice(list(models))}
    if not isinstance(case.body, dict):
        return
    others = sorted(case.body.keys() - SAID)
    some = chosen.sample(others, min(len(others), chosen.randint(0, 2)))
    case.body = {name: value for name, value in case.body.items() if name in (*SAID, *some)}
    if chosen.random() < STREAMED:
        case.body |= {"stream": True, "diffusing": chosen.random() < STREAMED}
    need = NEEDS.get(case.path)
    case.body["model"] = chosen.choice([name for name, facts in models.items() if need is None or facts[need]])
    if need == "fills" and isinstance(text := case.body.get("text"), str) and "___" not in text:
        place = chosen.randint(0, len(text))
        case.body["text"] = f"{text[:place]} ___ {text[place:]}"
    if need == "chat" and isinstance(turns := case.body.get("messages"), list):
        turns = turns[: len(turns) - 1 + len(turns) % 2] or turns
        case.body["messages"] = [turn | {"role": ("user", "assistant")[k % 2]} for k, turn in enumerate(turns)]


def is_fault(status: str, kind: str, said: str) -> bool:
    """Whether an answer is one that the server should not give.

    Args:
        status: of the answer; `none`: there was none.
        kind: its content type.
        said: its text.
    """
    if kind.startswith("text/event-stream"):
        return not said.endswith("data: [DONE]\n\n") and '"type": "invalid_request_error"' not in said[-2000:]
    return status == "none" or status >= "500" or (status >= "400" and '"message"' not in said)


class Tally:
    """Answers so far.

    Args:
        url: of the server.
        models: what each is, by its name.
        num: cases at most.
        until: when no more are made.
    """

    def __init__(self, url: str, models: dict[str, dict[str, Any]], num: int, until: float) -> None:
        self.url, self.models, self.num, self.until = url, models, num, until
        self.by_status: Counter[str] = Counter()
        self.by_operation: dict[str, Counter[str]] = {}
        self.streams, self.wrong = 0, 0
        self.faults: list[dict[str, Any]] = []

    @property
    def over(self) -> bool:
        """Whether it is enough."""
        return self.by_status.total() >= self.num or time.monotonic() > self.until

    def ask(self, case: Any, kind: str) -> None:
        """Send a case and count its answer."""
        if self.over:
            return
        if kind == "few":
            eased(case, self.models, random.Random(self.by_status.total()))
        try:
            answer = case.call(base_url=self.url, timeout=60)
            status, told = str(answer.status_code), answer.headers.get("content-type", [""])[0]
            said = answer.text
        except Exception as error:  # no answer at all
            status, told, said = "none", "", f"{type(error).__name__}: {error}"
        self.by_status[status] += 1
        self.streams += told.startswith("text/event-stream")
        self.by_operation.setdefault(f"{case.method} {case.path}, {kind}", Counter())[status] += 1
        if is_fault(status, told, said):
            self.wrong += 1
            asked = {"method": case.method, "path": case.path, "query": case.query, "body": case.body}
            if len(self.faults) < KEPT:
                self.faults.append({"asked": repr(asked)[:2000], "status": status, "said": said[-500:]})


def takes_few(operation: Any) -> bool:
    """Whether there are cases of the kind `few` of an operation."""
    return operation.method == "post" or operation.path == NAMED


def play(operation: Any, kind: str, seed: int, tally: Tally) -> bool:
    """A round of cases of an operation; False where there are none of the kind."""
    mode = GenerationMode.NEGATIVE if kind == "negative" else GenerationMode.POSITIVE

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=[*hypothesis.HealthCheck],  # pyright: ignore[reportArgumentType]
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def cases(case: Any) -> None:
        tally.ask(case, kind)

    try:
        cases()
    except (Unsatisfiable, FailedHealthCheck):
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    began = time.monotonic()
    with served() as (url, models):
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        schema.config.max_stream_events = LONGEST_STREAM
        found_in_it: Any = schema.get_all_operations()
        operations = [each for made in found_in_it if (each := made.ok()).path != LEFT_OUT]
        left = [(each, kind) for each in operations for kind in KINDS if kind != "few" or takes_few(each)]
        tally, seed = Tally(url, models, options.num, began + options.seconds), 0
        while left and not tally.over:
            seed += 1
            for each in list(left):
                before = tally.by_status.total()
                told = not tally.over and play(*each, seed, tally)
                if not told or tally.by_status.total() < before + 2:  # all of its cases are one
                    left.remove(each)
            print(f"{tally.by_status.total()} cases, {dict(tally.by_status)}", flush=True)
    found = {
        "cases": tally.by_status.total(),
        "asked_for": options.num,
        "seconds": round(time.monotonic() - began, 1),
        "by_status": dict(sorted(tally.by_status.items())),
        "by_operation": {name: dict(sorted(counts.items())) for name, counts in sorted(tally.by_operation.items())},
        "streams": tally.streams,
        "server_faults": tally.wrong,
        "faults": tally.faults,
        "schemathesis": schemathesis.__version__,
        "command": f"python benchmarks/schema.py --num {options.num} --seconds {options.seconds:g}",
    }
    atomic_write(options.out, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps({name: found[name] for name in ("cases", "seconds", "by_status", "server_faults")}))
    return int(found["server_faults"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
