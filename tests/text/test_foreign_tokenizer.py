"""A published tokenizer gives the ids its authors' code gives, and no user's text can hold a special token."""

import json
import random

import pytest
import tokenizers as hf
import torch

from manta.errors import DataError, ModelError
from manta.hub import load_foreign
from manta.hub.foreign.dream import SPLIT
from manta.text.foreign import ForeignTokenizer

from ..hub.published import write

TEXTS = [
    "the cat isn't there, the rain is",
    "  two\n\nlines  ",
    "in 1984 it was 20°",
    "naïve cafe\u0301",
    "日本語 😀",
    "",
]
END, HIDDEN = "<|endoftext|>", "<|mask|>"


@pytest.fixture(scope="module")
def trained() -> hf.Tokenizer:
    """Byte-level BPE as Qwen2's, with two special tokens after the vocabulary."""
    backend = hf.Tokenizer(hf.models.BPE())
    words = hf.pre_tokenizers.Split(hf.Regex(SPLIT), "isolated")
    letters = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.normalizer = hf.normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = hf.pre_tokenizers.Sequence([words, letters])  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = hf.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    trainer = hf.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS * 20, trainer)
    backend.add_special_tokens([hf.AddedToken(name, normalized=False) for name in (END, HIDDEN)])
    return backend


@pytest.fixture(params=["tokenizer.json", "vocab.json"])
def folder(request, trained, tmp_path):
    if request.param == "tokenizer.json":
        trained.save(str(tmp_path / "tokenizer.json"))
        return tmp_path
    description = json.loads(trained.to_str())
    (tmp_path / "vocab.json").write_text(json.dumps(description["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in description["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {str(token.pop("id")): token for token in description["added_tokens"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return tmp_path


def load(folder) -> ForeignTokenizer:
    tokenizer = ForeignTokenizer.of_folder(folder, split=SPLIT)
    assert tokenizer is not None
    return tokenizer


def test_ids_are_those_of_the_files(folder, trained):
    tokenizer = load(folder)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == trained.encode(text).ids
        assert tokenizer.decode(torch.tensor(ids)) == text.replace("e\u0301", "é")
    assert tokenizer.vocab_size == trained.get_vocab_size()
    assert tokenizer.id_of(HIDDEN) == tokenizer.vocab_size - 1 and tokenizer.id_of("<|nothing|>") is None
    one, four = (tokenizer.id_of(digit) for digit in "14")
    assert tokenizer.encode("1414") == [one, four, one, four]


def test_the_name_of_a_special_is_text_unless_asked_for(folder):
    tokenizer = load(folder)
    text, special = f"the cat{HIDDEN}", tokenizer.id_of(HIDDEN)
    assert special not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode(text, special_names=True)
    assert ids[-1] == special and ids[:-1] == tokenizer.encode("the cat")
    assert tokenizer.decode(ids) == "the cat" and tokenizer.decode(ids, special_names=True) == text
    assert special not in tokenizer.encode(text)


def test_a_word_without_a_token_is_an_error_where_the_file_names_no_token_for_it():
    backend = hf.Tokenizer(hf.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    description = json.loads(backend.to_str())
    assert ForeignTokenizer(json.dumps(description)).encode("b") == [1]
    description["model"]["unk_token"] = "none"
    with pytest.raises(ModelError, match="its file is damaged"):
        ForeignTokenizer(json.dumps(description)).encode("b")


def test_half_a_surrogate_pair_is_refused(folder):
    with pytest.raises(DataError, match="surrogate"):
        load(folder).encode("a\ud800")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00rubbish"])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        ForeignTokenizer.of_folder(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("folder", ["vocab.json"], indirect=True)
def test_a_damaged_vocabulary_is_named(folder, name):
    (folder / name).write_text("{]")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("folder", ["vocab.json"], indirect=True)
def test_an_added_token_keeps_its_id(folder):
    file = folder / "tokenizer_config.json"
    added = json.loads(file.read_text())["added_tokens_decoder"]
    last = max(added, key=int)
    added[str(int(last) + 5)] = added.pop(last)
    file.write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(ModelError, match=r"<\|mask\|> the id"):
        load(folder)


def test_a_model_has_the_tokenizer_of_its_folder_if_any(folder, trained, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    write(bare, "Dream")
    assert load_foreign(bare, "cpu").tokenizer is None
    write(folder, "Dream", vocab_size=400)
    tokenizer = load_foreign(folder, "cpu").tokenizer
    assert tokenizer is not None and tokenizer.encode("the cat") == trained.encode("the cat").ids
    write(folder, "Dream")
    with pytest.raises(ModelError, match="where ids are integers below 56"):
        load_foreign(folder, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["vocab.json"], indirect=True)
def test_dreams_files_are_read_as_qwen2s(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2Tokenizer.from_pretrained(str(folder))
    tokenizer = load(folder)
    for text in [*TEXTS, "They'll've\t\tSEEN  it\r\n\r\n...", "x" * 50, f"a{END}b"]:
        assert tokenizer.encode(text, special_names=True) == theirs.encode(text, add_special_tokens=False)


def test_what_is_whole_stays_as_it_is_whatever_follows():
    """Bytes that spell a character are told once it is whole: one that does not fit spoils the run before it."""
    vocab = {"a": 0, "▁b": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    backend = hf.Tokenizer(hf.models.BPE(vocab, [], byte_fallback=True))
    replace = hf.decoders.Replace("▁", " ")
    backend.decoder = hf.decoders.Sequence([replace, hf.decoders.ByteFallback(), hf.decoders.Fuse()])
    tokenizer = ForeignTokenizer(backend.to_str())
    smile = [2 + byte for byte in "😀".encode()]
    assert tokenizer.decode([*smile, *smile[:1]]) != "😀", "the run is spoilt"
    assert tokenizer.whole([0, *smile, 1]) == 6 and tokenizer.whole([0, *smile]) == 1 and tokenizer.whole(smile) == 0
    generator = random.Random(0)
    for _ in range(300):
        ids = [generator.choice([0, 1, *smile, 2 + generator.randrange(256)]) for _ in range(12)]
        for k in range(13):
            told = tokenizer.decode(ids[: tokenizer.whole(ids[:k])])
            assert tokenizer.decode(ids).startswith(told)
