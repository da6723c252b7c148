"""A teacher's answers to prompts: to those of the data, and to new ones that recombine their slots."""

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from manta.errors import DataError
from manta.families.decoder import UNBOUNDED
from manta.families.events import GenerateOptions, Request, finished
from manta.hub.folder import LanguageModel
from manta.metrics.slots import slot_errors
from manta.recipes.budget import Watch
from manta.recipes.prepare import examples, targets_of, write_targets
from manta.recipes.recipe import Recipe, seconds
from manta.text import Tokenizer
from manta.text.sources import admits

TARGETS_SHARE = 0.1
"""Share of a time budget that the teacher may spend on answering prompts."""
ANEW = 0.5
"""Temperature of an answer that takes the place of a wrong one."""
SLOT_FORMS = (
    (re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)"), "{}[{}]"),
    (re.compile(r"\s*([^:,]+): ([^,]*)(?:,|$)"), "{}: {}"),
)
"""Forms of a prompt's slots, joined by commas: what reads a slot, and what writes it."""


def write_teacher_targets(recipe: Recipe, run: Path, teacher: LanguageModel, watch: Watch) -> Path:
    """Write what the teacher answers to the training prompts and to recombined ones.

    It answers greedily, and anew where `recipe.retries` asks for it, see `answers`. Prompts are taken in random order;
    with a time budget, as many as fit in `TARGETS_SHARE` of it. Prompts that the teacher cannot read, which the corpus
    has dropped too, are left out.

    Raises:
        CheckpointError: they were written, and have changed since.
        DataError: there are no prompts, none whose answers could be checked, or no answer that agrees with its prompt.
    """
    if (file := targets_of(run, "teacher")) is not None:
        return file
    prompts = list(dict.fromkeys(e.prompt for e in examples(recipe) if e.prompt))
    if not prompts:
        raise DataError(f"{recipe.data} has no prompts for a teacher to answer; set consensus = 'none'")
    if recipe.retries and not any(map(can_be_checked, prompts)):
        raise DataError(
            f"answers can be checked where prompts are meaning representations like name[Blue Spice], area[riverside], "
            f"and {recipe.data} has others; leave retries={recipe.retries} out"
        )
    if recipe.recombined:
        prompts += recombine(prompts, recipe.recombined, recipe.seed, admits(recipe.data, recipe.split))
    prompts = fitting(prompts, teacher.tokenizer, teacher.model.config.max_prompt)
    random.Random(recipe.seed).shuffle(prompts)
    longest = min(recipe.lengths[1], UNBOUNDED) if recipe.family == "decoder" else None
    begun, allowed = watch.clock.now(), math.inf
    size = 256
    if recipe.time_budget is not None:  # no batch takes more than a part of the time, however slow the machine
        allowed, size = TARGETS_SHARE * seconds(recipe.time_budget), 16
    answered: list[tuple[str, str]] = []
    begin = 0
    while begin < len(prompts):
        batch = prompts[begin : begin + size]
        answered += answers(teacher, batch, recipe.retries, longest)
        begin += len(batch)
        spent = watch.clock.now() - begun
        wrong = f", {begin - len(answered):,} left out with slots wrong" if recipe.retries else ""
        watch.at(f"the teacher answers prompts: {begin:,} of {len(prompts):,}{wrong}")
        if spent > allowed:
            break
        if allowed < math.inf:
            size = max(1, min(256, 2 * size, int((allowed - spent) / (spent / begin + 1e-9)) + 1))
    if not answered:
        raise DataError(
            "the teacher has no answer that says the slots of its prompt; train it longer, or leave retries out"
        )
    return write_targets(run, "teacher", answered)


def answers(
    teacher: LanguageModel, prompts: Sequence[str], retries: int = 0, longest: int | None = None
) -> list[tuple[str, str]]:
    """Prompts with what the teacher answers.

    It answers greedily. With retries, an answer that omits, changes or adds a slot is drawn anew at the temperature
    `ANEW`, that many times at most, and a prompt whose answer stays wrong is left out. Answers that nobody can check
    stay as they are.

    Args:
        teacher: who answers.
        prompts: that it can read.
        retries: draws anew.
        longest: most tokens of an answer; None: as many as the teacher writes.

    Source: texts of a model's own that a checker agrees with, as training data: Kedzie and McKeown, "A Good Sample is
        Hard to Find: Noise Injection Sampling and Self-Training for Neural Language Generation Models" (INLG 2019).
    """
    texts = _told(teacher, prompts, range(len(prompts)), GenerateOptions(max_tokens=longest), seed=0)
    if not retries:
        return list(zip(prompts, texts.values(), strict=True))
    for attempt in range(1, retries + 1):
        wrong = [index for index, text in texts.items() if not agrees(prompts[index], text)]
        texts |= _told(teacher, prompts, wrong, GenerateOptions(temperature=ANEW, max_tokens=longest), seed=attempt)
    return [(prompts[index], text) for index, text in texts.items() if agrees(prompts[index], text)]


def _told(
    teacher: LanguageModel, prompts: Sequence[str], indices: Sequence[int], options: GenerateOptions, seed: int
) -> dict[int, str]:
    """By index, what the teacher tells to some of the prompts."""
    requests = [Request(prompt=prompts[index], seed=seed) for index in indices]
    events = finished(teacher.generate(requests, options, batch_size=256))
    return {indices[event.index]: event.text for event in sorted(events, key=lambda event: event.index)}


def can_be_checked(prompt: str) -> bool:
    """Whether the slots of the texts for a prompt can be checked: those of a meaning representation of E2E can."""
    try:
        slot_errors(prompt, "")
    except DataError:
        return False
    return True


def agrees(prompt: str, text: str) -> bool:
    """Whether a text says the slots of its prompt and no others, or nobody can tell."""
    return not can_be_checked(prompt) or slot_errors(prompt, text).errors == 0


def fitting(prompts: Sequence[str], tokenizer: Tokenizer, limit: int) -> list[str]:
    """Those of some prompts that have at most `limit` tokens."""
    rows = zip(prompts, tokenizer.encode_batch(prompts), strict=True)
    return [prompt for prompt, tokens in rows if len(tokens) <= limit]


def recombine(
    prompts: Sequence[str], num: int, seed: int, admitted: Callable[[str], bool] = lambda prompt: True
) -> list[str]:
    """Make new prompts of the forms `key[value], …` and `key: value, …`.

    A new prompt has the keys of one prompt, each with a value that it has in another of the same form. Values are
    drawn one by one, so that a prompt may ask for what nobody would. As long as there are new ones, all numbers of keys
    are as frequent as each other, and so are all values of a key: what is rare in the data, such as many keys at once,
    may be what is asked for later.
    Prompts of another form give none, and no prompt that exists is returned.

    Args:
        prompts: those that exist.
        num: most prompts to make.
        seed: of the draws.
        admitted: which new prompts may be learned from; those that are held out may not.
    """
    by_length: dict[tuple[str, int], list[list[str]]] = defaultdict(list)
    values: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for prompt in prompts:
        if (shape := _slots(prompt)) is not None:
            form, slots = shape
            by_length[form, len(slots)].append([key for key, _ in slots])
            for key, value in slots:
                values[form, key][value] = None
    shapes, of_key = list(by_length.items()), {name: list(found) for name, found in values.items()}
    rng, found, known = random.Random(seed), [], set(prompts)
    for _ in range(num * 20 if shapes else 0):
        if len(found) == num:
            break
        (form, _), lists = rng.choice(shapes)
        prompt = _joined(form, [(key, rng.choice(of_key[form, key])) for key in rng.choice(lists)])
        if prompt not in known and admitted(prompt):
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
