import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.errors import ConfigError, DataError, ModelError
from manta.text import BOS, EOS, MASK, NULL, SPECIALS, Tokenizer
from manta.text.tokenizers import MANY, PIECE

TEXTS = [
    f"the {a} cat sat on the {b} mat, it's £{i}." for i, a in enumerate(["big", "red"]) for b in ["old", "new"]
] * 9


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 512)


_TOKENIZER = Tokenizer.train(TEXTS, 512)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.text(alphabet=" \n\tĠ<>/|maskeo'\u00a0"))
@example(" leading")
@example("  trailing  ")
@example("<mask><null> <bos>")
@example("e\u0301 👩‍👩‍👧 \x00\ufeff")
def test_round_trip_is_exact_and_has_no_specials(text):
    for start in (True, False):
        ids = _TOKENIZER.encode(text, start=start)
        assert all(len(SPECIALS) <= i < _TOKENIZER.vocab_size for i in ids)
        assert _TOKENIZER.decode(ids, start=start) == text


_SPACIOUS = Tokenizer.train([*TEXTS, "the    cat\n\n\t sat   " * 9, "on\u00a0  \u00a0 mat  " * 9] * 9, 512)
SPACED = st.text(alphabet=st.sampled_from(" \n\t\u00a0\u2028\x1c\x85'sthe12.,é中_Ġ "), max_size=30)


@settings(max_examples=200, deadline=None)
@given(st.lists(SPACED | st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
@example(["the    cat ", "the   ", " the\u00a0 cat", "cat\n the", "the \n cat", "", " "])
def test_a_large_batch_has_the_tokens_of_its_texts_alone(texts):
    """It is encoded word by word, each once."""
    many = texts + ["the big cat's mat. " * 40] * (MANY // 760 + 1)
    for start in (True, False):
        alone = [_SPACIOUS.encode(text, start=start) for text in texts]
        assert _SPACIOUS.encode_batch(many, start=start)[: len(texts)] == alone


def test_a_large_batch_with_a_word_without_an_end(tokenizer):
    long = "the" * PIECE
    assert tokenizer.encode_batch([long, "the cat"]) == [tokenizer.encode(long), tokenizer.encode("the cat")]


def test_special_ids(tokenizer):
    assert (NULL, MASK, BOS, EOS) == (0, 1, 2, 3)
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode([BOS, *ids[:1], NULL, MASK, *ids[1:], EOS, NULL]) == "the cat"
    assert [tokenizer.token(i) for i in range(4)] == list(SPECIALS)


def test_a_word_has_the_same_tokens_at_the_start_and_inside(tokenizer):
    cat, the = tokenizer.encode("cat"), tokenizer.encode("the")
    assert tokenizer.encode("the cat") == the + cat
    assert tokenizer.encode("the") + tokenizer.encode(" cat", start=False) == the + cat
    assert tokenizer.encode("") == []


def test_batches_arrays_and_tensors(tokenizer):
    rows = tokenizer.encode_batch(["the cat", "", "x"])
    assert rows == [tokenizer.encode("the cat"), [], tokenizer.encode("x")]
    assert tokenizer.decode_batch(rows) == ["the cat", "", "x"]
    assert tokenizer.decode(np.array(rows[0], dtype=np.uint16)) == tokenizer.decode(torch.tensor(rows[0])) == "the cat"


def test_training_is_deterministic_and_bounded():
    assert Tokenizer.train(iter(TEXTS), 512).fingerprint() == _TOKENIZER.fingerprint()
    assert Tokenizer.train(["some other words"] * 9, 512).fingerprint() != _TOKENIZER.fingerprint()

    def endless():
        while True:
            yield from TEXTS

    assert Tokenizer.train(endless(), 512, max_chars=5000).vocab_size <= 512


def test_training_mistakes():
    for size in (511, 32769):
        with pytest.raises(ConfigError, match=f"vocab_size is {size}"):
            Tokenizer.train(TEXTS, size)
    with pytest.raises(DataError, match="no text to learn from"):
        Tokenizer.train(["", ""], 512)


def test_half_a_surrogate_pair(tokenizer):
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("\ud800")


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    text = "<mask> the  cat\u2028"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


def test_corrupt_files(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer.load(path)
    tokenizer.save(path)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"{}", b"\xff\xfe", b"[1]"):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            Tokenizer.load(path)
    tree = json.loads(content)
    tree["model"]["vocab"]["<mask>"], tree["model"]["vocab"]["<null>"] = 0, 1
    tree["added_tokens"] = []
    path.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"special ids are \[1, 0, 2, 3\]"):
        Tokenizer.load(path)


# A token a symbol

SYMBOLS = "0123_ <>mask\n€'"
_SYMBOL_TOKENIZER = Tokenizer.of_symbols(SYMBOLS)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=SYMBOLS))
@example(" <mask> ")
@example("  \n")
def test_symbols_round_trip_one_token_each(text):
    for start in (True, False):
        ids = _SYMBOL_TOKENIZER.encode(text, start=start)
        assert ids == [len(SPECIALS) + SYMBOLS.index(char) for char in text]
        assert _SYMBOL_TOKENIZER.decode(ids, start=start) == text


def test_symbols_have_the_same_special_ids():
    ids = _SYMBOL_TOKENIZER.encode(" 12")
    assert _SYMBOL_TOKENIZER.decode([BOS, *ids[:1], NULL, MASK, *ids[1:], EOS, NULL]) == " 12"
    assert [_SYMBOL_TOKENIZER.token(i) for i in range(5)] == [*SPECIALS, "0"]
    assert _SYMBOL_TOKENIZER.vocab_size == len(SPECIALS) + len(SYMBOLS)
    assert _SYMBOL_TOKENIZER.encode_batch(["0", "", "10"]) == [[4], [], [5, 4]]


def test_an_unknown_character_is_named():
    with pytest.raises(DataError, match=r"'5' in '15' is none of the symbols"):
        _SYMBOL_TOKENIZER.encode("15")
    with pytest.raises(DataError, match=r"'\\ud800'"):
        _SYMBOL_TOKENIZER.encode_batch(["0", "\ud800"])


def test_alphabets_that_are_none():
    for alphabet in ("", "00", "0\ud800"):
        with pytest.raises(ConfigError, match="each once"):
            Tokenizer.of_symbols(alphabet)


def test_symbols_are_saved_and_loaded(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    _SYMBOL_TOKENIZER.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.symbols == SYMBOLS
    assert loaded.fingerprint() == _SYMBOL_TOKENIZER.fingerprint()
    assert loaded.fingerprint() not in (Tokenizer.of_symbols(SYMBOLS[::-1]).fingerprint(), tokenizer.fingerprint())
    assert loaded.decode(loaded.encode(" <mask>")) == " <mask>"
    with pytest.raises(DataError, match="'5'"):
        loaded.encode("5")
    assert tokenizer.symbols is None
    tree = json.loads(path.read_bytes())
    tree["model"]["vocab"]["ab"] = len(SPECIALS) + len(SYMBOLS)
    path.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="not one character"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["model"]["vocab"].update({next(reversed(d["model"]["vocab"])): 10**9}),
        lambda d: d["model"]["vocab"].update({next(reversed(d["model"]["vocab"])): 2**32 - 1}),
        lambda d: d["model"]["vocab"].update({next(reversed(d["model"]["vocab"])): True}),
        lambda d: d["model"]["vocab"].update({next(reversed(d["model"]["vocab"])): 7}),
        lambda d: d["added_tokens"][0].update(id=10**9),
        lambda d: d["model"].update(dropout=0.5),
        lambda d: d["model"].update(vocab=5),
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d.update(model=[]),
    ],
)
def test_a_file_that_gives_other_ids_or_does_more_is_refused(tmp_path, damage):
    import json

    file = tmp_path / "tokenizer.json"
    Tokenizer.train(["the cat sat on the mat"] * 9, 512).save(file)
    Tokenizer.load(file)
    description = json.loads(file.read_text())
    damage(description)
    file.write_text(json.dumps(description))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.load(file)


ENDLESS = """
import itertools
import signal
from manta.text import Tokenizer
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
def texts():
    for number in itertools.count():
        yield f"word {number % 1000}"
        if number == 1000:
            print("learning", flush=True)
Tokenizer.train(texts(), 512)
"""


def test_learning_can_be_interrupted():
    learning = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert learning.stdout is not None and learning.stdout.readline() == "learning\n"
    learning.send_signal(signal.SIGINT)
    try:
        _, said = learning.communicate(timeout=20)
    finally:
        learning.kill()
    assert learning.returncode == -signal.SIGINT or "KeyboardInterrupt" in said


def test_a_text_that_cannot_be_read_ends_learning_with_its_own_error():
    def broken():
        yield "a text"
        raise DataError("line 2 is damaged")

    with pytest.raises(DataError, match="line 2"):
        Tokenizer.train(broken(), 512)
