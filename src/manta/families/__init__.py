"""The model families: nets, objectives, and from a request to events; `FAMILIES` is the table of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

from manta.families.options import (
    AlignedOptions,
    AutoregressiveOptions,
    BlockOptions,
    LeftToRightOptions,
    MantaOptions,
    MaskedOptions,
    Options,
    PublishedOptions,
)

if TYPE_CHECKING:
    from manta.families.kept import KeptModel
    from manta.families.trained import TrainedWriter

FamilyName = Literal["manta", "aligned", "masked", "block", "ar"]
"""The families that manta trains."""
TrainedName = Literal[FamilyName, "decoder", "joint"]
"""Those that `manta train --family` takes: also the layout of published causal models, and images with captions."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of a family before any of it is loaded."""

    words: str
    """The family in a sentence."""
    options: type[Options]
    """How it can be asked to write."""
    task: str = "text-generation"
    """What a hub of models calls what it does."""
    writer: str | None = None
    """What writes, a `TrainedWriter`, as `module:class`; None for a family that others train, see `hub.foreign`."""
    shape: str = ""
    """Field of a recipe that holds the shape of its net."""
    uses: tuple[str, ...] = ()
    """Fields of a recipe that its training reads, beside `shape`, of those that not every family's does; a group is all
    of its fields. What no row names is read of every family."""
    guided: bool = False
    """A teacher is trained to answer for it, unless a recipe says otherwise or a rule tells the one right text."""
    absolute_places: bool = False
    """Prompt and text are told the absolute place of each token unless a recipe says otherwise: where many words of a
    text are unwritten at once, their places are all alike without."""

    def load(self) -> "type[TrainedWriter[Any]]":
        """Import what writes: it knows its shape and net, its stages of training, and what its folder holds."""
        assert self.writer is not None, "a family that others train has no writer of ours"
        module, name = self.writer.split(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is known of a family that draws before any of it is loaded."""

    words: str
    """What it draws."""
    model: str
    """What draws, a `KeptModel`, as `module:class`."""
    task: str
    """What a hub of models calls what it does."""

    def load(self) -> "type[KeptModel]":
        """Import what draws."""
        module, name = self.model.split(":")
        return getattr(import_module(module), name)


LAID_OUT = ("objective.blank_share", "objective.max_blank", "objective.extra_cell")
"""How texts are laid out on canvases, see `families.objectives.lay_out`."""
READ = ("objective.prompt_drop", "objective.bare_share")
"""How prompts are read, see `families.objectives.read_prompt`."""

FAMILIES: Final[Mapping[str, Family]] = {
    "manta": Family(
        words="Manta-LM",
        options=MantaOptions,
        writer="manta.families.manta_lm:MantaLM",
        shape="model",
        uses=("objective", "shares", "teacher"),
        guided=True,
    ),
    "aligned": Family(
        words="aligned models",
        options=AlignedOptions,
        writer="manta.families.aligned:AlignedLM",
        shape="aligned",
        uses=(*LAID_OUT, "alignment", "shares", "teacher"),
        guided=True,
        absolute_places=True,
    ),
    "masked": Family(
        words="masked models",
        options=MaskedOptions,
        writer="manta.families.masked:MaskedLM",
        shape="masked",
        uses=(*LAID_OUT, *READ, "masking", "shares", "teacher"),
        absolute_places=True,
    ),
    "block": Family(
        words="block-causal models",
        options=BlockOptions,
        writer="manta.families.block:BlockCausalLM",
        shape="block",
        uses=("masking", "shares", "teacher"),
    ),
    "ar": Family(
        words="autoregressive models",
        options=AutoregressiveOptions,
        writer="manta.families.autoregressive:AutoregressiveLM",
        shape="teacher",
    ),
    "decoder": Family(
        words="published causal models",
        options=LeftToRightOptions,
        writer="manta.families.decoder:DecoderLM",
        shape="decoder",
    ),
    "llada": Family(words="published masked models", options=PublishedOptions),
    "Dream": Family(words="published masked models", options=PublishedOptions),
    "mdlm": Family(words="published masked models", options=PublishedOptions),
}
"""From the name of a family of texts to its row; a table, so that neither the command line nor a message loads a
net."""


def users(field: str) -> tuple[str, ...]:
    """Families whose training reads a field of a recipe; none for a field that every family's does.

    Args:
        field: its dotted name, such as `masking.masker`.
    """
    return tuple(
        name for name, row in FAMILIES.items() if any(is_in(field, read) for read in (row.shape, *row.uses) if read)
    )


def is_in(field: str, group: str) -> bool:
    """Whether a field is a group, or one of it, by their dotted names."""
    return f"{field}.".startswith(f"{group}.")


DRAWING: Final[Mapping[str, Drawing]] = {
    "image": Drawing(
        words="images", model="manta.families.image_flow:ImageFlow", task="unconditional-image-generation"
    ),
    "joint": Drawing(words="images and captions", model="manta.families.joint_flow:JointFlow", task="text-to-image"),
    "restorer": Drawing(
        words="photographs to restore", model="manta.families.restorer:Restorer", task="image-to-image"
    ),
}
"""The same of families whose models make or mend images."""

PUBLISHED_AS: Final[Mapping[str, str]] = {"llama": "decoder", "gpt_neox": "decoder"}
"""Family of a published folder by the `model_type` of its config.json, where the two differ."""
