"""The stages of each family: what is trained, on what, by which objective, and what closes the stage."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manta.data import Corpus, Loader, Tokenizer
from manta.families.autoregressive import AutoregressiveLM, AutoregressiveModel, NextToken
from manta.families.manta_lm import MantaLM
from manta.families.masked import MaskedLM, MaskedMatching, MaskedModel
from manta.families.model import MantaModel
from manta.families.objectives import EmbeddingMatching, OwnStates, PolicyMatching
from manta.flow.time_density import TimeDensity
from manta.hub.folder import LanguageModel
from manta.recipes.budget import Watch
from manta.recipes.prepare import corpus_of, write_medoids, write_teacher_targets
from manta.recipes.recipe import Recipe
from manta.spaces import LatentSpace, RateController
from manta.training.loop import Objective


@dataclass(frozen=True)
class StageSpec:
    """One stage of a run, before its length is known."""

    name: str
    share: float
    """Share of the run's time; only ratios count."""
    model: nn.Module
    """Passed to the objective."""
    trained: tuple[nn.Module, ...]
    """Parts whose parameters are trained; all others are frozen."""
    objective: Objective
    corpus: Callable[[], Corpus]
    """The data, asked for when the stage begins: an earlier stage may make it."""
    pace: float = 1.0
    """Factor of the learning rate."""
    begin: Callable[[], None] = lambda: None
    """Called once before the first step."""


@dataclass
class Parts:
    """Everything a run trains, and its data."""

    recipe: Recipe
    folder: Path
    tokenizer: Tokenizer
    corpus: Corpus
    device: torch.device
    watch: Watch
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    density: TimeDensity | None = None
    controller: RateController | None = None
    consensus: Corpus | None = None

    def language_model(self, stage: str) -> LanguageModel:
        """What a stage trains, as a model that writes."""
        if stage == "teacher":
            return AutoregressiveLM(self.teacher, self.tokenizer)
        if isinstance(model := self.modules["model"], MaskedModel):
            return MaskedLM(model, self.tokenizer)
        assert self.density is not None
        return MantaLM(self.model, self.tokenizer, self.density)

    @property
    def model(self) -> MantaModel:
        """The Manta-LM."""
        return self.modules["model"]  # pyright: ignore[reportReturnType]

    @property
    def teacher(self) -> AutoregressiveModel:
        """The teacher, or the autoregressive model itself."""
        return self.modules["teacher"]  # pyright: ignore[reportReturnType]

    def targets(self) -> Corpus:
        """The corpus with consensus targets, made when first asked for."""
        if self.consensus is None:
            if self.recipe.consensus == "none":
                return self.corpus
            if self.recipe.consensus == "medoid":
                file = write_medoids(self.recipe, self.folder, self.watch)
            else:
                teacher = AutoregressiveLM(self.teacher, self.tokenizer)
                file = write_teacher_targets(self.recipe, self.folder, teacher, self.watch)
            self.consensus, _ = corpus_of(self.recipe, self.folder, self.tokenizer, file, self.watch)
        return self.consensus

    @property
    def measured(self) -> dict[str, TimeDensity | RateController]:
        """What is measured while training and steers it: part of every checkpoint, whatever the stage."""
        found = {"density": self.density, "controller": self.controller}
        return {name: part for name, part in found.items() if part is not None}

    def loader(self, corpus: Corpus, seed: int) -> Loader:
        """Endless batches of a corpus."""
        recipe = self.recipe
        model = dict(self.modules.items()).get("model")
        rate = model.space.rate if isinstance(model, MantaModel) else 1
        share = recipe.consensus_share if recipe.consensus != "none" and corpus is self.consensus else None
        return Loader(corpus, batch_tokens=recipe.batch_tokens or 0, multiple=rate, seed=seed, tag_share=share)


def stage_specs(parts: Parts) -> list[StageSpec]:
    """The stages of the recipe's family, in order; builds the modules they train."""
    recipe = parts.recipe
    torch.manual_seed(recipe.seed)  # initial weights only: all other randomness has generators of its own
    specs: list[StageSpec] = []
    if recipe.family == "ar" or recipe.consensus == "teacher" or recipe.warm_start:
        parts.modules["teacher"] = AutoregressiveModel(recipe.teacher).to(parts.device)
        share = 1.0 if recipe.family == "ar" else recipe.shares.teacher
        specs.append(_spec("teacher", share, parts.teacher, NextToken(), lambda: parts.corpus))
    if recipe.family == "ar":
        return specs
    if recipe.family == "masked":
        parts.modules["model"] = MaskedModel(recipe.masked).to(parts.device)
        objective = MaskedMatching(recipe.objective, recipe.masking)
        share = recipe.shares.policy + recipe.shares.own
        return [*specs, _started(parts, _spec("masked", share, parts.modules["model"], objective, parts.targets))]
    parts.modules["model"] = MantaModel(recipe.model).to(parts.device)
    parts.density = recipe.model.time.build()
    space = parts.model.space
    share = recipe.shares.policy
    if not isinstance(space, LatentSpace):
        objective, share = EmbeddingMatching(recipe.objective, parts.density), share + recipe.shares.own
        return [*specs, _started(parts, _spec("policy", share, parts.model, objective, parts.targets))]
    parts.controller = RateController(space.config.information)
    objective = PolicyMatching(recipe.objective, parts.density, parts.controller)
    policy = _spec("policy", share, parts.model, objective, parts.targets)
    specs.append(_started(parts, policy))
    if recipe.shares.own:
        objective = OwnStates(recipe.objective, objective)
        own = _spec("own", recipe.shares.own, parts.model, objective, parts.targets)
        specs.append(replace(own, pace=0.5))
    return specs


def _spec(name, share, model, objective, corpus) -> StageSpec:
    return StageSpec(name, share, model, (model,), objective, corpus)


def _started(parts: Parts, spec: StageSpec) -> StageSpec:
    """The stage, begun from the teacher's weights if the recipe says so."""
    return replace(spec, begin=lambda: warm_start(parts)) if parts.recipe.warm_start else spec


def warm_start(parts: Parts) -> None:
    """Start prompt encoder, token table, places and blocks from the teacher's weights, where the shapes agree."""
    model, teacher = parts.modules["model"], parts.teacher
    assert isinstance(model, MantaModel | MaskedModel)
    inherit(teacher.embedding, model.embedding)
    inherit(teacher.memory_encoder, model.memory_encoder)
    if model.places is not None and teacher.places is not None:  # a canvas may be longer than a text, or shorter
        both = min(len(model.places.weight), len(teacher.places.weight))
        with torch.no_grad():
            model.places.weight[:both] = teacher.places.weight[:both]
    inherit(teacher.trunk, model.field.trunk if isinstance(model, MantaModel) else model.trunk)


def inherit(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights that both have, name and shape alike: what one net knows of reading prompts serves the next."""
    own = target.state_dict()
    same = {k: v for k, v in source.state_dict().items() if k in own and own[k].shape == v.shape}
    target.load_state_dict({**own, **same})


class OnDevice:
    """A loader whose batches are moved to a device."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __next__(self) -> Any:
        return next(self.loader).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
