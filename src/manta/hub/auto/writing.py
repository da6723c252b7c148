"""How `transformers` asks for texts and is told of them, in terms of manta's requests and events."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import (  # pyright: ignore[reportMissingImports]
    GenerateDecoderOnlyOutput,
)

from manta.config import nearest
from manta.errors import UsageError
from manta.families.asked import follows
from manta.families.events import Event, GenerateOptions, Request, counted
from manta.families.options import read_options
from manta.text import BOS, EOS, MASK, NULL, ForeignTokenizer

LEFT_TO_RIGHT = ("ar", "decoder")
"""Families whose drafts only grow."""
OWN = frozenset(option.name for option in fields(GenerateOptions))
FOLLOWED = ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "num_return_sequences")
HARMLESS = frozenset({"transformers_version", "pad_token_id", "use_cache", "return_dict_in_generate", "tokenizer"})
"""What a pipeline adds, and what changes no text."""
NEUTRAL: Mapping[str, Any] = {"num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1.0, "length_penalty": 1.0}
"""Settings that manta does not follow, with the values that change nothing."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Settings of a call of `generate`."""

    options: GenerateOptions
    """How to write."""
    copies: int
    """Texts a row."""
    in_a_dict: bool
    """The rows are wanted in an output."""


def asked(lm: Any, configs: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> Asked:
    """Settings of `transformers` in terms of manta; the later ones count.

    Args:
        lm: who writes.
        configs: what generation configurations set.
        given: what the call sets, options of manta among it.

    Raises:
        UsageError: for what is not followed.
    """
    merged: dict[str, Any] = {}
    for config in configs:
        merged |= config
    merged |= given
    for name, value in merged.items():
        if name in (*OWN, *FOLLOWED) or name in HARMLESS or _is_nothing(value):
            continue
        if name in NEUTRAL and value == NEUTRAL[name]:
            continue
        if name in ("bos_token_id", "eos_token_id") and value == _ends(lm)[name == "eos_token_id"]:
            continue
        known = nearest(name, (*OWN, *FOLLOWED))
        raise UsageError(f"`{name}` of generation means nothing to a model of manta{known}; leave it out")
    explicit = {**configs[-1], **given} if len(configs) > 1 else given
    options = {name: value for name, value in given.items() if name in OWN and name not in FOLLOWED}
    drawn = merged.get("do_sample") if "do_sample" in explicit or "temperature" not in explicit else True
    if drawn:
        temperature = merged.get("temperature")
        options["temperature"] = 1.0 if temperature is None else temperature
    if drawn or "do_sample" not in explicit:  # else they are as void as the temperature
        options |= {name: merged[name] for name in ("top_k", "top_p") if merged.get(name) is not None}
    most = merged.get("max_new_tokens")
    if most is not None and "max_tokens" not in options:
        most = counted(most, "max_new_tokens", 1)
        if follows(lm.family, "max_tokens") and lm.family != "aligned":
            longer = most > lm.capacity and getattr(lm, "writes_on", lm.family == "block")
            options |= {"max_tokens": most} if most < lm.capacity or longer else {}
        elif most < lm.capacity:
            raise UsageError(
                f"a model of the family {lm.family} decides how long its texts are, {lm.capacity} tokens at most; "
                "leave max_new_tokens out"
            )
    copies = counted(merged.get("num_return_sequences") or 1, "num_return_sequences", 1)
    return Asked(
        options=read_options(options), copies=copies, in_a_dict=bool(merged.get("return_dict_in_generate", False))
    )


def write(lm: Any, rows: Tensor | None, mask: Tensor | None, how: Asked, seed: int, streamer: Any) -> Any:
    """Rows with their texts behind them; see `MantaLanguageModel.generate`."""
    if rows is None:
        rows = torch.zeros(1, 0, dtype=torch.long)
    if streamer is not None and len(rows) * how.copies > 1:
        raise UsageError(f"a streamer follows one text, and {len(rows) * how.copies} are asked for; leave it out")
    seed = counted(seed, "seed", 0)
    prompts = [_prompt(lm, row) for row in _real(rows, mask)]
    requests = [
        Request(prompt=prompt, seed=seed + i * how.copies + j)
        for i, prompt in enumerate(prompts)
        for j in range(how.copies)
    ]
    if streamer is not None:
        streamer.put(rows.cpu())
    said: dict[int, list[int]] = {}
    for event in _followed(lm, lm.generate(requests, how.options), streamer):
        said[event.index] = _said(lm, event)
    pad = lm.model.end if isinstance(lm.tokenizer, ForeignTokenizer) else NULL
    longest = max(map(len, said.values()), default=0)
    padded = [said[index] + [pad] * (longest - len(said[index])) for index in range(len(requests))]
    texts = torch.tensor(padded, dtype=torch.long).reshape(len(requests), longest)
    found = torch.cat([rows.repeat_interleave(how.copies, 0), texts.to(rows.device)], 1)
    return GenerateDecoderOnlyOutput(sequences=found) if how.in_a_dict else found  # pyright: ignore[reportArgumentType]


def _followed(lm: Any, events: Iterator[Event], streamer: Any) -> Iterator[Event]:
    """The finished texts; a streamer is told of what happens until then.

    Raises:
        RequestError: the model cannot serve one of the requests.
    """
    put = 0
    for event in events:
        if event.error is not None:
            raise event.error
        if streamer is not None and event.kind == "draft":
            words = [token for token in event.tokens if token != NULL or isinstance(lm.tokenizer, ForeignTokenizer)]
            if lm.family in LEFT_TO_RIGHT:
                if len(words) > put:
                    streamer.put(torch.tensor(words[put:]))
                put = len(words)
            elif hasattr(streamer, "put_draft"):
                streamer.put_draft(value=torch.tensor(words, dtype=torch.long))
        if event.kind == "done":
            if streamer is not None:
                streamer.put(torch.tensor(_said(lm, event)[put:], dtype=torch.long))
                streamer.end()
            yield event


def _said(lm: Any, event: Event) -> list[int]:
    """Tokens of a finished text: as they were written, or those of the text where that left something out."""
    if lm.family == "decoder":
        return list(event.tokens)
    words = [token for token in event.tokens if token not in (NULL, MASK, BOS, EOS)]
    return words if lm.tokenizer.decode(words) == event.text else lm.tokenizer.encode(event.text)


def _is_nothing(value: Any) -> bool:
    """Whether a setting is left open, switched off or empty."""
    return value is None or value is False or (isinstance(value, list | tuple | dict) and not value)


def _real(rows: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The real tokens of each row."""
    if mask is None:
        return rows.tolist()
    return [row[real != 0].tolist() for row, real in zip(rows.cpu(), mask.cpu(), strict=True)]


def _ends(lm: Any) -> tuple[int, int]:
    """Tokens that begin and end a text."""
    return (lm.model.begin, lm.model.end) if lm.family == "decoder" else (BOS, EOS)


def _prompt(lm: Any, tokens: list[int]) -> str | None:
    """The text that a row's tokens are.

    Raises:
        UsageError: they are not what the tokenizer makes of a text.
    """
    if tokens and tokens[0] == _ends(lm)[0]:
        tokens = tokens[1:]
    if not tokens:
        return None
    text = lm.tokenizer.decode(tokens)
    if lm.tokenizer.encode(text) != tokens:
        raise UsageError(
            "the tokens of a prompt are not those that the model's tokenizer gives its text; make them with "
            "AutoTokenizer.from_pretrained of the same folder, without special tokens"
        )
    return text
