"""E2E: choose how budgets are split on dev, then measure a model on test.

    python benchmarks/e2e.py choose MODEL --data PATH     # writes the splits into MODEL/config.json
    python benchmarks/e2e.py report MODEL --data PATH --out benchmarks/results/e2e.json

PATH is e2e-dataset.zip or its folder. One sample a meaning representation, no reranking; sacreBLEU 13a, lower-cased.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from manta.config import to_dict
from manta.evaluation import EvaluationSet, evaluation_set, write
from manta.families.events import GenerateOptions
from manta.families.manta_lm import MantaLM, Split
from manta.hub import load
from manta.metrics import bleu, diversity, slot_error_rate
from manta.runtime import atomic_write

BUDGETS = (1, 2, 4, 8, 16, 32)
ABLATED = (3, 4, 8, 16)
"""Budgets at which the plan is taken away or shuffled."""


class Disturbed(MantaLM):
    """A Manta-LM whose plan is taken away or exchanged, at the same calls of the same policy.

    `nothing` holds the state at zero and t = 0; `shuffled` carries every text by another request's estimates. (Without
    `flow_steps` the undisturbed model holds the state at pure noise and t = 0, as a share of its training rows did.)
    """

    def __init__(self, lm: MantaLM, disturbance: str) -> None:
        super().__init__(lm.model, lm.tokenizer, lm.density, lm.splits)
        self.disturbance = disturbance

    def _noise(self, *args: Any) -> torch.Tensor:
        noise = super()._noise(*args)
        return torch.zeros_like(noise) if self.disturbance == "nothing" else noise

    def _policy(self, *args: Any) -> Any:
        policy = super()._policy(*args)
        if self.disturbance == "shuffled":
            own = policy.field
            policy.field = lambda *state, **given: own(*state, **given).roll(1, 0)
        return policy


def references(data: str, split: str) -> EvaluationSet:
    """Meaning representations with their texts, in the order of the file."""
    return evaluation_set(data, split)


def scores(lm: Any, data: EvaluationSet, options: GenerateOptions, seed: int = 0) -> dict[str, Any]:
    """Every figure of one setting."""
    written = write(lm, data, options, seed=seed)
    prompts = [prompt or "" for prompt in data.prompts]
    errors = slot_error_rate(zip(prompts, written.texts, strict=True))
    return {
        "bleu": round(bleu(written.texts, data.references), 2),
        "slot_error_rate": round(errors["slot_error_rate"], 4),
        **{name: round(value, 4) for name, value in diversity(written.texts).items()},
        "nfe": max(written.nfe),
        "seconds": round(written.seconds, 2),
    }


def candidates(budget: int) -> list[Split]:
    """Ways to spend a budget that are worth a try."""
    calls = max(1, budget - 1)
    if calls <= 2:
        return [Split(flow=calls)]
    flows = sorted({0, calls // 2, (3 * calls) // 4, calls})
    found = [Split(flow=flow, silent=silent) for flow in flows for silent in (0, 1) if silent < calls]
    if calls >= 5:
        found.append(Split(flow=calls - 3, rounds=1))
    return found


def choose(args: argparse.Namespace) -> None:
    """Try the candidates of each budget on dev; keep the best by BLEU less half the slot error rate in percent."""
    lm = load(args.model)
    data = references(f"e2e:{args.data}", "dev")
    data = replace(data, prompts=data.prompts[:: args.every], references=data.references[:: args.every])
    table = []
    for budget in BUDGETS:
        for split in candidates(budget):
            lm.splits = {budget: split}
            row = scores(lm, data, GenerateOptions(num_steps=budget, style="consensus"))
            table.append({"budget": budget, "split": to_dict(split), **row})
            print(budget, to_dict(split), row["bleu"], row["slot_error_rate"], flush=True)

    def merit(row: dict[str, Any]) -> float:
        return row["bleu"] - 50 * row["slot_error_rate"]

    best = {b: max((r for r in table if r["budget"] == b), key=merit)["split"] for b in BUDGETS}
    file = Path(args.model) / "config.json"
    config = json.loads(file.read_text())
    config["splits"] = {str(budget): split for budget, split in best.items()}
    atomic_write(file, (json.dumps(config, indent=1) + "\n").encode())
    if args.out:
        Path(args.out).write_text(json.dumps({"split": "dev", "chosen": config["splits"], "tried": table}, indent=1))


def report(args: argparse.Namespace) -> None:
    """Measure the chosen splits on test: both styles, and what the plan adds."""
    lm = load(args.model)
    data = references(f"e2e:{args.data}", args.split)
    result: dict[str, Any] = {"machine": machine(), "split": args.split, "prompts": len(data.prompts), "rows": []}

    def add(name: str, model: Any, seeds: int = 1, **options: Any) -> None:
        for seed in range(seeds):
            row = scores(model, data, GenerateOptions(**options), seed * 100_000)
            result["rows"].append({"name": name, "seed": seed, **options, **row})
            print(name, seed, options, row, flush=True)

    for budget in BUDGETS:
        add("consensus", lm, args.seeds, num_steps=budget, style="consensus")
        add("diverse", lm, args.seeds, num_steps=budget, style="diverse")
    for budget in ABLATED:
        flow = lm.split(GenerateOptions(num_steps=budget)).flow or budget // 2
        for style in ("consensus", "diverse"):
            same = {"num_steps": budget, "style": style, "rounds": 0}
            add(f"{style}, with the plan", lm, flow_steps=flow, **same)
            add(f"{style}, without (t = 0)", lm, flow_steps=0, **same)
            add(f"{style}, readout alone (z = 0)", Disturbed(lm, "nothing"), flow_steps=0, **same)
            add(f"{style}, shuffled z", Disturbed(lm, "shuffled"), flow_steps=flow, **same)
    result["human"] = human(data)
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1))


def human(data: EvaluationSet) -> dict[str, float]:
    """The scale: the first reference of each prompt against the others, and its slot errors."""
    several = [i for i, texts in enumerate(data.references) if len(texts) > 1]
    first = [data.references[i][0] for i in several]
    errors = slot_error_rate((data.prompts[i] or "", text) for i, text in zip(several, first, strict=True))
    return {
        "bleu": bleu(first, [data.references[i][1:] for i in several]),
        "slot_error_rate": errors["slot_error_rate"],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version()}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("choose", "report"))
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="choose: use every n-th prompt of dev")
    parser.add_argument("--out")
    args = parser.parse_args()
    {"choose": choose, "report": report}[args.action](args)


if __name__ == "__main__":
    main()
