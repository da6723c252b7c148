"""A run of a model of texts: its data, and the stages of each family."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from manta.errors import ConfigError
from manta.families import FAMILIES
from manta.families.autoregressive import AutoregressiveLM, AutoregressiveModel
from manta.families.coupling import Coupling
from manta.families.distilling import Distillation
from manta.families.fluent import FluentWriter
from manta.families.imitation import WordImitation
from manta.families.prompted import PromptedModel
from manta.families.trained import Taught
from manta.hub.folder import LanguageModel
from manta.recipes.advice import advice
from manta.recipes.answers import TARGETS_SHARE, fitting, write_teacher_targets
from manta.recipes.begun import begun_from
from manta.recipes.budget import Watch
from manta.recipes.card import model_card, portable
from manta.recipes.conversion import Cost, begin_as, converted_blocks, new_parts
from manta.recipes.inheritance import begin_as_part, inherited_words
from manta.recipes.logged import NUM_SAMPLES, Asked, written_samples
from manta.recipes.origins import (
    begin_drafter,
    begun_model,
    digests,
    drafting_model,
    larger_model,
    source_model,
    take_over,
    teaching_model,
)
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.prepare import (
    corpus_of,
    guided_by,
    refuse_tasks,
    source_of,
    take_targets,
    tells_tasks,
    tokenizer_of,
    with_tasks,
    write_medoids,
)
from manta.recipes.recipe import Recipe, resolve, seconds
from manta.recipes.rounds import Rows, alike, hard_rows, in_rounds, kept_rows, seen_rows
from manta.recipes.text_conversion import how_well
from manta.recipes.weights import begin_styles, inherit, warm_start
from manta.runtime import atomic_write, make_generator
from manta.text import Batch, Corpus, CorpusReport, Loader, Tokenizer, read
from manta.text.corpus import FILES
from manta.training import Progress
from manta.training.loop import Objective

CORPORA = ("corpus", "corpus-consensus")
"""Folders of the texts as encoded."""

JUDGING_SHARE = 0.05
"""Share of a time budget in which the texts of a later round are judged."""


class TextParts(Parts):
    """Everything a run of a model of texts trains, and its data.

    Args:
        recipe: as resolved, and fitted to the data.
        folder: of the run.
        tokenizer: of the run.
        corpus: the texts as encoded.
        report: what became of them.
        prompts: a few that samples are written to, each with its task.
        device: where the nets go.
        watch: sees to the time budget and tells what is done.
    """

    unit = "tokens"
    made = "consensus targets"
    files = ("tokenizer.json", "targets-*.jsonl", *(f"{corpus}/{file}" for corpus in CORPORA for file in FILES))

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        tokenizer: Tokenizer,
        corpus: Corpus,
        report: CorpusReport,
        prompts: Sequence[Asked],
        device: torch.device,
        watch: Watch,
    ) -> None:
        self.recipe, self.folder, self.tokenizer, self.corpus = recipe, folder, tokenizer, corpus
        self.report, self.prompts, self.device, self.watch = report, prompts, device, watch
        self.modules, self.measured = nn.ModuleDict(), {}
        self.consensus: Corpus | None = None
        self.scores: list[Cost] = []  # of a conversion
        self.data = {"source": source_of(recipe), "tokenizer": tokenizer.fingerprint(), "corpus": corpus.digest}
        self.data |= digests(recipe)

    @classmethod
    def resolved(cls, recipe: Recipe, tell: Callable[[str], None]) -> Recipe:
        """See `recipes.begun` and `recipes.recipe`."""
        return resolve(begun_from(recipe, tell))

    @classmethod
    def prepared(cls, recipe: Recipe, folder: Path, device: torch.device, watch: Watch) -> "TextParts":
        """Tokenizer and corpus; both are kept in the folder and reused."""
        recipe = guided_by(recipe)
        refuse_tasks(recipe)
        tokenizer = tokenizer_of(recipe, folder, watch)
        size = tokenizer.vocab_size
        begun = (recipe.converted_from, recipe.begin_from, recipe.drafter_of)
        kept = "decoder" if any(begun) else ""  # whose table may have more rows than tokens
        names = [row.shape for row in FAMILIES.values() if row.shape not in ("", kept)]
        shapes = {name: replace(getattr(recipe, name), vocab_size=size) for name in names}
        recipe = replace(recipe, **shapes)
        if recipe.consensus == "given":
            take_targets(recipe, folder, watch)
        corpus, report = corpus_of(recipe, folder, tokenizer, None, watch)
        recipe = with_tasks(recipe, corpus)
        found = read(recipe.data, "dev", 50 * NUM_SAMPLES)
        limit = getattr(recipe, FAMILIES[recipe.family].shape).max_prompt
        prompts: dict[Asked, None] = {}
        for example in found:  # no more are drawn and read than are shown
            task = example.task if example.task in corpus.tasks else None
            if corpus.tasks and task is None:
                continue
            if not example.prompt or fitting([example.prompt], tokenizer, limit):
                prompts[example.prompt, task] = None
            if len(prompts) == NUM_SAMPLES:
                break
        return cls(recipe, folder, tokenizer, corpus, report, list(prompts), device, watch)

    def specs(self) -> list[StageSpec]:
        """The stages of the family, a teacher's before them."""
        return stage_specs(self)

    def batches(self, spec: StageSpec, seed: int, rows: Rows | None = None) -> Loader:
        """Endless batches of a stage's texts, or of some of them."""
        return self.loader(spec.corpus(), seed, rows)

    @property
    def at_hand(self) -> Corpus:
        """The human texts, where others are to come."""
        return self.consensus or self.corpus

    def reserved(self, specs: Sequence[StageSpec], index: int, *, planned: bool = False) -> float:
        """For what a teacher is to answer; who is given has answered once the first stage is planned."""
        if planned and specs[index].name not in ("teacher", "words"):
            return 0.0
        return TARGETS_SHARE if is_asked(self.recipe, specs, index) else 0.0

    def advice(self) -> tuple[str, ...]:
        """See `recipes.advice`."""
        found = next(read(self.recipe.data, self.recipe.split, 1), None)
        named = found is not None and found.task is not None and not tells_tasks(self.recipe)
        return advice(self.recipe, self.report, named=named)

    def row(self, step: int, progress: Progress) -> dict[str, Any]:
        """What the flow's times say of the latents."""
        density = self.measured.get("density")
        if density is None or progress.step % 50 or not density.calibrated:
            return {}
        space = self.recipe.model.space
        floor = getattr(space, "noise_floor", None)
        if progress.stage != "policy" or floor is None:
            return {}
        # Beyond snr = 1/floor² a standardised latent says no more about its text.
        return {"implied_nats_a_latent": density.implied_likelihood(space.channels, 1 / max(floor, 0.05) ** 2)}

    def besides(self, spec: StageSpec) -> Mapping[str, LanguageModel]:
        """The teacher, which writes by itself."""
        if spec.name != "teacher" or self.recipe.family == "ar":
            return {}
        teacher = self.trained_model(spec.name)
        teacher.learn_from(self.corpus)
        return {"teacher": teacher}

    def finished(self, model: LanguageModel) -> list[str]:
        """Tables of the texts, but of a model that only learned to draft its own, and what a conversion costs."""
        if self.recipe.drafter_of is None:
            model.learn_from(self.targets(), self.teaching)
        elif isinstance(model, FluentWriter):
            model.ngrams = cast(FluentWriter[Any], drafting_model(self.recipe)).ngrams
        if self.recipe.converted_from is None:
            return []
        self.scores = self.measure_conversion()
        told = ", ".join(f"{score.name} {score.task:.3f}" for score in self.scores)
        return [f"nats a word, held out: {told}; lost of the source's words: {self.scores[-1].apart:.3f}"]

    def samples(self, model: LanguageModel, stage: str, file: Path) -> list[str]:
        """A few texts, into a file of lines."""
        lines = written_samples(model, self.prompts)
        if lines:
            file.parent.mkdir(exist_ok=True)
            atomic_write(file.with_suffix(".txt"), ("\n".join(lines) + "\n").encode())
        return lines

    def portable(self) -> Recipe:
        """See `recipes.card`."""
        return portable(self.recipe)

    def card(self, model: LanguageModel, plan: dict[str, int], minutes: dict[str, float]) -> str:
        """See `recipes.card`."""
        model.prompted = self.report.prompts > 0
        inherited = inherited_words(self.folder)
        return model_card(model.family, self.portable(), plan, minutes, self.report, self.scores, inherited)

    def trained_model(self, stage: str) -> LanguageModel:
        """What a stage trains, as a model that writes."""
        if stage == "teacher" or self.recipe.family == "ar":
            return AutoregressiveLM(self.teacher, self.tokenizer)
        return self.writer.after(self.modules["model"], self.tokenizer, self.measured)

    @property
    def begins_with_another(self) -> bool:
        """Whether the model begins as another of its family."""
        recipe = self.recipe
        return any((recipe.converted_from, recipe.inherit, recipe.begin_from))

    @cached_property
    def source(self) -> LanguageModel:
        """The model that is trained on, converted, or leaves a part of itself."""
        recipe = self.recipe
        if recipe.begin_from is not None:
            lm = begun_model(recipe)
        else:
            lm = source_model(recipe) if recipe.inherit is None else larger_model(recipe)
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

        Where slots learn answers alone, human texts are drawn beside human texts and answers beside answers. With a
        time budget they are drawn from as many as can be judged in `JUDGING_SHARE` of it.

        Args:
            spec: the round.
            before: batches of the one before, from its first on.
            num_batches: that it has learned from.
            seed: of the draws.
            begun: the round has begun.
        """
        recipe, corpus = self.recipe, spec.corpus()
        config = recipe.train

        def make() -> Rows:
            self.watch.tell(f"drawing the texts of {spec.name}")
            generator, seen, drawn = make_generator(seed), seen_rows(before, num_batches), []
            budget = math.inf if recipe.time_budget is None else JUDGING_SHARE * seconds(recipe.time_budget)

            def loss(batch: Batch) -> float:
                return float(spec.objective(spec.model, batch.to(self.device), generator).total)

            apart = recipe.family == "aligned" and recipe.alignment.slots_learn == "answers"
            for kind, rows in alike(seen, corpus, apart=apart).items():
                until = self.watch.clock.now() + budget * len(rows) / len(seen)

                def enough(num: int, until: float = until) -> bool:
                    self.watch.at(f"{num:,} groups of texts judged for {spec.name}")
                    return self.watch.clock.now() > until

                groups = self.loader(corpus, seed, rows, config.round_elements)
                rows, means = hard_rows(groups, loss, config, generator, enough)
                told = f"{means['drawn']:.3f} of {means['all']:.3f} ± {means['spread']:.3f} nats"
                self.watch.tell(
                    f"{spec.name} learns from {len(rows):,} {kind}; loss of those that were drawn, of all: {told}"
                )
                drawn.append(rows)
            return np.sort(np.concatenate(drawn))

        return kept_rows(self.folder, spec.name, make, len(corpus), begun=begun)

    def _answering(self) -> LanguageModel:
        """Who answers the prompts."""
        if self.begins_with_another:  # an aligned model's own reading writes its best texts
            return self.teaching or self.source
        if self.recipe.family == "ar" and self.recipe.taught_by is not None:  # the net itself may have learned by now
            return AutoregressiveLM(teaching_model(self.recipe).model.to(self.device), self.tokenizer)
        model = self.trained_model("teacher" if "teacher" in self.modules else "words")
        return model if self.recipe.drafter_of is None else model.left_to_right

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


def stage_specs(parts: TextParts) -> list[StageSpec]:
    """The stages of the recipe's family, in order, a teacher's before them; builds the modules they train."""
    recipe = parts.recipe
    torch.manual_seed(recipe.seed)  # initial weights only: all other randomness has generators of its own
    specs: list[StageSpec] = []
    taught = recipe.consensus == "teacher" or recipe.warm_start
    if recipe.family != "ar" and taught and not parts.begins_with_another:
        parts.modules["teacher"] = AutoregressiveModel(recipe.teacher).to(parts.device)
        if recipe.taught_by is not None:
            parts.teacher.load_state_dict(teaching_model(recipe).model.state_dict())
        else:
            [taught] = AutoregressiveLM.stages(parts.teacher, recipe, parts.measured)
            specs.append(_spec(replace(taught, share=recipe.shares.teacher), parts.teacher, lambda: parts.corpus))
    writer, shape = parts.writer, FAMILIES[recipe.family].shape
    net = writer.net_class(getattr(recipe, shape)).to(parts.device)
    parts.modules["teacher" if shape == "teacher" else "model"] = net
    taught_stages = writer.stages(net, recipe, parts.measured)
    if recipe.objective.coupling == "teacher":
        couple(parts, taught_stages)
    if parts.begins_with_another:
        for name, part in parts.source.measured().items():
            parts.measured[name].load_state_dict(part.state_dict())
    if recipe.converted_from is not None:
        return _conversion(parts, net, taught_stages)
    if recipe.distillation.num_steps is not None:
        return _distillation(parts, net)
    if recipe.begin_from is not None:
        return _continued(parts, net, taught_stages)
    ours = [_spec(taught, net, parts.answers if taught.answers else parts.targets) for taught in taught_stages]
    if recipe.family == "ar" and recipe.taught_by is not None:  # it begins as its teacher, whose answers it learns
        take_over(teaching_model(recipe), net)
        begin_styles(net, teaching_model(recipe).model)
        return in_rounds(ours, recipe.train)
    if recipe.drafter_of is not None:
        parts.precision = begin_drafter(recipe, net)
        [drafter] = [taught for taught in taught_stages if taught.part == "drafter"]
        return [_spec(replace(drafter, answers=True), net, parts.answers)]

    def begin() -> None:
        writer.begin_with(net, parts.corpus)
        if recipe.inherit is not None:
            inherit_part(parts, net)
        if recipe.warm_start:
            warm_start(net, parts.teacher, writer.trunk_of(net))

    ours[0] = replace(ours[0], begin=begin)
    return [*specs, *in_rounds(ours, recipe.train)]


def _conversion(parts: TextParts, net: PromptedModel, taught_stages: Sequence[Taught]) -> list[StageSpec]:
    """The stages of a conversion: the new operators alone, then everything but a space, as the family is taught."""
    recipe, config = parts.recipe, parts.recipe.conversion
    source, blocks = parts.source, converted_blocks(recipe.conversion)
    begin_as(source, net, blocks)
    begin_styles(net, source.model)

    def objective(taught: Taught) -> Objective:
        if not taught.comparable:
            return taught.objective
        frozen = source.model.requires_grad_(False)
        weights = {"outputs": config.outputs, "states": config.states}
        return WordImitation(taught.objective, frozen, source.trunk_of, blocks, **weights)

    new, all_ = new_parts(source, net, blocks), tuple(part for name, part in net.named_children() if name != "space")
    first, whole = taught_stages[0], sum(taught.share for taught in taught_stages)
    specs = [StageSpec("new", config.new_share, net, new, objective(first), parts.targets)]
    for taught in taught_stages:
        share = (1 - config.new_share) * taught.share / whole
        specs.append(StageSpec(taught.name, share, net, all_, objective(taught), parts.targets, taught.pace))
    return in_rounds([spec for spec in specs if spec.share > 0], recipe.train)


def _continued(parts: TextParts, net: PromptedModel, taught_stages: Sequence[Taught]) -> list[StageSpec]:
    """The stages of a model that is trained on: those of its family, from its own weights; a space stays as it is."""
    net.load_state_dict(parts.source.model.state_dict())
    begin_styles(net, parts.source.model)
    specs = [_spec(taught, net, parts.answers if taught.answers else parts.targets) for taught in taught_stages]
    space = getattr(net, "space", None)
    if space is not None and list(space.parameters()):
        rest = tuple(part for name, part in net.named_children() if name != "space")
        specs = [replace(spec, trained=rest) if spec.trained == (net,) else spec for spec in specs]
    return in_rounds(specs, parts.recipe.train)


def _distillation(parts: TextParts, net: PromptedModel) -> list[StageSpec]:
    """The stages of a distillation: one for each halving of the calls, or one for all of them."""
    recipe, config = parts.recipe, parts.recipe.distillation
    inherit(parts.source.model, net)
    teacher: Any = deepcopy(net)
    parts.modules["distilled"] = teacher
    field = net.get_submodule("field")  # what else there is, such as lengths, is read from states that stay

    def begin() -> None:
        teacher.load_state_dict(net.state_dict())

    def stage(name: str, budgets: tuple[int, ...]) -> StageSpec:
        objective = Distillation(recipe.objective, parts.measured["density"], teacher, budgets, config.consensus_rows)
        return StageSpec(name, 1.0, net, (field,), objective, parts.targets, begin=begin)

    if config.method == "flow_map":
        return [stage("flow map", config.levels)]
    return [stage("one action" if n == 1 else f"{n} actions", (n,)) for n in config.levels]


def is_asked(recipe: Recipe, specs: Sequence[StageSpec], index: int) -> bool:
    """Whether the model of a stage is to answer prompts for the stages after it."""
    answered = recipe.consensus == "teacher" or any(spec.answers for spec in specs)
    others = (recipe.taught_by, recipe.converted_from, recipe.begin_from, recipe.inherit)
    return index == 0 and answered and (specs[0].name in ("teacher", "words") or any(others))


def _spec(taught: Taught, model: nn.Module, corpus: Callable[[], Corpus]) -> StageSpec:
    trained = model.get_submodule(taught.part)
    return StageSpec(
        taught.name, taught.share, model, (trained,), taught.objective, corpus, taught.pace, answers=taught.answers
    )


def couple(parts: TextParts, taught_stages: Sequence[Taught]) -> None:
    """Have a Manta-LM learn from the noise that its texts have under its teacher.

    Raises:
        ConfigError: there is no teacher, or a latent has no room.
    """
    if "teacher" not in parts.modules:
        raise ConfigError(
            "objective.coupling=teacher takes the noise of texts from a teacher, and this run has none; set "
            "warm_start=true, or give one with --teacher"
        )
    space = parts.recipe.model.space
    Coupling.check(space.rate, space.channels)
    for stage in taught_stages:
        matching = getattr(stage.objective, "ordinary", stage.objective)
        matching.coupling = Coupling(parts.teacher)


def inherit_part(parts: TextParts, net: PromptedModel) -> None:
    """Start a smaller model as a part of the larger one, judged by the training texts."""
    parts.watch.tell(f"choosing what is inherited from {parts.recipe.inherit}")
    told = begin_as_part(parts.recipe, parts.folder, parts.source, net, parts.corpus)
    begin_styles(net, parts.source.model)
    parts.watch.tell(f"inherited: {told}")
