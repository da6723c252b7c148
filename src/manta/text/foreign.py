"""The tokenizer of a checkpoint that others published: read as it is, never trained."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers as hf

from manta.errors import DataError, ModelError
from manta.runtime import read_json
from manta.text.tokenizers import MAX_ID, Ids, Tokenizer, backend_of, byte_level, ids_of, panics

MOST_BYTES = 512 << 20
"""Of the largest file of a tokenizer."""


class ForeignTokenizer(Tokenizer):
    """Text to the token ids of a published model and back.

    It keeps to what its files say: whatever they normalise is normalised, nothing is put before or after a text, and a
    round trip is only as exact as they are. The special ids are the model's own, none of `Tokenizer`'s.

    Args:
        description: text of a `tokenizer.json`.
        most: ids that the model has a row for.

    Raises:
        ModelError: the text does not describe a tokenizer.
    """

    def __init__(self, description: str, *, most: int = MAX_ID) -> None:
        try:
            parsed = json.loads(description)
        except (ValueError, RecursionError) as error:
            raise ModelError(str(error)) from None
        ids_of(parsed, most)
        self._description, self.symbols = parsed, None
        # Whether the names of specials are read is a state of the backend, so each way has a backend of its own.
        self._names, self._plain = _backend(parsed), _backend(parsed)
        self._plain.encode_special_tokens = True
        self._num_ids = 1 + max(self._names.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def of_own(cls, tokenizer: Tokenizer) -> "ForeignTokenizer":
        """A tokenizer of this project as one whose file says all that it does, the space before a text included."""
        description = json.loads(tokenizer._json())
        if tokenizer.symbols is None:
            lead = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            description["normalizer"] = {"type": "Prepend", "prepend": " "}
            description["decoder"] = {"type": "Sequence", "decoders": [description["decoder"], lead]}
        return cls(json.dumps(description))

    @property
    def backend(self) -> hf.Tokenizer:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What encodes, names of special tokens among the text; it is not changed."""
        return self._names

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._num_ids

    @cached_property
    def longest(self) -> int:
        """Characters that a token stands for at most, about: normalising may shorten a text, four times at most in what
        is published."""
        return 4 * max(map(len, self._names.get_vocab(with_added_tokens=True)), default=1)

    @cached_property
    def bytes_of_tokens(self) -> list[bytes]:
        """What each id stands for, by the kind of tokenizer that the files describe; specials for nothing."""
        added = self._names.get_added_tokens_decoder()
        told = [self._names.id_to_token(index) for index in range(self.vocab_size)]
        by_bytes = '"ByteLevel"' in json.dumps(self._description)

        def spelled(index: int, token: str | None) -> bytes:
            if token is None or (index in added and added[index].special):
                return b""
            if index in added:
                return token.encode()
            if by_bytes:
                return byte_level(token)
            if one := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
                return bytes.fromhex(one[1])
            return token.replace("▁", " ").encode()

        return [spelled(index, token) for index, token in enumerate(told)]

    @classmethod
    def load(cls, path: str | Path) -> "ForeignTokenizer":
        """Reads a file that `save` wrote.

        Raises:
            ModelError: the file is missing, or describes no tokenizer.
        """
        description = read_json(Path(path), most=MOST_BYTES)
        try:
            return cls(json.dumps(description))
        except ModelError as error:
            raise ModelError(f"{path} is not a tokenizer file of this model ({error}); copy it again") from None

    @classmethod
    def of_folder(cls, folder: Path, *, split: str | None = None, most: int = MAX_ID) -> "ForeignTokenizer | None":
        """Reads the tokenizer of a model folder.

        Args:
            folder: with a `tokenizer.json`; or with `vocab.json`, `merges.txt` and the added tokens in
                `tokenizer_config.json`, when `split` is given.
            split: the regular expression that cuts a text into words before byte-level BPE, which the second kind of
                folder does not store.
            most: ids that the model has a row for.

        Returns:
            None where the folder has no tokenizer of either kind.

        Raises:
            ModelError: a file is damaged; the message says which.
        """
        file = folder / "tokenizer.json"
        if file.exists():
            found = cls.load(file)
            if found.vocab_size > most:
                raise ModelError(
                    f"{file} is not a tokenizer file of this model (it has the id {found.vocab_size - 1}, where ids "
                    f"are integers below {most}); copy it again"
                )
            return found
        if split is None or not (folder / "vocab.json").exists():
            return None
        return cls(_byte_level(folder, split, most).to_str(), most=most)

    def encode(self, text: str, *, start: bool = True, special_names: bool = False) -> list[int]:
        """The token ids of a text.

        Args:
            text: any Unicode string.
            start: changes nothing: what a text begins with is the files' to say.
            special_names: read the name of a special token as that token, as a filled chat template needs; without it
                the name is plain text, so that a user's text cannot hold a mask or an end.

        Raises:
            DataError: the text holds half a surrogate pair.
        """
        return _encoded(self._names if special_names else self._plain, [text])[0]

    def encode_batch(self, texts: Sequence[str], *, start: bool = True) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        return _encoded(self._plain, texts)

    def decode(self, ids: Ids, *, start: bool = True, special_names: bool = False) -> str:
        """The text of token ids.

        Args:
            ids: integers of one row.
            start: changes nothing, as in `encode`.
            special_names: keep the names of special tokens; without it they are dropped.
        """
        with panics():
            return self._names.decode([int(i) for i in ids], skip_special_tokens=not special_names)

    @cached_property
    def _bytes(self) -> frozenset[int]:
        """Ids of single bytes (`<0x41>`), by which some tokenizers spell what they have no token for: one that does not
        fit spoils the whole run that it stands in."""
        names = self._names.get_vocab(with_added_tokens=True)
        return frozenset(index for name, index in names.items() if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", name))

    def whole(self, ids: Sequence[int]) -> int:
        """How many of the ids, from the first on, say the same whatever ids follow, a last U+FFFD aside."""
        count = len(ids)
        while count and ids[count - 1] in self._bytes:
            count -= 1
        return count

    def token(self, index: int) -> str:
        """The text of one id for people to read, a special's name among them."""
        return self.decode([index], special_names=True)

    def opening(self, begin: int) -> dict[str, Any]:
        """What a `tokenizer.json` of it holds that puts a token before every text, for whoever reads it without manta.

        Args:
            begin: id of that token.

        Raises:
            ModelError: no token has the id.
        """
        name = self._names.id_to_token(begin)
        if name is None:
            raise ModelError(f"the tokenizer has no token {begin}, which begins a text")
        with panics():
            if self._names.encode("").ids == [begin]:
                return self._description
        before = {"SpecialToken": {"id": name, "type_id": 0}}
        rows: dict[str, Any] = {
            "single": [before, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [before, *({"Sequence": {"id": part, "type_id": 0}} for part in "AB")],
            "special_tokens": {name: {"id": name, "ids": [begin], "tokens": [name]}},
        }
        return {**self._description, "post_processor": {"type": "TemplateProcessing", **rows}}

    def _json(self) -> bytes:
        return json.dumps(self._description, ensure_ascii=False, sort_keys=True).encode("utf-8")

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name, such as `<|endoftext|>`; None where there is none."""
        return self._names.token_to_id(name)


def _encoded(backend: hf.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, nothing put around them.

    Raises:
        DataError: a text holds half a surrogate pair.
    """
    try:
        with panics():
            return [found.ids for found in backend.encode_batch(list(texts), add_special_tokens=False)]
    except (TypeError, UnicodeEncodeError) as error:
        raise DataError("a text holds half a surrogate pair, which is no Unicode text; write it whole") from error


def _backend(description: Any) -> hf.Tokenizer:
    backend = backend_of(description)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _byte_level(folder: Path, split: str, most: int) -> hf.Tokenizer:
    """Byte-level BPE over NFC text, from the files that GPT-2 and Qwen2 tokenizers keep."""
    files = folder / "vocab.json", folder / "merges.txt"
    ids_of({"model": {"vocab": read_json(files[0], most=MOST_BYTES)}}, most)
    if not files[1].is_file():
        raise ModelError(f"{files[1]} is missing or no plain file; copy it again")
    try:
        with panics():
            backend = hf.Tokenizer(hf.models.BPE.from_file(*map(str, files)))
    except Exception as error:
        raise ModelError(f"{files[0]} or {files[1].name} is missing or damaged ({error}); copy them again") from None
    words = hf.pre_tokenizers.Split(hf.Regex(split), "isolated")
    letters = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.normalizer = hf.normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = hf.pre_tokenizers.Sequence([words, letters])  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = hf.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    file = folder / "tokenizer_config.json"
    for index, token in _added(file):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            raise ModelError(f"{file} gives {token.content} the id {index}, which does not follow on {files[0].name}")
    return backend


def _added(file: Path) -> Sequence[tuple[int, hf.AddedToken]]:
    """Ids and tokens that were added to a vocabulary, in the order of their ids."""
    if not file.exists():
        return []
    try:
        listed: dict[str, dict[str, Any]] = read_json(file)["added_tokens_decoder"]
        flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
        return [
            (index, hf.AddedToken(token["content"], **{flag: bool(token.get(flag, False)) for flag in flags}))
            for index, token in sorted((int(key), token) for key, token in listed.items())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} does not list the added tokens ({error!r}); copy it again") from error
