"""Tokenizers whose round trip is exact: byte-level BPE for every Unicode string, or a token a symbol for puzzles."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar

import numpy as np
import tokenizers as hf
from jaxtyping import Int, Integer
from torch import Tensor

from manta.config import shortened
from manta.errors import ConfigError, DataError, ModelError
from manta.runtime import atomic_write, read_json

NULL, MASK, BOS, EOS = range(4)
SPECIALS = ("<null>", "<mask>", "<bos>", "<eos>")
MIN_VOCAB, MAX_VOCAB = 512, 32768
PIECE = 1 << 16
"""Characters encoded at once: the backend takes about 200 bytes a character and a time that grows faster than they."""
MANY = 1 << 14
"""Characters of a batch from which on each word of it is encoded once, however often it comes."""
MAX_ID = 10_000_000
"""No tokenizer has so many ids."""
Ids = Iterable[int] | Integer[np.ndarray, " n"] | Int[Tensor, " n"]
"""Token ids of one text."""


_BPE, _SYMBOLS = ("BPE", "ByteLevel", "ByteLevel"), ("WordLevel", "Split", "Fuse")
"""Model, pre-tokenizer and decoder of a backend of either kind."""


def _byte_alphabet() -> dict[str, int]:
    """Byte of each character of the byte-level alphabet: printable ones stand for themselves, others follow at 256."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()


def byte_level(token: str) -> bytes:
    """What a token of the byte-level alphabet stands for; a character outside of it is itself."""
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)


_WORD_END = re.compile(r"(?<=[\w!-~])(?= )")
"""Between a character that is no white space and a space."""


class Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with four special ids before the byte alphabet.

    | id | name | use |
    |---|---|---|
    | 0 | NULL | the empty emission, and padding |
    | 1 | MASK | a token not yet known |
    | 2, 3 | BOS, EOS | first and last of an autoregressive text |

    A space is put before the text when it is encoded, and one is taken off when it is decoded, so that a word has the
    same tokens at the start of a text as inside it and the round trip is exact: `decode(encode(text)) == text` for
    every string without lone surrogates. The name of a special in a text ("<mask>") is text, never the special.

    A tokenizer `of_symbols` has the same special ids and then a token for each character of an alphabet, instead of
    merges; it puts no space before a text, and knows no text with other characters.
    """

    key: ClassVar[str] = "tokenizer"
    file: ClassVar[str] = "tokenizer.json"

    def __init__(self, backend: hf.Tokenizer) -> None:
        """Wraps a trained backend; use `train`, `of_symbols` or `load`.

        Raises:
            ModelError: the backend is neither byte-level BPE nor a token a symbol, with our special ids.
        """
        specials = [backend.token_to_id(name) for name in SPECIALS]
        kinds = (type(backend.model).__name__, type(backend.pre_tokenizer).__name__, type(backend.decoder).__name__)
        alphabet = hf.pre_tokenizers.ByteLevel.alphabet() if kinds == _BPE else ()
        missing = [char for char in alphabet if backend.token_to_id(char) is None]
        if specials != [NULL, MASK, BOS, EOS] or missing or kinds not in (_BPE, _SYMBOLS):
            raise ModelError(
                f"not a tokenizer of this project: it is {'/'.join(kinds)}, its special ids are {specials} and "
                f"{len(missing)} of 256 bytes are missing; train one with `Tokenizer.train`"
            )
        symbols = [backend.id_to_token(i) or "" for i in range(len(SPECIALS), backend.get_vocab_size())]
        if kinds == _SYMBOLS and any(len(symbol) != 1 for symbol in symbols):
            raise ModelError("a token is not one character; make the tokenizer with `Tokenizer.of_symbols`")
        if _frame(backend) != _frame(_symbol_backend() if kinds == _SYMBOLS else _bpe_backend()):
            raise ModelError("it does more to a text than tokenizers of this project; train one with `Tokenizer.train`")
        self.symbols = "".join(symbols) if kinds == _SYMBOLS else None
        """The alphabet of a tokenizer with a token a symbol; None for BPE."""
        self._lead = " " if self.symbols is None else ""
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        """What encodes: for who looks into a vocabulary; it is not changed."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, max_chars: int = 256_000_000) -> "Tokenizer":
        """Learns the merges from a stream of texts; the same texts give the same tokenizer.

        Args:
            texts: training texts, prompts included; read once, not kept. Memory grows with the distinct words.
            vocab_size: entries to learn, specials and bytes included, 512 to 32768; fewer come out where the texts
                have too few repeated pairs.
            max_chars: stop reading after so many characters.

        Raises:
            ConfigError: `vocab_size` out of range.
            DataError: no text.
        """
        if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
            raise ConfigError(f"vocab_size is {vocab_size}; give {MIN_VOCAB} to {MAX_VOCAB}")
        backend = _bpe_backend()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        chars = 0

        def stream() -> Iterator[str]:
            nonlocal chars
            for text in texts:
                if text:
                    chars += len(text)
                    yield from pieces_of(" " + text)
                if chars >= max_chars or stopped.is_set():
                    return

        stopped = Event()
        try:
            _interruptibly(partial(backend.train_from_iterator, stream(), trainer))
        finally:
            stopped.set()
        if chars == 0:
            raise DataError("the tokenizer got no text to learn from; give it at least one example")
        return cls(backend)

    @classmethod
    def of_symbols(cls, alphabet: str) -> "Tokenizer":
        """A tokenizer with a token for each character of an alphabet, ids 4, 5, … in its order.

        Args:
            alphabet: distinct characters (Unicode code points), at least one; all that prompts and texts may hold.

        Raises:
            ConfigError: the alphabet is empty, or holds a character twice or half a surrogate pair.
        """
        if not alphabet or len(set(alphabet)) < len(alphabet) or any("\ud800" <= c <= "\udfff" for c in alphabet):
            raise ConfigError(f"the alphabet is {alphabet!r}; give at least one character, and each once")
        vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
        backend = _symbol_backend(vocabulary)
        backend.add_special_tokens(list(SPECIALS))
        return cls(backend)

    @classmethod
    def of_description(cls, description: Any) -> "Tokenizer":
        """A tokenizer from what a `tokenizer.json` of this project holds.

        Raises:
            ModelError: it describes another, or its ids do not count from 0 on.
        """
        ids = ids_of(description)
        if sorted(ids) != list(range(len(ids))):
            raise ModelError("its ids do not count from 0 on, each once")
        return cls(backend_of(description))

    @staticmethod
    def words(text: str) -> list[str]:
        """The words of a text, with the space before each: tokens of byte-level BPE are merged within them."""
        split = hf.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
        return [text[begin:end] for _, (begin, end) in split]

    @property
    def vocab_size(self) -> int:
        """The number of ids, specials included."""
        return self.backend.get_vocab_size()

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token (or 1 for a token a symbol): a text has at least `len(text) / longest` tokens."""
        return max(len(token) for token, i in self.backend.get_vocab().items() if i >= len(SPECIALS))

    @cached_property
    def bytes_of_tokens(self) -> list[bytes]:
        """What each id stands for; specials for nothing."""
        tokens = [self.backend.id_to_token(index) or "" for index in range(self.vocab_size)]
        spelled = str.encode if self.symbols is not None else byte_level
        return [b"" if i < len(SPECIALS) else spelled(token) for i, token in enumerate(tokens)]

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """The token ids of a text; never a special id.

        Args:
            text: any Unicode string, or of the symbols; "" has no tokens.
            start: the text begins a passage, so a space is put before it (not before symbols); False for a piece that
                continues one.

        Raises:
            DataError: the text holds half a surrogate pair, or a character that is none of the symbols.
        """
        return self.encode_batch([text], start=start)[0]

    def encode_batch(self, texts: Sequence[str], *, start: bool = True) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        if self.symbols is not None:
            for text in texts:
                _check_symbols(text, self.symbols)
        inputs = [self._lead + text if start and text else text for text in texts]
        try:
            if self.symbols is None and sum(map(len, inputs)) >= MANY and (found := self._by_words(inputs)) is not None:
                return found
            if all(len(text) <= PIECE for text in inputs):
                return [found.ids for found in self.backend.encode_batch_fast(inputs, add_special_tokens=False)]
            encode = partial(self.backend.encode, add_special_tokens=False)
            return [[i for piece in pieces_of(text) for i in encode(piece).ids] for text in inputs]
        except TypeError as error:
            raise DataError(
                "a text holds half a surrogate pair, which is no Unicode text; write the character whole"
            ) from error

    def _by_words(self, inputs: Sequence[str]) -> list[list[int]] | None:
        """The ids of texts, each distinct word of them encoded once; None where one is too long for that.

        Byte-level BPE ends a word before every space that does not follow white space, and looks no further back.
        """
        split = [_words(text) for text in inputs]
        words = list(dict.fromkeys(chain.from_iterable(split)))
        if max(map(len, words)) > PIECE:
            return None
        found = self.backend.encode_batch_fast(words, add_special_tokens=False)
        ids = {word: each.ids for word, each in zip(words, found, strict=True)}
        return [list(chain.from_iterable(map(ids.__getitem__, row))) for row in split]

    def decode(self, ids: Ids, *, start: bool = True) -> str:
        """The text of token ids; special ids are dropped, and bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: integers in [0, vocab_size); a list, an array or a tensor of one dimension.
            start: the ids begin a passage: take one leading space off, as `encode` put it there.
        """
        text = self.backend.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.removeprefix(self._lead) if start else text

    def whole(self, ids: Sequence[int]) -> int:
        """How many of the ids, from the first on, say the same whatever ids follow, a last U+FFFD aside."""
        return len(ids)

    def decode_batch(self, rows: Iterable[Ids], *, start: bool = True) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, start=start) for row in rows]

    def token(self, index: int) -> str:
        """The text of one id for people to read: a special's name, or the text of its bytes."""
        return SPECIALS[index] if index < len(SPECIALS) else self.decode([index], start=False)

    def fingerprint(self) -> str:
        """32 hex digits that two tokenizers share exactly when they give the same ids."""
        return blake2b(self._json(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json`, atomically; `transformers` reads the same file."""
        atomic_write(Path(path), self._json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a file that `save` wrote.

        Raises:
            ModelError: the file is missing, corrupt, or not of this kind.
        """
        path = Path(path)
        description = read_json(path)
        try:
            return cls.of_description(description)
        except ModelError as error:
            raise ModelError(f"{path} is not a tokenizer file of this project ({error}); copy it again") from None

    def _json(self) -> bytes:
        return json.dumps(json.loads(self.backend.to_str()), ensure_ascii=False, sort_keys=True).encode("utf-8")


def _words(text: str) -> list[str]:
    """A text cut at its `_WORD_END`s; the pieces make the text."""
    if text.isascii() and text.isprintable() and "  " not in text:  # then every space is one, and this is much faster
        return text.replace(" ", "\n ").split("\n")
    return _WORD_END.split(text)


def pieces_of(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `PIECE` characters whose tokens are, one after the other, those of the text.

    A cut stands before a space or a line end that follows a letter or a number: there a word of byte-level BPE ends in
    any case. Where half a piece has no such place it is cut anywhere, so that a word may have other tokens.
    """
    begin = 0
    while len(text) - begin > PIECE:
        places = range(begin + PIECE, begin + PIECE // 2, -1)
        end = next((i for i in places if text[i] in " \n" and text[i - 1].isalnum()), begin + PIECE)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _bpe_backend() -> hf.Tokenizer:
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = hf.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _symbol_backend(vocabulary: dict[str, int] | None = None) -> hf.Tokenizer:
    backend = hf.Tokenizer(hf.models.WordLevel(vocabulary or {}))
    every_character = hf.pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
    backend.pre_tokenizer = every_character  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = hf.decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _frame(backend: hf.Tokenizer) -> Any:
    """What a tokenizer does to a text beside looking up its vocabulary."""
    found = json.loads(backend.to_str())
    model = {key: value for key, value in found["model"].items() if key not in ("vocab", "merges")}
    return {**found, "model": model, "added_tokens": None, "truncation": None, "padding": None}


def ids_of(description: Any, most: int = MAX_ID) -> set[int]:
    """The ids that the description of a tokenizer gives out; a large one would take its size in memory.

    Args:
        description: what a `tokenizer.json` holds.
        most: no id may be so large.

    Raises:
        ModelError: it is no such description, or an id is no integer in range.
    """
    try:
        vocabulary, added = description["model"]["vocab"], description.get("added_tokens") or []
        ids = list(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
        ids += [token["id"] for token in added]
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"it describes no tokenizer: {error!r}") from None
    for index in ids:
        if type(index) is not int or not 0 <= index < most:
            raise ModelError(f"it has the id {shortened(index)}, where ids are integers below {most}")
    return set(ids)


def backend_of(description: Any) -> hf.Tokenizer:
    """A backend from what a `tokenizer.json` holds.

    Raises:
        ModelError: it describes no tokenizer.
    """
    with panics():
        try:
            return hf.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the backend raises the bare class for a broken file
            raise ModelError(str(error)) from None


@contextmanager
def panics() -> Iterator[None]:
    """Turn what the backend itself did not expect, a panic or an `Exception` of no kind, into a typed error.

    Raises:
        ModelError: it happened.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"the tokenizer cannot be used ({str(error)[:200]}); its file is damaged") from None


def _interruptibly(work: Callable[[], object]) -> None:
    """Do what the library does without a look at signals, so that they still reach this thread at once."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    worker = Thread(target=run, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.05)
    if failed:
        raise failed[0]


def _check_symbols(text: str, symbols: str) -> None:
    if set(text) - set(symbols):
        wrong = next(char for char in text if char not in symbols)
        raise DataError(f"{wrong!r} in {text[:60]!r} is none of the symbols {symbols!r}; use these")
