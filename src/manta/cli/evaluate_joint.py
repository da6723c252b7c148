"""`manta evaluate MODEL` of a model of captions and images."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.outputs import MARK, claim_file
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateJointOptions:
    """Measure a model of captions and images: are images described, and captions drawn?"""

    model: str = argument("")
    """A model folder or a run folder of `manta train … --family joint`."""
    data: str | None = None
    """Images with captions, named as for manta train; builtin:shapes without it."""
    split: Literal["dev", "test"] = "test"
    """What is described and drawn."""
    num: int = 200
    """Images at most."""
    num_steps: int = 16
    """Calls of an image."""
    describe_steps: int = 4
    """Calls of a caption."""
    seed: int = 0
    """Of the first image."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: Path | None = None
    """Write that JSON object to a file, too."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Measure."""
    options = parse_options(EvaluateJointOptions, argv, "evaluate")
    if min(options.num, options.num_steps, options.describe_steps) < 1:
        raise UsageError("--num, --num-steps and --describe-steps should be at least 1")
    claim_file(options.out, "evaluate")
    from manta.cli.measuring import Line
    from manta.evaluation.joint import measure_joint
    from manta.evaluation.joint_bias import attends_everywhere, attention_bias, in_words
    from manta.hub import load, model_config
    from manta.runtime import atomic_write

    flow: Any = load(options.model, device=options.device)
    data, line = options.data or "builtin:shapes", Line()
    fit = (model_config(options.model).get("recipe") or {}).get("fit", "crop")
    found = measure_joint(
        flow,
        data,
        num=options.num,
        split=options.split,
        draw_steps=options.num_steps,
        describe_steps=options.describe_steps,
        seed=options.seed,
        fit=fit,
        tell=line,
    )
    everywhere = attends_everywhere(flow.model)
    bias = attention_bias(flow, data, split=options.split, seed=options.seed, fit=fit) if everywhere else []
    line.clear()
    report = {
        MARK: "manta evaluate",
        "command": shlex.join(["manta", "evaluate", *argv]),
        "model": options.model,
        "family": flow.family,
        "data": data,
        "split": options.split,
        "level": 0.95,
        **asdict(found),
        "bias": [asdict(each) for each in bias],
    }
    if options.out is not None:
        atomic_write(options.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    for name, value in found.figures.items():
        ends = found.intervals.get(name)
        limits = "" if ends is None else f" [{ends[0]:.1%}, {ends[1]:.1%}]"
        print(f"{name:<18}{value:.1%}{limits}" if name != "seconds_an_image" else f"{name:<18}{value:.4f}")
    print("\n".join(["", *found.notes, "limits in brackets: 95%, over images", *in_words(bias)]))
    return 0
