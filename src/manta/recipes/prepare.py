"""Data of a run: tokenizer, corpus, and consensus targets, each kept in the run folder and reused on resuming."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from manta.config import filled, to_dict
from manta.errors import CheckpointError, ConfigError, DataError, UsageError
from manta.families import FAMILIES
from manta.recipes.budget import Watch
from manta.recipes.origins import begun_model, drafting_model, larger_model, source_model, teaching_model
from manta.recipes.recipe import Recipe
from manta.runtime import atomic_write
from manta.text import (
    CONSENSUS,
    HUMAN,
    Corpus,
    CorpusReport,
    Example,
    ForeignTokenizer,
    Tokenizer,
    build,
    fingerprint,
    medoids,
    read,
    task_of,
)
from manta.text.sources import read_whole


def examples(recipe: Recipe) -> Iterator[Example]:
    """What of the recipe's data is learned from."""
    return read(recipe.data, recipe.split, recipe.num_examples)


def tokenizer_of(recipe: Recipe, run: Path, watch: Watch) -> Tokenizer:
    """The run's tokenizer, see `tokenizer_for`; read back where the run has one.

    Raises:
        ConfigError: the model is too short for the task.
    """
    file = run / "tokenizer.json"
    task = task_of(recipe.data)
    max_prompt, max_text = recipe.lengths
    if task and (max_prompt < task.prompt_length or max_text < task.text_length):
        raise ConfigError(
            f"{recipe.data} takes {task.prompt_length} tokens a prompt and {task.text_length} a text, and the recipe "
            f"has max_prompt={max_prompt} and max_text={max_text}; raise them"
        )
    if not file.exists():
        if recipe.converted_from is not None:
            tokenizer = source_model(recipe).tokenizer
        elif recipe.begin_from is not None:
            tokenizer = begun_model(recipe).tokenizer
        elif recipe.inherit is not None:
            tokenizer = larger_model(recipe).tokenizer
        elif recipe.drafter_of is not None:
            tokenizer = drafting_model(recipe).tokenizer
        elif recipe.taught_by is not None:
            tokenizer = teaching_model(recipe).tokenizer
        elif task is not None:
            tokenizer = Tokenizer.of_symbols(task.symbols)
        else:
            rows = watch.over(examples(recipe), "the tokenizer's texts")
            tokenizer = Tokenizer.train((text for e in rows for text in (e.prompt, e.text) if text), recipe.vocab_size)
        if recipe.family == "decoder" and not isinstance(tokenizer, ForeignTokenizer):
            tokenizer = ForeignTokenizer.of_own(tokenizer)
        tokenizer.save(file)
    return FAMILIES[recipe.family].load().codec_class.load(file)


def corpus_of(
    recipe: Recipe, run: Path, tokenizer: Tokenizer, targets: Path | None, watch: Watch
) -> tuple[Corpus, CorpusReport]:
    """The run's corpus: the human texts, and consensus targets from a file beside them."""
    folder = run / ("corpus" if targets is None else "corpus-consensus")
    source = source_of(recipe) + ("" if targets is None else f"+{targets.name}")
    max_prompt, max_text = recipe.lengths
    report = build(
        watch.over(_with_targets(examples(recipe), targets), folder.name),
        tokenizer,
        folder,
        max_prompt=max_prompt,
        max_text=max_text,
        source=source,
        tasks=tells_tasks(recipe),
    )
    return Corpus.open(folder, tokenizer=tokenizer), report


def tells_tasks(recipe: Recipe) -> bool:
    """Whether a run's model is to tell the tasks of its data apart."""
    return getattr(getattr(recipe, FAMILIES[recipe.family].shape), "modulation", None) is not None


def telling_tasks(recipe: Any, family: str, kind: str) -> dict[str, Any]:
    """The field of a recipe of any state by which its model tells tasks apart.

    Args:
        recipe: as asked for.
        family: that it trains.
        kind: of what a task changes, see `ModulationConfig.kind`.

    Raises:
        UsageError: the family cannot tell them apart.
    """
    name = FAMILIES[family].shape if recipe.state == "text" else ""
    shape = to_dict(recipe).get(name, {})
    if "modulation" not in shape:
        raise UsageError(f"--tasks is for the families ar and masked, and this run trains {family}; give --family ar")
    return {name: {**shape, "modulation": {**(shape["modulation"] or {}), "kind": kind}}}


def with_tasks(recipe: Recipe, corpus: Corpus) -> Recipe:
    """A recipe whose model has the tasks of its data.

    Raises:
        ConfigError: the model has others already, or is to learn from texts that name no task.
    """
    if not tells_tasks(recipe):
        return recipe
    name = FAMILIES[recipe.family].shape
    shape = getattr(recipe, name)
    if shape.tasks not in ((), corpus.tasks):
        raise ConfigError(
            f"the model has the tasks {', '.join(shape.tasks)}, and the data name {', '.join(corpus.tasks)}; give data "
            "of the same tasks"
        )
    return replace(recipe, **{name: replace(shape, tasks=corpus.tasks)})


def refuse_tasks(recipe: Recipe) -> None:
    """Refuse what a run whose model tells tasks apart cannot have.

    Raises:
        ConfigError: as said.
    """
    if tells_tasks(recipe) and (recipe.consensus != "none" or recipe.warm_start or recipe.taught_by is not None):
        raise ConfigError(
            "a model that tells tasks apart learns from its data alone, since teachers and targets know of no tasks; "
            "leave consensus, targets, warm_start and --teacher out"
        )


def source_of(recipe: Recipe) -> str:
    """What the data are, by content: a line that changes when they do."""
    return fingerprint(recipe.data, recipe.split, recipe.num_examples)


def write_medoids(recipe: Recipe, run: Path, watch: Watch) -> Path:
    """Write the medoid of every prompt's texts; prompts with a single text keep it.

    Raises:
        CheckpointError: they were written, and have changed since.
    """
    file = targets_of(run, "medoid")
    if file is None:
        groups: dict[str, list[str]] = defaultdict(list)
        for example in watch.over(examples(recipe), "texts whose medoids are looked for"):
            if example.prompt is not None:
                groups[example.prompt].append(example.text)
        if not groups:
            raise DataError(f"{recipe.data} has no prompts, so it has no consensus targets; set consensus = 'none'")
        file = write_targets(run, "medoid", medoids(groups).items())
    return file


def take_targets(recipe: Recipe, run: Path, watch: Watch) -> Path:
    """Copy the targets that the recipe names into the run, which then needs the file no more.

    Raises:
        CheckpointError: they were copied, and have changed since.
        DataError: there are none with a prompt, or the file is damaged.
    """
    file = targets_of(run, "given")
    if file is None:
        assert recipe.targets is not None, "guided_by has seen to it"
        rows = watch.over(read_whole(recipe.targets), "targets")
        pairs = [(example.prompt, example.text) for example in rows if example.prompt]
        if not pairs:
            raise DataError(f"{recipe.targets} has no prompts with their texts, so there are no targets in it")
        file = write_targets(run, "given", pairs)
    return file


def guided_by(recipe: Recipe) -> Recipe:
    """Settle what a teacher is asked for: consensus targets, and the weights to start from.

    Left open, a teacher that is there already answers for any model and lends it its weights. One is trained for a
    Manta-LM or an aligned model: to answer where it learns from prompts, to lend its weights to any, and not where a
    rule tells the one right text.

    Raises:
        ConfigError: consensus targets or a warm start are asked for, and the model is autoregressive, or its teacher
            has no share of the time.
        DataError: consensus targets are asked for, and there are no prompts to have them.
    """
    if recipe.distillation.num_steps is not None and recipe.begin_from is None:
        raise ConfigError("distillation.num_steps is for a Manta-LM that is trained on; name it with begin_from")
    beginning = any((recipe.converted_from, recipe.inherit, recipe.begin_from))
    if recipe.drafter_of is not None and recipe.family == "aligned":  # it answers itself, and nothing else is learned
        return _drafting(recipe)
    recipe = _guided_by_source(recipe) if beginning else _guided_by_teacher(recipe)
    if recipe.teacher.styles and not (recipe.family == "ar" and recipe.consensus != "none" and recipe.consensus_share):
        raise ConfigError(
            "teacher.styles tells people's texts from answers, and this left-to-right model learns no answers; leave "
            "it out, or give it some (--teacher or targets)"
        )
    learned = "answers" if recipe.aligned.causal and recipe.consensus != "none" else "all"
    recipe = replace(recipe, alignment=filled(recipe.alignment, {"slots_learn": learned}))
    if recipe.aligned.causal:
        both = recipe.alignment.slots_learn == "answers"
        recipe = replace(recipe, aligned=filled(recipe.aligned, {"styles": both}))
    answers = recipe.family == "aligned" and recipe.alignment.slots_learn == "answers"
    if answers and (recipe.consensus == "none" or recipe.consensus_share == 0):
        raise ConfigError(
            "slots are to learn answers, and there are none (see consensus and consensus_share); set "
            "alignment.slots_learn=all"
        )
    return recipe


def _drafting(recipe: Recipe) -> Recipe:
    """An aligned model that learns to draft learns nothing else, so that nobody teaches it.

    Raises:
        ConfigError: the recipe names targets, or a teacher's weights.
    """
    if recipe.consensus not in ("auto", "none") or recipe.targets is not None:
        raise ConfigError("a drafter learns what its own model answers; leave consensus and targets out")
    if recipe.warm_start:
        raise ConfigError("a model that learns to draft begins as it is; leave warm_start out")
    return replace(recipe, consensus="none", warm_start=False)


def _guided_by_teacher(recipe: Recipe) -> Recipe:
    """Consensus targets are what a teacher answers, or somebody gives.

    Raises:
        ConfigError, DataError: see `guided_by`.
    """
    if recipe.family in ("ar", "decoder") and not recipe.taught_by and recipe.consensus in ("medoid", "teacher"):
        raise ConfigError(
            f"an autoregressive model without a teacher learns from the texts, and from targets that are given; set "
            f"consensus = 'none', not {recipe.consensus!r}"
        )
    if (recipe.consensus == "given") != (recipe.targets is not None) and recipe.consensus != "auto":
        raise ConfigError("targets names those that are given, and consensus says that they are; set both, or neither")
    if recipe.family != "ar" and recipe.taught_by is None and recipe.teacher.draft_horizon:
        raise ConfigError("a teacher does not draft; leave teacher.draft_horizon out, or train with --family ar")
    if recipe.family == "aligned" and not any(e.prompt for e in examples(recipe)):
        raise DataError(
            f"{recipe.data} has no prompts, and an aligned model tells all words of a text at once, which only a "
            "prompt can decide; train another family"
        )
    free = (FAMILIES[recipe.family].guided and task_of(recipe.data) is None) or recipe.taught_by is not None
    if recipe.consensus != "auto":
        if recipe.consensus != "none" and not any(e.prompt for e in examples(recipe)):
            raise DataError(f"{recipe.data} has no prompts, so it has no consensus targets; set consensus = 'none'")
        consensus = recipe.consensus
    elif recipe.targets is not None:
        consensus = "given"
    else:
        prompted = any(example.prompt is not None for example in read(recipe.data, recipe.split, 1))
        consensus = "teacher" if free and prompted else "none"
    for name in ("retries", "recombined"):
        if getattr(recipe, name) and consensus != "teacher" and recipe.drafter_of is None:
            raise ConfigError(f"{name} is for what a teacher answers, and none answers here; leave {name} out")
    if recipe.taught_by is not None and consensus != "teacher" and recipe.warm_start is False:
        raise ConfigError(
            "a teacher answers prompts or lends its weights, and the recipe asks for neither; leave taught_by out, or "
            "warm_start=false"
        )
    if recipe.family == "decoder" and recipe.warm_start:
        raise ConfigError("a decoder has no teacher to begin from; leave warm_start out")
    if recipe.family == "ar" and recipe.warm_start is not None and recipe.warm_start != (recipe.taught_by is not None):
        raise ConfigError("an autoregressive model begins as its teacher, if it has one; leave warm_start out")
    trained = recipe.taught_by is None and recipe.shares.teacher > 0
    if recipe.family != "ar" and not (trained or recipe.taught_by) and (recipe.warm_start or consensus == "teacher"):
        raise ConfigError("shares.teacher is 0, and consensus targets or a warm start need a teacher; give it a share")
    needed = consensus == "teacher" or (free and (trained or recipe.taught_by is not None))
    return replace(recipe, consensus=consensus, warm_start=needed if recipe.warm_start is None else recipe.warm_start)


def _guided_by_source(recipe: Recipe) -> Recipe:
    """Consensus targets are what the model that a run begins with answers, for a family that learns such texts.

    A model that is trained on is to learn what it does not answer yet, so it is asked only where the recipe says so.

    Raises:
        ConfigError: answers are to be checked.
    """
    if recipe.retries:
        raise ConfigError("what is learned is what the model answers that it begins with; leave retries out")
    consensus = recipe.consensus
    if consensus == "auto" and recipe.targets is not None:
        consensus = "given"
    elif consensus == "auto":
        prompted = any(example.prompt for example in read(recipe.data, recipe.split, 1))
        learns = FAMILIES[recipe.family].guided and task_of(recipe.data) is None and recipe.begin_from is None
        consensus = "teacher" if learns and prompted else "none"
    if recipe.recombined and consensus != "teacher":
        raise ConfigError("recombined is for what that model answers, and it does not here; leave recombined out")
    return replace(recipe, consensus=consensus, warm_start=False)


def _with_targets(rows: Iterable[Example], targets: Path | None) -> Iterator[Example]:
    for example in rows:
        yield Example(text=example.text, prompt=example.prompt, tag=HUMAN, task=example.task)
    if targets is not None:
        with targets.open(encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                pair = json.loads(line)
                yield Example(text=pair["text"], prompt=pair["prompt"], tag=CONSENSUS)


def targets_of(run: Path, kind: str) -> Path | None:
    """The file of targets that a run has written; its name tells its digest.

    Raises:
        CheckpointError: it has changed since.
    """
    for file in sorted(run.glob(f"targets-{kind}-*.jsonl")):
        if file.name != _targets_name(kind, file.read_bytes()):
            raise CheckpointError(f"{file} is not as this run wrote it; delete it and resume, it is made again")
        return file
    return None


def _targets_name(kind: str, content: bytes) -> str:
    return f"targets-{kind}-{sha256(content).hexdigest()[:16]}.jsonl"


def write_targets(run: Path, kind: str, pairs: Iterable[tuple[str, str]]) -> Path:
    """Keep targets in a run folder, without those that are empty; see `targets_of`."""
    lines = (json.dumps({"prompt": p, "text": t}, ensure_ascii=False) for p, t in pairs if t)
    content = ("\n".join(lines) + "\n").encode()
    file = run / _targets_name(kind, content)
    atomic_write(file, content)
    return file
