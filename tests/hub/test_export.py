"""An exported model is read without manta, computes what manta computes to the last bit, and writes what it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manta.cli import main
from manta.errors import ModelError, UsageError
from manta.families.decoder import DecoderConfig, DecoderLM, DecoderModel
from manta.hub import load, save_model
from manta.hub.export import export
from manta.operators import AttentionConfig, LinearConfig
from manta.text import ForeignTokenizer, Tokenizer

from ..families.conftest import WORDS, make_ar, make_masked, random_weights

pytest.importorskip("transformers")

WITHOUT_MANTA = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "manta":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
found, tensors = [], {}
for i, text in enumerate(texts):
    given = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        tensors[str(i)] = net(**given).logits
    ids = net.generate(**given, max_new_tokens=8, do_sample=False)[0, given.input_ids.shape[1]:]
    found.append([given.input_ids[0].tolist(), tokenizer.decode(ids, skip_special_tokens=True).strip()])
save_file(tensors, out)
print("FOUND", json.dumps([type(net).__name__, "manta" in sys.modules, found]))
"""
TEXTS = ["the cat sat", "some old river", "<bos> and <mask>", "  spaces\n and Ünïcode 🐈", ""]


def make_decoder(**shape: Any) -> DecoderLM:
    tokenizer = ForeignTokenizer.of_own(Tokenizer.train(list(WORDS) * 3, 512))
    settings: dict[str, Any] = {
        "dim": 32,
        "heads": 4,
        "depth": 2,
        "max_prompt": 48,
        "max_text": 64,
        "hidden": 48,
    } | shape
    torch.manual_seed(0)
    net = DecoderModel(DecoderConfig(vocab_size=tokenizer.vocab_size, **settings))
    random_weights(net)
    return DecoderLM(net, tokenizer)


def logits_of(lm: DecoderLM, tokens: list[int]) -> torch.Tensor:
    rows = torch.tensor([tokens])
    with torch.no_grad():
        return lm.model(rows, lm.model.memory(rows[:, :0], rows[:, 0] * 0, rows[:, 0] * 0))


def read_without_manta(folder: Path, out: Path) -> tuple[str, list[Any], dict[str, torch.Tensor]]:
    command = [sys.executable, "-I", "-c", WITHOUT_MANTA, str(folder), str(out), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    name, loaded, found = json.loads(done.stdout.rpartition("FOUND ")[2])
    assert not loaded
    return name, found, load_file(out)


@pytest.mark.slow
def test_it_is_read_in_a_process_that_has_no_manta(tmp_path, capsys):
    lm = make_decoder(operator=AttentionConfig(normalised=False, rotary_base=500.0, kv_heads=2), eps=1e-5)
    save_model(tmp_path / "model", lm, recipe={}, card="", dtype=torch.float32)
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "llama")]) == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out
    name, found, logits = read_without_manta(tmp_path / "llama", tmp_path / "logits.safetensors")
    assert name == "LlamaForCausalLM"
    for i, (text, (ids, written)) in enumerate(zip(TEXTS, found, strict=True)):
        assert ids == [2, *lm.tokenizer.encode(text)]
        # A product with one row adds up in no fixed order.
        assert torch.equal(logits[str(i)], logits_of(lm, ids)) or len(ids) == 1
        torch.testing.assert_close(logits[str(i)], logits_of(lm, ids), rtol=0, atol=1e-5)
        assert written == lm.write(text, max_tokens=8)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llama", {"tied": True, "operator": AttentionConfig(normalised=False, bias=True), "mlp_bias": True}),
        ("llama", {"dim": 64, "heads": 2, "begin": 3, "end": 3}),  # heads whose scale is no power of two
        ("gpt_neox", {"norm": "layer", "gated": False, "mlp_bias": True, "parallel": True}),
        ("gpt_neox", {"norm": "layer", "gated": False, "mlp_bias": True, "heads": 2}),
    ],
)
def test_logits_are_the_same_to_the_last_bit(kind, shape, tmp_path):
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    if kind == "gpt_neox":
        shape = {**shape, "operator": AttentionConfig(normalised=False, bias=True, rotary_share=0.5)}
    lm = make_decoder(**shape)
    export(lm, tmp_path / "out", kind)
    net: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(4, lm.tokenizer.vocab_size, (33,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        assert torch.equal(net(torch.tensor([tokens])).logits, logits_of(lm, tokens))
    again = load(tmp_path / "out", device="cpu")
    assert isinstance(again, DecoderLM)
    mine, theirs = lm.model.state_dict(), again.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (again.model.begin, again.model.end) == (lm.model.begin, lm.model.end)
    assert again.write("the cat", max_tokens=6) == lm.write("the cat", max_tokens=6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_ar, "reads its prompt by cross-attention"),
        (make_masked, "does not write left to right"),
        (lambda: make_decoder(operator=AttentionConfig()), "normalised queries and keys"),
        (lambda: make_decoder(operator=LinearConfig()), "LinearAttention"),
        (lambda: make_decoder(norm="layer", gated=False, parallel=True), "those of gpt_neox.*--to gpt_neox"),
        (lambda: make_decoder(parallel=True), "mixes what"),
        (
            lambda: make_decoder(
                operators=(AttentionConfig(normalised=False), AttentionConfig(normalised=False, rotary_base=9.0))
            ),
            "blocks differ",
        ),
    ],
)
def test_what_is_not_exact_is_refused(make, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        export(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        export(make_decoder(), tmp_path)
    assert main(["export", "builtin:e2e"]) == 2
    save_model(tmp_path / "model", make_ar(), recipe={}, card="")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("manta: error: a model of the family ar reads its prompt") and "decoder" in line
    assert {file.name for file in tmp_path.iterdir()} == {"mine", "model"}


def test_a_tokenizer_of_ours_is_told_whole_in_its_file():
    ours = Tokenizer.train(list(WORDS) * 3, 512)
    told = ForeignTokenizer.of_own(ours)
    texts = [*TEXTS, " a", "the cat  sat\n", "é", "a" * 300, "<eos>"]
    assert told.encode_batch(texts) == ours.encode_batch(texts)
    assert [told.decode(row) for row in told.encode_batch(texts)] == texts
    symbols = Tokenizer.of_symbols("0123 ")
    assert ForeignTokenizer.of_own(symbols).encode(" 0123 ") == symbols.encode(" 0123 ")


def test_a_tokenizer_that_opens_rows_already_is_left_as_it_is():
    lm = make_decoder()
    assert isinstance(lm.tokenizer, ForeignTokenizer)
    once = lm.tokenizer.opening(2)
    assert ForeignTokenizer(json.dumps(once)).opening(2) == once
    with pytest.raises(ModelError, match="no token 9999"):
        lm.tokenizer.opening(9999)


@pytest.mark.slow
def test_a_decoder_is_trained_from_nothing_and_exported(tmp_path):
    import transformers  # pyright: ignore[reportMissingImports]

    how = ["--family", "decoder", "--size", "nano", "--num-steps", "12", "num_examples=60", "vocab_size=512"]
    shape = ["decoder.dim=32", "decoder.heads=2", "decoder.depth=1"]
    assert main(["train", "builtin:weather", "--out", str(tmp_path / "run"), *how, *shape]) == 0
    lm = load(tmp_path / "run", device="cpu")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    net: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = [2, *lm.tokenizer.encode("place: Ternholm, day: Monday")]
    with torch.no_grad():
        assert torch.equal(net(torch.tensor([tokens])).logits, logits_of(lm, tokens))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    save_file(weights, tmp_path / "copy.safetensors")  # no two share memory
