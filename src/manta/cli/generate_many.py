"""`manta generate --engine ray`: the lines of many files, written by many processes into a folder."""

import json
import sys
from dataclasses import asdict
from typing import Any

from manta.cli.measuring import Line
from manta.cli.steering import steer
from manta.errors import UsageError
from manta.families.options import GenerateOptions


def run_many(options: Any, settings: GenerateOptions) -> int:
    """Write, or go on where an interrupted start of the same was stopped.

    Args:
        options: of `manta generate`, as far as they fit each other without an engine.
        settings: how to write.

    Returns:
        1 if a line failed, else 0.

    Raises:
        UsageError: no --input or no --out, or a device that cannot be chosen; else see `cluster.write_many`.
    """
    if options.input in (None, "-") or options.out is None:
        raise UsageError(
            "--engine ray takes lines of files and writes files: give --input FOLDER|FILE|URL and --out DIR"
        )
    if options.task is not None or options.instruction is not None:
        raise UsageError("with --engine ray each line names its own `task`; leave --task and --instruction out")
    if options.device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {options.device}: with --engine ray it is cpu or cuda, and Ray chooses which one")
    from manta.cluster import ManyTexts, require_ray, write_many
    from manta.hub import load_writer

    require_ray()
    steered = settings.escape_scale or options.target_entropy is not None
    lm = load_writer(options.model or None, device=options.device if steered else "cpu")
    list(lm.generate([], settings))  # which refuses what does not fit the model, before any process begins
    settings = steer(lm, options, settings)
    asked = ManyTexts(
        model=options.model or None,
        **{name: getattr(options, name) for name in ("input", "out", "num_samples", "seed", "batch_size", "device")},
        **{name: getattr(options, name) for name in ("out_format", "part_rows", "workers", "address")},
    )
    shown = Shown()
    how = {"prompted": lm.prompted, "repetition": getattr(lm, "repetition", None), "progress": shown, "warn": warned}
    del lm  # workers have their own
    try:
        outcome = write_many(asked, settings, **how)
    except KeyboardInterrupt:
        shown.line.clear()
        print(f"stopped {shown.said}; the same command goes on with the rest", file=sys.stderr)
        raise
    finally:
        shown.line.clear()
    if outcome.first_failure is not None:
        first = outcome.first_failure
        print(
            f"manta: error: {outcome.failed:,} of {outcome.rows:,} lines failed, see {options.out}/_failures; the "
            f"first, number {first['row'] + 1}: {' '.join(first['error'].split())}",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps({**asdict(outcome), "seconds": round(outcome.seconds, 3)}, ensure_ascii=False))
    else:
        rate = (
            f" in {outcome.seconds:.1f} s, {outcome.written / outcome.seconds:.1f} a second" if outcome.seconds else ""
        )
        print(f"{outcome.written:,} of {outcome.rows:,} lines written{rate}", file=sys.stderr)
        print(options.out)
    return int(outcome.failed > 0)


def warned(text: str) -> None:
    """Say a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Shown:
    """Progress on stderr: lines done of all, lines a second, and the time left."""

    def __init__(self) -> None:
        self.line, self.said = Line(), "before the first line was written"

    def __call__(self, progress: Any) -> None:
        """See `cluster.Progress`."""
        self.said = f"after {progress.done:,} of {progress.rows:,} lines"
        rate = f" at {progress.rate:.1f} lines a second" if progress.rate else ""
        left = "" if progress.left is None else f", {_clock(progress.left)} left"
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        self.line(f"written{rate}{left}{failed}:", progress.done, progress.rows)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
