"""Writing called as image pipelines are: a number of steps, a generator, and a callback at the end of each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Int64
from torch import Tensor

from manta.errors import UsageError
from manta.families.events import Event, GenerateOptions, Request, counted
from manta.families.observer import Observer
from manta.families.options import read_options
from manta.flow import SolverState
from manta.hub.folder import load_writer
from manta.hub.saving import save_pretrained
from manta.text import MASK, NULL

Callback = Callable[["MantaPipeline", int, float, dict[str, Any]], dict[str, Any] | None]
"""`callback(pipe, step, t, tensors) -> tensors`: what it returns takes the place of what it was told of."""
TENSORS: Final = {"manta": ("latents", "tokens"), "masked": ("tokens",)}
"""What a callback can be told of, by family."""


@dataclass(frozen=True)
class DenoisedTexts:
    """What a pipeline has written."""

    texts: list[str]
    """In the order of the prompts, those of one prompt one after the other."""
    sequences: Int64[Tensor, "b n"]
    """Their tokens, padded with the null token; the mask token where a call was stopped before a word was chosen."""
    nfe: list[int]
    """Network calls of each text."""


class MantaPipeline:
    """A Manta-LM or a masked model behind the call of an image pipeline.

        pipe = MantaPipeline.from_pretrained("builtin:e2e")
        pipe("name[Blue Spice], eatType[pub]", num_inference_steps=8, seed=3).texts

    The loop is the family's own: a callback is an observer of it. Without one, texts are those that `write` gives.

    Args:
        lm: a model of the family `manta` or `masked`.

    Raises:
        UsageError: another family: it has no state that is denoised in steps.
    """

    def __init__(self, lm: Any) -> None:
        family = getattr(lm, "family", type(lm).__name__)
        if family not in TENSORS:
            raise UsageError(
                f"a pipeline denoises in steps, and a model of the family {family} does not; use its generate or write"
            )
        self.lm = lm
        self.num_timesteps = 0
        """Steps made in the last call."""
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | None = None) -> "MantaPipeline":
        """A pipeline of a model, by what `manta.load` takes."""
        return cls(load_writer(name, device=device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model's folder, see `manta.hub.save_pretrained`."""
        save_pretrained(self.lm, folder)

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop, by `pipe._interrupt = True`."""
        return self._interrupt

    def __call__(
        self,
        prompt: str | Sequence[str | None] | None = None,
        *,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        num_texts_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int = 0,
        latents: Tensor | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
        **options: Any,
    ) -> DenoisedTexts:
        """Write texts, all side by side.

        Args:
            prompt: one, or several.
            num_inference_steps: budget of network calls for a text, the prompt's encoder included.
            guidance_scale: 1 is off; for a Manta-LM.
            num_texts_per_prompt: texts a prompt.
            generator: its `initial_seed` takes the place of `seed`; several give each text its own. What was drawn from
                it before changes nothing.
            seed: text k uses `seed + k`.
            latents: of a Manta-LM: the state to begin at, "b m c", instead of noise.
            callback_on_step_end: called as `callback(pipe, step, t, tensors)` at the end of each step, t being the time
                reached (0 noise, 1 data), or of a masked model the share of the words that is written. What it returns
                replaces: `latents` are where the flow goes on, `tokens` are the words that stand, the mask token where
                one is to be written. `pipe._interrupt = True` stops there; the texts are then as far as they came.
            callback_on_step_end_tensor_inputs: of `latents` (a Manta-LM's) and `tokens`, which the callback is told.
            options: others of manta's, such as `style="consensus"`.

        Raises:
            UsageError: something does not fit the model, or a callback returns what it was not told of.
            RequestError: a prompt that the model cannot serve.
        """
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        copies = counted(num_texts_per_prompt, "num_texts_per_prompt", 1)
        seeds = _seeds(generator, seed, len(prompts) * copies)
        requests = [Request(prompt=prompts[k // copies], seed=seeds[k]) for k in range(len(prompts) * copies)]
        asked = {"num_steps": num_inference_steps, "guidance_scale": guidance_scale, **options}
        how = read_options(asked)
        self._check(how, latents, callback_on_step_end_tensor_inputs)
        self._interrupt, self.num_timesteps = False, 0
        watch = None
        if callback_on_step_end is not None or latents is not None:
            names = tuple(callback_on_step_end_tensor_inputs)
            watch = _Steps(self, callback_on_step_end, names, latents)
        events = self.lm.generate(requests, how, watch, batch_size=max(1, len(requests)))
        return self._told(events, len(requests))

    def _check(self, how: GenerateOptions, latents: Tensor | None, names: Sequence[str]) -> None:
        known = TENSORS[self.lm.family]
        if wrong := [name for name in names if name not in known]:
            raise UsageError(
                f"a callback of a model of the family {self.lm.family} is told of {' or '.join(known)}, not of "
                f"{str(wrong[0])[:40]!r}"
            )
        if latents is not None and "latents" not in known:
            raise UsageError(f"a model of the family {self.lm.family} has no latents to begin at; leave latents out")
        if how.cache != "none" or how.choose > 1:
            raise UsageError("all texts of a pipeline are written side by side, each once; leave cache and choose out")
        if "tokens" in names and getattr(self.lm.model.config, "classes", 0):
            raise UsageError("a model that settles classes before words keeps no words of a callback; leave tokens out")

    def _told(self, events: Any, count: int) -> DenoisedTexts:
        """The texts as they stand at the end, or when a callback has asked to stop."""
        latest: dict[int, Event] = {}
        stopped: set[int] = set()
        for event in events:
            if event.error is not None:
                raise event.error
            latest[event.index] = event
            if self._interrupt:
                stopped.add(event.index)
                if len(stopped) == count:
                    events.close()
                    break
        done = [latest[index] for index in range(count)]
        longest = max((len(event.tokens) for event in done), default=0)
        rows = [[*event.tokens, *[NULL] * (longest - len(event.tokens))] for event in done]
        sequences = torch.tensor(rows, dtype=torch.long).reshape(count, longest)
        return DenoisedTexts([event.text for event in done], sequences, [event.nfe for event in done])


class _Steps(Observer):
    """Calls back at the end of each step; what is returned is put where the family's loop reads it.

    Args:
        pipe: whose call it is.
        callback: None for none.
        names: what it is told of.
        latents: a state to begin at.
    """

    def __init__(
        self, pipe: MantaPipeline, callback: Callback | None, names: Sequence[str], latents: Tensor | None
    ) -> None:
        self.pipe, self.callback, self.names, self.latents = pipe, callback, names, latents
        self.reached: SolverState | None = None
        self.ended = True
        """The step of `reached` has been told."""

    def before(self, k: int, page: Any, state: Tensor | None) -> Tensor | None:
        """Begin at given latents; end a step whose words are not settled."""
        if not self.ended:
            self._end(page)
        if self.latents is not None and state is not None:
            given, self.latents = self.latents, None
            return _fitting("latents", given, state)
        return state

    def moved(self, reached: SolverState) -> None:
        """Remember where the flow stands."""
        self.reached, self.ended = reached, False

    def settled(self, page: Any) -> None:
        """End the step."""
        self._end(page)

    def _end(self, page: Any) -> None:
        step, self.ended = self.pipe.num_timesteps, True
        self.pipe.num_timesteps += 1
        if self.callback is None or self.pipe._interrupt:
            return
        told = {name: self._tensor(name, page) for name in self.names}
        found = self.callback(self.pipe, step, _time(page), dict(told))
        if found is None:
            return
        if not isinstance(found, dict) or found.keys() - told.keys():
            raise UsageError(
                f"a callback returns the tensors that it was told of ({', '.join(told) or 'none'}), or nothing; "
                f"received {str(found)[:60]}"
            )
        for name, value in found.items():
            if value is not told[name]:
                value = _fitting(name, value, told[name])
            if name == "tokens":
                _replace_words(page, value)
            elif self.reached is not None:
                self.reached.state.copy_(value)  # the state itself: the flow goes on from it, and so do calls after it

    def _tensor(self, name: str, page: Any) -> Tensor:
        if name == "latents":
            if self.reached is None:
                raise UsageError("a text without a flow has no latents; raise `flow_steps`, or ask for tokens alone")
            return self.reached.state.clone()
        return _words(page).clone()


def _words(page: Any) -> Tensor:
    """The words that stand, the mask token elsewhere: of a flow's page, or of a masked model's canvas."""
    return page.settled if hasattr(page, "settled") else page.tokens.masked_fill(page.masked, MASK)


def _time(page: Any) -> float:
    """Time of a flow, or the share of a canvas that is written."""
    if hasattr(page, "t"):
        return float(page.t)
    return 1 - int(page.masked.sum()) / max(1, int(page.writable.sum()))


def _replace_words(page: Any, words: Tensor) -> None:
    """Let these words stand where the model writes; given ones stay."""
    changed = page.writable & (words != _words(page)) & (words != MASK)
    open_ = page.writable & (words == MASK)
    page.tokens = torch.where(page.writable, words, page.tokens)
    page.confidence = page.confidence.masked_fill(changed, 1.0)
    if hasattr(page, "asked"):
        page.asked = open_
    else:
        page.masked = open_


def _fitting(name: str, value: Any, like: Tensor) -> Tensor:
    """A tensor in place of another.

    Raises:
        UsageError: it is of another shape.
    """
    if not isinstance(value, Tensor) or value.shape != like.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"{name} should be a tensor of shape {tuple(like.shape)}, received {shape}")
    return value.to(like)


def _seeds(generator: Any, seed: int, count: int) -> list[int]:
    """A seed a text."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise UsageError(
                f"{count} texts are asked for, received {len(generator)} generators; give one, or one each"
            )
        return [each.initial_seed() for each in generator]
    first = counted(seed, "seed", 0) if generator is None else generator.initial_seed()
    return [first + k for k in range(count)]
