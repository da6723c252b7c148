"""`manta export MODEL --to llama --out DIR`: a model that others load without manta."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manta.cli.options import argument, parse_options
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a left-to-right model as a folder that `transformers`, and whoever reads its layouts, loads without manta.

    Logits of whole rows, in float32 on a CPU, are the model's own to the last bit. What no such layout computes exactly
    is refused: every family but `decoder`."""

    model: str = argument()
    """A model folder, run folder or name of the hub, of the family `decoder`."""
    to: Literal["llama", "gpt_neox"] = "llama"
    """The layout: `LlamaForCausalLM`, or `GPTNeoXForCausalLM`."""
    out: Path | None = None
    """The new folder."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(ExportOptions, argv, "export")
    if options.out is None:
        raise UsageError("say where the model goes: manta export MODEL --to llama --out DIR")
    from manta.hub import load_writer
    from manta.hub.export import PUBLISHED_CLASS, export

    export(load_writer(options.model, device="cpu"), options.out, options.to)
    print(f"{options.out} holds a {PUBLISHED_CLASS[options.to]}, which loads without manta")
    return 0
