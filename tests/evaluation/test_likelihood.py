"""Likelihoods are exact where they say so, bound where they say so, and judges read what they are given."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from manta.errors import ModelError, RequestError, UsageError
from manta.evaluation import evaluation_set, likelihood, load_judge
from manta.families.autoregressive import log_likelihood
from manta.families.batching import to_batch
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.hub import load_causal, save_model
from manta.text import MASK, NULL

from ..families.conftest import make_lm, random_weights
from ..families.test_autoregressive import make_ar
from .test_dataset import in_split, write

WORDS = "the cat sat on a mat near some old river while rain fell over quiet hills"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    prompts, words = in_split("test", 12), WORDS.split()
    rows = [{"prompt": p, "text": " ".join(words[i : i + 1 + i % 3])} for i, p in enumerate(prompts)]
    rows += [{"prompt": p, "text": WORDS} for p in in_split("train", 20)]
    return evaluation_set(write(tmp_path_factory.mktemp("data") / "x.jsonl", rows))


def make_masked() -> MaskedLM:
    tokenizer = make_ar().tokenizer
    config = MaskedConfig(vocab_size=tokenizer.vocab_size, dim=32, heads=2, prompt_depth=1, depth=1, max_text=14)
    torch.manual_seed(0)
    model = MaskedModel(config)
    random_weights(model)
    return MaskedLM(model, tokenizer)


def test_a_left_to_right_model_has_the_exact_one(data):
    lm = make_ar()
    found = likelihood(lm, data)
    pairs = list(zip(data.prompts, data.humans, strict=True))
    rows = [(lm.tokenizer.encode(prompt), lm.tokenizer.encode(text)) for prompt, text in pairs]
    total = -sum(float(log_likelihood(lm.model, to_batch([prompt], [text]))) for prompt, text in rows)
    assert (found.kind, found.texts, found.too_long, found.samples) == ("exact", 12, 0, None)
    assert found.nats_per_token == pytest.approx(total / sum(len(text) + 1 for _, text in rows), rel=1e-5)
    assert found.bits_per_byte is not None
    assert found.bits_per_byte.value == pytest.approx(
        total / math.log(2) / sum(len(text) for _, text in pairs), rel=1e-5
    )
    assert found.bits_per_byte.low < found.bits_per_byte.value < found.bits_per_byte.high


def test_a_masked_model_has_a_bound_that_every_hiding_and_the_length_make_up(data):
    """The expectation over all hidings of a text of one token and its closing null, enumerated."""
    lm = make_masked()
    single = [i for i, text in enumerate(data.humans) if len(lm.tokenizer.encode(text)) == 1]
    assert len(single) >= 2
    total = 0.0
    for at in single:
        batch = to_batch([lm.tokenizer.encode(data.prompts[at] or "")], [lm.tokenizer.encode(data.humans[at])])
        canvas = torch.cat([batch.text[:, :1], torch.full((1, 1), NULL)], 1)
        with torch.no_grad():
            memory = lm.model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
            projected = lm.model.trunk.project(memory.states, memory.mask)
            total -= float(lm.model.length_logits(memory).log_softmax(-1)[0, 1])
            for hidden in itertools.chain(([0], [1]), ([0, 1],)):
                tokens = canvas.clone()
                tokens[0, hidden] = MASK
                logits = lm.model(tokens, torch.ones_like(canvas, dtype=torch.bool), projected).log_softmax(-1)
                nats = -float(sum(logits[0, place, canvas[0, place]] for place in hidden))
                # l is 1 or 2 with probability 1/2 each; of l = 1 there are two hidings, and n/l = 2.
                total += nats / 2
    chosen = type(data)(
        data.name,
        data.split,
        tuple(data.prompts[i] for i in single),
        tuple(data.references[i] for i in single),
        data.training,
    )
    found = likelihood(lm, chosen, samples=1000)
    assert (found.kind, found.samples, found.self_conditioning) == ("bound", 1000, "off")
    assert found.nats_per_token is not None
    assert found.standard_error is not None
    assert abs(found.nats_per_token - total / (2 * len(single))) < 4 * found.standard_error < 0.2


def test_a_manta_lm_has_none_and_says_why(data):
    found = likelihood(make_lm(), data)
    assert (found.kind, found.nats_per_token) == ("none", None)
    assert "no sound bound" in found.estimator


def test_texts_that_do_not_fit_are_counted_and_few_texts_are_spread(data):
    lm = make_ar(max_text=2)
    long = sum(len(lm.tokenizer.encode(text)) > 2 for text in data.humans)
    assert likelihood(lm, data).too_long == long > 0
    assert likelihood(make_ar(), data, texts=5).texts == 5
    nothing = likelihood(make_ar(max_prompt=1), data)
    assert (nothing.kind, nothing.too_long) == ("none", 12)


def test_a_judge_of_ours_gives_exact_likelihoods_whatever_the_batch(tmp_path):
    lm = make_ar()
    save_model(tmp_path, lm, recipe={"data": "x"}, card="", dtype=torch.float32)
    judge = load_judge(str(tmp_path))
    texts = ["the cat", "rain", WORDS[:30]]
    nats, tokens = judge(texts)
    for i, text in enumerate(texts):
        row = lm.tokenizer.encode(text)
        assert float(nats[i]) == pytest.approx(-float(log_likelihood(lm.model, to_batch([()], [row]))), rel=1e-5)
        assert int(tokens[i]) == len(row) + 1
    open_nats, open_tokens = judge.beginnings(texts)
    for i, text in enumerate(texts):
        row = lm.tokenizer.encode(text)
        batch = to_batch([()], [row])
        given, target, _ = lm.model.shifted(batch)
        with torch.no_grad():
            memory = lm.model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
            end = -float(lm.model(given, memory)[0, len(row)].log_softmax(-1)[target[0, len(row)]])
        assert float(nats[i] - open_nats[i]) == pytest.approx(end, rel=1e-4)
        assert int(open_tokens[i]) == len(row)
    alone = torch.cat([judge.features([text]) for text in texts])
    torch.testing.assert_close(judge.features(texts), alone)
    assert judge.config["recipe"] == {"data": "x"}


def test_a_judge_of_ours_reads_long_texts_in_windows_that_overlap_by_half(tmp_path):
    lm = make_ar(max_text=6)
    save_model(tmp_path, lm, recipe={"data": "x"}, card="", dtype=torch.float32)
    judge, row = load_judge(str(tmp_path)), lm.tokenizer.encode(WORDS)
    assert len(row) > 2 * 6
    wanted, judged = 0.0, 0
    for begin in range(0, len(row), 3):
        window, known = row[begin : begin + 6], 3 if begin else 0
        batch = to_batch([()], [window])
        given, target, _ = lm.model.shifted(batch)
        with torch.no_grad():
            memory = lm.model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
            nats = -lm.model(given, memory)[0].log_softmax(-1).gather(1, target[0, :, None])[:, 0]
        ends = begin + 6 >= len(row)
        stop = len(window) + ends
        wanted, judged = wanted + float(nats[known:stop].sum()), judged + stop - known
        if ends:
            break
    nats, tokens = judge(["rain", WORDS, "the cat"])
    assert float(nats[1]) == pytest.approx(wanted, rel=1e-5)
    assert int(tokens[1]) == judged == len(row) + 1
    assert int(judge.beginnings([WORDS])[1][0]) == len(row)
    torch.testing.assert_close(torch.stack([nats[0], nats[2]]), judge(["rain", "the cat"])[0], rtol=1e-5, atol=1e-5)
    assert judge.features([WORDS, "rain"]).isfinite().all()


def test_only_exact_models_judge(tmp_path):
    save_model(tmp_path, make_lm(), recipe={}, card="")
    with pytest.raises(UsageError, match="no exact likelihood"):
        load_judge(str(tmp_path))
    with pytest.raises(ModelError, match="no judge at"):
        load_judge(str(tmp_path / "missing"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a tiny model of the layout of GPT-2, with random weights."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("gpt2")
    words = ["<end>", *WORDS.split()]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<end>", eos_token="<end>")
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": len(words)}
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    net.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def test_a_causal_model_of_the_hub_judges_every_token_after_its_first(gpt2):
    judge = load_judge(gpt2)
    texts = ["the cat sat", "rain", "quiet hills over some old river mat"]
    nats, tokens = judge(texts)
    causal = load_causal(gpt2)
    for i, text in enumerate(texts):
        row = torch.tensor([[0, *causal.tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logits = causal.net(row).logits[0].log_softmax(-1)
        wanted = -sum(float(logits[place, row[0, place + 1]]) for place in range(row.shape[1] - 1))
        assert float(nats[i]) == pytest.approx(wanted, rel=1e-5)
        assert int(tokens[i]) == row.shape[1] - 1 == len(text.split())
    torch.testing.assert_close(judge.beginnings(texts)[0], nats)
    torch.testing.assert_close(judge.features(texts), torch.cat([judge.features([text]) for text in texts]))
    with pytest.raises(RequestError, match="reads 8"):
        judge(["the " * 8])
    assert judge.config == {}


def test_a_causal_model_that_lacks_a_weight_judges_nothing(gpt2, tmp_path):
    folder = Path(shutil.copytree(gpt2, tmp_path / "lacking"))
    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has no transformer\.h\.0\.mlp\.c_fc\.weight \(1 weights are missing\)"):
        load_judge(str(folder))


def test_what_is_no_causal_model_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ModelError, match="no causal language model"):
        load_judge(str(tmp_path))
