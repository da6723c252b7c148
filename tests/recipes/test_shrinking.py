"""A model with a smaller vocabulary tells the words that are left as it did, and says what the others cost."""

import weakref
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from manta.autoregressive.ngram import count_ngrams
from manta.cli import main
from manta.config import from_dict
from manta.families.autoregressive import AutoregressiveLM
from manta.hub import load
from manta.recipes import Recipe, TrainingRun, shrinking
from manta.recipes.shrinking import shrink_vocabulary, vocabulary_share, with_vocabulary
from manta.text import BOS, EOS, Example, corpus, read

from .small import finish, small

SMALL: dict[str, Any] = {"num_examples": 200, "vocab_size": 640, "num_steps": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "ar": {"family": "ar"},
    "masked": {"family": "masked"},
    "aligned": {"family": "aligned", "warm_start": True},
    "manta": {"family": "manta"},
    "embeddings": {"model": {**small(1)["model"], "space": {"kind": "embedding"}}},
}


class Held(Example):
    """An example that can be watched."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name, changes in FAMILIES.items():
        found[name] = tmp_path_factory.mktemp("models") / name
        finish(TrainingRun(from_dict(Recipe, small(1, **SMALL, **changes)), found[name], device="cpu"))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_any_family_has_fewer_tokens_and_writes(name, models, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["data", "shrink-vocab", str(models[name]), "--data", "builtin:weather", "--out", str(out)]
    assert main([*given, "--coverage", "0.5", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    before, after = (cast(Any, load(folder, device="cpu")) for folder in (models[name], out))
    assert after.tokenizer.vocab_size < before.tokenizer.vocab_size
    assert after.model.embedding.num_embeddings == after.tokenizer.vocab_size
    assert after.prompted == before.prompted is not None
    assert f"| tokens of the vocabulary | {before.tokenizer.vocab_size:,} | {after.tokenizer.vocab_size:,} |" in said
    assert said.strip() in (out / "README.md").read_text()
    assert len(after.write(["Monday: sunny"])) == 1
    names = {token: index for token, index in before.tokenizer.backend.get_vocab().items()}
    for token, index in after.tokenizer.backend.get_vocab().items():
        assert torch.equal(after.model.embedding.weight[index], before.model.embedding.weight[names[token]])


def test_logits_of_the_tokens_that_stay_are_what_they_were(models):
    lm = cast(AutoregressiveLM, load(models["ar"], device="cpu"))
    kept = [0, 1, 2, 3, *range(10, 200, 3)]
    net = cast(Any, with_vocabulary(lm.model, kept))
    new = torch.tensor([[2, 5, 9, 30]])
    old = torch.tensor(kept)[new]
    told = []
    for each, tokens in ((lm.model, old), (net, new)):
        memory = each.memory(tokens[:, :0], torch.tensor([0]), torch.tensor([0]))
        with torch.no_grad():
            told.append(each(tokens, memory))
    torch.testing.assert_close(told[0][..., kept], told[1])
    assert vocabulary_share(net) < vocabulary_share(lm.model)


def test_the_table_of_words_is_counted_anew(models):
    lm = cast(AutoregressiveLM, load(models["ar"], device="cpu"))
    found = cast(AutoregressiveLM, shrink_vocabulary(lm, "builtin:weather", 0.6, lambda line: None).model)
    assert lm.table is not None and found.table is not None
    assert found.table.vocab_size == found.tokenizer.vocab_size
    assert found.write(["", "rain"]) == found.write(["", "rain"], decoder="sequential")


def test_examples_are_read_as_they_are_needed_and_all_are_counted(models, tmp_path, monkeypatch):
    """Of 600 a few hundred are alive at once at most: those of the chunks at work, and those that are measured on."""
    alive, most = weakref.WeakSet[Any](), 0
    texts = [f"{e.text} {i}" for i, e in enumerate(read("builtin:weather", "train", 600))]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts) + "\n")

    def watched(*args: Any) -> Any:
        nonlocal most
        for example in read(*args):
            held = Held(example.text)
            alive.add(held)
            most = max(most, len(alive))
            yield held

    monkeypatch.setattr(shrinking, "read", watched)
    monkeypatch.setattr(shrinking, "MEASURED", 20)
    monkeypatch.setattr(corpus, "_CHUNK_EXAMPLES", 50)
    lm = cast(AutoregressiveLM, load(models["ar"], device="cpu"))
    found = cast(AutoregressiveLM, shrink_vocabulary(lm, str(file), 0.6, lambda line: None).model)
    assert 20 < most < 250
    rows = found.tokenizer.encode_batch([example.text for example in read(str(file), "train")])
    assert found.table is not None and len(rows) > 500
    counted = count_ngrams(rows, vocab_size=found.tokenizer.vocab_size, begin=BOS, end=EOS)
    assert counted.keys() == found.table.table.keys()
    assert all(torch.equal(value, found.table.table[name]) for name, value in counted.items())


def test_nats_a_byte_are_of_the_texts_that_both_models_read_whole(models):
    """By hand: the exact likelihood of those texts over their bytes; and the share of the others."""
    lm = cast(AutoregressiveLM, load(models["ar"], device="cpu"))
    result = shrink_vocabulary(lm, "builtin:weather", 0.5, lambda line: None)
    held, smaller = list(read("builtin:weather", "dev", 256)), cast(Any, result.model)

    def fits(each: Any, example: Any) -> bool:
        return len(each.tokenizer.encode(example.prompt)) <= 40 and len(each.tokenizer.encode(example.text)) <= 40

    both = [example for example in held if fits(lm, example) and fits(smaller, example)]
    assert 0 < len(both) < len(held)
    num_bytes = sum(len(example.text.encode()) for example in both)
    for each, side in ((lm, result.before), (smaller, result.after)):
        prompts, texts = ([each.tokenizer.encode(getattr(e, n)) for e in both] for n in ("prompt", "text"))
        assert side.nats_a_byte == pytest.approx(-sum(each.likelihoods(prompts, texts)) / num_bytes, rel=1e-4)
        assert side.fitting == pytest.approx(sum(fits(each, example) for example in held) / len(held))


def test_what_cannot_be_is_refused_and_nothing_is_written(models, tmp_path, capsys):
    model, out = str(models["masked"]), tmp_path / "out"
    common = ["data", "shrink-vocab", model, "--data", "builtin:weather"]
    for given, said in (
        ([*common, "--out", str(out), "--coverage", "0"], "--coverage should be above 0"),
        ([*common], "say manta data shrink-vocab MODEL --data DATA --out DIR"),
        ([*common, "--out", str(models["ar"])], "is there already"),
        (["data", "shrink-vocab", "nowhere", "--data", "builtin:weather", "--out", str(out)], "no model at nowhere"),
        (["data", "shrink-vocab", model, "--data", "nowhere.txt", "--out", str(out)], "does not exist"),
    ):
        assert main(given) != 0
        assert said in capsys.readouterr().err
        assert not out.exists()
