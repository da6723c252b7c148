"""The whole description of a training run, and what follows from it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from manta.config import filled
from manta.errors import ConfigError
from manta.families import FAMILIES, FamilyName, users
from manta.families.aligned_model import AlignedConfig
from manta.families.autoregressive import AutoregressiveConfig
from manta.families.block_model import BlockCausalConfig
from manta.families.decoder import DecoderConfig
from manta.families.inheritance import Layers, Neurons
from manta.families.masked_model import MaskedConfig
from manta.families.model import MantaConfig
from manta.families.prompted import PromptedConfig, resolved
from manta.families.trained import Teaching
from manta.flow import DistillationConfig
from manta.operators import DijiangConfig, OperatorChoice
from manta.text import part_of, task_of
from manta.training import TrainConfig

SIZES = {
    # width, heads, blocks of the policy, tokens of a batch
    "nano": (96, 4, 4, 2_000),
    "tiny": (128, 4, 4, 3_000),
    "small": (160, 4, 5, 5_000),
    "base": (384, 6, 8, 16_000),
    "large": (768, 12, 12, 32_000),
}
"""The size dial; about 1.1M, 2.1M, 3.6M, 40M and 250M parameters."""

LENGTHS = {"max_prompt": 64, "max_text": 96}
"""Longest prompt and text in tokens, where neither the recipe nor a structured task says it."""

LEARNING_RATE = 0.384
"""Learning rate times width: a step moves what a wider matrix puts out by more."""

MAX_RUN_SEED = 10**15
"""Largest seed of a run, whose stages have seeds of their own, a thousand times as large."""

Size = Literal["nano", "tiny", "small"]
AUTO_SIZE: tuple[tuple[float, Size], ...] = ((6.0, "nano"), (20.0, "tiny"), (math.inf, "small"))
"""Minutes of the budget up to which a size is trained well on two CPU cores."""


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """How attention of a model that is trained becomes another operator."""

    operator: OperatorChoice = field(default_factory=DijiangConfig)
    """What it becomes."""
    layers: str = "all"
    """Blocks whose operator changes: `all`, their numbers such as `0,2`, or `local`, those whose attention stays
    near."""
    reach: int | None = None
    """Places on either side that are near. None: half the kernel of a convolution, the radius of a window, else 6."""
    least_near: float = 0.8
    """Share of a block's attention that has to stay near for `local` to choose it."""
    near: tuple[float, ...] = ()
    """What `local` has measured, a block each."""
    new_share: float = 0.0
    """Share of the time in which the new operators are trained alone, before everything is; 1 trains nothing else. It
    has shown no gain."""
    outputs: float = 1.0
    """Weight of the words that the source would tell, in nats, beside the task."""
    states: float = 1.0
    """Weight of the states after each new operator, as a share of their size."""

    def __post_init__(self) -> None:
        for name in ("least_near", "new_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"conversion.{name} should lie in [0, 1], received {getattr(self, name)}")
        if self.reach is not None and self.reach < 0:
            raise ConfigError(f"conversion.reach should be at least 0, received {self.reach}")
        if min(self.outputs, self.states) < 0:
            raise ConfigError("conversion.outputs and conversion.states should be at least 0")
        if self.layers not in ("all", "local") and not re.fullmatch(r"\d{1,4}(,\d{1,4})*", self.layers):
            raise ConfigError(
                f"conversion.layers should be all, local or numbers such as 0,2, received {self.layers!r}"
            )


@dataclass(frozen=True, kw_only=True)
class InheritanceConfig:
    """Which part of a larger model a smaller one begins as."""

    layers: Layers = "skip"
    """How its blocks are chosen: `skip` leaves out, one after the other, the one without which the loss is least;
    `ends`, `first`, `last`, `even` and `random` are controls."""
    neurons: Neurons = "learned"
    """How the neurons of its pointwise networks are chosen: a `learned` mask, `taylor`, `l2` or `random`."""
    batches: int = 8
    """Batches on which a loss is measured."""
    mask_steps: int = 100
    """Batches that a mask is learned on."""

    def __post_init__(self) -> None:
        if self.batches < 1 or self.mask_steps < 1:
            raise ConfigError("inheritance.batches and inheritance.mask_steps should be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recipe(Teaching):
    """A training run of a model of texts."""

    state: Literal["text"] = "text"
    """What the model makes."""
    data: str = "builtin:weather"
    """Where the texts come from: a .txt, .jsonl or .csv file, `builtin:weather`, a structured task (`builtin:sudoku4`,
    `builtin:sudoku9`, `builtin:countdown`, `builtin:paths`, `d1-countdown:PATH`, `sudoku17:PATH`; `d1-sudoku:PATH` is a
    test set only), `e2e:PATH`, `tinystories:PATH` or `hf:NAME`."""
    num_examples: int | None = None
    """Examples to read; None reads all."""
    split: str = "train"
    """What to learn from: the training split, or a part of it: `train:1/2` shares no prompt, or no text where there are
    none, with `train:2/2`."""
    family: FamilyName | Literal["decoder"] = "manta"
    """Which family to train; a `decoder` has the layout of published causal models, Llama's unless its shape says
    otherwise, and can be exported as one."""
    size: Literal["auto", "nano", "tiny", "small", "base", "large"] = "auto"
    """The size dial; sets width, heads and depth of `model`, `aligned`, `masked`, `block`
    and `teacher`. `auto` follows the time budget."""
    vocab_size: int = 1024
    """Tokens of the tokenizer, 512 to 32768."""
    max_prompt: int | None = None
    """Longest prompt in tokens; longer pairs are dropped and counted. None: 64, or what a structured task takes."""
    max_text: int | None = None
    """Longest text in tokens; longer prose becomes windows, longer pairs are dropped and counted. None: 96, or what a
    structured task takes."""
    consensus: Literal["auto", "none", "medoid", "teacher", "given"] = "auto"
    """Consensus targets beside the human ones: the medoid of a prompt's texts, what a teacher writes, or those of
    `targets`. `auto` takes those of `targets` if there are some, and a teacher for a Manta-LM or an aligned model on
    prompts and texts, unless a rule tells the one right text."""
    targets: str | None = None
    """Consensus targets that are there already: a .jsonl or .csv file of prompts and texts, such as the teacher's
    answers in another run's folder. All of it is learned, so it should hold no prompts that are measured later."""
    consensus_share: float | None = None
    """Share of the examples that are consensus targets, where there are some. None: half, and all of them for an
    aligned model, which tells the slots of a text apart from each other and so needs one text for a prompt; three
    quarters if it reads left to right, too, and the other texts are for that reading."""
    absolute_places: bool | None = None
    """Tell prompt and text the absolute place of each token: for texts that answer their prompt place by place, and for
    masked and aligned models, to which the places of an unwritten text are all alike without. None: for these."""
    recombined: int = 0
    """Prompts made by recombining the slots of others (`key[value], …` or `key: value, …`), for the teacher to answer:
    all numbers of slots as often as each other, and all values of a slot."""
    retries: int = 0
    """Times that the teacher answers a prompt anew, at temperature ½, while the slot checker of `manta evaluate` finds
    an error in its answer; a prompt whose answer stays wrong is left out. For meaning representations of E2E."""
    warm_start: bool | None = None
    """Start prompt encoder and policy from the teacher's weights; a teacher is trained for it where consensus targets
    need none. None: for a Manta-LM or an aligned model, unless it learns a structured task, and wherever there is a
    teacher anyway."""
    drafter_of: str | None = None
    """Folder of a left-to-right model, of the family `ar` or `decoder` or published of Llama's or GPT-NeoX's layout,
    that is taught to draft words, and nothing else: a copy of it that writes the same texts in fewer calls."""
    taught_by: str | None = None
    """Folder of an autoregressive model that is the teacher, instead of one that the run trains: its tokenizer, its
    answers to the prompts, and its weights to start from. An autoregressive model begins as its teacher, and learns
    from what it answers itself, beside the texts."""
    converted_from: str | None = None
    """Folder of a model, of any family that is trained here, whose attention becomes another operator: the run begins
    with its weights, and learns what it answers beside the texts. See `manta convert`."""
    begin_from: str | None = None
    """Folder of a model that is trained on: its family, tokenizer and shape stay. See `manta train --from`."""
    inherit: str | None = None
    """Folder of a larger model that this one begins as a part of: its family, tokenizer and shape, with fewer blocks
    (`depth` of its shape) and narrower pointwise networks (`hidden`)."""
    batch_tokens: int | None = None
    """Tokens of a batch, prompt and text with padding; None takes what fits the size."""
    time_budget: str | None = None
    """Time for the whole run, such as `3m`, `90m` or `2h`; turned into steps once, at the start."""
    num_steps: int | None = None
    """Steps of all stages together, instead of a time budget."""
    seed: int = 0
    """All randomness of the run."""
    checkpoint_minutes: float = 2.0
    """Time between checkpoints."""
    model: MantaConfig = field(default_factory=MantaConfig)
    """Shape of the Manta-LM."""
    aligned: AlignedConfig = field(default_factory=AlignedConfig)
    """Shape of the model if `family = "aligned"`."""
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    """Shape of the model if `family = "masked"`."""
    block: BlockCausalConfig = field(default_factory=BlockCausalConfig)
    """Shape of the model if `family = "block"`."""
    teacher: AutoregressiveConfig = field(default_factory=AutoregressiveConfig)
    """Shape of the teacher, or of the model if `family = "ar"`."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Shape of the model if `family = "decoder"`, or of a published one that is converted."""
    conversion: ConversionConfig = field(default_factory=ConversionConfig)
    """What changes in the model of `converted_from`, and how it is taught."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """In how few calls a Manta-LM that is trained on, `begin_from`, is to write, and how it learns to. See `manta
    distill`."""
    inheritance: InheritanceConfig = field(default_factory=InheritanceConfig)
    """Which part of the model of `inherit` is taken over."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the stages are optimised."""

    def __post_init__(self) -> None:
        if not self.split.startswith("train") or part_of(self.split).split != "train":
            raise ConfigError(f"split should be train or a part of it such as train:1/2, received {self.split!r}")
        if not 512 <= self.vocab_size <= 32768:
            raise ConfigError(f"vocab_size should lie between 512 and 32768, received {self.vocab_size}")
        check_length(self.time_budget, self.num_steps, self.seed)
        if self.consensus_share is not None and not 0 <= self.consensus_share <= 1:
            raise ConfigError(f"consensus_share should lie in [0, 1], received {self.consensus_share}")
        if self.recombined < 0:
            raise ConfigError(f"recombined should be 0 or more, received {self.recombined}")
        if not 0 <= self.retries <= 64:
            raise ConfigError(f"retries should lie between 0 and 64, received {self.retries}")
        if self.batch_tokens is not None and self.batch_tokens < 64:
            raise ConfigError(f"batch_tokens should be at least 64, received {self.batch_tokens}")

    @property
    def lengths(self) -> tuple[int, int]:
        """Longest prompt and longest text of a resolved recipe, in tokens."""
        assert self.max_prompt is not None and self.max_text is not None, "the recipe is not resolved"
        return self.max_prompt, self.max_text


def check_length(time_budget: str | None, num_steps: int | None, seed: int) -> None:
    """Refuse a length of a run, or a seed, that there is not; of a recipe of any state.

    Raises:
        ConfigError: as said.
    """
    if time_budget is not None and num_steps is not None:
        raise ConfigError("give time_budget or num_steps, not both")
    if num_steps is not None and num_steps < 4:
        raise ConfigError(f"num_steps should be at least 4, received {num_steps}")
    if time_budget is not None:
        seconds(time_budget)
    if not 0 <= seed <= MAX_RUN_SEED:
        raise ConfigError(f"seed should lie between 0 and {MAX_RUN_SEED}, received {seed}")


def size_of(time_budget: str | None, sizes: Sequence[tuple[float, Size]]) -> Size:
    """The size that a time budget trains well.

    Args:
        time_budget: None is no limit.
        sizes: minutes up to which each is trained well, ascending, the last without a limit.
    """
    minutes = math.inf if time_budget is None else seconds(time_budget) / 60
    return next(size for limit, size in sizes if minutes <= limit)


def seconds(duration: str) -> float:
    """Read a duration: a number with `s`, `m` or `h`.

    Raises:
        ConfigError: when it is not one, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", duration.strip())
    if not found or float(found[1]) == 0:
        raise ConfigError(f"a duration looks like 90s, 30m or 2h, received {duration!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def resolve(recipe: Recipe) -> Recipe:
    """Derive all that follows from the dials: shapes, batches and learning rate from size, limits and vocabulary.

    What was set by hand stays, whatever its value; None is what no one has set. Limits of length and the vocabulary are
    set once for all nets, in the recipe itself, a teacher that is left alone takes its pupil's shape, and an operator
    that is left alone has its model's heads.

    Raises:
        ConfigError: a model's own `max_text` or `max_prompt` leaves no room for the longest text or prompt.
    """
    if recipe.time_budget is None and recipe.num_steps is None:
        recipe = replace(recipe, time_budget="30m")
    if (task := task_of(recipe.data)) is not None:  # a puzzle's solution answers it place by place
        lengths = {"max_prompt": task.prompt_length, "max_text": task.text_length}
        recipe = filled(recipe, {"absolute_places": True, **lengths})
    if FAMILIES[recipe.family].absolute_places:
        recipe = filled(recipe, {"absolute_places": True})
    share = 0.5 if recipe.family != "aligned" else 0.75 if recipe.aligned.causal else 1.0
    recipe = filled(recipe, {"absolute_places": False, "consensus_share": share, **LENGTHS})
    if recipe.size == "auto":
        recipe = replace(recipe, size=size_of(recipe.time_budget, AUTO_SIZE))
    dim, heads, depth, batch_tokens = SIZES[recipe.size]
    rate = getattr(recipe.model.space, "rate", 1)
    max_prompt, max_text = recipe.lengths
    max_text = -(-max_text // rate) * rate
    derived = {
        "dim": dim,
        "heads": heads,
        "depth": depth,
        "vocab_size": recipe.vocab_size,
        "max_prompt": max_prompt,
        "max_text": max_text,
        "absolute_places": recipe.absolute_places,
    }
    others = [row.shape for row in FAMILIES.values() if row.shape not in ("", "teacher", "decoder")]
    shapes: dict[str, Any] = {name: _shaped(name, getattr(recipe, name), derived) for name in others}
    # A teacher gives its weights to the model it teaches, so it takes the model's shape.
    taught = shapes.get(FAMILIES[recipe.family].shape, shapes["masked"])
    derived |= {name: getattr(taught, name) for name in ("dim", "heads", "depth", "prompt_depth")}
    if recipe.family == "aligned" and recipe.aligned.causal:  # whose left-to-right reading has relative places alone
        derived["absolute_places"] = False
    shapes["teacher"] = _shaped("teacher", recipe.teacher, derived)
    shapes["decoder"] = _shaped("decoder", recipe.decoder, {**derived, "max_text": max_prompt + max_text})
    width = shapes[FAMILIES[recipe.family].shape].dim
    train = filled(recipe.train, {"learning_rate": LEARNING_RATE / width})
    for name, shape in shapes.items():
        if recipe.family not in users(name):
            continue  # nobody builds it
        if shape.max_text < max_text or shape.max_prompt < max_prompt:
            raise ConfigError(
                f"{name}.max_text={shape.max_text} and {name}.max_prompt={shape.max_prompt} are less than the data "
                f"has, {max_text} and {max_prompt}; set max_text and max_prompt of the recipe instead"
            )
    recipe = filled(recipe, {"batch_tokens": batch_tokens})
    return replace(recipe, train=train, max_text=max_text, **shapes)


def _shaped(name: str, config: PromptedConfig, derived: Mapping[str, Any]) -> Any:
    """The shape of one of the recipe's nets, in which everything is set; what does not fit is told with its name."""
    try:
        return resolved(filled(config, derived))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
