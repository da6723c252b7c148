"""The stages of a recipe without its data: nets, objectives, and a full batch of rows of the longest."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manta.errors import ConfigError, DataError, UsageError
from manta.families import FAMILIES
from manta.families.image_flow import shaped
from manta.families.joint_flow import joint_shaped
from manta.image import ImageBatch, ImageCodec, read_images
from manta.image.captioned import CaptionedBatch, CaptionedCodec, words_of
from manta.image.degradations import TASKS
from manta.image.photos import PhotoBatch
from manta.recipes.image_parts import ImageParts, size_of_all
from manta.recipes.joint_parts import JointParts
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.prepare import examples, guided_by, refuse_tasks, tells_tasks
from manta.recipes.restore_parts import RestoreParts
from manta.recipes.stages import TextParts
from manta.recipes.states import STATES, resolved
from manta.runtime import make_generator
from manta.text import Batch, Tokenizer, read, task_of

READ = 256
"""Captions that are read for their words."""
ASSUMED_CLASSES, ASSUMED_PLACES, ASSUMED_WORDS = 10, 32, 1000
"""Of images and captions that are not read."""
READ_TASKS = 20_000
"""Texts that are read for the tasks they name."""
ASSUMED_TASKS = ("describe", "continue", "fill", "shorten")
"""Of texts that are not read: those of `manta data make tasks`."""
LENT = ("converted_from", "drafter_of", "taught_by", "inherit")
"""What gives a run a second model, which a plan does not read."""


@dataclass(frozen=True)
class Unread:
    """A recipe's stages, and a batch of each."""

    recipe: Any
    """As resolved."""
    parts: Parts
    """Nets and stages."""
    specs: list[StageSpec]
    """In order."""
    batch: Callable[[StageSpec], Any]
    """A full batch of a stage, on the CPU."""
    notes: tuple[str, ...]
    """What was assumed."""


def unread(recipe: Any, device: torch.device) -> Unread:
    """The stages of a recipe of any state; of its data a few examples are read at most, and none where it is missing.

    Args:
        recipe: as asked for.
        device: where the nets go.

    Raises:
        ConfigError: what it asks for does not fit together.
        UsageError: it takes a second model along.
    """
    if found := [name for name in LENT if getattr(recipe, name, None)]:
        raise UsageError(f"a recipe with {found[0]} begins with another model, which is not planned; leave it out")
    recipe = resolved(recipe)
    make = {"text": _texts, "image": _images, "joint": _pairs, "photo": _photos}.get(recipe.state)
    if recipe.state == "tuned":
        from manta.bench.planning.published import published

        make = published
    if make is None:
        raise UsageError(f"what models of {STATES[recipe.state].words} need is not planned; train one for a few steps")
    with torch.random.fork_rng():
        return make(recipe, device)


def bare(kind: type[Any], recipe: Any, device: torch.device) -> Any:
    """Parts of a recipe as `prepared` would make them, without data."""
    parts: Any = object.__new__(kind)
    parts.recipe, parts.device = recipe, device
    parts.modules, parts.measured, parts.corpus = nn.ModuleDict(), {}, None
    return parts


def _texts(recipe: Any, device: torch.device) -> Unread:
    notes: list[str] = []
    task = task_of(recipe.data)
    size = recipe.vocab_size if task is None else Tokenizer.of_symbols(task.symbols).vocab_size
    prompts = True
    try:
        first = next(iter(read(recipe.data, recipe.split, 1)), None)
        prompts = first is not None and first.prompt is not None
        recipe = replace(recipe, begin_from=None, **({"warm_start": False} if recipe.begin_from else {}))
        recipe = guided_by(recipe)
    except DataError:
        notes.append(f"{recipe.data} was not read: texts with prompts, and a teacher where the family has one")
        helped = FAMILIES[recipe.family].guided and task is None and recipe.shares.teacher > 0
        consensus = ("teacher" if helped else "none") if recipe.consensus == "auto" else recipe.consensus
        warm = helped if recipe.warm_start is None else recipe.warm_start
        recipe = replace(recipe, consensus=consensus, warm_start=warm)
    refuse_tasks(recipe)
    recipe = _with_tasks(recipe, notes)
    if task is None:
        notes.append(f"a vocabulary of {size:,} tokens")
    shapes = {row.shape for row in FAMILIES.values() if row.shape}
    recipe = replace(recipe, **{name: replace(getattr(recipe, name), vocab_size=size) for name in shapes})
    parts = bare(TextParts, recipe, device)
    parts.consensus = None
    specs = parts.specs()
    max_prompt, max_text = recipe.lengths
    max_prompt = max_prompt if prompts else 0

    def batch(spec: StageSpec) -> Batch:
        found = text_batch(recipe.batch_tokens, max_prompt, max_text, size, recipe.consensus_share)
        tasks = getattr(getattr(recipe, FAMILIES[recipe.family].shape), "tasks", ())
        return replace(found, task=found.index % len(tasks)) if tasks else found

    notes.append(f"rows of the longest, {max_prompt} tokens of a prompt and {max_text} of a text")
    return Unread(recipe, parts, specs, batch, tuple(notes))


def _with_tasks(recipe: Any, notes: list[str]) -> Any:
    """A recipe whose model has the tasks that its data name, if it is to tell tasks apart.

    Raises:
        ConfigError: they name none.
    """
    name = FAMILIES[recipe.family].shape
    shape = getattr(recipe, name)
    if not tells_tasks(recipe):
        return recipe
    tasks = shape.tasks
    if not tasks:
        try:
            named = {example.task for example in islice(examples(recipe), READ_TASKS)}
        except DataError:
            named = {*ASSUMED_TASKS}
        if not any(named):
            raise ConfigError(
                f"{recipe.data} names no task, where the model is to tell tasks apart; give rows a `task`"
            )
        tasks = tuple(sorted(task for task in named if task))
    notes.append(f"{len(tasks)} tasks")
    return replace(recipe, **{name: replace(shape, tasks=tasks)})


def text_batch(tokens: int, prompt: int, text: int, vocab_size: int, tagged: float = 0.0) -> Batch:
    """A full batch of texts.

    Args:
        tokens: of the batch, at least a row's are taken.
        prompt: tokens of each prompt.
        text: tokens of each text, at least 1.
        vocab_size: tokens are drawn below it.
        tagged: share of the rows that are consensus targets.
    """
    rows, draws = max(1, tokens // (prompt + text)), make_generator(0)
    return Batch(
        prompt=torch.randint(4, vocab_size, (rows, prompt), generator=draws),
        text=torch.randint(4, vocab_size, (rows, text), generator=draws),
        tag=(torch.arange(rows) < tagged * rows).long(),
        index=torch.arange(rows),
        prompt_lengths=torch.full((rows,), prompt),
        text_lengths=torch.full((rows,), text),
    )


def _first(recipe: Any, notes: list[str]) -> tuple[int, int, int]:
    """Height, width and channels of all images, by the recipe or by the first."""
    if recipe.height is not None or recipe.width is not None:
        return *size_of_all(recipe.height, recipe.width, ()), recipe.channels or 3
    try:
        first = next(iter(read_images(recipe.data, recipe.split, 1, channels=recipe.channels)), None)
    except DataError:
        first = None
    if first is None:
        raise ConfigError(f"{recipe.data} has no image to read; say how large they are: height=32 width=32")
    notes.append("sizes of the first image")
    return *size_of_all(None, None, first.pixels.shape), recipe.channels or first.pixels.shape[2]


def _images(recipe: Any, device: torch.device) -> Unread:
    notes: list[str] = [f"{ASSUMED_CLASSES} classes"]
    height, width, channels = _first(recipe, notes)
    classes = tuple(map(str, range(ASSUMED_CLASSES)))
    codec = ImageCodec(height=height, width=width, channels=channels, classes=classes)
    parts = bare(ImageParts, replace(recipe, model=shaped(recipe.model, codec)), device)
    pixels = _pixels(recipe.batch_size, height, width, channels)
    rows = torch.arange(len(pixels))
    batch = ImageBatch(pixels=pixels, label=rows % ASSUMED_CLASSES, index=rows)
    return Unread(parts.recipe, parts, parts.specs(), lambda spec: batch, tuple(notes))


def _pairs(recipe: Any, device: torch.device) -> Unread:
    notes: list[str] = []
    height, width, channels = _first(recipe, notes)
    try:
        examples = islice(read_images(recipe.data, recipe.split, READ, channels=channels), READ)
        said = [words_of(example.caption or "") for example in examples]
    except DataError:
        said = []
    words = sorted({word for caption in said for word in caption}) or [str(i) for i in range(ASSUMED_WORDS)]
    places = max(map(len, said), default=ASSUMED_PLACES) + 1
    notes.append(f"{len(words):,} words, captions of at most {places} places")
    sizes: Any = {"height": height, "width": width, "channels": channels, "places": places}
    codec = CaptionedCodec(**sizes, words=tuple(words))
    parts = bare(JointParts, replace(recipe, model=joint_shaped(recipe.model, codec)), device)
    pixels = _pixels(recipe.batch_size, height, width, channels)
    numbers = torch.randint(2, codec.vocab_size, (len(pixels), places), generator=make_generator(1))
    batch = CaptionedBatch(pixels=pixels, words=numbers)
    return Unread(parts.recipe, parts, parts.specs(), lambda spec: batch, tuple(notes))


def _photos(recipe: Any, device: torch.device) -> Unread:
    if recipe.begin_from is not None:
        raise UsageError("a recipe with begin_from begins with another model, which is not planned; leave it out")
    parts, side = bare(RestoreParts, recipe, device), recipe.model.tile
    clean, spoiled = _pixels(recipe.batch_size, side, side, 3), _pixels(recipe.batch_size, side, side, 3)
    number = torch.arange(recipe.batch_size)
    task = number % len(TASKS) if recipe.fault is None else torch.full_like(number, recipe.fault)
    batch = PhotoBatch(clean=clean, spoiled=spoiled, task=task)
    return Unread(recipe, parts, parts.specs(), lambda spec: batch, (f"tiles of {side} pixels a side",))


def _pixels(rows: int, height: int, width: int, channels: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (rows, height, width, channels), np.uint8))
