"""Data of a run: tokenizer, corpus, and consensus targets, each kept in the run folder and reused on resuming."""

import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from manta.errors import CheckpointError, ConfigError, DataError
from manta.families.autoregressive import AutoregressiveLM
from manta.families.events import Request, finished
from manta.recipes.budget import Watch
from manta.recipes.origins import drafting_model, teaching_model
from manta.recipes.recipe import Recipe, seconds
from manta.runtime import atomic_write
from manta.text import (
    CONSENSUS,
    HUMAN,
    Corpus,
    CorpusReport,
    Example,
    Tokenizer,
    build,
    fingerprint,
    medoids,
    read,
    task_of,
)

TARGETS_SHARE = 0.1
"""Share of a time budget that the teacher may spend on answering prompts."""
SLOT_FORMS = (
    (re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)"), "{}[{}]"),
    (re.compile(r"\s*([^:,]+): ([^,]*)(?:,|$)"), "{}: {}"),
)
"""Forms of a prompt's slots, joined by commas: what reads a slot, and what writes it."""


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
        if recipe.drafter_of is not None:
            tokenizer = drafting_model(recipe).tokenizer
        elif recipe.taught_by is not None:
            tokenizer = teaching_model(recipe).tokenizer
        elif task is not None:
            tokenizer = Tokenizer.of_symbols(task.symbols)
        else:
            rows = watch.over(examples(recipe), "the tokenizer's texts")
            tokenizer = Tokenizer.train((text for e in rows for text in (e.prompt, e.text) if text), recipe.vocab_size)
        tokenizer.save(file)
    return Tokenizer.load(file)


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
    )
    return Corpus.open(folder, tokenizer=tokenizer), report


def source_of(recipe: Recipe) -> str:
    """What the data are, by content: a line that changes when they do."""
    return fingerprint(recipe.data, recipe.split, recipe.num_examples)


def write_medoids(recipe: Recipe, run: Path, watch: Watch) -> Path:
    """Write the medoid of every prompt's texts; prompts with a single text keep it.

    Raises:
        CheckpointError: they were written, and have changed since.
    """
    file = _targets(run, "medoid")
    if file is None:
        groups: dict[str, list[str]] = defaultdict(list)
        for example in watch.over(examples(recipe), "texts whose medoids are looked for"):
            if example.prompt is not None:
                groups[example.prompt].append(example.text)
        if not groups:
            raise DataError(f"{recipe.data} has no prompts, so it has no consensus targets; set consensus = 'none'")
        file = _write_targets(run, "medoid", medoids(groups).items())
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
    if recipe.family == "ar" and recipe.consensus not in ("auto", "none"):
        raise ConfigError(
            f"an autoregressive model learns from the texts alone; set consensus = 'none', not {recipe.consensus!r}"
        )
    if recipe.family != "ar" and recipe.taught_by is None and recipe.teacher.draft_horizon:
        raise ConfigError("a teacher does not draft; leave teacher.draft_horizon out, or train with --family ar")
    if recipe.family == "aligned" and not any(e.prompt for e in examples(recipe)):
        raise DataError(
            f"{recipe.data} has no prompts, and an aligned model tells all words of a text at once, which only a "
            "prompt can decide; train another family"
        )
    free = (recipe.family in ("manta", "aligned") and task_of(recipe.data) is None) or recipe.taught_by is not None
    if recipe.consensus != "auto":
        if recipe.consensus != "none" and not any(e.prompt for e in examples(recipe)):
            raise DataError(f"{recipe.data} has no prompts, so it has no consensus targets; set consensus = 'none'")
        consensus = recipe.consensus
    else:
        prompted = any(example.prompt is not None for example in read(recipe.data, recipe.split, 1))
        consensus = "teacher" if free and prompted else "none"
    if recipe.taught_by is not None and consensus != "teacher" and recipe.warm_start is False:
        raise ConfigError(
            "a teacher answers prompts or lends its weights, and the recipe asks for neither; leave taught_by out, or "
            "warm_start=false"
        )
    if recipe.warm_start and recipe.family == "ar":
        raise ConfigError("an autoregressive model has no teacher to start from; leave warm_start out")
    trained = recipe.taught_by is None and recipe.shares.teacher > 0
    if recipe.family != "ar" and not (trained or recipe.taught_by) and (recipe.warm_start or consensus == "teacher"):
        raise ConfigError("shares.teacher is 0, and consensus targets or a warm start need a teacher; give it a share")
    needed = consensus == "teacher" or (free and (trained or recipe.taught_by is not None))
    return replace(recipe, consensus=consensus, warm_start=needed if recipe.warm_start is None else recipe.warm_start)


def write_teacher_targets(recipe: Recipe, run: Path, teacher: AutoregressiveLM, watch: Watch) -> Path:
    """Write what the teacher answers, greedily, to the training prompts and to recombined ones.

    They are taken in random order; with a time budget, as many as fit in `TARGETS_SHARE` of it. Prompts that the
    teacher cannot read, which the corpus has dropped too, are left out.

    Raises:
        CheckpointError: they were written, and have changed since.
    """
    if (file := _targets(run, "teacher")) is not None:
        return file
    prompts = list(dict.fromkeys(e.prompt for e in examples(recipe) if e.prompt))
    if not prompts:
        raise DataError(f"{recipe.data} has no prompts for a teacher to answer; set consensus = 'none'")
    prompts += recombine(prompts, recipe.recombined, recipe.seed)
    prompts = fitting(prompts, teacher.tokenizer, teacher.model.config.max_prompt)
    random.Random(recipe.seed).shuffle(prompts)
    begun, allowed = watch.clock.now(), math.inf
    size = 256
    if recipe.time_budget is not None:  # no batch takes more than a part of the time, however slow the machine
        allowed, size = TARGETS_SHARE * seconds(recipe.time_budget), 16
    answered: list[tuple[str, str]] = []
    begin = 0
    while begin < len(prompts):
        batch = prompts[begin : begin + size]
        requests = [Request(prompt=prompt) for prompt in batch]
        events = finished(teacher.generate(requests, batch_size=256))
        answered += [(batch[event.index], event.text) for event in events]
        begin += len(batch)
        spent = watch.clock.now() - begun
        watch.at(f"the teacher answers prompts: {begin:,} of {len(prompts):,}")
        if spent > allowed:
            break
        if allowed < math.inf:
            size = max(1, min(256, 2 * size, int((allowed - spent) / (spent / begin + 1e-9)) + 1))
    return _write_targets(run, "teacher", answered)


def fitting(prompts: Sequence[str], tokenizer: Tokenizer, limit: int) -> list[str]:
    """Those of some prompts that have at most `limit` tokens."""
    rows = zip(prompts, tokenizer.encode_batch(prompts), strict=True)
    return [prompt for prompt, tokens in rows if len(tokens) <= limit]


def recombine(prompts: list[str], num: int, seed: int) -> list[str]:
    """Make new prompts of the forms `key[value], …` and `key: value, …`.

    A new prompt has the keys of one prompt, each with a value that it has in another of the same form. Values are
    drawn one by one, so that a prompt may ask for what nobody would. Prompts of another form give none, and no prompt
    that exists is returned.

    Args:
        prompts: those that exist.
        num: most prompts to make.
        seed: of the draws.
    """
    shapes = [shape for prompt in prompts if (shape := _slots(prompt))]
    values: dict[tuple[str, str], list[str]] = defaultdict(list)
    for form, slots in shapes:
        for key, value in slots:
            values[form, key].append(value)
    rng, found, known = random.Random(seed), [], set(prompts)
    for _ in range(num * 20 if shapes else 0):
        if len(found) == num:
            break
        form, slots = rng.choice(shapes)
        prompt = _joined(form, [(key, rng.choice(values[form, key])) for key, _ in slots])
        if prompt not in known:
            known.add(prompt)
            found.append(prompt)
    return found


def _slots(prompt: str) -> tuple[str, list[tuple[str, str]]] | None:
    """The form of a prompt and its slots, if it is nothing but slots of one form."""
    for slot, form in SLOT_FORMS:
        found = slot.findall(prompt)
        if found and _joined(form, found) == prompt:
            return form, found
    return None


def _joined(form: str, slots: Iterable[tuple[str, str]]) -> str:
    return ", ".join(form.format(key, value) for key, value in slots)


def _with_targets(rows: Iterable[Example], targets: Path | None) -> Iterator[Example]:
    for example in rows:
        yield Example(text=example.text, prompt=example.prompt, tag=HUMAN)
    if targets is not None:
        with targets.open(encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                pair = json.loads(line)
                yield Example(text=pair["text"], prompt=pair["prompt"], tag=CONSENSUS)


def _targets(run: Path, kind: str) -> Path | None:
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


def _write_targets(run: Path, kind: str, pairs: Iterable[tuple[str, str]]) -> Path:
    lines = (json.dumps({"prompt": p, "text": t}, ensure_ascii=False) for p, t in pairs if t)
    content = ("\n".join(lines) + "\n").encode()
    file = run / _targets_name(kind, content)
    atomic_write(file, content)
    return file
