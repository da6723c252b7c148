"""`transformers` loads folders of manta, calls them to the last bit as manta does, and writes what manta writes."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import manta
from manta.errors import ModelError, UsageError
from manta.families import FAMILIES
from manta.families.manta_lm import MantaLM
from manta.hub import load, save_model, shipped
from manta.text import BOS, MASK

from ..families import conftest as families
from ..families.conftest import make_block
from .test_export import make_decoder
from .test_saving import Hub, hub

transformers = pytest.importorskip("transformers")
auto = pytest.importorskip("manta.hub.auto")

__all__ = ["hub"]


MAKERS = {
    **families.MAKERS,
    "decoder": lambda: make_decoder(depth=1, max_prompt=14, max_text=20),
    "block": lambda: make_block(max_text=12),
}
every_family = pytest.mark.parametrize("family", MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    auto.register()
    root = tmp_path_factory.mktemp("models")
    return {name: manta.save_pretrained(make(), root / name) for name, make in MAKERS.items()}


def opened(folder: Path) -> tuple[Any, Any]:
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    return net, transformers.AutoTokenizer.from_pretrained(folder)


TEXTS = [
    "the cat sat on a mat",
    "  two spaces",
    "Ünïcode 🐈 and\ttabs\n\n",
    "<bos>the <mask> of <null>",
    "",
    " ",
    "rain" * 200,
    "a\u00a0b",
]


@pytest.mark.parametrize("family", ["ar", "decoder"])
def test_the_tokenizer_gives_the_ids_of_the_folder(family, folders, tmp_path):
    own = load(folders[family], device="cpu").tokenizer
    found = transformers.AutoTokenizer.from_pretrained(folders[family])
    for text in TEXTS:
        ids = own.encode(text)
        assert found(text)["input_ids"] == ids
        assert found.decode(ids, skip_special_tokens=True) == own.decode(ids) == text
    found.save_pretrained(tmp_path / "again")
    saved = type(own).load(tmp_path / "again" / "tokenizer.json")
    assert saved.fingerprint() == own.fingerprint()
    specials = {"ar": ("<bos>", "<eos>", "<null>"), "decoder": ("<bos>", "<eos>", "<eos>")}[family]
    assert (found.bos_token, found.eos_token, found.pad_token) == specials
    assert found.model_max_length == {"ar": 12, "decoder": 14}[family]


def expected_logits(lm: Any, tokens: Tensor, mask: Tensor, prompt: Tensor, state: Tensor, t: Tensor) -> Tensor:
    """A call of each family, as the family's own code makes it."""
    lengths, tag = torch.full((len(prompt),), prompt.shape[1]), torch.zeros(len(prompt), dtype=torch.long)
    if lm.family == "decoder":
        return lm.model(tokens, lm.model.memory(tokens[:, :0], lengths * 0, tag))
    memory = lm.model.memory(prompt, lengths, tag)
    if lm.family == "ar":
        return lm.model(tokens, memory)
    if lm.family == "manta":
        cond = lm.model.condition(memory, mask, tokens)
        return lm.model.logits(lm.model.act(state, t, cond=cond).aux)
    read = lm.model.trunk.project(memory.states, memory.mask)
    return lm.model(tokens, tokens, mask, read) if lm.family == "block" else lm.model(tokens, mask, read)


def some_call(lm: Any) -> dict[str, Tensor]:
    """Two rows of eight tokens, the second of which is shorter, with prompts of three."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 300, (2, 8), generator=draw)
    if lm.family in ("ar", "decoder"):
        tokens[:, 0] = BOS
    else:
        tokens[:, -3:] = MASK
    call = {"input_ids": tokens, "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    call["attention_mask"][1, 6:] = 0
    if lm.family != "decoder":
        call["prompt_ids"] = torch.randint(4, 300, (2, 3), generator=draw)
    if isinstance(lm, MantaLM):
        call["inputs_embeds"] = torch.randn(2, 2, 6, generator=draw)
        call["timesteps"] = torch.tensor([0.3, 0.7])
    return call


@every_family
def test_a_call_is_the_families_own_to_the_last_bit(family, folders):
    lm, (net, _) = load(folders[family], device="cpu"), opened(folders[family])
    call = some_call(lm)
    with torch.no_grad():
        found = net(**call)
        mask, nothing = call["attention_mask"].bool(), torch.zeros(0)
        prompt = call.get("prompt_ids", call["input_ids"][:, :0])
        state, t = call.get("inputs_embeds", nothing), call.get("timesteps", nothing)
        assert torch.equal(found.logits, expected_logits(lm, call["input_ids"], mask, prompt, state, t))
    if family == "manta":
        bare = net(inputs_embeds=state, timesteps=t)
        assert bare.clean.shape == state.shape and not torch.equal(bare.clean, found.clean)
        assert found.loss is None


def test_every_family_that_is_trained_can_be_called_and_a_strange_one_is_named():
    from manta.hub.auto.calls import CALLS, call

    assert {*CALLS} == {*MAKERS} == {name for name, row in FAMILIES.items() if row.writer is not None}
    with pytest.raises(UsageError, match="a model of the family ours is not called from tensors"):
        call(SimpleNamespace(family="ours"), torch.zeros(1, 1), None, (None, None), (None, None, None), "diverse")


FRESH = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from manta.hub.auto import register
register()
for folder, call, out in json.loads(sys.argv[1]):
    net = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        save_file({"logits": net(**load_file(call)).logits.contiguous()}, out)
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits(folders, tmp_path):
    from safetensors.torch import save_file

    asked = []
    for family, folder in folders.items():
        save_file(some_call(load(folder, device="cpu")), tmp_path / f"{family}.call")
        asked.append([str(folder), str(tmp_path / f"{family}.call"), str(tmp_path / f"{family}.out")])
    command = [sys.executable, "-c", FRESH, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    for family, folder in folders.items():
        net, _ = opened(folder)
        with torch.no_grad():
            told = load_file(tmp_path / f"{family}.out")["logits"]
            assert torch.equal(told, net(**some_call(net.lm)).logits)


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(manta.__file__).parent.parent)}


@every_family
def test_a_pipeline_writes_what_the_model_writes(family, folders):
    lm, (net, tokenizer) = load(folders[family], device="cpu"), opened(folders[family])
    pipe = transformers.pipeline("text-generation", model=net, tokenizer=tokenizer)

    def written(prompts: Any, **how: Any) -> Any:
        found = pipe(prompts, return_full_text=False, **how)
        rows = found if isinstance(found[0], list) else [found]
        return [said["generated_text"].strip() for row in rows for said in row]

    assert written("the cat") == [lm.write("the cat")]
    assert written("the cat", seed=7, temperature=0.9) == [lm.write("the cat", seed=7, temperature=0.9)]
    assert pipe("")[0]["generated_text"].strip() == lm.write(None)
    several = {"temperature": 0.8, "seed": 3}
    prompts = ["the cat", "some old river while rain"]
    expected = lm.write(prompts, num_samples=2, **several)
    assert written(prompts, batch_size=2, num_return_sequences=2, **several) == expected
    full = pipe("the cat")[0]["generated_text"]
    assert full.startswith("the cat") and full.removeprefix("the cat").strip() == lm.write("the cat")


def test_a_pipeline_is_made_by_a_folders_name_and_kept(folders, tmp_path):
    pipe = transformers.pipeline("text-generation", model=str(folders["aligned"]), device=-1)
    lm = load(folders["aligned"], device="cpu")
    assert pipe("the cat", return_full_text=False)[0]["generated_text"] == lm.write("the cat")
    pipe.save_pretrained(tmp_path / "kept")
    assert load(tmp_path / "kept", device="cpu").write("the cat") == lm.write("the cat")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "kept")
    assert isinstance(again, auto.MantaTokenizer) and again.own.fingerprint() == lm.tokenizer.fingerprint()


@pytest.mark.parametrize(("family", "ours"), [("manta", {"num_steps": 5, "style": "consensus"}), ("ar", {"top_k": 3})])
def test_settings_of_both_sides_are_followed(family, ours, folders):
    net, tokenizer = opened(folders[family])
    given = tokenizer("the cat", return_tensors="pt")
    config = transformers.GenerationConfig(do_sample=True, temperature=0.6)
    out = net.generate(**given, generation_config=config, return_dict_in_generate=True, seed=2, **ours)
    text = tokenizer.decode(out.sequences[0, given.input_ids.shape[1] :], skip_special_tokens=True)
    assert text == net.lm.write("the cat", temperature=0.6, seed=2, **ours)
    assert torch.equal(out.sequences[:, : given.input_ids.shape[1]], given.input_ids)
    greedy = net.generate(**given, do_sample=False, temperature=0.6, num_beams=1, seed=2)[0, given.input_ids.shape[1] :]
    assert tokenizer.decode(greedy, skip_special_tokens=True) == net.lm.write("the cat", seed=2)


def test_a_bound_on_the_tokens_is_followed_or_refused(folders):
    net, tokenizer = opened(folders["ar"])
    given = tokenizer("the cat", return_tensors="pt")
    row = net.generate(**given, max_new_tokens=5)[0, given.input_ids.shape[1] :]
    assert tokenizer.decode(row, skip_special_tokens=True) == net.lm.write("the cat", max_tokens=5)
    with pytest.raises(UsageError, match="decides how long its texts are, 24 tokens at most"):
        opened(folders["manta"])[0].generate(**given, max_new_tokens=5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 4}, "`num_beams` of generation means nothing"),
        ({"repetition_penalty": 1.2}, "`repetition_penalty` of generation"),
        ({"stopping_criteria": [lambda *_: True]}, "`stopping_criteria` of generation"),
        ({"num_step": 4}, "`num_step` of generation.*num_steps"),
        ({"eos_token_id": 7}, "`eos_token_id`"),
        ({"top_k": 3}, "cuts what is drawn"),
        ({"num_return_sequences": 0.5}, "num_return_sequences should be an integer"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(given, said, folders):
    with pytest.raises(UsageError, match=said):
        opened(folders["ar"])[0].generate(**given)


class Streamer:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def put(self, value: Tensor) -> None:
        self.told.append(("put", value.flatten().tolist()))

    def put_draft(self, value: Tensor) -> None:
        self.told.append(("draft", value.tolist()))

    def end(self) -> None:
        self.told.append(("end", None))


@every_family
def test_a_streamer_is_told_of_drafts_and_of_the_text(family, folders):
    net, tokenizer = opened(folders[family])
    given, streamer = tokenizer("the cat", return_tensors="pt"), Streamer()
    rows = net.generate(**given, streamer=streamer)
    kinds = [kind for kind, _ in streamer.told]
    assert streamer.told[0] == ("put", given.input_ids[0].tolist()) and kinds[-1] == "end"
    put = [token for kind, value in streamer.told if kind == "put" for token in value]
    assert put == rows[0].tolist()
    drafts = [value for kind, value in streamer.told if kind == "draft"]
    if family in ("ar", "decoder"):
        assert not drafts and kinds.count("put") > 3
    else:
        assert len(drafts) > 1 and kinds.count("put") == 2
        events = [e for e in net.lm.generate([manta_request("the cat")]) if e.kind == "draft"]
        assert drafts == [[token for token in event.tokens if token != 0] for event in events]
    with pytest.raises(UsageError, match="a streamer follows one text, and 2"):
        net.generate(**given, streamer=Streamer(), num_return_sequences=2)


def manta_request(prompt: str) -> Any:
    from manta.families.events import Request

    return Request(prompt=prompt)


@pytest.mark.parametrize("family", ["ar", "masked"])
def test_streamers_of_transformers_show_the_text(family, folders):
    net, tokenizer = opened(folders[family])
    given = tokenizer("the cat", return_tensors="pt")
    text = net.lm.write("the cat")
    kinds = [transformers.TextStreamer]
    if hasattr(transformers, "TextDiffusionStreamer"):
        kinds.append(transformers.TextDiffusionStreamer)
    for kind in kinds:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            net.generate(**given, streamer=kind(tokenizer, skip_prompt=True, skip_special_tokens=True))
        settled = shown.getvalue().rpartition("\033[J")[2]
        assert settled.strip() == text


@pytest.mark.parametrize("family", ["ar", "masked"])
def test_a_loss_is_that_of_the_labels(family, folders):
    net, _ = opened(folders[family])
    call = some_call(net.lm)
    tokens = call["input_ids"]
    if family == "ar":
        logits = net(**call).logits.detach().double().log_softmax(-1)
        places = [(row, i, int(tokens[row, i + 1])) for row in range(2) for i in range(7)]
        labels = tokens
    else:
        labels = torch.full_like(tokens, -100)
        labels[:, -2:] = 9
        logits = net(**call).logits.detach().double().log_softmax(-1)
        places = [(row, i, 9) for row in range(2) for i in (6, 7)]
    expected = -sum(float(logits[place]) for place in places) / len(places)
    assert net(**call, labels=labels).loss.item() == pytest.approx(expected, rel=1e-5)
    share = net(**call, labels=labels, num_items_in_batch=3 * len(places)).loss.item()
    assert share == pytest.approx(expected / 3, rel=1e-5)


def test_what_is_saved_is_what_was_trained_on(folders, tmp_path):
    net, _ = opened(folders["ar"])
    call = some_call(net.lm)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(**call, labels=call["input_ids"]).loss.backward()
    optimizer.step()
    net.save_pretrained(tmp_path / "out", safe_serialization=True)
    with torch.no_grad():
        again = transformers.AutoModel.from_pretrained(tmp_path / "out", device_map="cpu")
        assert torch.equal(again(**call).logits, net(**call).logits)
        before = opened(folders["ar"])[0]
        assert not torch.equal(before(**call).logits, net(**call).logits)
    assert load(tmp_path / "out", device="cpu").write("the cat") == net.lm.write("the cat")


def test_it_is_published_by_the_same_road(hub: Hub, folders):
    net, _ = opened(folders["ar"])
    assert net.push_to_hub("me/it", commit_message="first", private=True) == "commit of me/it"
    assert hub.commit["commit_message"] == "first" and "model.safetensors" in hub.files
    with pytest.raises(ModelError, match="from_pretrained"):
        transformers.AutoModel.from_config(net.config)


@pytest.mark.parametrize(
    ("family", "call", "said"),
    [
        ("ar", {}, "give input_ids"),
        ("ar", {"input_ids": torch.full((1, 3), 5), "prompt_id": torch.full((1, 3), 5)}, "`prompt_id` means nothing"),
        ("ar", {"inputs_embeds": torch.zeros(1, 2, 6)}, "are for a Manta-LM"),
        ("ar", {"input_ids": torch.full((1, 3), 5), "attention_mask": torch.tensor([[0, 1, 1]])}, "pad at the right"),
        ("decoder", {"input_ids": torch.full((1, 3), 5), "prompt_ids": torch.full((1, 3), 5)}, "part of the row"),
        ("manta", {"input_ids": torch.full((1, 4), MASK)}, "called on a state"),
        ("block", {"input_ids": torch.full((1, 6), 5)}, "whole blocks of 4"),
        ("block", {"input_ids": torch.full((1, 8), MASK)}, "last alone may hide"),
        ("masked", {"input_ids": torch.full((1, 4), MASK), "style": "plain"}, "style should be one of"),
        ("aligned", {"input_ids": torch.full((1, 4), MASK), "labels": torch.full((1, 4), 5)}, "all alignments"),
    ],
)
def test_a_call_that_means_nothing_is_refused(family, call, said, folders):
    with pytest.raises(UsageError, match=said):
        opened(folders[family])[0](**call)


def test_what_cannot_be_loaded_is_said(folders, tmp_path):
    with pytest.raises(UsageError, match="float32"):
        transformers.AutoModel.from_pretrained(folders["ar"], dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="one device"):
        transformers.AutoModel.from_pretrained(folders["ar"], device_map={"net.trunk": 0})
    with pytest.raises(UsageError, match="load_in_8bit=True means nothing"):
        auto.MantaLanguageModel.from_pretrained(folders["ar"], load_in_8bit=True)
    lm = make_decoder()
    save_model(tmp_path / "odd", lm, recipe={}, card="")
    file = tmp_path / "odd" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model": {**config["model"], "end": 10**6}}))
    with pytest.raises(ModelError, match="is no token"):
        auto.MantaTokenizer.from_pretrained(tmp_path / "odd")


def test_a_prompt_of_other_tokens_is_refused(folders):
    net, tokenizer = opened(folders["ar"])
    ids = torch.tensor([[*tokenizer("th")["input_ids"], *tokenizer.own.encode("e", start=False)]])
    assert tokenizer.decode(ids[0]) == "the"
    with pytest.raises(UsageError, match="are not those that the model's tokenizer gives"):
        net.generate(ids)


@pytest.mark.skipif(not (shipped() / "config.json").exists(), reason="no model ships with this copy")
def test_the_model_that_ships_is_found_by_its_config():
    auto.register()
    config = transformers.AutoConfig.from_pretrained(shipped())
    assert isinstance(config, auto.MantaTextConfig) and config.manta["family"] == "manta"
    assert (config.vocab_size, config.hidden_size, config.max_position_embeddings) == (1024, 160, 96)
