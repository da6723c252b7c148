"""`manta evaluate MODEL` of a restorer of photographs."""

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
class EvaluateRestorerOptions:
    """Measure a restorer on held-out photographs: each is spoiled in each way, restored, and compared with itself."""

    model: str = argument("")
    """A model folder or a run folder of `manta train restore:PHOTOS`."""
    data: str | None = None
    """The photographs, `restore:FOLDER`."""
    split: Literal["dev", "test"] = "test"
    """What is restored."""
    num: int | None = None
    """Photographs at most; all of the split without it."""
    seed: int = 0
    """Of what spoils them."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: Path | None = None
    """Write that JSON object to a file, too."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Measure."""
    options = parse_options(EvaluateRestorerOptions, argv, "evaluate")
    if options.num is not None and options.num < 1:
        raise UsageError("--num should be at least 1")
    if options.data is None or not options.data.startswith("restore:"):
        raise UsageError("name the photographs: --data restore:FOLDER")
    claim_file(options.out, "evaluate")
    from manta.cli.measuring import Line
    from manta.evaluation.restoration import held_out_photos, measure_restoration, with_restorer
    from manta.hub import load
    from manta.runtime import atomic_write

    photos = held_out_photos(options.data, options.split, options.num)
    restorer: Any = load(options.model, device=options.device)
    line = Line()
    rows = measure_restoration(photos, with_restorer(restorer), tasks=restorer.faults, seed=options.seed, tell=line)
    line.clear()
    report = {
        MARK: "manta evaluate",
        "command": shlex.join(["manta", "evaluate", *argv]),
        "model": options.model,
        "family": restorer.family,
        "data": options.data,
        "split": options.split,
        "photos": len(photos),
        "level": 0.95,
        "rows": [asdict(row) for row in rows],
    }
    if options.out is not None:
        atomic_write(options.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps(report, ensure_ascii=False) if options.json else _table(report))
    return 0


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['model']} on {report['data']}, {report['split']}: {report['photos']} photographs", ""]
    lines.append(f"{'':<8}{'PSNR before':>12}{'after, dB':>24}{'SSIM before':>14}{'after':>24}")
    for row in report["rows"]:
        after = f"{row['psnr'][0]:.2f} [{row['psnr'][1]:.2f}, {row['psnr'][2]:.2f}]"
        alike = f"{row['ssim'][0]:.3f} [{row['ssim'][1]:.3f}, {row['ssim'][2]:.3f}]"
        lines.append(f"{row['task']:<8}{row['psnr_before']:>12.2f}{after:>24}{row['ssim_before']:>14.3f}{alike:>24}")
    return "\n".join([*lines, "", "limits in brackets: 95%, over photographs"])
