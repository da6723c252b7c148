"""Thousands of requests made from the server's own schema, valid ones and broken ones: is any answered by its fault?

    python benchmarks/schema.py --num 5000 --seconds 480 --out benchmarks/results/schema.json

A server of two nano models, masked and left to right, with random weights, in a thread of this process, as
`manta serve` runs it. `schemathesis` makes requests that the schema allows (`positive`), that it does not (`negative`),
and allowed ones of which a few fields are left (`few`), since one with all options mostly asks for what no model
follows at once. Every operation has its turn in rounds of fresh seeds, until the number is reached or the time is over;
beginning a diagnosis, which would start processes, is left out. Figures: answers by status. One of 500 or above, and
none at all, is a fault of the server, and is kept with what was asked.
"""

import argparse
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
import torch
import uvicorn
from hypothesis.errors import FailedHealthCheck, Unsatisfiable
from schemathesis import GenerationMode

from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.runtime import atomic_write
from manta.server import create_app
from manta.text import Tokenizer

SHAPE: dict[str, Any] = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1, "max_prompt": 24, "max_text": 24}
TEXT = "the cat sat on a mat near some old river while rain fell over quiet hills and nobody spoke of it again"
LEFT_OUT = "/v1/diagnoses"
KINDS = ("positive", "few", "negative")
ROUND = 25
"""Cases of an operation before the next has its turn."""
SAID = {"prompt", "text", "messages"}
"""Fields that say what is to be written; the others say how."""
KEPT = 20
"""Faults that are kept in full."""


def nano() -> dict[str, tuple[str, Any]]:
    """Models whose texts cost next to nothing."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([TEXT] * 3, 512)
    shape = {"vocab_size": tokenizer.vocab_size, **SHAPE}
    return {
        "nano-masked": ("", MaskedLM(MaskedModel(MaskedConfig(**shape)), tokenizer)),
        "nano-ar": ("", AutoregressiveLM(AutoregressiveModel(AutoregressiveConfig(**shape)), tokenizer)),
    }


@contextmanager
def served() -> Iterator[str]:
    """A server on a free port: its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(nano()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Tally:
    """Answers so far.

    Args:
        url: of the server.
        num: cases at most.
        until: when no more are made.
    """

    def __init__(self, url: str, num: int, until: float) -> None:
        self.url, self.num, self.until = url, num, until
        self.by_status: Counter[str] = Counter()
        self.by_operation: dict[str, Counter[str]] = {}
        self.faults: list[dict[str, Any]] = []

    @property
    def over(self) -> bool:
        """Whether it is enough."""
        return self.by_status.total() >= self.num or time.monotonic() > self.until

    def ask(self, case: Any, kind: str) -> None:
        """Send a case and count its answer."""
        if self.over:
            return
        if kind == "few" and isinstance(case.body, dict):
            chosen = random.Random(self.by_status.total())
            others = sorted(case.body.keys() - SAID)
            some = chosen.sample(others, min(len(others), chosen.randint(0, 2)))
            case.body = {name: value for name, value in case.body.items() if name in (*SAID, *some)}
        try:
            answer = case.call(base_url=self.url, timeout=60)
            status, said = str(answer.status_code), answer.text
        except Exception as error:  # no answer at all
            status, said = "none", f"{type(error).__name__}: {error}"
        self.by_status[status] += 1
        self.by_operation.setdefault(f"{case.method} {case.path}, {kind}", Counter())[status] += 1
        if (status == "none" or int(status) >= 500) and len(self.faults) < KEPT:
            asked = {"method": case.method, "path": case.path, "query": case.query, "body": case.body}
            self.faults.append({"asked": repr(asked)[:2000], "status": status, "said": said[:500]})


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
    with served() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        found_in_it: Any = schema.get_all_operations()
        operations = [each for made in found_in_it if (each := made.ok()).path != LEFT_OUT]
        left = [(each, kind) for each in operations for kind in KINDS if kind != "few" or each.method == "post"]
        tally, seed = Tally(url, options.num, began + options.seconds), 0
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
        "server_faults": sum(count for status, count in tally.by_status.items() if status == "none" or status >= "500"),
        "faults": tally.faults,
        "schemathesis": schemathesis.__version__,
        "command": f"python benchmarks/schema.py --num {options.num} --seconds {options.seconds:g}",
    }
    atomic_write(options.out, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps({name: found[name] for name in ("cases", "seconds", "by_status", "server_faults")}))
    return int(found["server_faults"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
