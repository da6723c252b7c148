"""A choice task of 1,000 questions through lm-evaluation-harness, beside our own evaluator on the same texts.

    python benchmarks/harness.py --model builtin:e2e-aligned --data e2e:PATH --split train \
        --out benchmarks/results/harness.json

A question is a prompt of the data with its own text and three texts of other prompts. `own` are the seconds of the
evaluator's likelihood of all these texts given their prompts, `asked` those of the same through the harness's model,
and `task` those of the whole task: the data read, prompts made, questions asked, figures made. All are timed in one
run, in turn, in processor time, since others may use the machine, and the ratios are of their medians. `apart` is the
largest difference of two likelihoods of a text, in nats.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from manta.evaluation import EvaluationSet, contestant, evaluation_set, likelihood, run_tasks
from manta.evaluation.harness import HarnessModel
from manta.families.batching import to_batch
from manta.runtime import atomic_write

TASK = """task: benchmark_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
"""
CHOICES = 4


def questions(data: EvaluationSet, room: Any, num: int) -> list[dict[str, Any]]:
    """Prompts with four texts each, of those that the model has room for."""
    tokenizer, shape = room.tokenizer, room.model.config
    fitting = [
        (prompt, text)
        for prompt, group in zip(data.prompts, data.references, strict=True)
        for text in group[:1]
        if prompt and len(tokenizer.encode(prompt)) <= shape.max_prompt
        if len(tokenizer.encode(text)) <= shape.max_text
    ][:num]
    count = len(fitting)
    return [
        {"prompt": prompt, "choices": [fitting[(at + 7 * other) % count][1] for other in range(CHOICES)], "gold": 0}
        for at, (prompt, _) in enumerate(fitting)
    ]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:e2e-aligned")
    parser.add_argument("--data", required=True, help="as manta evaluate takes it, with prompts")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=1000, help="questions")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = contestant(args.model, device="cpu")
    lm = cast(Any, model.lm)
    rows = questions(evaluation_set(args.data, args.split), lm, args.num)
    pairs = [(row["prompt"], text) for row in rows for text in row["choices"]]
    same = EvaluationSet(
        name=args.data,
        split=args.split,
        prompts=tuple(prompt for prompt, _ in pairs),
        references=tuple((text,) for _, text in pairs),
        training=lambda: iter(()),
    )
    asked = [SimpleNamespace(args=pair, doc_id=at // CHOICES, repeats=1) for at, pair in enumerate(pairs)]
    seconds: dict[str, list[float]] = {"own": [], "asked": [], "task": []}
    found: list[tuple[float, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        (Path(folder) / "benchmark_choice.yaml").write_text(TASK.format(file=file))

        def through_the_model() -> None:
            found[:] = HarnessModel(model).loglikelihood(cast(Any, asked))

        ways = {
            "own": lambda: likelihood(lm, same, texts=len(pairs)),
            "asked": through_the_model,
            "task": lambda: run_tasks(model, ["benchmark_choice"], include=Path(folder)),
        }
        ways["task"]()  # what is imported and warmed once
        for _ in range(args.times):
            for name, way in ways.items():
                begin = time.process_time()
                way()
                seconds[name].append(time.process_time() - begin)
                print(f"{name} {seconds[name][-1]:.2f} s", flush=True)
    with torch.no_grad():
        batch = to_batch(
            [lm.tokenizer.encode(p) for p, _ in pairs[:64]], [lm.tokenizer.encode(t) for _, t in pairs[:64]]
        )
        apart = (lm.log_likelihood(batch).value - torch.tensor([value for value, _ in found[:64]])).abs().max()
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "model": args.model,
        "data": args.data.partition(":")[0],
        "split": args.split,
        "questions": len(rows),
        "texts": len(pairs),
        "different_texts": len(set(pairs)),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "ratio_asked": middle["asked"] / middle["own"],
        "ratio_task": middle["task"] / middle["own"],
        "apart": float(apart),
    }
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
