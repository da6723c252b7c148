"""Published causal models of Llama's and GPT-NeoX's kind: prompt and text are one row, read left to right.

They are read from their folder (`hub.foreign.causal`) and may be converted: any causal operator can stand where their
attention was. One that is trained from nothing has Llama's layout, and can be exported as such (`hub.export`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.autoregressive import after
from manta.errors import ConfigError, UsageError
from manta.families.autoregressive import AutoregressiveLM, AutoregressiveModel
from manta.families.batching import padded_width
from manta.families.cached import CachedReader
from manta.families.canvas import Prompts, Template
from manta.families.drafters import RecurrentDrafter
from manta.families.events import GenerateOptions
from manta.families.next_words import Line
from manta.families.observer import Beginning, Observer
from manta.families.prompted import Memory, PromptedConfig, resolved
from manta.families.trained import Taught, Teaching, TrainedWriter
from manta.nets.decoder import DecoderStyle, DecoderTrunk, Norm
from manta.nets.head import Head
from manta.operators import AttentionConfig, OperatorChoice, OperatorContext, line
from manta.text import BOS, EOS, Batch, Corpus, ForeignTokenizer, Tokenizer


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(PromptedConfig):
    """Shape of a published causal model; what is not set is Llama's.

    `max_text` are the tokens of a row, prompt and text together, of which a prompt leaves one at least.
    """

    family: Literal["decoder"] = "decoder"
    """Which family this is."""
    norm: Norm = "rms"
    """See `DecoderStyle`."""
    eps: float = 1e-6
    """See `DecoderStyle`."""
    parallel: bool = False
    """See `DecoderStyle`."""
    gated: bool = True
    """See `DecoderStyle`."""
    mlp_bias: bool = False
    """See `DecoderStyle`."""
    tied: bool = False
    """Words are told by the table that they are read by."""
    operator: OperatorChoice = field(default_factory=lambda: AttentionConfig(normalised=False, rotary_base=10000.0))
    """See `PromptedConfig`."""
    begin: int = BOS
    """Token before the first of a row."""
    end: int = EOS
    """Token that ends a text."""
    draft_horizon: int = 0
    """Words ahead that a drafter of its own is taught, in a last stage, so that several are written a call; 0: no such
    stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps >= 0:
            raise ConfigError(f"eps should be 0 or more, received {self.eps}")
        if self.draft_horizon < 0:
            raise ConfigError(f"draft_horizon should be 0 or more, received {self.draft_horizon}")
        for name in ("begin", "end"):
            token = getattr(self, name)
            if self.vocab_size is not None and not 0 <= token < self.vocab_size:
                raise ConfigError(f"{name} is {token}, outside the vocabulary of {self.vocab_size}")

    @property
    def style(self) -> DecoderStyle:
        """What tells this kind of decoder from another."""
        how = {"norm": self.norm, "eps": self.eps, "parallel": self.parallel}
        return DecoderStyle(**how, gated=self.gated, mlp_bias=self.mlp_bias)


class DecoderModel(AutoregressiveModel):
    """Next-token model of a row: a beginning, the prompt's tokens, the text's, and an end.

    Args:
        config: shape.
    """

    def __init__(self, config: DecoderConfig) -> None:
        nn.Module.__init__(self)
        self.config = shape = resolved(config)
        self.begin, self.end = shape.begin, shape.end
        self.embedding = nn.Embedding(shape.vocab_size, shape.dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        hidden = shape.hidden or 4 * shape.dim
        self.trunk = DecoderTrunk(
            shape.dim, shape.depth, shape.mix, heads=shape.heads, hidden=hidden, style=shape.style
        )
        self.head = Head(self.embedding) if shape.tied else nn.Linear(shape.dim, shape.vocab_size, bias=False)
        self.places = self.length = self.tasks = None
        self.styles = False
        self.longest = shape.max_text
        """Tokens of a text that may be a window of a longer one."""
        self.drafter = RecurrentDrafter(self, shape.draft_horizon, prompted=False) if shape.draft_horizon else None

    def memory(
        self,
        prompt: Int64[Tensor, "b p"],
        lengths: Int64[Tensor, "b"],
        kind: Int64[Tensor, "b"],
        *,
        encode: bool = True,
        task: Int64[Tensor, "b"] | None = None,
    ) -> Memory:
        """Empty: a prompt is part of the row."""
        empty = self.embedding.weight.new_zeros(len(prompt), 0, self.config.dim)
        return Memory(empty, torch.zeros(len(prompt), 0, dtype=torch.bool, device=empty.device))

    def hidden(self, tokens: Int64[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b n d"]:
        """What the logits are read from, of whole rows."""
        return self.trunk(self.embedding(tokens), OperatorContext(line(tokens.shape[1], tokens.device)))

    def shifted(self, batch: Batch) -> tuple[Int64[Tensor, "b k"], Int64[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """What is given, what is to be told, and where: rows of prompt and text, of which the text is asked.

        The end is asked too, unless the text has `longest` tokens: then it may be a window of a longer one.
        """
        prompt, text = batch.prompt, batch.text
        prompts, texts = batch.prompt_lengths[:, None], batch.text_lengths[:, None]
        width = padded_width(prompt.shape[1] + text.shape[1] + 1)
        place = torch.arange(width, device=text.device).expand(len(text), -1)
        both = torch.cat([prompt, text], 1)
        in_text = place - prompts
        source = torch.where(in_text < 0, place, prompt.shape[1] + in_text).clamp_max(both.shape[1] - 1)
        target = torch.where(in_text < texts, both.gather(1, source), self.config.end)
        given = torch.cat([target.new_full((len(target), 1), self.begin), target[:, :-1]], 1)
        ended = texts < self.longest
        return given, target, (in_text >= 0) & (in_text < texts + ended.long())


UNBOUNDED = 128
"""Tokens of a text that is not told how long to be."""


class PrefixedReader(CachedReader):
    """A decoder behind its cache, with prompts of one length read before; see `CachedReader`.

    Args:
        model: the model.
        prompts: tokens of each row's prompt, as many in all.
        room: places that are read at most, those of the prompts not included.
    """

    def __init__(self, model: DecoderModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.last = [(model.begin, *prompt)[-1] for prompt in prompts]
        self.behind = len(prompts[0])
        width = padded_width(self.behind)
        empty = torch.zeros(len(prompts), 0, device=model.embedding.weight.device, dtype=torch.long)
        memory = model.memory(empty, empty.sum(1), empty.sum(1))
        super().__init__(model, memory, max(width, self.behind + room))
        if self.behind:
            rows = [[model.begin, *prompt[:-1]] for prompt in prompts]
            if self.multiple > 1:  # places beyond the prompt are computed, read by nobody and replaced
                rows = [row + row[-1:] * (width - self.behind) for row in rows]
            answering, self.context = self.context, OperatorContext(self.context.coordinates)
            super().__call__(rows, [0] * len(rows))  # many places in one call need not be computed one by one
            self.context = answering

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        """See `autoregressive.Reader`; places are counted from the text's first on."""
        return super().__call__(after(self.last, tokens, starts), [start + self.behind for start in starts])


class DecoderLM(AutoregressiveLM):
    """A published causal model with its own tokenizer, ready to write.

    Prompts are read as they are, without a chat's frame. Those of one length are written side by side.
    """

    family = "decoder"
    observed = writes_on = False
    begins_rows = True
    config_class, net_class = DecoderConfig, DecoderModel
    codec_class = ForeignTokenizer

    @classmethod
    def stages(cls, net: Any, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """One stage, of the next token, and its drafter's if it has one."""
        words, *others = super().stages(net, teaching, measured)
        return [replace(words, name="words"), *others]

    @classmethod
    def stored(cls, net: Any, codec: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "DecoderLM":
        """As it is."""
        return cls(net, codec)

    def learn_from(self, corpus: Corpus, teacher: TrainedWriter[Any] | None = None) -> None:
        """Nothing: no words are drafted from a table."""

    def _groups(self, prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
        """Prompts of one length."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for _, alike in groupby(order, key=lambda i: len(prompts[i])):
            rows = list(alike)
            yield from (rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size))

    def _room(self, prompts: Sequence[Sequence[int]]) -> int:
        """What the prompts leave."""
        return self.capacity - len(prompts[0])

    def _steps(self, rows: Sequence[Line], options: GenerateOptions, observer: Observer) -> Any:
        """Up to `UNBOUNDED` tokens where nothing else is asked for."""
        return super()._steps(rows, replace(options, max_tokens=options.max_tokens or UNBOUNDED), observer)

    def _reader(self, rows: Sequence[Line], room: int, drafting: bool) -> CachedReader:
        """Behind the prompts, which are nothing to a drafter but what the hidden vectors know of them."""
        if drafting and self.drafter is not None:
            self.drafter.begin(None)
        return PrefixedReader(self.model, [row.prompt for row in rows], room)  # pyright: ignore[reportArgumentType]

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        raise UsageError("nobody can watch a published causal model write; choose another model")
