"""A trained model with a smaller vocabulary: the tokens that its data need, with the weights they have."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from manta.errors import ConfigError, DataError
from manta.families.prompted import PromptedConfig, PromptedModel
from manta.hub.folder import LanguageModel
from manta.recipes.conversion import MEASURED, mean_parts
from manta.recipes.recipe import Recipe
from manta.recipes.text_conversion import task_of_model, to_batches
from manta.text import Example, ForeignTokenizer, Shrunk, Tokenizer, read, shrink
from manta.text.corpus import chunks


@dataclass(frozen=True)
class Side:
    """A model with one of its vocabularies."""

    tokens: int
    """Of the vocabulary."""
    parameters: int
    """Of the model."""
    vocabulary_share: float
    """Share of its parameters that the vocabulary takes."""
    tokens_a_byte: float
    """Of the data."""
    fitting: float
    """Share of the held-out examples whose prompt and text fit the model."""
    nats_a_byte: float
    """Of the held-out texts that fit it with either vocabulary, by the family's own task."""


@dataclass(frozen=True)
class Shrinking:
    """What became of a model whose vocabulary was made smaller."""

    model: LanguageModel
    """With the smaller one."""
    found: Shrunk
    """Its tokenizer."""
    before: Side
    """As it was."""
    after: Side
    """As it is."""


def shrink_vocabulary(lm: LanguageModel, data: str, coverage: float, tell: Callable[[str], None]) -> Shrinking:
    """Leave out the tokens that data do without; nothing is trained.

    The weights of the tokens that stay are gathered, and a table of words is counted anew. A word whose token is gone
    is spelled by others, which the model has seldom seen in its place: what that costs is measured, and training on
    mends it (`manta train --teacher` of the new model, or `--inherit`).

    Args:
        lm: a trained model.
        data: see `manta.text.read`; prompts count as texts.
        coverage: see `shrink`.
        tell: takes lines about what is being done.

    Raises:
        ConfigError: see `shrink`; or the tokenizer is another's.
        DataError: there is no text, or none that fits the model any more.
    """
    if isinstance(lm.tokenizer, ForeignTokenizer):
        raise ConfigError("a published model keeps its tokenizer; give a model that manta trains from the beginning")
    tell(f"counting the tokens of {data}")
    first = list(read(data, "train", MEASURED))
    if not first:
        raise DataError(f"{data} has no training texts to count the tokens of")
    texts = (text for example in read(data, "train") for text in (example.prompt, example.text) if text)
    found = shrink(lm.tokenizer, texts, coverage)
    rows = _Encoded(data, found.tokenizer)
    smaller = lm.with_vocabulary(found.tokenizer, lambda net: with_vocabulary(net, found.kept), rows)
    tell("measuring both on held-out texts")
    held = list(read(data, "dev", MEASURED)) or first
    both = [example for example in held if _fits(lm, example) and _fits(smaller, example)]
    if not both:
        raise DataError(f"no held-out text of {data} fits the model with fewer tokens; raise the coverage")
    rates = (found.tokens_before / found.num_bytes, found.tokens_after / found.num_bytes)
    sides = [_side(each, data, rate, held, both) for each, rate in zip((lm, smaller), rates, strict=True)]
    return Shrinking(smaller, found, *sides)


@dataclass(frozen=True)
class _Encoded:
    """Token rows of the training texts of data, which are read whenever they are gone through and never held."""

    data: str
    tokenizer: Tokenizer

    def __iter__(self) -> Iterator[list[int]]:
        for some in chunks(read(self.data, "train")):
            yield from self.tokenizer.encode_batch([example.text for example in some])


def with_vocabulary(net: PromptedModel, kept: Iterable[int]) -> PromptedModel:
    """A net of the same weights for some tokens of its vocabulary.

    Args:
        net: of any family; not changed.
        kept: id that each new token had, in order.
    """
    index = torch.tensor(list(kept), device=net.embedding.weight.device)
    shape: Any = replace(net.config, vocab_size=len(index))
    net_class: Any = type(net)
    smaller: PromptedModel = net_class(shape).to(index.device)
    weights = net.state_dict()
    for name, value in smaller.state_dict().items():
        if value.shape != weights[name].shape:
            weights[name] = weights[name][index]
    smaller.load_state_dict(weights)
    return smaller.eval()


def vocabulary_share(net: PromptedModel) -> float:
    """Share of a net's parameters that hold its vocabulary: token table and head are one here."""
    return net.embedding.weight.numel() / _parameters(net)


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _fits(lm: LanguageModel, example: Example) -> bool:
    """Whether a model reads an example whole."""
    shape: PromptedConfig = lm.model.config
    assert shape.max_prompt is not None and shape.max_text is not None, "a net's shape is resolved"
    prompt, text = lm.tokenizer.encode_batch([example.prompt or "", example.text])
    return len(prompt) <= shape.max_prompt and 0 < len(text) <= shape.max_text


def _side(lm: LanguageModel, data: str, tokens_a_byte: float, held: Sequence[Example], both: Sequence[Example]) -> Side:
    """A model on held-out examples, and its nats on those that both models read whole."""
    parts = mean_parts(lm.model, task_of_model(lm, Recipe(data=data)), to_batches(lm, both))
    nats = parts["nats" if "nats" in parts else "cross_entropy"]
    num_tokens = sum(len(row) + 1 for row in lm.tokenizer.encode_batch([example.text for example in both]))
    return Side(
        tokens=lm.tokenizer.vocab_size,
        parameters=_parameters(lm.model),
        vocabulary_share=vocabulary_share(lm.model),
        tokens_a_byte=tokens_a_byte,
        fitting=sum(_fits(lm, example) for example in held) / len(held),
        nats_a_byte=nats * num_tokens / sum(len(example.text.encode()) for example in both),
    )


def shrinking_card(source: str, data: str, result: Shrinking) -> str:
    """The card of such a model.

    Args:
        source: name of the model it was made from.
        data: name of the data.
        result: what became of it.
    """
    before, after = result.before, result.after
    rows = [
        ("tokens of the vocabulary", f"{before.tokens:,}", f"{after.tokens:,}"),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("of them the vocabulary", f"{before.vocabulary_share:.1%}", f"{after.vocabulary_share:.1%}"),
        ("tokens a byte of the data", f"{before.tokens_a_byte:.4f}", f"{after.tokens_a_byte:.4f}"),
        ("held-out examples that fit", f"{before.fitting:.1%}", f"{after.fitting:.1%}"),
        ("nats a byte of those", f"{before.nats_a_byte:.4f}", f"{after.nats_a_byte:.4f}"),
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"# A model with a smaller vocabulary, made by manta\n\nMade from `{source}`: the tokens that `{data}` needs, "
        f"with the weights they had. {result.found.coverage:.2%} of its old tokens are one token still; nothing was "
        f"trained after it.\n\n|  | before | after |\n|---|---|---|\n{table}\n"
    )
