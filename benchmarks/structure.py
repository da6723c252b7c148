"""Texts held to schemas and patterns: are they valid, what does it cost, and what else would give valid ones?

    manta train e2e:PATH --family masked --out MASKED size=nano num_steps=400 batch_tokens=1500 consensus=none
    python benchmarks/structure.py --models builtin:e2e-aligned MASKED --data e2e:PATH --num 500 \
        --out benchmarks/results/structure.json

Of each model so many prompts are answered under each schema and a pattern, all at temperature 1: left to right, drafted
and checked, or by a masked model in eight calls. What is stored ends after three forms of the masked one. `valid` is
counted by `json` and `re`, not by what held them. Beside it the same prompts without the pattern: how many of their
texts happen to match (`free_valid`), from which follows how many tries a valid one would take by rejection sampling.
`seconds` are a text's, held and free.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any, cast

from manta.families.events import GenerateOptions, Request
from manta.hub import load
from manta.runtime import atomic_write
from manta.text import read

NAME = {"type": "string", "minLength": 1, "maxLength": 16}
SCHEMAS: dict[str, dict[str, Any]] = {
    "yes or no": {"type": "boolean"},
    "one of four": {"enum": ["cheap", "moderate", "expensive", "unknown"]},
    "a number": {"type": "integer"},
    "a name": NAME,
    "name or nothing": {"anyOf": [NAME, {"type": "null"}]},
    "a record": {
        "type": "object",
        "properties": {"name": NAME, "stars": {"enum": [1, 2, 3, 4, 5]}, "family": {"type": "boolean"}},
        "required": ["name", "stars", "family"],
    },
    "optional fields": {
        "type": "object",
        "properties": {"name": NAME, "near": NAME, "open": {"type": "boolean"}},
        "required": ["name"],
    },
    "a list": {"type": "array", "items": {"enum": ["pub", "cafe", "restaurant"]}, "minItems": 1, "maxItems": 4},
    "a list of records": {
        "type": "array",
        "items": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
        "maxItems": 2,
    },
    "nested": {
        "type": "object",
        "properties": {"place": {"type": "object", "properties": {"area": {"enum": ["city centre", "riverside"]}}}},
        "required": ["place"],
    },
}
SENTENCE = r"[A-Z][A-Za-z' ,-]{10,120}\."
"""A sentence, which free texts may be, too."""


def holds(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is an instance of a schema, of those above."""
    if "enum" in schema:
        return any(type(value) is type(known) and value == known for known in schema["enum"])
    if "anyOf" in schema:
        return any(holds(part, value) for part in schema["anyOf"])
    kind = {"boolean": bool, "integer": int, "string": str, "null": type(None), "array": list, "object": dict}
    if type(value) is not kind[schema["type"]]:
        return False
    if schema["type"] == "string":
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
    if schema["type"] == "array":
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        return size and all(holds(schema["items"], item) for item in value)
    if schema["type"] == "object":
        required = all(name in value for name in schema.get("required", ()))
        return required and all(holds(schema["properties"][name], item) for name, item in value.items())
    return True


def valid(name: str, text: str) -> bool:
    """Whether a text is an instance, or matches."""
    if name == "a sentence":
        return re.fullmatch(SENTENCE, text) is not None
    try:
        return holds(SCHEMAS[name], json.loads(text))
    except ValueError:
        return False


def written(lm: Any, prompts: list[str], how: dict[str, Any]) -> tuple[list[str], float]:
    """Texts and seconds a text."""
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    start = time.perf_counter()
    found = {e.index: e.text for e in lm.generate(requests, GenerateOptions(**how)) if e.kind == "done"}
    return [found[index] for index in range(len(prompts))], (time.perf_counter() - start) / len(prompts)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--data", required=True, help="whose prompts are answered")
    parser.add_argument("--num", type=int, default=100, help="texts of each schema")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prompts = list(dict.fromkeys(e.prompt or "" for e in read(args.data, "test")))
    prompts = (prompts * (1 + args.num // len(prompts)))[: args.num]
    done: list[dict[str, Any]] = []
    for model in args.models:
        lm = cast(Any, load(model, device="cpu"))
        base: dict[str, Any] = {"temperature": 1.0}
        base |= {"decoder": "verified"} if lm.family == "aligned" else {}
        free, free_seconds = written(lm, prompts, base)
        for name in (*SCHEMAS, "a sentence"):
            held = {"pattern": SENTENCE} if name == "a sentence" else {"schema": json.dumps(SCHEMAS[name])}
            texts, seconds = written(lm, prompts, {**base, **held})
            row = {"model": lm.family, "asked": name, "texts": len(texts)}
            row |= {"valid": sum(valid(name, text) for text in texts), "free_valid": sum(valid(name, t) for t in free)}
            row |= {"distinct": len(set(texts)), "seconds": round(seconds, 4), "free_seconds": round(free_seconds, 4)}
            done.append({**row, "example": texts[0]})
            print(json.dumps(done[-1], ensure_ascii=False), flush=True)
            atomic_write(args.out, (json.dumps(done, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
