"""A run that goes on with a published model: its data, its one stage, what it saves and its card."""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from manta.config import to_dict
from manta.errors import DataError
from manta.families.batching import to_batch
from manta.hub import card_of, merge
from manta.hub.adapters import (
    CONFIG,
    FORMAT,
    Adapters,
    add_adapters,
    are_saved,
    digest_of_weights,
    save_adapters,
)
from manta.hub.folder import find_folder
from manta.hub.foreign.published import Replaced, is_written, write_published
from manta.hub.foreign.tunable import Tunable
from manta.recipes.budget import Watch
from manta.recipes.card import written_card
from manta.recipes.logged import NUM_SAMPLES
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.tune_recipe import TuneRecipe, described, portable_tuned, resolve_tuned
from manta.runtime import atomic_write, autocast, make_generator
from manta.text import Batch, Corpus, Example, Loader, build, fingerprint, read
from manta.text.corpus import FILES
from manta.training import Progress

HELD_OUT = 64
"""Held-out texts on which the loss is measured."""
ROWS = 8
"""Of them, those of a batch."""
MEASURED = 8
"""Times that it is measured in a run."""
SAMPLE_TOKENS = 64
"""Most tokens of a sample."""


class TuneParts(Parts):
    """Everything a run of a published model trains, and its data.

    Args:
        recipe: as resolved.
        corpus: the texts as encoded.
        model: to go on with, its net on the meta device.
        device: where the net goes.
    """

    unit = "tokens"
    files = tuple(f"corpus/{file}" for file in FILES)

    def __init__(self, recipe: TuneRecipe, corpus: Corpus, model: Tunable, device: torch.device) -> None:
        self.recipe, self.corpus, self.device = recipe, corpus, device
        self.model = model
        self.base = find_folder(recipe.begin_from)
        self.modules, self.measured = nn.ModuleDict(), {}
        self.rows = self._fitting()
        left_out = len(corpus) - len(self.rows)
        self.report = f"{corpus.report}" + (
            f"; left out: {left_out:,} pairs that take more than {recipe.longest} tokens together" if left_out else ""
        )
        source = fingerprint(recipe.data, recipe.split, recipe.num_examples)
        self.data = {"source": source, "tokenizer": self.lm.tokenizer.fingerprint(), "corpus": corpus.digest}
        self.data["begun from"] = digest_of_weights(self.base)
        self.adapters: Adapters | None = None
        self.losses: dict[str, float] = {}
        """Held-out loss before and after."""

    @classmethod
    def resolved(cls, recipe: TuneRecipe, tell: Callable[[str], None]) -> TuneRecipe:
        """See `recipes.tune_recipe`."""
        return resolve_tuned(recipe)

    @classmethod
    def refuse_strangers(cls, run: Path) -> None:
        """Nothing but the run itself writes into its folder."""

    @classmethod
    def prepared(cls, recipe: TuneRecipe, folder: Path, device: torch.device, watch: Watch) -> "TuneParts":
        """The corpus, kept in the folder and reused."""
        model = described(recipe)
        tokenizer = model.lm.tokenizer
        build(
            watch.over(_examples(model.lm, recipe.data, recipe.split, recipe.num_examples), "corpus"),
            tokenizer,
            folder / "corpus",
            max_prompt=recipe.longest - 2,
            max_text=recipe.longest,
            source=fingerprint(recipe.data, recipe.split, recipe.num_examples),
        )
        return cls(recipe, Corpus.open(folder / "corpus", tokenizer=tokenizer), model, device)

    def _fitting(self) -> Any:
        """Rows of the corpus that fit the model, prompt, frame and end included.

        Raises:
            DataError: there are none.
        """
        texts, prompts = self.corpus.lengths(np.arange(len(self.corpus)))
        whole = np.where(prompts > 0, texts + prompts + self.model.frame + 1, texts)
        found = np.flatnonzero(whole <= self.recipe.longest)
        if not len(found):
            raise DataError(
                f"no pair of {self.recipe.data} fits: the shortest takes {whole.min()} tokens with its frame and end, "
                f"and max_length is {self.recipe.longest}; raise it as far as the model reads, or give shorter texts"
            )
        return found

    def specs(self) -> list[StageSpec]:
        """One stage: the whole model, or its adapters."""
        recipe, device = self.recipe, str(self.device)
        whole = recipe.lora.rank is None
        half = not whole and recipe.train.precision == "bfloat16"
        self.model = type(self.model).load(self.base, recipe.family, device, half=half)
        self.model.bounded(recipe.longest)
        torch.manual_seed(recipe.seed)  # initial adapters only: all other randomness has generators of its own
        if whole:
            own = dict(self.net.named_parameters())
            trained: nn.Module = nn.ParameterList(own[name] for name in sorted({p.ours for p in self.places.values()}))
            self.modules["model"] = self.net
        else:
            trained = self.modules["adapters"] = self.adapters = add_adapters(self.lm, recipe.lora)
        self.losses = {"before": loss} if (loss := self.held_out_loss()) is not None else {}
        return [StageSpec("tune", 1.0, self.net, (trained,), self.objective, lambda: self.corpus)]

    @property
    def lm(self) -> Any:
        """The model, ready to write."""
        return self.model.lm

    @property
    def net(self) -> Any:
        """What is trained, or beside what."""
        return self.model.net

    @cached_property
    def places(self) -> Any:
        """Of the published weights in the net."""
        return self.model.places()

    @cached_property
    def objective(self) -> Any:
        """What is taught."""
        return self.model.objective(self.recipe.longest, full=self.recipe.full_rows)

    def batches(self, spec: StageSpec, seed: int, rows: Any = None) -> Loader:
        """Endless batches of the texts that fit, of like lengths unless they have to be mixed."""
        tokens, how = self.recipe.batch_tokens or 0, {}
        if self.model.mixed:
            texts, prompts = self.corpus.lengths(self.rows)
            longest = self.recipe.longest if self.recipe.full_rows else int((texts + prompts).max()) + self.model.frame
            how = {"pool": max(1, tokens // longest)}
        return Loader(self.corpus, batch_tokens=tokens, seed=seed, rows=self.rows, **how)

    def trained_model(self, stage: str) -> Any:
        """The model as it is by now, its adapters beside its weights."""
        return self.lm

    @property
    def size(self) -> str:
        """Parameters, and those that are trained."""
        whole = sum(p.numel() for p in self.net.parameters())
        own = 0 if self.adapters is None else sum(p.numel() for p in self.adapters.parameters())
        return f"{(whole - own) / 1e6:.2f}M parameters" + (f", {own / 1e6:.3f}M trained in adapters" if own else "")

    @cached_property
    def held_out(self) -> list[Batch]:
        """Batches of the development split, as far as its texts fit; none where it is empty."""
        pairs = []
        for example in _examples(self.lm, self.recipe.data, "dev", HELD_OUT):
            prompt = self.lm.tokenizer.encode(example.prompt) if example.prompt else []
            text = self.lm.tokenizer.encode(example.text)
            text = text if prompt else text[: self.recipe.longest]
            frame = self.model.frame + 1 if prompt else 0
            if text and len(prompt) + len(text) + frame <= self.recipe.longest:
                pairs.append((prompt, text))
        groups = [tuple(zip(*pairs[first : first + ROWS], strict=True)) for first in range(0, len(pairs), ROWS)]
        return [to_batch(prompts, texts, self.device) for prompts, texts in groups]

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The loss on held-out texts, with the same draws each time; None where there are none."""
        generator, total, weight = make_generator(0), 0.0, 0
        for batch in self.held_out:
            with autocast(self.device, self.recipe.train.precision):
                loss = self.objective(self.net, batch, generator)
            total, weight = total + float(loss.total) * (loss.count or 1), weight + (loss.count or 1)
        return total / weight if weight else None

    def measures(self, progress: Progress) -> bool:
        """Now and then."""
        return progress.step % -(-progress.num_steps // MEASURED) == 0

    def row(self, step: int, progress: Progress) -> dict[str, Any]:
        """The loss on held-out texts, now and then."""
        if not self.measures(progress):
            return {}
        loss = self.held_out_loss()
        return {} if loss is None else {"dev_loss": loss}

    def samples(self, model: Any, stage: str, file: Path) -> list[str]:
        """A few texts, into a file of lines."""
        found = dict.fromkeys(example.prompt for example in read(self.recipe.data, "dev", HELD_OUT))
        most = self.recipe.longest // 2
        prompts = [p for p in found if not p or len(model.tokenizer.encode(p)) + self.model.frame <= most][:NUM_SAMPLES]
        if not prompts:
            return []
        texts = model.write(prompts, max_tokens=min(SAMPLE_TOKENS, most), **self.model.calls)
        lines = [f"{prompt or ''} -> {text}" for prompt, text in zip(prompts, texts, strict=True)]
        file.parent.mkdir(exist_ok=True)
        atomic_write(file.with_suffix(".txt"), ("\n".join(lines) + "\n").encode())
        return lines

    def finished(self, model: Any) -> list[str]:
        """What was gained on held-out texts."""
        if (loss := self.held_out_loss()) is None:
            return ["no text is held out, so what was learned is not measured"]
        self.losses["after"] = loss
        return [f"loss on held-out texts: {self.losses['before']:.4f} before, {loss:.4f} after"]

    @property
    def place(self) -> str:
        """Adapters, or a model as it is published."""
        return "model" if self.adapters is None else "adapter"

    def save(self, folder: Path, model: Any, card: str) -> None:
        """Write adapters, and with `merge` the model with them; or the model in the layout of its base."""
        if self.adapters is None:
            write_published(self.base, folder, Replaced(self.net, self.places), card)
            return
        record = {
            "format": FORMAT,
            "family": self.recipe.family,
            "base": self.recipe.begin_from,
            "digest": self.data["begun from"],
            "prompted": self.corpus.report.prompts > 0,
            "recipe": to_dict(self.portable()),
        }
        save_adapters(folder, self.adapters, record=record, card=card)
        if self.recipe.merge and not self._is_merged(folder):
            merge(folder, folder.with_name("model"), base=self.base, replace=True)

    def is_saved(self, folder: Path, model: Any) -> bool:
        """Whether all that `save` writes is there, weight for weight."""
        if self.adapters is None:
            return is_written(self.base, folder, Replaced(self.net, self.places))
        if not (folder / CONFIG).is_file() or not are_saved(folder, self.adapters):
            return False
        return not self.recipe.merge or self._is_merged(folder)

    def _is_merged(self, folder: Path) -> bool:
        assert self.adapters is not None, "there are adapters"
        return is_written(self.base, folder.with_name("model"), self.adapters.change(str(folder)))

    def portable(self) -> TuneRecipe:
        """See `portable_tuned`."""
        return portable_tuned(self.recipe)

    def card(self, model: Any, plan: dict[str, int], minutes: dict[str, float]) -> str:
        """What it began with, data with their digest, scores, command, steps and minutes."""
        recipe, base = self.portable(), Path(self.recipe.begin_from).name
        head = re.match(r"---\n.*?\n---\n", card_of(self.base), re.S)
        licence = re.search(r"(?m)^license: *(\S+)", head[0]) if head else None
        told = (
            f"({self.report}; sha256 of what was learned: {self.data['corpus']}). The licence of the data applies to "
            f"the texts it was made from.\n\nBegun from `{base}`, of the layout {recipe.family}; its licence: "
            f"{licence[1] if licence else 'see its own card'}. Made by: `{_command(recipe)}`\n\n"
        )
        if "after" in self.losses:
            told += f"| held-out texts: {self.model.loss} | loss |\n|---|---|\n"
            told += "".join(f"| {when} | {loss:.4f} |\n" for when, loss in self.losses.items()) + "\n"
        what = (
            f"A {recipe.family} model" if self.adapters is None else f"Adapters of rank {recipe.lora.rank} for {base},"
        )
        use = "Load it with `manta.load(FOLDER)`; write with `manta generate FOLDER --prompt …`."
        return written_card(what, recipe, told, plan, minutes, use)


def _examples(model: Any, data: str, split: str, num: int | None) -> Iterator[Example]:
    """Examples as a model is asked: some frames leave out white space around a prompt."""
    trimmed = getattr(getattr(model, "frame", None), "trimmed", False)
    for example in read(data, split, num):
        yield replace(example, prompt=example.prompt.strip()) if trimmed and example.prompt else example


def _command(recipe: TuneRecipe) -> str:
    """The command line of a recipe, as far as a line says it."""
    words: Sequence[Any] = ["manta", "train", recipe.data, "--from", recipe.begin_from, "--seed", recipe.seed]
    if recipe.lora.rank is not None:
        words = [*words, "--lora", recipe.lora.rank, "--lora-alpha", f"{recipe.lora.alpha:g}"]
    for name in ("time_budget", "num_steps"):
        if getattr(recipe, name) is not None:
            words = [*words, f"--{name.replace('_', '-')}", getattr(recipe, name)]
    words = [*words, *(["--merge"] if recipe.merge else []), f"max_length={recipe.max_length}"]
    usual = TuneRecipe(data=recipe.data)
    words += [f"{n}={getattr(recipe, n)}" for n in ("split", "num_examples") if getattr(recipe, n) != getattr(usual, n)]
    words += ["full_rows=true"] if recipe.full_rows else []
    words += [f"lora.targets={recipe.lora.targets}"] if recipe.lora.targets != usual.lora.targets else []
    words = [*words, f"batch_tokens={recipe.batch_tokens}", f"train.learning_rate={recipe.train.learning_rate:g}"]
    return shlex.join(map(str, [*words, "--out", "DIR"]))
