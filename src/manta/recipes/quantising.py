"""Quantising a model: watch it at work on data, fit its maps of integers, and tell what that costs and saves."""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from manta.errors import ConfigError, DataError, ModelError, UsageError
from manta.evaluation.joint import captioned_images
from manta.families.asked import follows
from manta.families.events import GenerateOptions, Request, finished
from manta.families.image_flow import DrawOptions, DrawRequest, ImageFlow
from manta.families.joint_flow import JointFlow, JointRequest, joint_matching
from manta.families.joint_model import JointObjectiveConfig
from manta.families.kept import KeptModel
from manta.families.restorer import Restorer
from manta.families.trained import TrainedWriter
from manta.hub import load, model_config
from manta.image import from_pixels, read_images
from manta.image.captioned import CaptionedBatch
from manta.image.degradations import TASKS
from manta.image.photos import PhotoBatch, PhotoCorpus, PhotoLoader, build_photos, is_photos, photos_of
from manta.nets.grid import UditConfig, UditNet
from manta.quantisation import Fitted, Observed, Quantising, fitted, observed, quantised
from manta.recipes.conversion import mean_parts
from manta.recipes.image_conversion import held_out_images, task_of_flow
from manta.recipes.image_recipe import ImageRecipe
from manta.recipes.origins import refuse_tasks
from manta.recipes.recipe import Recipe
from manta.recipes.text_conversion import held_out, task_of_model, to_batches
from manta.runtime import MAX_SEED
from manta.text import Batch, read

Bits = Literal["w8a8", "w4a8", "w8"]
CALLS: Final = (4, 8, 16, 32)
"""Budgets along whose trajectories a model is watched."""
KNOWN: Final = {"dev": "held-out", "train": "training"}
"""What data of a split are to the model."""
MEASURED: Final = 128
"""Held-out texts or images on which the task is measured."""
COMPARED: Final = 32
"""Texts or images that both models make."""
COMPARED_CALLS: Final = 8
MOST_CALLS: Final = 1024
ROWS: Final = 32
"""Texts or images made at once."""
PHOTOS: Final = 32
"""Photographs of a folder that a restorer is watched on, and as many that are held out."""
GIVEN: Final = (("caption",), ("image",), ())
"""What of a pair is given, by turns, while a model of captions and images is watched; the rest is made."""


@dataclass(frozen=True, kw_only=True)
class QuantisationPlan:
    """How a model is quantised."""

    bits: Bits = "w8a8"
    """`w8a8` and `w4a8`: weights of 8 or 4 bits times inputs of 8; `w8`: weights of 8 bits alone, inputs as they
    are."""
    num: int = 256
    """Texts or images along whose trajectories the model is watched."""
    groups: int | Literal["auto"] = 1
    """Groups of neighbouring times; `auto`: as many as each map is worth, up to 8."""
    inputs: Literal["static", "dynamic"] = "static"
    """`static`: steps are found before; `dynamic`: each row is rounded by its own largest number."""
    calls: tuple[int, ...] = CALLS
    """Budgets along whose trajectories the model is watched."""
    seed: int = 0
    """Of the noise that trajectories begin with."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"num should be at least 1, received {self.num}")
        if isinstance(self.groups, int) and not 1 <= self.groups <= 64:
            raise ConfigError(f"groups should be auto, or lie between 1 and 64, received {self.groups}")
        if not self.calls or not 1 <= min(self.calls) <= max(self.calls) <= MOST_CALLS:
            raise ConfigError(f"calls are budgets from 1 to {MOST_CALLS}, received {self.calls}")
        if not 0 <= self.seed <= MAX_SEED - self.num:
            raise ConfigError(f"seed should lie between 0 and {MAX_SEED - self.num}, received {self.seed}")
        if self.inputs == "dynamic" and self.groups != 1:
            raise ConfigError("dynamic inputs have no groups of times; leave groups out")
        if self.bits == "w8" and (self.inputs, self.groups) != ("static", 1):
            raise ConfigError("w8 leaves inputs as they are; leave inputs and groups out")

    @property
    def how(self) -> Quantising:
        """For the net."""
        bits = 4 if self.bits == "w4a8" else 8
        return Quantising(bits=bits, inputs="float" if self.bits == "w8" else self.inputs, groups=self.groups)


@dataclass(frozen=True)
class Compared:
    """The model before and after."""

    task: str
    """What is measured of the family's own task on held-out data; less is better, but of decibels more. Empty where
    nothing was."""
    before: float
    after: float
    same: float
    """Share of what both make of the same requests that is the same, word for word; of images, the root mean square of
    the difference of their values, 0 to 255; of restored tiles as well."""
    seconds_before: float
    seconds_after: float
    reading: tuple[float, float] | None = None
    """Nats a word of held-out texts left to right, before and after, of a model that reads both ways."""
    others: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What else is measured, before and after, by name."""
    described: float | None = None
    """Share of images whose caption is the same before and after, of a model of captions and images."""


@dataclass(frozen=True)
class Quantisation:
    """A quantised model, and what is known of it."""

    model: Any
    plan: QuantisationPlan
    data: str
    """Name of what it was watched on."""
    maps: Mapping[str, Fitted]
    seen: Mapping[str, Observed] = field(repr=False)
    compared: Compared
    seconds: float
    """That it took."""


def quantise(
    source: str | Path | None, data: str | None, plan: QuantisationPlan, tell: Callable[[str], None] = lambda line: None
) -> Quantisation:
    """Quantise a model of texts, an image flow, a restorer or a model of captions and images.

    Args:
        source: its folder, or a name as of `manta.load`.
        data: what it is watched on, best what it was trained on; an image flow can do without.
        plan: bits and the rest.
        tell: takes lines of progress.

    Raises:
        ModelError: the model is of another kind, or quantised already.
        DataError: no data, or none that the model could read.
    """
    begun, model = time.perf_counter(), load(source, device="cpu")
    if isinstance(model, TrainedWriter):
        refuse_tasks(model, source)
    work = work_of(model, source, data, plan)
    net = merged_maps(model.model)
    before = model.with_net(net)
    budgets = f" at {', '.join(map(str, plan.calls))} calls" if work.budgeted else ""
    tell(f"watching {plan.num} {work.made}{budgets}")
    seen = observed(net, lambda: work.run(before, plan))
    tell(f"fitting {len(seen)} maps")
    found = fitted(net, seen, plan.how)
    after = model.with_net(quantised(net, found))
    after.quantised = {name: each.spec for name, each in found.items()}
    tell("comparing it with the model before")
    compared = work.compared(before, after)
    name = Path(data.rpartition(":")[2]).name if data else "its classes"
    return Quantisation(after, plan, name, found, seen, compared, time.perf_counter() - begun)


def merged_maps(net: nn.Module) -> nn.Module:
    """A net in which no map is several while it is trained: that of a U-DiT with its maps merged."""
    shape = getattr(net.config, "net", None)
    if not isinstance(shape, UditConfig):
        return net
    if getattr(net, "encoder", None) is not None:
        raise ModelError("a U-DiT with an adaptive condition cannot be quantised; train it with model.bits=0")
    new: Any = deepcopy(net)
    assert isinstance(new.net, UditNet), "the net of its shape"
    new.net.merge()
    new.config = replace(new.config, net=shape.merged)
    return new


@dataclass(frozen=True)
class Work:
    """What a model does while it is watched, and how it is measured."""

    made: str
    """What it makes, in the plural."""
    run: Callable[[Any, QuantisationPlan], None]
    """Makes the model work as a plan says."""
    compared: Callable[[Any, Any], Compared]
    """Measures it before and after."""
    budgeted: bool = True
    """It is made in as many calls as are asked for."""


def work_of(model: Any, source: str | Path | None, data: str | None, plan: QuantisationPlan) -> Work:
    """What a model is to do while it is watched; arguments as of `quantise`."""
    if getattr(model, "quantised", None) is not None:
        raise ModelError(f"{source} is quantised already; give the model that it was made of")
    if isinstance(model, ImageFlow):
        return _for_images(model, data)
    if not isinstance(model, KeptModel):
        raise ModelError(f"{source} is a published checkpoint, and models that manta trains can be quantised")
    if data is None:
        raise UsageError("say what the model is to be watched on, best what it was trained on: --data DATA")
    if isinstance(model, Restorer | JointFlow):
        if plan.groups != 1:
            why = "is told no times" if isinstance(model, Restorer) else "tells a time to each word and patch"
            raise UsageError(f"{source} {why}, so its maps have one group; leave groups out")
        return _for_photos(model, data, plan) if isinstance(model, Restorer) else _for_pairs(model, data, plan)
    assert isinstance(model, TrainedWriter), "no other kind is trained"
    return _for_texts(model, source, data, plan)


def _for_texts(lm: TrainedWriter[Any], source: str | Path | None, data: str, plan: QuantisationPlan) -> Work:
    recipe = _recipe_of(source, data)
    examples = list(read(data, "train", plan.num))
    batches = to_batches(lm, examples)
    if not batches:
        raise DataError(f"{data} has no text that the model could read")
    objective = task_of_model(lm, recipe)
    budgeted = follows(lm.family, "num_steps")  # else the trajectories are the texts themselves

    def requests(texts: Sequence[Any], num: int) -> list[Request]:
        asked = list(dict.fromkeys(example.prompt for example in texts))
        most = lm.model.config.max_prompt
        fitting = [prompt for prompt in asked if not prompt or len(lm.tokenizer.encode(prompt)) <= most] or [None]
        return [Request(prompt=fitting[i % len(fitting)], seed=plan.seed + i) for i in range(num)]

    def run(watched: Any, plan: QuantisationPlan) -> None:
        if not budgeted:
            mean_parts(watched.model, objective, batches)
            return
        asked = requests(examples, plan.num)
        usual = GenerateOptions()
        styles: tuple[Any, ...] = ("consensus", "diverse") if lm.family == "manta" else (usual.style,)
        for index, calls in enumerate(plan.calls):
            for begin in range(0, len(asked), ROWS):
                options = replace(usual, num_steps=calls, style=styles[(begin // ROWS + index) % len(styles)])
                list(finished(watched.generate(asked[begin : begin + ROWS], options, batch_size=ROWS)))

    def compared(before: Any, after: Any) -> Compared:
        held = held_out(recipe, before, MEASURED)
        parts = [mean_parts(each.model, objective, held) for each in (before, after)]
        task = next(each for each in ("nats", "cross_entropy", *parts[0]) if each in parts[0])
        asked = requests(examples, COMPARED)
        options = GenerateOptions(num_steps=COMPARED_CALLS) if budgeted else GenerateOptions()
        texts, seconds = _both(before, after, lambda each: _texts(each, asked, options))
        same = float(np.mean([one == other for one, other in zip(*texts, strict=True)]))
        both = getattr(before.model.config, "causal", False)  # whose slots alone are the task
        reading = (_read(before, held), _read(after, held)) if both else None
        return Compared(
            f"{task} of held-out texts", parts[0][task], parts[1][task], same, seconds[0], seconds[1], reading
        )

    return Work("texts", run, compared, budgeted)


def _read(lm: TrainedWriter[Any], held: Sequence[Batch]) -> float:
    """Nats a word of texts left to right, their ends included."""
    nats = -sum(float(lm.log_likelihood(batch).value.sum()) for batch in held)
    return nats / sum(int((batch.text_lengths + 1).sum()) for batch in held)


def _texts(lm: Any, asked: Sequence[Request], options: GenerateOptions) -> list[str]:
    events = finished(lm.generate(asked, options, batch_size=ROWS))
    return [text for _, text in sorted((event.index, event.text) for event in events)]


def _for_images(flow: ImageFlow, data: str | None) -> Work:
    classes, held = len(flow.images.classes), []
    if data is not None:
        recipe = ImageRecipe(data=data)
        held, objective = held_out_images(recipe, flow, MEASURED), task_of_flow(flow, recipe)

    def requests(num: int, seed: int) -> list[DrawRequest]:
        labels = [i % (classes + 1) if classes else None for i in range(num)]
        return [DrawRequest(label=None if label == classes else label, seed=seed + i) for i, label in enumerate(labels)]

    def run(watched: Any, plan: QuantisationPlan) -> None:
        for calls in plan.calls:
            list(watched.generate(requests(plan.num, plan.seed), DrawOptions(num_steps=calls), batch_size=ROWS))

    def compared(before: Any, after: Any) -> Compared:
        drawn, seconds = _both(
            before, after, lambda each: _drawn(each, requests(COMPARED, 10**6), DrawOptions(num_steps=COMPARED_CALLS))
        )
        apart = _apart(*drawn)
        if not held:
            return Compared("", 0.0, 0.0, apart, seconds[0], seconds[1])
        old, new = (mean_parts(each.model, objective, held)["velocity"] for each in (before, after))
        return Compared("error of the flow on held-out images", old, new, apart, seconds[0], seconds[1])

    return Work("images", run, compared)


def _drawn(flow: ImageFlow, asked: Sequence[DrawRequest], options: DrawOptions) -> np.ndarray:
    return np.stack([d.pixels for d in sorted(flow.generate(asked, options, batch_size=ROWS), key=lambda d: d.index)])


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two arrays of images."""
    return float(np.sqrt(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2)))


def _for_photos(restorer: Restorer, data: str, plan: QuantisationPlan) -> Work:
    """Tiles of photographs with every fault that a restorer takes out."""
    if not is_photos(data):
        raise UsageError(f"a restorer is watched on photographs, restore:FOLDER, received {data[:80]}")
    learned, _ = _tiles(restorer, data, ("train",), plan, plan.num)
    held, split = _tiles(restorer, data, ("dev", "train"), replace(plan, seed=plan.seed + 1), MEASURED)

    def restored(each: Restorer, batches: Sequence[PhotoBatch]) -> torch.Tensor:
        """Tiles as the restorer leaves them, in the order of the batches."""
        found = []
        for batch in batches:
            state = from_pixels(batch.spoiled)
            clean = torch.empty_like(state)
            for task in batch.task.unique().tolist():
                clean[batch.task == task] = each.cleaned(state[batch.task == task], task)
            found.append(clean)
        return torch.cat(found)

    def run(watched: Restorer, plan: QuantisationPlan) -> None:
        with torch.no_grad():
            for batch in learned:
                watched.model(from_pixels(batch.spoiled), batch.task)

    def decibels(tiles: torch.Tensor) -> dict[str, float]:
        error = (tiles - torch.cat([from_pixels(batch.clean) for batch in held])).square().mean((1, 2))
        task = torch.cat([batch.task for batch in held])
        rows = {"all": task >= 0, **{name: task == TASKS.index(name) for name in restorer.faults}}
        return {name: float(10 * torch.log10(4 / error[where].mean())) for name, where in rows.items() if where.any()}

    def compared(before: Any, after: Any) -> Compared:
        (old, new), seconds = _both(before, after, lambda each: restored(each, held))
        told, now = decibels(old), decibels(new)
        apart = _apart(*((127.5 * (tiles.clamp(-1, 1) + 1)).numpy() for tiles in (old, new)))
        others = {f"decibels, {name}": (told[name], now[name]) for name in restorer.faults if name in told}
        task = f"decibels of {KNOWN[split]} tiles"
        return Compared(task, told["all"], now["all"], apart, seconds[0], seconds[1], others=others)

    return Work("tiles", run, compared, budgeted=False)


def _tiles(
    restorer: Restorer, data: str, splits: Sequence[str], plan: QuantisationPlan, num: int
) -> tuple[list[PhotoBatch], str]:
    """Spoiled tiles of the first split that has photographs, as a run of training draws them, and which split it is.

    Raises:
        DataError: there are none.
    """
    side, faults = restorer.model.config.tile, restorer.faults
    only = TASKS.index(faults[0]) if len(faults) == 1 else None
    for split in splits:
        examples = read_images(photos_of(data), split, PHOTOS, channels=3, skipped=lambda reason: None)
        try:
            with TemporaryDirectory() as folder:
                build_photos(examples, Path(folder) / "photos", side=side, source=data, skipped=[])
                corpus = PhotoCorpus(Path(folder) / "photos")
                loader = PhotoLoader(corpus, side=side, batch_size=min(ROWS, num), seed=plan.seed, only=only)
                return [next(loader) for _ in range(-(-num // ROWS))], split
        except DataError:
            if split == splits[-1]:
                raise
    raise AssertionError("splits are given")


def _for_pairs(flow: JointFlow, data: str, plan: QuantisationPlan) -> Work:
    """Images of captions, captions of images, and both of nothing."""
    fit: Any = (flow.recipe or {}).get("fit", "crop")
    found, captions = captioned_images(flow, data, plan.num, "train", fit)
    images = [image.copy() for image in found]  # of a file they may be read-only
    held, split = _held_pairs(flow, data, fit)
    objective = joint_matching(flow.model.config, JointObjectiveConfig(), {})

    def run(watched: JointFlow, plan: QuantisationPlan) -> None:
        asked = []
        for i in range(plan.num):
            row = i // len(GIVEN) % len(captions)
            given: dict[str, Any] = {"caption": captions[row], "image": images[row]}
            chosen = {name: given[name] for name in GIVEN[i % len(GIVEN)]}
            asked.append(JointRequest(seed=plan.seed + i, **chosen))
        for calls in plan.calls:
            list(watched.generate(asked, num_steps=calls, batch_size=ROWS))

    def made(each: JointFlow) -> tuple[np.ndarray, list[str]]:
        some = range(min(COMPARED, len(captions)))
        drawing = [JointRequest(caption=captions[i], seed=10**6 + i) for i in some]
        describing = [JointRequest(image=images[i], seed=10**6 + i) for i in some]
        drawn, said = (list(each.generate(r, num_steps=COMPARED_CALLS, batch_size=ROWS)) for r in (drawing, describing))
        return np.stack([one.pixels for one in drawn]), [one.caption for one in said]

    def compared(before: Any, after: Any) -> Compared:
        ((old, told), (new, now)), seconds = _both(before, after, made)
        parts = [mean_parts(each.model, objective, held) for each in (before, after)]
        alike = float(np.mean([one == other for one, other in zip(told, now, strict=True)]))
        others = {f"nats a word of {KNOWN[split]} captions": (parts[0]["nats"], parts[1]["nats"])}
        task = f"error of the flow on {KNOWN[split]} images"
        return Compared(
            task, parts[0]["velocity"], parts[1]["velocity"], _apart(old, new), seconds[0], seconds[1],
            others=others, described=alike,
        )  # fmt: skip

    return Work("images and captions", run, compared)


def _held_pairs(flow: JointFlow, data: str, fit: Any) -> tuple[list[CaptionedBatch], str]:
    """Held-out images with captions, or those of the training split where none are held out, and which split it is."""
    split = "dev"
    try:
        images, captions = captioned_images(flow, data, MEASURED, split, fit)
    except DataError:
        split = "train"
        images, captions = captioned_images(flow, data, MEASURED, split, fit)
    words = torch.tensor([flow.codec.numbers(caption) for caption in captions])
    pixels = torch.from_numpy(np.stack(images))
    pairs = zip(pixels.split(ROWS), words.split(ROWS), strict=True)
    return [CaptionedBatch(pixels=p, words=w) for p, w in pairs], split


def _both(before: Any, after: Any, make: Callable[[Any], Any]) -> tuple[list[Any], list[float]]:
    """What both make, and the seconds it takes, once each has made it before."""
    made, seconds = [make(each) for each in (before, after)], []
    for each in (before, after):
        begun = time.perf_counter()
        make(each)
        seconds.append(time.perf_counter() - begun)
    return made, seconds


def _recipe_of(source: str | Path | None, data: str) -> Recipe:
    """The recipe that a model was trained by, with other data; the usual one where its folder tells none."""
    from manta.config import from_dict

    told = model_config(source).get("recipe")
    try:
        return from_dict(Recipe, {**(told if isinstance(told, dict) else {}), "data": data}, "recipe")
    except ConfigError:
        return Recipe(data=data)
