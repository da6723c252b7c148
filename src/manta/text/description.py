"""Figures about a data set, to see before a run is wasted on it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from manta.errors import DataError
from manta.text.corpus import chunks
from manta.text.example import Example
from manta.text.hashing import HashIndex, digest
from manta.text.tokenizers import SPECIALS, Tokenizer

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True)
class Description:
    """Figures about a data set under a tokenizer; shares lie in [0, 1]."""

    examples: int
    """Examples read."""
    prompts: int
    """Distinct prompts."""
    without_prompt: int
    """Examples with text and without a prompt; an empty prompt is none."""
    empty: int
    """Examples without text, which `corpus.build` drops."""
    duplicates: int
    """Examples that equal an earlier one, which it drops."""
    long_prompts: int
    """Pairs whose prompt is longer than the model's, which it drops."""
    long_texts: int
    """Pairs whose text is longer than the model's, which it drops."""
    windowed: int
    """Texts without a prompt that are longer than the model's, which it cuts into windows."""
    rows: int
    """What is left to train on, windows counted one by one."""
    bytes_per_token: float
    """UTF-8 bytes of the texts over their tokens: near 1, the vocabulary does not cover the texts."""
    unused_vocabulary_share: float
    """Share of the vocabulary, specials apart, that neither a prompt nor a text uses."""
    text_quantiles: dict[float, int]
    """Tokens a text, at each of `QUANTILES`."""
    prompt_quantiles: dict[float, int]
    """Tokens a prompt, at each of `QUANTILES`; empty without prompts."""


def describe(examples: Iterable[Example], tokenizer: Tokenizer, max_prompt: int, max_text: int) -> Description:
    """Reads a data set once, in the memory bound of `corpus.build`, and measures it.

    Args:
        examples: read once.
        tokenizer: what the model will use.
        max_prompt: longest prompt of the model, in tokens.
        max_text: longest text of the model, in tokens.

    Returns:
        The figures.

    Raises:
        DataError: no example has text, or the examples are broken.
    """
    seen, prompt_index = HashIndex(), HashIndex()
    used = np.zeros(tokenizer.vocab_size, dtype=bool)
    text_counts, prompt_counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    counts: dict[str, int] = dict.fromkeys(
        ("without_prompt", "duplicates", "long_prompts", "long_texts", "windowed", "rows"), 0
    )
    total = empty = byte_count = 0
    for chunk in chunks(examples):
        whole = [example for example in chunk if example.text.strip()]
        total += len(chunk)
        empty += len(chunk) - len(whole)
        _, fresh = seen.add([digest(e.prompt, e.text, str(e.tag)) for e in whole])
        prompt_index.add([digest(e.prompt) for e in whole if e.prompt is not None])
        texts = tokenizer.encode_batch([e.text for e in whole])
        prompts = tokenizer.encode_batch([e.prompt or "" for e in whole])
        for example, text, prompt, first in zip(whole, texts, prompts, fresh, strict=True):
            for name, count in _fate(example, len(text), len(prompt), max_prompt, max_text, bool(first)):
                counts[name] += count
        byte_count += sum(len(e.text.encode("utf-8")) for e in whole)
        used[np.array([i for row in (*texts, *prompts) for i in row], dtype=np.int64)] = True
        text_counts = _counted(text_counts, [len(row) for row in texts])
        prompt_counts = _counted(
            prompt_counts, [len(row) for row, e in zip(prompts, whole, strict=True) if e.prompt is not None]
        )
    kept = total - empty
    if kept == 0:
        raise DataError(f"none of {total} examples has text; give data with at least one")
    return Description(
        examples=total,
        prompts=len(prompt_index),
        empty=empty,
        **counts,
        bytes_per_token=byte_count / int(text_counts @ np.arange(len(text_counts))),
        unused_vocabulary_share=1 - int(used.sum()) / (tokenizer.vocab_size - len(SPECIALS)),
        text_quantiles=_quantiles(text_counts),
        prompt_quantiles=_quantiles(prompt_counts),
    )


def _fate(
    example: Example, text: int, prompt: int, max_prompt: int, max_text: int, fresh: bool
) -> Iterator[tuple[str, int]]:
    """What becomes of an example with so many tokens in `corpus.build`, in the order in which it decides."""
    if not example.prompt:
        yield "without_prompt", 1
    if not fresh:
        yield "duplicates", 1
    elif prompt > max_prompt:
        yield "long_prompts", 1
    elif text > max_text and example.prompt is not None:
        yield "long_texts", 1
    else:
        yield "windowed", int(text > max_text)
        yield "rows", -(-text // max_text)


def _counted(counts: np.ndarray, values: list[int]) -> np.ndarray:
    """Adds values to a histogram of unit bins, which grows to hold them."""
    new = np.bincount(values, minlength=len(counts)) if values else np.zeros(len(counts), dtype=np.int64)
    new[: len(counts)] += counts
    return new


def _quantiles(counts: np.ndarray) -> dict[float, int]:
    """The smallest length that at least a share q of the examples does not exceed, for each q."""
    if not counts.sum():
        return {}
    below = np.cumsum(counts)
    return {q: int(np.searchsorted(below, max(1, np.ceil(q * below[-1])))) for q in QUANTILES}
