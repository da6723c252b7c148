"""Autoregressive models: the same prompt memory and blocks as Manta-LM's policy, causal.

Its parts carry the names of Manta-LM's (`embedding`, `memory_encoder`, a trunk that reads the memory), so that a
trained one can serve as a teacher and as the policy's first weights.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import RequestError, UsageError
from manta.families.asked import check_options
from manta.families.batching import padded_prompts, repeated_rows
from manta.families.canvas import Prompts, Template, prompt_tokens
from manta.families.events import Event, GenerateOptions, Request
from manta.families.model import OperatorChoice
from manta.families.observer import Beginning, Observer
from manta.families.prompted import Memory, PromptedConfig, PromptedModel, resolved
from manta.families.trained import LogLikelihood, Taught, Teaching, TrainedWriter
from manta.nets.head import Head
from manta.nets.layout import columnwise
from manta.nets.trunk import Trunk
from manta.operators import AttentionConfig, OperatorContext, line
from manta.runtime import check_likelihood, check_logits, make_generator
from manta.text import BOS, EOS, MASK, Batch
from manta.types import Loss


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(PromptedConfig):
    """Shape of an autoregressive model."""

    family: Literal["ar"] = "ar"
    """Which family this is."""
    operator: OperatorChoice = field(default_factory=AttentionConfig)
    """How a position acts on later ones."""


class AutoregressiveModel(PromptedModel):
    """Next-token model of a text given a prompt.

    Args:
        config: shape.
    """

    begin, end = BOS, EOS

    def __init__(self, config: AutoregressiveConfig) -> None:
        shape = resolved(config)
        super().__init__(
            shape,
            num_lengths=None,
            num_places=max(shape.max_prompt, shape.max_text) + 1 if shape.absolute_places else 0,
        )
        self.trunk = Trunk(shape.dim, shape.depth, shape.operator, heads=shape.heads, cross=True, causal=True)

    def forward(self, tokens: Int64[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b n v"]:
        """Logits of the token after each of `tokens`, the first of which is `begin`."""
        return self.head(self.hidden(tokens, memory))

    def hidden(self, tokens: Int64[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b n d"]:
        """What the logits are read from, of the same arguments."""
        context = OperatorContext(line(tokens.shape[1], tokens.device))
        return self.trunk(self.embed(tokens), context, memory=self.trunk.project(memory.states, memory.mask))


def shifted(model: AutoregressiveModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What is given, what is to be told, and where: "b n+1" each, the closing token included."""
    b, n = batch.text.shape
    place = torch.arange(n + 1, device=batch.text.device)[None]
    lengths = batch.text_lengths[:, None]
    closing = batch.text.new_full((b, 1), model.end)
    target = torch.where(place < lengths, torch.cat([batch.text, closing], 1), model.end)
    given = torch.cat([batch.text.new_full((b, 1), model.begin), target[:, :-1]], 1)
    return given, target, place <= lengths


class NextToken:
    """Exact negative log-likelihood in nats a token, the closing token included."""

    def __call__(self, model: AutoregressiveModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with part nats (a token)."""
        given, target, asked = shifted(model, batch)
        memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
        logits = model(given, memory)
        nats = F.cross_entropy(logits[asked].float(), target[asked])
        return Loss(nats, {"nats": nats.detach()}, int(asked.sum()))


@torch.no_grad()
def log_likelihood(model: AutoregressiveModel, batch: Batch) -> Float[Tensor, "b"]:
    """Exact log-likelihood of each text given its prompt, in nats, the closing token included."""
    given, target, asked = shifted(model, batch)
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
    nats = F.cross_entropy(model(given, memory).float().transpose(1, 2), target, reduction="none")
    # A running sum is the same however far the batch is padded.
    total = (nats * asked).double().cumsum(1)[:, -1].float()
    check_likelihood(total)
    return -total


def truncate(logits: Float[Tensor, "b v"], *, top_k: int | None = None, top_p: float = 1.0) -> Float[Tensor, "b v"]:
    """Set the logits of words that must not be sampled to −inf.

    Args:
        logits: after division by the temperature.
        top_k: keep the k likeliest words; None keeps all.
        top_p: keep the fewest likeliest words whose probabilities add up to at least this, in (0, 1]
            (nucleus sampling, Holtzman et al., arXiv 1904.09751).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[..., -1:], -torch.inf)
    if top_p < 1:
        ranked, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        dropped = ranked.cumsum(-1) - ranked >= top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


Watch = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""`watch(logits "b v", written) -> logits`: the next word's logits, and the words before it, "b" each."""


@torch.inference_mode()
def decode(
    model: AutoregressiveModel,
    memory: Memory,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generators: Sequence[torch.Generator] = (),
    given: Int64[Tensor, "b n"] | None = None,
    watch: Watch | None = None,
) -> Iterator[Int64[Tensor, "b"]]:
    """Decode token by token, each step computing one position; yields the next token of every row.

    Rows that have ended keep yielding `model.end`. Stops when all have. A row's tokens do not depend on the others
    (`families.batching`): fewer than four rows are computed as four.

    Args:
        model: the model.
        memory: encoded prompts.
        max_tokens: most tokens to decode.
        temperature: 0 takes the most likely token; above, samples from softmax(logits/temperature).
        top_k, top_p: see `truncate`.
        generators: one a row, needed when sampling.
        given: words that are kept, the mask token where the model writes; at least `max_tokens` wide.
        watch: sees the logits of the next word and the words before it, and may change them.

    Raises:
        UsageError: when sampling without a generator for every row.
        ModelError: logits that no word can be chosen from.
    """
    b = len(memory.states)
    if temperature > 0 and len(generators) != b:
        raise UsageError(f"sampling {b} rows needs {b} generators, received {len(generators)}")
    states = repeated_rows(memory.states)
    trunk: Trunk = model.trunk
    head: Head = model.head
    if states.device.type == "cpu" and states.dtype is torch.float32:
        trunk = columnwise(trunk)
    projected = trunk.project(states, repeated_rows(memory.mask))
    context = OperatorContext(line(max_tokens, states.device))
    cache = trunk.new_cache()
    token = torch.full((len(states),), model.begin, device=states.device)
    ended = torch.zeros(b, dtype=torch.bool, device=states.device)
    written: list[Tensor] = []
    for place in range(max_tokens):
        x, span = model.embed(token[:, None], place), context.span(place, place + 1)
        hidden = trunk(x, span, memory=projected, cache=cache)
        logits = head(hidden)[:b, 0].float()
        check_logits(logits, 2 + place)
        if watch is not None:
            logits = watch(logits, written)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            # Below the greatest logit, so that no temperature is too low for a number.
            below = (logits.double() - logits.amax(-1, keepdim=True)) / temperature
            chance = truncate(below.float(), top_k=top_k, top_p=top_p).softmax(-1).cpu()
            drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(chance, generators, strict=True)]
            token = torch.cat(drawn).to(logits.device)
        if given is not None:
            token = torch.where(given[:, place] == MASK, token, given[:, place])
        token = token.masked_fill(ended, model.end)
        ended = ended | (token == model.end)
        written.append(token)
        yield token
        if bool(ended.all()):
            return
        token = repeated_rows(token)


class AutoregressiveLM(TrainedWriter[AutoregressiveModel]):
    """An autoregressive model with its tokenizer, ready to write.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
    """

    family = "ar"
    observed = True
    likelihood = "exact"
    estimator = "chain rule"
    config_class, net_class = AutoregressiveConfig, AutoregressiveModel

    @classmethod
    def stages(cls, net: AutoregressiveModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """One stage, of a model that may teach others."""
        return [Taught("teacher", 1.0, NextToken())]

    def log_likelihood(
        self, batch: Batch, generators: Sequence[torch.Generator] = (), num_samples: int = 128
    ) -> LogLikelihood:
        """Exact: nothing is drawn."""
        return LogLikelihood(kind="exact", value=log_likelihood(self.model, batch))

    @contextmanager
    def endless(self) -> "Iterator[AutoregressiveLM]":
        """The model with no token that ends a text, so that every text has its full length."""
        end, self.model.end = self.model.end, -1
        try:
            yield self
        finally:
            self.model.end = end

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that such a model does not follow, or that do not fit each other; see `RequestWriter`."""
        check_options(options, self.family)

    def read(self, request: Request, options: GenerateOptions) -> tuple[list[int], int]:
        """Tokens of the prompt, and the seed; a text to fill cannot be served left to right. See `RequestWriter`."""
        if request.infill is not None:
            raise RequestError("an autoregressive model writes left to right and cannot fill blanks")
        return prompt_tokens(request, self.tokenizer, self.model.config.max_prompt), request.seed

    def write_rows(
        self, rows: Sequence[tuple[list[int], int]], options: GenerateOptions, batch_size: int, observer: Observer
    ) -> Iterator[Event]:
        """Left to right, one network call a token, prompts of like lengths side by side; see `RequestWriter`."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            generators = [make_generator(rows[i][1]) for i in chosen]
            texts = self._decode([rows[i][0] for i in chosen], generators, options, observer)
            for index, (words, nfe) in zip(chosen, texts, strict=True):
                text = self.tokenizer.decode(words).strip()
                yield Event("done", index, text, tuple(words), 1.0, float("nan"), nfe)

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        """Every text has the room of the longest."""
        memory = self.model.memory(batch.tokens, batch.lengths, torch.zeros_like(batch.lengths), encode=encode)
        tokens = torch.full((len(templates), self.capacity), MASK, device=self.device)
        return Beginning(memory, tokens, torch.ones_like(tokens, dtype=torch.bool), batch.generators)

    @torch.no_grad()
    def follow(self, beginning: Beginning, observer: Observer) -> Int64[Tensor, "b n"]:
        """Write on from a beginning, the likeliest word everywhere, until every text has ended.

        The observer sees the logits of the next word behind zeros at the words before it, and those words with the mask
        token behind them.

        Args:
            beginning: from `begin`, or with a prefix given.
            observer: who watches.

        Returns:
            The texts, `end` behind each, as wide as the longest.
        """
        given = beginning.tokens
        steps = decode(
            self.model, beginning.memory, max_tokens=given.shape[1], given=given, watch=_watched_by(observer)
        )
        return torch.stack(list(steps), 1)

    def _decode(
        self,
        prompts: list[list[int]],
        generators: list[torch.Generator],
        options: GenerateOptions,
        observer: Observer,
    ) -> list[tuple[list[int], int]]:
        """Each row's tokens and network calls: the prompt's, one a token and, unless the text was cut, the end's."""
        device = self.model.embedding.weight.device
        prompt, lengths = padded_prompts(prompts, device)
        memory = self.model.memory(prompt, lengths, torch.zeros_like(lengths))
        steps = decode(
            self.model,
            memory,
            max_tokens=min(self.model.config.max_text, options.max_tokens or sys.maxsize),
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            generators=generators,
            watch=_watched_by(observer),
        )
        rows = torch.stack(list(steps), 1).tolist()
        ends = [row.index(self.model.end) if self.model.end in row else None for row in rows]
        return [(row[:end], 1 + (len(row) if end is None else end + 1)) for row, end in zip(rows, ends, strict=True)]


def _watched_by(observer: Observer) -> Watch | None:
    """What an observer sees and says of the next word, in the terms of a whole text; None where it changes nothing."""
    if type(observer) is Observer:
        return None

    def watch(logits: Tensor, written: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode(False):  # whoever watches may ask for a gradient
            told = logits.clone()[:, None]
            settled = torch.stack([word.clone() for word in written] + [torch.full_like(told[:, 0, 0], MASK).long()], 1)
            nothing = torch.zeros_like(told).expand(-1, len(written), -1)
            return observer.logits(torch.cat([nothing, told], 1), settled)[:, -1]

    return watch
