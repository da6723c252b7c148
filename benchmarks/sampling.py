"""Sampling to a target on prose: the temperature that gives human entropy, and the escape from repetition.

    python benchmarks/sampling.py --data tinystories:PATH --judge runs/stories/judge \
        --models runs/stories/latents-0 runs/stories/masked-0 … --out benchmarks/results/sampling.json

Both are set on texts of other seeds than those that measure them, by perplexity under the judge with entropy and
repetition, all of passages of equal length. `target`: the temperature at which texts have the entropy of human ones of
the split dev. `escape`, for a Manta-LM: feedback moved away from the direction of repetition by several lengths, at
temperature 0 and at the one found; the control moves it by two in random directions. Models that stand in --out are
kept, where they were measured with the same settings.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from manta.bench import machine
from manta.errors import DataError, RequestError
from manta.evaluation import Contestant, Evaluator, EvaluatorConfig, contestant, evaluation_set, load_judge
from manta.families.asked import applicable
from manta.families.events import GenerateOptions
from manta.families.manta_lm import MantaLM
from manta.metrics import token_entropy
from manta.metrics.repetition import learn_repetition
from manta.metrics.target_entropy import meet_entropy
from manta.runtime import atomic_write, make_generator

FIGURES = ("perplexity", "entropy", "repeated_4", "distinct_4")
SCALES = (1.0, 2.0, 4.0)
"""Lengths by which feedback is moved; two, in units of the state, is the published default."""
CONTROLS, CONTROL_SCALE = 3, 2.0
"""Random directions, and the length of each."""
APART = 10_000
"""First seed of the texts that measure; those that set something have the seeds from 0 on."""


def figures(evaluator: Evaluator, model: Contestant, options: GenerateOptions) -> dict[str, Any]:
    """What a way to write gives on test."""
    found = evaluator.measure(model, options, with_likelihood=False).figures
    row: dict[str, Any] = {name: float(f"{found[name].mean:.4g}") for name in FIGURES if name in found}
    for name in row.copy():
        if (interval := found[name].interval) is not None:
            row[f"{name}_interval"] = [float(f"{end:.4g}") for end in (interval.low, interval.high)]
    return row


def escapes(
    evaluator: Evaluator, model: Contestant, ways: dict[str, GenerateOptions], args: argparse.Namespace
) -> dict[str, Any]:
    """Figures by way to write, direction and length."""
    lm = model.lm
    assert isinstance(lm, MantaLM)
    result: dict[str, Any] = {"rows": []}
    for way, options in ways.items():
        try:
            learned, gap = learn_repetition(lm, [None] * args.num_learned, options)
        except DataError as error:
            result["rows"].append({"way": way, "refused": str(error)})
            continue
        drawn = torch.randn(CONTROLS, len(learned), generator=make_generator(0))
        directions = {"repetition": learned}
        directions |= {f"random {i}": row for i, row in enumerate(torch.nn.functional.normalize(drawn, dim=1))}
        same = {"way": way, "gap": round(gap, 4)}
        result["rows"].append({**same, "direction": "none", "scale": 0.0, **figures(evaluator, model, options)})
        for name, direction in directions.items():
            lm.repetition = direction
            for scale in SCALES if name == "repetition" else (CONTROL_SCALE,):
                moved = figures(evaluator, model, replace(options, escape_scale=scale))
                result["rows"].append({**same, "direction": name, "scale": scale, **moved})
        lm.repetition = None
    return result


def measure(path: str, evaluator: Evaluator, args: argparse.Namespace) -> dict[str, Any]:
    """One model."""
    model, dev = contestant(path), evaluation_set(args.data, "dev", args.num_dev, words=args.words)
    options, _ = applicable(GenerateOptions(num_steps=args.num_steps, decoder=args.decoder), model.lm.family)
    row: dict[str, Any] = {"model": Path(path).name, "greedy": figures(evaluator, model, options)}
    human = token_entropy(dev.humans)

    def passage(text: str) -> list[str]:
        return text.split()[: args.words]

    ways = {"temperature 0": options}
    try:
        met = meet_entropy(model.lm, dev.prompts, human, options, tokenize=passage)
        ways["human entropy"] = met.options
        reached = figures(evaluator, model, met.options)
        row["target"] = {
            "temperature": met.options.temperature,
            "dev": met.entropy,
            "human_dev": human,
            "test": reached,
        }
    except RequestError as error:
        row["target"] = {"refused": str(error), "human_dev": human}
    if isinstance(model.lm, MantaLM):
        row["escape"] = escapes(evaluator, model, ways, args)
    return row


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--num", type=int, default=100, help="texts a setting")
    parser.add_argument("--num-dev", type=int, default=64, help="texts that the temperature is found on")
    parser.add_argument("--num-learned", type=int, default=400, help="texts that the direction is found on")
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--decoder", default="", help="of masked models")
    parser.add_argument("--words", type=int, default=40, help="of a passage")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = EvaluatorConfig(metrics=("diversity", "judge"), num_seeds=1, seed=APART)
    test = evaluation_set(args.data, "test", args.num, words=args.words)
    evaluator = Evaluator(test, config, judge=load_judge(args.judge))
    settings = {
        name: getattr(args, name) for name in ("num", "num_dev", "num_learned", "num_steps", "decoder", "words")
    }
    result: dict[str, Any] = {"settings": settings, "rows": []}
    if args.out.exists() and (result := json.loads(args.out.read_text()))["settings"] != settings:
        sys.exit(f"{args.out} has other settings; name another --out")
    result["machine"] = machine()
    result["human"] = {name: evaluator.corpus[name] for name in FIGURES}
    result["human_intervals"] = {
        name: [i.low, i.high] for name, i in evaluator.corpus_intervals.items() if name in FIGURES
    }
    for path in args.models:
        if all(row["model"] != Path(path).name for row in result["rows"]):
            result["rows"].append(measure(path, evaluator, args))
            print(json.dumps(result["rows"][-1]), flush=True)
            atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
