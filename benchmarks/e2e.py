"""E2E: choose how budgets are split on dev, then measure a model on test.

    python benchmarks/e2e.py choose MODEL --data PATH     # writes the splits into MODEL/config.json
    python benchmarks/e2e.py report MODEL --data PATH --out benchmarks/results/e2e.json

PATH is e2e-dataset.zip or its folder. One sample a meaning representation, no reranking; sacreBLEU 13a, lower-cased.
Figures are means over sampling seeds, with 95% intervals over the meaning representations, of words as the network
tells them; what counts of the training texts add is in `fluency.py`.
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
from manta.evaluation.results import Figure
from manta.families.events import GenerateOptions
from manta.families.manta_lm import MantaLM, Split
from manta.hub import load
from manta.metrics import ONE_FEWER, Measured, OverlapSums, diversity_measured, resampled, slot_errors_measured
from manta.runtime import atomic_write, make_generator
from manta.types import Estimate

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

            def of_another(*state: Any, **given: Any) -> Estimate:
                estimate = Estimate.of(own(*state, **given))
                return replace(estimate, clean=estimate.clean.roll(1, 0))

            policy.field = of_another
        return policy


def references(data: str, split: str) -> EvaluationSet:
    """Meaning representations with their texts, in the order of the file."""
    return evaluation_set(data, split)


STYLES: tuple[Any, ...] = ("consensus", "diverse")
OVERLAP = ("bleu", f"bleu{ONE_FEWER}")


def measured(texts: list[str], data: EvaluationSet) -> dict[str, Measured]:
    """Every figure of the texts of one seed."""
    pairs = [(prompt or "", text) for prompt, text in zip(data.prompts, texts, strict=True)]
    scored = OverlapSums(data.references, words=data.reading).bleu_of_model(texts)
    errors = {"slot_error_rate": slot_errors_measured(pairs)["slot_error_rate"]}
    return {**scored, **errors, **diversity_measured(texts)}


def scores(lm: Any, data: EvaluationSet, options: GenerateOptions, seeds: int = 1) -> dict[str, Any]:
    """Every figure of one setting: its mean over seeds, its interval over prompts, and BLEU of each seed."""
    runs = [write(lm, data, options, seed=seed * 100_000) for seed in range(seeds)]
    found = [measured(run.texts, data) for run in runs]
    times = resampled(len(data.prompts), generator=make_generator(0))
    row: dict[str, Any] = {}
    for name in found[0]:
        figure, digits = Figure.of([run[name] for run in found], times), 2 if name in OVERLAP else 5
        row[name] = round(figure.mean, digits)
        if figure.interval is not None:
            row[f"{name}_interval"] = [round(figure.interval.low, digits), round(figure.interval.high, digits)]
        if name == "bleu":
            row["bleu_seeds"] = [round(value, 2) for value in figure.values]
    calls = [nfe for run in runs for nfe in run.nfe]
    row["mean_calls"] = round(sum(calls) / len(calls), 2)
    return {**row, "nfe": max(calls), "seconds": round(sum(run.seconds for run in runs), 2)}


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
            row = scores(lm, data, GenerateOptions(num_steps=budget, style="consensus", fluency=0.0))
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
        row = scores(model, data, GenerateOptions(**options, fluency=0.0), seeds)
        result["rows"].append({"name": name, **options, **row})
        print(name, options, row, flush=True)

    for budget in BUDGETS:
        add("consensus", lm, args.seeds, num_steps=budget, style="consensus")
        add("diverse", lm, args.seeds, num_steps=budget, style="diverse")
    for budget in ABLATED:
        for style in STYLES:
            flow = lm.split(GenerateOptions(num_steps=budget, style=style)).flow or budget // 2
            same = {"num_steps": budget, "style": style, "rounds": 0}
            add(f"{style}, with the plan", lm, flow_steps=flow, **same)
            add(f"{style}, without (t = 0)", lm, flow_steps=0, **same)
            add(f"{style}, readout alone (z = 0)", Disturbed(lm, "nothing"), flow_steps=0, **same)
            add(f"{style}, shuffled z", Disturbed(lm, "shuffled"), flow_steps=flow, **same)
    result["human"] = human(data)
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1))


def human(data: EvaluationSet) -> dict[str, Any]:
    """The scale: each reference against the others of its prompt, and the slot errors of the first."""
    times = resampled(len(data.prompts), generator=make_generator(0))
    pairs = [(prompt or "", text) for prompt, text in zip(data.prompts, data.humans, strict=True)]
    found = {
        **OverlapSums(data.references, words=data.reading).bleu_of_people(),
        "slot_error_rate": slot_errors_measured(pairs)["slot_error_rate"],
    }
    row: dict[str, Any] = {}
    for name, each in found.items():
        figure = Figure.of([each], times)
        row[name] = figure.mean
        row[f"{name}_interval"] = None if figure.interval is None else [figure.interval.low, figure.interval.high]
    return row


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
