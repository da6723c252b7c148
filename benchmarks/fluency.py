"""E2E: what counts of the training texts add to words that are told in one call.

    python benchmarks/fluency.py count MODEL --data PATH [--targets FILE]     # writes the counts into MODEL's folder
    python benchmarks/fluency.py measure MODEL… --data PATH --out benchmarks/results/fluency.json
    python benchmarks/fluency.py drawn MODEL… --data PATH --out benchmarks/results/fluency.json
    python benchmarks/fluency.py measure masked-0 --seeds 1 --data PATH --out benchmarks/results/fluency_masked.json

PATH is e2e-dataset.zip or its folder. A model that `manta train` has finished has its counts already; `count` is for
one that is older than they are, FILE the answers that it was taught beside the human texts. `masked-0` is the masked
model that `variants.py e2e --keep` keeps at 2,000 steps.

`measure` writes every prompt of the test split once by each budget: as the network says (weight 0), with the search but
no counts (weight 1e-9), and with the counts at three weights; for a Manta-LM the plan is taken away, too. `drawn` does
so for a Manta-LM's `diverse` texts, and compares them with human ones by MAUVE, of hashed n-grams of words. Figures are
means over sampling seeds with 95% intervals over prompts, differences to weight 0 paired by prompt.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from e2e import machine, measured, references

from manta.evaluation import write
from manta.evaluation.features import hashed_ngrams
from manta.evaluation.results import Figure
from manta.families.events import GenerateOptions
from manta.fluency import NgramModel
from manta.hub import card_of, load, model_config, save_model
from manta.metrics import difference_of, mauve, resampled
from manta.runtime import atomic_write, make_generator
from manta.text import BOS, EOS, read
from manta.text.sources import read_whole

BUDGETS = {"aligned": (1, 2), "manta": (1, 2, 4, 8, 16), "masked": (2, 4, 8)}
ALONE = 1e-9
"""Weight of the search by itself."""
WEIGHTS = (0.0, ALONE, 0.25, 0.5, 1.0)
FIGURES = ("bleu", "slot_error_rate", "distinct_4")
DIVERSE: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "diverse": ({"fluency": 0.0}, (1, 2, 4, 8, 16)),
    "diverse, counts": ({"fluency": 0.5}, (1, 2, 4, 8)),
    "diverse, no plan": ({"fluency": 0.0, "flow_steps": 0}, (4, 8)),
    "diverse, no plan, counts": ({"fluency": 0.5, "flow_steps": 0}, (4, 8)),
}
"""Settings of a Manta-LM's `diverse` texts, and their budgets."""


def count(args: argparse.Namespace) -> None:
    """Count the texts that a model has learned, and keep the counts in its folder."""
    folder = Path(args.models[0])
    lm: Any = load(folder, device="cpu")
    texts = [example.text for example in read(f"e2e:{args.data}", "train")]
    if args.targets:
        texts += [example.text for example in read_whole(args.targets)]
    rows = lm.tokenizer.encode_batch(texts)
    lm.ngrams = NgramModel.count(rows, vocab_size=lm.model.config.vocab_size, begin=BOS, end=EOS)
    save_model(folder, lm, recipe=model_config(folder).get("recipe", {}), card=card_of(folder))
    sizes = {name: len(value) for name, value in lm.ngrams.table.items() if name.startswith("grams")}
    print(f"{len(texts):,} texts, {sizes}, {lm.ngrams.nats:.2f} nats a word")


def settings(lm: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of all that is measured."""
    style = {} if lm.family == "aligned" else {"style": "consensus"}
    found = []
    for calls in BUDGETS[lm.family]:
        # Of places the likeliest row is the likeliest token of each, so that the search alone changes nothing.
        weights = [weight for weight in WEIGHTS if lm.family == "aligned" or weight != ALONE]
        found += [(f"weight {weight:g}", {"num_steps": calls, "fluency": weight, **style}) for weight in weights]
        if lm.family == "manta" and calls > 1:
            found += [
                (f"weight {weight:g}, no plan", {"num_steps": calls, "fluency": weight, "flow_steps": 0, **style})
                for weight in (0.0, 0.5)
            ]
    return found


def drawn(lm: Any) -> list[tuple[str, dict[str, Any]]]:
    """Of `diverse` texts: how they are written, how without a plan, and with the calls divided as for `consensus`."""
    if lm.family != "manta":
        return []
    style = {"style": "diverse"}
    found = [
        (name, {"num_steps": calls, **how, **style}) for name, (how, budgets) in DIVERSE.items() for calls in budgets
    ]
    for calls in (4, 8):
        how = {"num_steps": calls, "fluency": 0.0, "flow_steps": lm.splits[calls].flow, **style}
        found.append(("diverse, split of consensus", how))
    return found


def measure(args: argparse.Namespace) -> None:
    """All settings of all models; what is measured already stays."""
    data = references(f"e2e:{args.data}", args.split)
    file = Path(args.out)
    kept = json.loads(file.read_text()) if file.exists() else {"rows": []}
    rows = {(row["model"], row["name"], row["num_steps"]): row for row in kept["rows"]}
    times = resampled(len(data.prompts), generator=make_generator(0))
    human = hashed_ngrams([group[0] for group in data.references])
    for model in args.models:
        lm: Any = load(model, device="cpu")
        plain: dict[int, list[Any]] = {}
        for name, options in {"measure": settings, "drawn": drawn}[args.action](lm):
            place = (model, name, options["num_steps"])
            if place in rows and not (args.anew or name == "weight 0"):  # differences are paired with those texts
                continue
            runs = [write(lm, data, GenerateOptions(**options), seed=100_000 * seed) for seed in range(args.seeds)]
            found = [measured(run.texts, data) for run in runs]
            diverse = name.startswith("diverse")
            for each, run in zip(found, runs, strict=True):
                if diverse:
                    each["mauve"] = mauve(hashed_ngrams(run.texts), human, generator=make_generator(0)).measured
            if name == "weight 0":
                plain[options["num_steps"]] = found
            row: dict[str, Any] = {"model": model, "name": name, **options, "seeds": args.seeds}
            for figure in (*FIGURES, *["mauve"] * diverse):
                told = Figure.of([each[figure] for each in found], times)
                assert told.interval is not None, "hundreds of prompts have one"
                row[figure], row[f"{figure}_interval"] = told.mean, [told.interval.low, told.interval.high]
                row[f"{figure}_seeds"] = list(told.values)
            if options["fluency"] > 0 and "no plan" not in name and not diverse:
                gain = difference_of(
                    [run["bleu"] for run in found], [run["bleu"] for run in plain[options["num_steps"]]], times
                )
                row["bleu_gain"] = 0.0 if gain is None else gain.value  # None: not a text is another
                row["bleu_gain_interval"] = None if gain is None else [gain.low, gain.high]
            row["mean_calls"] = sum(sum(run.nfe) for run in runs) / sum(len(run.nfe) for run in runs)
            rows[place] = row
            print(json.dumps({key: row[key] for key in ("model", "name", "num_steps", *FIGURES)}), file=sys.stderr)
            result = {"machine": machine(), "split": args.split, "prompts": len(data.prompts)}
            atomic_write(file, (json.dumps({**result, "rows": list(rows.values())}, indent=1) + "\n").encode())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("count", "measure", "drawn"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--targets", help="count: a file of further texts, with their prompts")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds")
    parser.add_argument("--anew", action="store_true", help="measure again what is measured already")
    parser.add_argument("--out")
    args = parser.parse_args()
    {"count": count, "measure": measure, "drawn": measure}[args.action](args)


if __name__ == "__main__":
    main()
