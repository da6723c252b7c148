"""The tokenizer of a model folder, as one of `transformers`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast  # pyright: ignore[reportMissingImports]

from manta.errors import ModelError
from manta.hub.auto.found import named
from manta.hub.folder import load_tokenizer
from manta.text import ForeignTokenizer, Tokenizer
from manta.text.tokenizers import SPECIALS


class MantaTokenizer(PreTrainedTokenizerFast):
    """Gives the ids that the folder's own tokenizer gives: the space before a text, and no name of a special token in a
    text read as that token.

    No token is put before or after a text.

    Args:
        own: the folder's tokenizer.
        kwargs: as for any tokenizer of `transformers`.
    """

    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012  (as the class above has it)

    def __init__(self, own: Tokenizer, **kwargs: Any) -> None:
        told = own if isinstance(own, ForeignTokenizer) else ForeignTokenizer.of_own(own)
        self.own = own
        super().__init__(tokenizer_object=told.backend, split_special_tokens=True, **kwargs)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> "MantaTokenizer":
        """The tokenizer of a model folder, or of a model of the hub by its name.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        own, shape = load_tokenizer(named(name, kwargs))
        special: dict[str, Any] = {"model_max_length": shape.get("max_prompt")}
        if isinstance(own, ForeignTokenizer):
            begin, end = (own.token(known_id(shape, key, own)) for key in ("begin", "end"))
            special |= {"bos_token": begin, "eos_token": end, "pad_token": end}
        else:
            special |= dict(zip(("pad_token", "mask_token", "bos_token", "eos_token"), SPECIALS, strict=True))
        return cls(own, **special)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write the folder's own `tokenizer.json`, which says all that there is to say."""
        file = Path(save_directory) / Tokenizer.file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.own.save(file)
        return (str(file),)


def known_id(shape: Mapping[str, Any], name: str, own: Tokenizer) -> int:
    """A token that a shape names.

    Raises:
        ModelError: it is none of the tokenizer's.
    """
    token = shape.get(name)
    if not isinstance(token, int) or not 0 <= token < own.vocab_size:
        raise ModelError(f"the folder's config.json says {name} = {token!r}, which is no token; copy the folder again")
    return token
