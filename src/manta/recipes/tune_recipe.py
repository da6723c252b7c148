"""The whole description of a run that goes on training a model that others have published."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from manta.config import filled
from manta.errors import ConfigError, ModelError
from manta.hub.adapters import LowRankConfig, check_rank, require_peft
from manta.hub.folder import find_folder, published_kind
from manta.hub.foreign.tunable import TUNABLE, Tunable
from manta.recipes.origins import placed
from manta.recipes.recipe import check_length
from manta.text import part_of
from manta.training import TrainConfig

MOST = 1024
"""Tokens of a row, where the model reads more and the recipe does not say it."""
BATCH = 4096
"""Tokens of a batch, at least a row's."""
WHOLE_RATE, LOW_RANK_RATE = 1e-5, 2e-4
"""Learning rates: Dream's for the whole model, and the usual of adapters, which begin at nothing."""


@dataclass(frozen=True, kw_only=True)
class TuneTrainConfig(TrainConfig):
    """How the weights of a published model are optimised."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw`, which the models' authors use, or `muon` for the weights of linear maps."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Averaging of AdamW's first and second moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; vectors have none."""


@dataclass(frozen=True, kw_only=True)
class TuneRecipe:
    """A training run that goes on with a published model: LLaDA's, Dream's, Llama's or GPT-NeoX's layout."""

    state: Literal["tuned"] = "tuned"
    """What the model makes: texts, and others have published it."""
    data: str = ""
    """Where the texts come from, see `Recipe.data`."""
    begin_from: str = ""
    """Folder of the published model, or `hf:` and its name on the hub."""
    num_examples: int | None = None
    """Examples to read; None reads all."""
    split: str = "train"
    """What to learn from: the training split, or a part of it such as `train:1/2`."""
    family: Literal["", "llada", "Dream", "llama", "gpt_neox"] = ""
    """The model's layout, by its own `config.json`."""
    max_length: int | None = None
    """Longest row in tokens: prompt with its frame, text and an end; longer pairs are dropped and counted, longer prose
    becomes windows. None: what the model reads, 1024 at most."""
    full_rows: bool = False
    """Pad every row of a LLaDA or a Dream with ends to `max_length`, as Dream's authors do unless told otherwise; else
    to the longest of its batch, as LLaDA's do. It teaches how far a text is from filling `max_length`."""
    lora: LowRankConfig = field(default_factory=LowRankConfig)
    """Low-rank adapters, if any."""
    merge: bool = False
    """Write adapters and model as one, too."""
    batch_tokens: int | None = None
    """Tokens of a batch, prompt and text with padding; None: 4096, or a row's where that is longer."""
    time_budget: str | None = None
    """Time for the whole run, such as `3m`, `90m` or `2h`; turned into steps once, at the start."""
    num_steps: int | None = None
    """Steps, instead of a time budget."""
    seed: int = 0
    """All randomness of the run."""
    checkpoint_minutes: float = 10.0
    """Time between checkpoints."""
    train: TuneTrainConfig = field(default_factory=TuneTrainConfig)
    """How it is optimised."""

    def __post_init__(self) -> None:
        if not self.split.startswith("train") or part_of(self.split).split != "train":
            raise ConfigError(f"split should be train or a part of it such as train:1/2, received {self.split!r}")
        check_length(self.time_budget, self.num_steps, self.seed)
        for name in ("num_examples", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} should be at least 1, received {value}")
        if self.max_length is not None and self.max_length < 4:
            raise ConfigError(f"max_length should be at least 4, received {self.max_length}")
        if self.merge and self.lora.rank is None:
            raise ConfigError("only adapters are merged; leave merge out, or give their rank with --lora")
        if self.train.rounds > 1:
            raise ConfigError("rounds are for models that manta trains from nothing; set train.rounds=1")

    @property
    def size(self) -> str:
        """As the model is."""
        return "as published"

    @property
    def longest(self) -> int:
        """Longest row of a resolved recipe, in tokens."""
        assert self.max_length is not None, "the recipe is not resolved"
        return self.max_length


def described(recipe: TuneRecipe) -> Tunable:
    """The model to go on with, its net on the meta device.

    Raises:
        ModelError: the folder holds no published model that is trained on here, or it lacks its tokenizer.
    """
    folder, kind = find_folder(recipe.begin_from), published_kind(recipe.begin_from)
    if kind not in TUNABLE:
        what = "a model that manta trained" if kind is None else f"of the layout {kind}"
        raise ModelError(f"{recipe.begin_from} is {what}; of published models {', '.join(TUNABLE)} are trained on")
    return TUNABLE[str(kind)].describe(folder, kind)


def resolve_tuned(recipe: TuneRecipe) -> TuneRecipe:
    """Derive what follows from the model to go on with. What was set by hand stays.

    Raises:
        ModelError: it is none that is trained on here, or `peft` is missing for adapters.
        ConfigError: it reads less than `max_length`, or an adapter's rank is too large.
    """
    if not recipe.begin_from:
        raise ConfigError("say what model to go on with: manta train DATA --from FOLDER --out DIR")
    if not recipe.data:
        raise ConfigError("say what to train on: data is empty")
    recipe = replace(recipe, begin_from=placed(recipe.begin_from))
    model = described(recipe)
    reads = model.lm.capacity
    if recipe.max_length is not None and recipe.max_length > reads:
        raise ConfigError(f"max_length is {recipe.max_length}, and {recipe.begin_from} reads {reads} tokens; give less")
    if recipe.lora.rank is not None:
        require_peft()
        check_rank(model.lm, recipe.lora)
        recipe = replace(recipe, lora=filled(recipe.lora, {"alpha": 2.0 * recipe.lora.rank}))
    if recipe.time_budget is None and recipe.num_steps is None:
        recipe = replace(recipe, time_budget="30m")
    kind: Any = published_kind(recipe.begin_from)
    recipe = replace(filled(recipe, {"max_length": min(MOST, reads)}), family=kind)
    model.check(recipe.longest, full=recipe.full_rows)
    recipe = filled(recipe, {"batch_tokens": max(BATCH, recipe.longest)})
    rate = WHOLE_RATE if recipe.lora.rank is None else LOW_RANK_RATE
    return replace(recipe, train=filled(recipe.train, {"learning_rate": rate}))


def portable_tuned(recipe: TuneRecipe) -> TuneRecipe:
    """The recipe as a model carries it away: of a path only the last part, which tells no folder's name."""
    kind, colon, place = recipe.data.rpartition(":")
    return replace(recipe, data=kind + colon + Path(place).name, begin_from=Path(recipe.begin_from).name)
