"""A published masked model in one form for every decoder, and how it is loaded."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor, nn

from manta.errors import ModelError, RequestError, UsageError
from manta.families.asked import check_options
from manta.families.canvas import Piece, by_blank, check_length, check_strength, filled, partly_hidden, pieces_of
from manta.families.decoding import batches, canvas_events, chosen_decoder, keeps_words, write_canvas
from manta.families.events import Event, GenerateOptions, Request
from manta.families.observer import Observer
from manta.families.serving import RequestWriter
from manta.hub.foreign import dream, llada, mdlm
from manta.hub.foreign.causal import CAUSAL_KINDS, CausalKind
from manta.hub.foreign.chat import ChatFrame, find_frame
from manta.hub.foreign.checkpoint import Change, load_weights
from manta.hub.foreign.decoder import DecoderNet
from manta.hub.foreign.denoisers import RowDenoiser, SpanOfRow
from manta.hub.foreign.layout import Layout, read_json
from manta.masked import Canvas, DecoderConfig
from manta.runtime import make_generator, resolve_device
from manta.text.foreign import ForeignTokenizer

Kind = Literal["llada", "Dream", "mdlm"]
KINDS: tuple[Kind, ...] = ("llada", "Dream", "mdlm")
"""Layouts that manta reads, by the `model_type` of their config.json."""


MAX_TOKENS = 128
"""Tokens of a text that is not told how long to be."""


@dataclass(frozen=True)
class _Row:
    """A request in tokens."""

    prompt: list[int]
    """What is given before the text, a chat's frame included."""
    canvas: list[int]
    """The text, the mask token where a word is to be written."""
    blanks: tuple[int, ...]
    """Places of a text to fill that are not given."""
    pieces: tuple[Piece, ...]
    """What is given of a text to fill; none of a free one."""
    seed: int


@dataclass(frozen=True, kw_only=True, repr=False)
class ForeignModel(RequestWriter):
    """A published masked model, ready to write, and for any decoder a callable from tokens to logits.

    The contract of the callable, whatever the layout:

    - `model(tokens, attention_mask=None)`, also named `logits`, is one network call on a whole batch of rows. Hidden
      words carry `mask_id`; every token attends to every real one.
    - Its logits are float32, "b n v", on the model's device. Those at position i are of token i: a layout that predicts
      a token at the position before it is shifted here.
    - The mask token's logit is −∞, so that its softmax is over words. All others are finite and unnormalised; at
      positions that hold a word, they are the net's own and mean nothing to a decoder.
    - Nothing is drawn at random and nothing is kept between calls.
    """

    family: Kind
    """The layout."""
    net: nn.Module
    """`net(tokens, mask) → logits` as published: neither shifted nor without the mask token."""
    tokenizer: ForeignTokenizer | None
    """Of the folder; None where it has none, and the model then speaks token ids only."""
    vocab_size: int
    """v, rows of the token table; ids beyond the tokenizer's are unused."""
    max_length: int
    """Most tokens of a row that the checkpoint says it is made for."""
    mask_id: int
    """The mask token."""
    eos_id: int | None
    """The end of a text; None where texts have no end of their own."""
    pad_id: int | None
    """What the checkpoint pads with; a padded position is also False in the attention mask."""
    shifted: bool
    """The net predicts token i at position i − 1; the first token, which has none before it, at its own."""
    frame: ChatFrame | None = None
    """What an instruct model's chat template puts around a prompt; None gives prompts as they are."""
    fills: ClassVar[bool] = True
    begins_rows: ClassVar[bool] = True
    changes: ClassVar[bool] = True

    def __repr__(self) -> str:
        """What it is, how large, and how much it reads and writes."""
        size = sum(p.numel() for p in self.net.parameters())
        return (
            f"<ForeignModel: {self.family}, {size:,} parameters, rows of up to {self.max_length} tokens, {self.device}>"
        )

    def __call__(
        self, tokens: Int64[Tensor, "b n"], attention_mask: Shaped[Tensor, "b n"] | None = None
    ) -> Float32[Tensor, "b n v"]:
        """See `logits`."""
        return self.logits(tokens, attention_mask)

    @torch.no_grad()
    def logits(
        self, tokens: Int64[Tensor, "b n"], attention_mask: Shaped[Tensor, "b n"] | None = None
    ) -> Float32[Tensor, "b n v"]:
        """Logits of every token of every row; one network call.

        Args:
            tokens: in [0, vocab_size), the mask token where a word is hidden.
            attention_mask: not 0 where a token is real, 0 at padding, whose logits have no meaning; None: all are.
        """
        mask = None if attention_mask is None else attention_mask.to(self.device) != 0
        if mask is not None and bool(mask.all()):
            mask = None  # attention is faster without one
        logits = self.net(tokens.to(self.device), mask).float()
        if self.shifted:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        logits[..., self.mask_id] = -torch.inf
        return logits

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that do not fit each other, the decoder or the net; see `RequestWriter`."""
        check_options(options, self.family)
        chosen_decoder(options)
        if options.cache != "none" and not isinstance(self.net, DecoderNet):
            raise UsageError(f"a {self.family} model has no {options.cache} cache; set `cache` to none")

    def write_rows(
        self, rows: "Sequence[_Row]", options: GenerateOptions, batch_size: int, observer: Observer
    ) -> Iterator[Event]:
        """Free texts side by side; an end that is committed ends the text.

        In a text to fill, a blank's tokens that turn out to be ends vanish. See `RequestWriter`.
        """
        filled, decoder = [bool(row.pieces) for row in rows], chosen_decoder(options)
        alone = options.cache != "none" or any(filled)  # blanks differ in length, and draws are made for the longest
        for chosen in batches(filled, 1 if alone else batch_size):
            for events in self._write([rows[i] for i in chosen], options, decoder, ends=not filled[chosen[0]]):
                yield from (replace(event, index=chosen[event.index]) for event in events)

    def read(self, request: Request, options: GenerateOptions) -> _Row:
        """A request in tokens, its prompt in the model's chat frame, if it has one; see `RequestWriter`.

        Raises:
            RequestError: the folder has no tokenizer, or prompt and text do not fit the model.
        """
        if self.tokenizer is None:
            raise RequestError(
                "the model's folder has no tokenizer, so it speaks token ids only: put its tokenizer.json there, or "
                "call manta.hub.llada.generate(model, token_ids)"
            )
        text, encode = request.prompt or "", self.tokenizer.encode
        text = text if text.strip() else ""  # white space alone is no prompt, as everywhere
        check_length(text, self.max_length, self.tokenizer.longest)
        if text and self.frame is not None:
            prompt = self.frame.encode(text, self.tokenizer, request.history)
        else:
            prompt = encode(text)
        room = self.max_length - len(prompt)
        if room < 1:
            raise RequestError(
                f"the prompt takes {len(prompt)} tokens of the model's {self.max_length}, which leaves no room for a "
                f"text; shorten it: {text[:60]!r}"
            )
        pieces: tuple[Piece, ...] = ()
        canvas = [self.mask_id] * min(options.max_tokens or MAX_TOKENS, room)
        old, blanks = list(canvas), []
        if request.infill is not None:
            pieces = pieces_of(request.infill, room, self.tokenizer.longest, lambda words, start: encode(words))
            canvas, old = [], []
            for piece in pieces:
                canvas += encode(piece.encoded)
                blanks += range(len(canvas), len(canvas) + piece.blank)
                # A place that words may grow into stays hidden: there is no token for no word.
                old += [*canvas[len(old) :], *piece.old, *[self.mask_id] * (piece.blank - len(piece.old))]
                canvas += [self.mask_id] * piece.blank
        if len(canvas) > room:
            raise RequestError(
                f"the text to fill takes {len(canvas)} tokens with its blanks, the model has room for {room}; shorten "
                "it or its blanks"
            )
        changed = any(piece.old for piece in pieces)
        check_strength(changed, options)
        if changed:
            how = (self.mask_id, self.mask_id, options.strength, make_generator(request.seed))
            canvas = partly_hidden(canvas, old, *how)
        return _Row(prompt, canvas, tuple(blanks), pieces, request.seed)

    def _write(
        self, rows: Sequence[_Row], options: GenerateOptions, decoder: DecoderConfig, *, ends: bool
    ) -> Iterator[list[Event]]:
        """Events of each call, and at last those of the finished texts."""
        n = max(len(row.canvas) for row in rows)
        filler = 0 if self.mask_id else 1  # any word: what lies beyond a row's canvas is never seen
        tokens = torch.tensor([row.canvas + [filler] * (n - len(row.canvas)) for row in rows], device=self.device)
        mask = torch.tensor([[place < len(row.canvas) for place in range(n)] for row in rows], device=self.device)
        if options.cache == "none":
            denoiser = RowDenoiser(self.logits, [row.prompt for row in rows], mask)
        else:
            assert isinstance(self.net, DecoderNet)
            denoiser = SpanOfRow(self.net, rows[0].prompt, shifted=self.shifted, device=self.device)
        texts = [partial(self._text, row) for row in rows]
        assert self.tokenizer is not None
        whole = self.tokenizer.whole if ends and keeps_words(decoder) else None
        canvas: Canvas | None = None
        for canvas in write_canvas(
            denoiser,
            tokens,
            decoder,
            options,
            mask_id=self.mask_id,
            generators=[make_generator(row.seed) for row in rows],
            width=min(options.max_tokens or MAX_TOKENS, self.max_length) if ends else n,
            end_id=self.eos_id if ends else None,
            ends_last=ends and options.ends_last,
            max_calls=options.num_steps,
        ):
            yield canvas_events(canvas, mask, texts, 0, "draft", whole=whole)
        assert canvas is not None, "a canvas has something to write"
        yield canvas_events(canvas, mask, texts, 0, "done")

    def _text(self, row: _Row, words: list[int]) -> str:
        """What a canvas says: a free text up to its end; a text to fill with its blanks filled, where ends vanish."""
        assert self.tokenizer is not None
        tokenizer, stops = self.tokenizer, {self.eos_id}
        if self.frame is not None:
            stops.add(tokenizer.id_of(self.frame.end))

        def decode(tokens: Iterable[int], start: bool = True) -> str:
            return tokenizer.decode([token for token in tokens if token != self.mask_id and token not in stops])

        if row.pieces:
            return filled(row.pieces, by_blank(row.pieces, [words[place] for place in row.blanks]), decode)
        return decode(takewhile(lambda word: word not in stops, words))

    @property
    def capacity(self) -> int:
        """Most tokens of a text, without a prompt."""
        return self.max_length

    @contextmanager
    def endless(self) -> "Iterator[ForeignModel]":
        """The model with no token that ends a text, so that every text has its full length."""
        yield replace(self, eos_id=None)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.net.parameters()).device


def find_foreign(folder: str | Path) -> Kind | CausalKind | None:
    """Say which published layout a folder holds, if any.

    Args:
        folder: a model folder.

    Returns:
        The layout; None for a folder that manta wrote, or that has no readable `config.json` with a `model_type`.

    Raises:
        ModelError: the `model_type` is one that manta does not read.
    """
    file = Path(folder) / "config.json"
    try:
        config = read_json(file)
    except ModelError:
        return None
    if "format" in config or "model_type" not in config:
        return None
    for kind in (*KINDS, *CAUSAL_KINDS):
        if config["model_type"] == kind:
            return kind
    known = ", ".join((*KINDS, *CAUSAL_KINDS))
    raise ModelError(f"{file} has the model_type {config['model_type']!r}; manta reads {known}")


def load_foreign(
    folder: str | Path, device: str | None = None, *, dtype: torch.dtype | None = None, change: Change | None = None
) -> ForeignModel:
    """Load a published masked model through manta's own layers; no code of the folder is run.

    Args:
        folder: with `config.json` and safetensors, one file or shards with their index; and a tokenizer, if any.
        device: where to put it; None: the first CUDA device, else the CPU.
        dtype: of the weights; None: bfloat16 for `llada` and `Dream`, which are published so, float32 for `mdlm`.
        change: what becomes of each published weight as it is read; None: nothing.

    Returns:
        The model; see `ForeignModel` for what a decoder may rely on.

    Raises:
        ModelError: the layout or one of its options is unknown, or a file is missing, damaged, a pickle, or not what
            `config.json` says; the message names it.
    """
    folder = Path(folder)
    layout, model = _described(folder)
    how = {"dtype": dtype or layout.dtype, "constants": layout.constants, "change": change}
    load_weights(layout.net, folder, layout.names, device=resolve_device(device), **how)
    return model


def describe_foreign(folder: str | Path) -> ForeignModel:
    """A published masked model without its weights, its net on the meta device.

    Args:
        folder: as for `load_foreign`.

    Raises:
        ModelError: as for `load_foreign`, the weights aside.
    """
    return _described(Path(folder))[1]


def _described(folder: Path) -> tuple[Layout, ForeignModel]:
    kind = find_foreign(folder)
    file = folder / "config.json"
    config = read_json(file)
    if kind not in KINDS:
        raise ModelError(f"{file} is not that of a published masked model; manta reads {', '.join(KINDS)}")
    try:
        layout = {"llada": llada.read, "Dream": dream.read, "mdlm": mdlm.read}[kind](config, file)
    except (RuntimeError, ArithmeticError) as error:  # sizes beyond what torch counts
        raise ModelError(f"{file} does not describe a model that can be built ({error}); copy it again") from error
    tokenizer = _tokenizer(folder, layout)
    return layout, ForeignModel(
        family=kind,
        net=layout.net.eval(),
        tokenizer=tokenizer,
        vocab_size=layout.vocab_size,
        max_length=layout.max_length,
        mask_id=layout.mask_id,
        eos_id=layout.eos_id,
        pad_id=layout.pad_id,
        shifted=layout.shifted,
        frame=None if tokenizer is None else find_frame(folder, tokenizer),
    )


def _tokenizer(folder: Path, layout: Layout) -> ForeignTokenizer | None:
    return ForeignTokenizer.of_folder(folder, split=layout.split, most=layout.vocab_size)
