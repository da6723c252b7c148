"""`manta diagnose MODEL...`: why a model fails and what to change, on one page."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_folder, marked
from manta.cli.writing import run_elsewhere
from manta.errors import DataError, ModelError, UsageError
from manta.families.options import Style


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """Measure how models generate, side by side, and write DIR/diagnose.html and DIR/diagnose.json."""

    models: tuple[str, ...] = argument(())
    """Model folders, run folders of `manta train`, or hub names, of any family; the one that ships if none is named."""
    out: Path | None = None
    """The folder of the report; made if it is not there. May be left out with --json."""
    num_prompts: int = 8
    """Prompts, the same for every model."""
    num_steps: int = 16
    """Network calls of a text."""
    seed: int = 0
    """Seed of the first text and of all disturbances."""
    data: str | None = None
    """Where the prompts come from (test split); without it the built-in corpus the models were trained on."""
    prompts: Path | None = None
    """Instead of --data: a file of JSON lines with `prompt`."""
    style: Style = "diverse"
    """Style of the texts."""
    words: Literal["writing", "masked"] = "writing"
    """Manta-LM's field is measured with words held as they settle in writing, or masked (all of them)."""
    judge: str | None = None
    """An autoregressive model whose likelihood counts as fluency; without it the first one diagnosed."""
    keyword: str | None = None
    """Word to steer toward; without it one is chosen from the first model's texts."""
    tune: int = 0
    """Updates of adjoint matching toward that word, beside guidance, for flows over latents; 0 leaves it out."""
    batch_size: int = 8
    """Prompts measured at once; it does not change the figures."""
    json: bool = False
    """Print the figures as one JSON object on stdout."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Run the verb: models of images are diagnosed by `cli.diagnose_images`."""
    if (status := run_elsewhere(argv, "diagnose")) is not None:
        return status
    options = parse_options(DiagnoseOptions, argv, "diagnose")
    if options.out is None and not options.json:
        raise UsageError("diagnose writes a report; name its folder with --out DIR, or print figures with --json")
    if options.out is not None:
        claim_folder(options.out, "diagnose")
    if options.data is not None and options.prompts is not None:
        raise UsageError("give --data or --prompts, not both: each names the prompts")
    if options.num_prompts < 2:
        raise UsageError(f"--num-prompts should be at least 2, for a spread; received {options.num_prompts}")
    from manta.config import to_dict
    from manta.diagnosis import Settings, diagnose, render, verdicts

    names = ("num_steps", "seed", "style", "batch_size", "words", "tune")
    settings = Settings(**{name: getattr(options, name) for name in names})
    prompts = _prompts(options)
    models, judge = _models(options)
    start = time.perf_counter()

    def progress(line: str) -> None:
        print(f"{time.perf_counter() - start:6.1f} s  {line}", file=sys.stderr, flush=True)

    found = diagnose(models, prompts, settings, judge=judge, keyword=options.keyword, progress=progress)
    row = marked("diagnose", {**found.row(), "verdicts": [to_dict(verdict) for verdict in verdicts(found)]})
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    if options.out is not None:
        from manta.runtime import atomic_write

        options.out.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out / "diagnose.json", (text + "\n").encode())
        progress("drawing the report")
        atomic_write(options.out / "diagnose.html", render(found).encode())
        progress(f"report written to {options.out / 'diagnose.html'}")
    if options.json:
        print(text)
    return 0


def _models(options: DiagnoseOptions) -> tuple[dict[str, Any], Any]:
    """Models by name, a number added where two have one name; and the judge."""
    from manta.hub import load_writer

    models: dict[str, Any] = {}
    for path in options.models or ("",):
        name = Path(path).name or "shipped"
        if name == "model":
            name = Path(path).resolve().parent.name
        taken = sum(known == name or known.startswith(f"{name} (") for known in models)
        models[name if not taken else f"{name} ({taken + 1})"] = load_writer(path or None, device=options.device)
    if options.judge is None:
        return models, None
    judge = load_writer(options.judge, device=options.device)
    if judge.likelihood != "exact":
        raise ModelError(
            f"{options.judge} is not autoregressive; a judge gives exact likelihoods, train it --family ar"
        )
    return models, (Path(options.judge).name, judge)


def _prompts(options: DiagnoseOptions) -> list[str | None]:
    """Prompts from a file or from a data set's test split, each once."""
    if options.prompts is not None:
        from manta.cli.generate import read_lines

        found = [row.get("prompt") for row in read_lines(options.prompts)]
    else:
        from manta.text import read

        # Some prompts of a data set have many texts.
        found = [example.prompt for example in read(_data(options), "test", 50 * options.num_prompts)]
    if not any(found):
        return [None] * options.num_prompts
    distinct = list(dict.fromkeys(prompt for prompt in found if prompt))[: options.num_prompts]
    if len(distinct) < 2:
        raise DataError(f"a diagnosis takes two prompts or more, found {len(distinct)}; give more with --prompts")
    return list(distinct)


def _data(options: DiagnoseOptions) -> str:
    """The data set asked for, or the built-in one that all models were trained on."""
    if options.data is not None:
        return options.data
    from manta.hub import model_config

    recipes = [model_config(path or None).get("recipe", {}) for path in options.models or ("",)]
    names = sorted({str(recipe.get("data", "")) for recipe in recipes})
    if len(names) == 1 and names[0].startswith("builtin:"):
        return names[0]
    raise UsageError(
        f"the models were trained on {', '.join(map(repr, names))}; say where the prompts come from with "
        "--data (such as e2e:PATH) or --prompts FILE.jsonl"
    )
