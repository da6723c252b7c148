"""The stages of each family: what is trained, on what, by which objective, and what closes the stage."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manta.families import FAMILIES
from manta.families.autoregressive import AutoregressiveLM, AutoregressiveModel
from manta.families.imitation import Imitation
from manta.families.prompted import PromptedModel
from manta.families.trained import Taught
from manta.hub.folder import LanguageModel
from manta.recipes.answers import write_teacher_targets
from manta.recipes.budget import Watch
from manta.recipes.conversion import Cost, begin_as, converted_blocks, how_well, new_parts
from manta.recipes.inheritance import begin_as_part
from manta.recipes.origins import drafting_model, larger_model, source_model, take_over, teaching_model
from manta.recipes.prepare import corpus_of, take_targets, write_medoids
from manta.recipes.recipe import Recipe, seconds
from manta.recipes.rounds import Rows, hard_rows, in_rounds, kept_rows, seen_rows
from manta.runtime import make_generator
from manta.text import Batch, Corpus, Loader, Tokenizer
from manta.training.loop import Objective

JUDGING_SHARE = 0.05
"""Share of a time budget in which the texts of a later round are judged."""


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
    answers: bool = False
    """The data are a teacher's answers, or the model's own, which take time to write."""
    round: int = 0
    """Rounds of the same stage before this one, by which its texts are chosen."""


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
    measured: dict[str, Any] = field(default_factory=dict)
    """What is measured while training and steers it: part of every checkpoint, whatever the stage."""
    consensus: Corpus | None = None

    def language_model(self, stage: str) -> LanguageModel:
        """What a stage trains, as a model that writes."""
        if stage == "teacher" or self.recipe.family == "ar":
            return AutoregressiveLM(self.teacher, self.tokenizer)
        return self.writer.after(self.modules["model"], self.tokenizer, self.measured)

    @property
    def begins_with_another(self) -> bool:
        """Whether the model begins as another of its family."""
        return self.recipe.converted_from is not None or self.recipe.inherit is not None

    @cached_property
    def source(self) -> LanguageModel:
        """The model that is converted, or that leaves a part of itself."""
        lm = source_model(self.recipe) if self.recipe.inherit is None else larger_model(self.recipe)
        lm.model.to(self.device)
        return lm

    @property
    def writer(self) -> type[LanguageModel]:
        """What writes with the model."""
        return FAMILIES[self.recipe.family].load()

    @property
    def teaching(self) -> AutoregressiveLM | None:
        """Who has taught the model, if there was a teacher."""
        if self.begins_with_another:
            return getattr(self.source, "causal", None)
        taught = "teacher" in self.modules and self.recipe.family != "ar"
        return AutoregressiveLM(self.teacher, self.tokenizer) if taught else None

    @property
    def teacher(self) -> AutoregressiveModel:
        """The teacher, or the autoregressive model itself."""
        return self.modules["teacher"]  # pyright: ignore[reportReturnType]

    def targets(self) -> Corpus:
        """The corpus with consensus targets, made when first asked for."""
        if self.consensus is None:
            if self.recipe.consensus == "none":
                return self.corpus
            if self.recipe.consensus == "teacher":
                return self.answers()
            write = take_targets if self.recipe.consensus == "given" else write_medoids
            file = write(self.recipe, self.folder, self.watch)
            self.consensus, _ = corpus_of(self.recipe, self.folder, self.tokenizer, file, self.watch)
        return self.consensus

    def answers(self) -> Corpus:
        """The corpus with the teacher's answers to its prompts, if it has any, made when first asked for."""
        if self.consensus is None:
            if not self.corpus.report.prompts:
                return self.corpus
            file = write_teacher_targets(self.recipe, self.folder, self._answering(), self.watch)
            self.consensus, _ = corpus_of(self.recipe, self.folder, self.tokenizer, file, self.watch)
        return self.consensus

    def rows_of_round(self, spec: StageSpec, before: Loader, num_batches: int, seed: int, *, begun: bool) -> Rows:
        """The texts of a round, drawn from those of the one before and kept in the run folder.

        With a time budget they are drawn from as many as can be judged in `JUDGING_SHARE` of it.

        Args:
            spec: the round.
            before: batches of the one before, from its first on.
            num_batches: that it has learned from.
            seed: of the draws.
            begun: the round has begun.
        """
        config, corpus = self.recipe.train, spec.corpus()

        def make() -> Rows:
            self.watch.tell(f"drawing the texts of {spec.name}")
            generator = make_generator(seed)
            groups = self.loader(corpus, seed, seen_rows(before, num_batches), config.round_elements)

            def loss(batch: Batch) -> float:
                return float(spec.objective(spec.model, batch.to(self.device), generator).total)

            budget, first = self.recipe.time_budget, self.watch.clock.now()
            allowed = math.inf if budget is None else JUDGING_SHARE * seconds(budget)

            def enough(num: int) -> bool:
                self.watch.at(f"{num:,} groups of texts judged for {spec.name}")
                return self.watch.clock.now() - first > allowed

            rows, means = hard_rows(groups, loss, config, generator, enough)
            told = f"{means['drawn']:.3f} of {means['all']:.3f} ± {means['spread']:.3f} nats"
            self.watch.tell(
                f"{spec.name} learns from {len(rows):,} texts; loss of those that were drawn, of all: {told}"
            )
            return rows

        return kept_rows(self.folder, spec.name, make, len(corpus), begun=begun)

    def _answering(self) -> LanguageModel:
        """Who answers the prompts."""
        if self.begins_with_another:  # an aligned model's own reading writes its best texts
            return self.teaching or self.source
        if self.recipe.family == "ar" and self.recipe.taught_by is not None:  # the net itself may have learned by now
            return AutoregressiveLM(teaching_model(self.recipe).model.to(self.device), self.tokenizer)
        return AutoregressiveLM(self.teacher, self.tokenizer)

    @property
    def size(self) -> str:
        """How large the model is, and on what its parameters are spent, in words."""
        net: Any = self.modules["teacher" if self.recipe.family == "ar" else "model"]
        count, shape = sum(p.numel() for p in net.parameters()), net.config
        blocks = f"{shape.depth} blocks of width {shape.dim}"
        return f"{count / 1e6:.1f}M parameters, {net.embedding.weight.numel() / count:.0%} the vocabulary, {blocks}"

    def measure_conversion(self) -> list[Cost]:
        """What a conversion costs by now, see `how_well`."""
        net: Any = self.modules["teacher" if self.recipe.family == "ar" else "model"]
        return how_well(self.recipe, self.source, net)

    def loader(self, corpus: Corpus, seed: int, rows: Rows | None = None, batch_tokens: int | None = None) -> Loader:
        """Endless batches of a corpus, or of some of its rows."""
        recipe, net = self.recipe, dict(self.modules.items()).get("model")
        rate = 1 if net is None else self.writer.rate_of(net)
        share = recipe.consensus_share if corpus is self.consensus else None
        tokens = batch_tokens or recipe.batch_tokens or 0
        return Loader(corpus, batch_tokens=tokens, multiple=rate, seed=seed, tag_share=share, rows=rows)


def stage_specs(parts: Parts) -> list[StageSpec]:
    """The stages of the recipe's family, in order, a teacher's before them; builds the modules they train."""
    recipe = parts.recipe
    torch.manual_seed(recipe.seed)  # initial weights only: all other randomness has generators of its own
    teaching = recipe.teaching
    specs: list[StageSpec] = []
    taught = recipe.consensus == "teacher" or recipe.warm_start
    if recipe.family != "ar" and taught and not parts.begins_with_another:
        parts.modules["teacher"] = AutoregressiveModel(recipe.teacher).to(parts.device)
        if recipe.taught_by is not None:
            parts.teacher.load_state_dict(teaching_model(recipe).model.state_dict())
        else:
            [taught] = AutoregressiveLM.stages(parts.teacher, teaching, parts.measured)
            specs.append(_spec(replace(taught, share=recipe.shares.teacher), parts.teacher, lambda: parts.corpus))
    writer, shape = parts.writer, FAMILIES[recipe.family].shape
    net = writer.net_class(getattr(recipe, shape)).to(parts.device)
    parts.modules["teacher" if shape == "teacher" else "model"] = net
    taught_stages = writer.stages(net, teaching, parts.measured)
    if parts.begins_with_another:
        for name, part in parts.source.measured().items():
            parts.measured[name].load_state_dict(part.state_dict())
    if recipe.converted_from is not None:
        return _conversion(parts, net, taught_stages)
    ours = [_spec(taught, net, parts.answers if taught.answers else parts.targets) for taught in taught_stages]
    if recipe.family == "ar" and recipe.taught_by is not None:  # it begins as its teacher, whose answers it learns
        take_over(teaching_model(recipe), net)
        return in_rounds(ours, recipe.train)
    if recipe.drafter_of is not None:
        take_over(drafting_model(recipe), net)
        return [spec for spec in ours if spec.answers]

    def begin() -> None:
        writer.begin_with(net, parts.corpus)
        if recipe.inherit is not None:
            inherit_part(parts, net)
        if recipe.warm_start:
            warm_start(parts)

    ours[0] = replace(ours[0], begin=begin)
    return [*specs, *in_rounds(ours, recipe.train)]


def _conversion(parts: Parts, net: PromptedModel, taught_stages: Sequence[Taught]) -> list[StageSpec]:
    """The stages of a conversion: the new operators alone, then everything but a space, as the family is taught."""
    recipe, config = parts.recipe, parts.recipe.conversion
    source, blocks = parts.source, converted_blocks(recipe)
    begin_as(source, net, blocks)

    def objective(taught: Taught) -> Objective:
        if not taught.comparable:
            return taught.objective
        frozen = source.model.requires_grad_(False)
        weights = {"outputs": config.outputs, "states": config.states}
        return Imitation(taught.objective, frozen, source.trunk_of, blocks, **weights)

    new, all_ = new_parts(source, net, blocks), tuple(part for name, part in net.named_children() if name != "space")
    first, whole = taught_stages[0], sum(taught.share for taught in taught_stages)
    specs = [StageSpec("new", config.new_share, net, new, objective(first), parts.targets)]
    for taught in taught_stages:
        share = (1 - config.new_share) * taught.share / whole
        specs.append(StageSpec(taught.name, share, net, all_, objective(taught), parts.targets, taught.pace))
    return in_rounds([spec for spec in specs if spec.share > 0], recipe.train)


def is_asked(recipe: Recipe, specs: Sequence[StageSpec], index: int) -> bool:
    """Whether the model of a stage is to answer prompts for the stages after it."""
    answered = recipe.consensus == "teacher" or any(spec.answers for spec in specs)
    return (
        index == 0
        and answered
        and (specs[0].name == "teacher" or any((recipe.taught_by, recipe.converted_from, recipe.inherit)))
    )


def _spec(taught: Taught, model: nn.Module, corpus: Callable[[], Corpus]) -> StageSpec:
    trained = model.get_submodule(taught.part)
    return StageSpec(
        taught.name, taught.share, model, (trained,), taught.objective, corpus, taught.pace, answers=taught.answers
    )


def warm_start(parts: Parts) -> None:
    """Start prompt encoder, token table, places and blocks from the teacher's weights, where the shapes agree."""
    model: Any = parts.modules["model"]
    teacher = parts.teacher
    inherit(teacher.embedding, model.embedding)
    inherit(teacher.memory_encoder, model.memory_encoder)
    if model.places is not None and teacher.places is not None:  # a canvas may be longer than a text, or shorter
        both = min(len(model.places.weight), len(teacher.places.weight))
        with torch.no_grad():
            model.places.weight[:both] = teacher.places.weight[:both]
    inherit(teacher.trunk, parts.writer.trunk_of(model))


def inherit_part(parts: Parts, net: PromptedModel) -> None:
    """Start a smaller model as a part of the larger one, judged by the training texts."""
    parts.watch.tell(f"choosing what is inherited from {parts.recipe.inherit}")
    told = begin_as_part(parts.recipe, parts.folder, parts.source, net, parts.corpus)
    parts.watch.tell(f"inherited: {told}")


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
