"""`manta export MODEL --out DIR`: a model that others load without manta, or the model of one task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manta.cli.options import argument, parse_options
from manta.errors import ModelError, UsageError


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a left-to-right model as a folder that `transformers`, and whoever reads its layouts, loads without manta;
    or, with --task, one task of a model that tells tasks apart as a model of its own, in manta's own layout.

    Logits of whole rows, in float32 on a CPU, are the model's own to the last bit. What no such layout computes exactly
    is refused: every family but `decoder`. A drafter (`manta train --drafter`) has no place in it and is left out: the
    texts are the same without it."""

    model: str = argument()
    """A model folder, run folder or name of the hub, of the family `decoder`, or with tasks."""
    to: Literal["", "llama", "gpt_neox"] = ""
    """The layout: `LlamaForCausalLM`, without it, or `GPTNeoXForCausalLM`."""
    task: str | None = None
    """The task whose weights are merged into a model that knows it alone, and costs what any model of its size does."""
    out: Path | None = None
    """The new folder."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(ExportOptions, argv, "export")
    if options.out is None:
        raise UsageError("say where the model goes: manta export MODEL --to llama --out DIR")
    if options.task is not None:
        return _export_task(options, options.task, options.out)
    from manta.hub import load_writer
    from manta.hub.export import PUBLISHED_CLASS, export

    layout = options.to or "llama"
    export(load_writer(options.model, device="cpu"), options.out, layout)
    print(f"{options.out} holds a {PUBLISHED_CLASS[layout]}, which loads without manta")
    return 0


def _export_task(options: ExportOptions, task: str, out: Path) -> int:
    """Write the model of one task.

    Raises:
        UsageError: a layout is asked for, or the folder is there already.
        RequestError: the model has no such task.
        ModelError: its tasks shift features, for which a model of one task has no place.
    """
    if options.to:
        raise UsageError("--task writes a model of manta, and --to names another's layout; leave one out")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"{out} is there already; give --out a new folder")
    from manta.hub import card_of, model_config, save_model
    from manta.recipes.origins import trained_model

    lm = trained_model(options.model, "cpu", tasked=True)
    found = lm.of_task(task)
    if lm.model.config.modulation.kind == "film":
        raise ModelError(
            "film shifts what maps put out, for which a model of one task has no weights; write with --task instead, "
            "or train with --tasks low_rank"
        )
    card = f"{card_of(options.model).rstrip()}\n\nOf its tasks ({', '.join(lm.tasks)}) this is the one of `{task}`.\n"
    save_model(out, found, recipe=model_config(options.model).get("recipe", {}), card=card)
    print(f"{out} holds a model of the task {task}, to be used as any other")
    return 0
