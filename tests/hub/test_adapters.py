"""Adapters are peft's: what is trained here `peft` reads, what it trained is read here, and merged is unmerged."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from manta.errors import ConfigError, ModelError
from manta.families.decoder import DecoderLM
from manta.hub import load, load_adapters, load_foreign, merge, model_config
from manta.hub.adapters import (
    Adapters,
    LowRankConfig,
    add_adapters,
    digest_of_weights,
    read_adapters,
    save_adapters,
    targets_of,
)
from manta.hub.foreign import load_decoder
from manta.hub.foreign.published import Place, Replaced, is_written, write_published
from manta.hub.foreign.tunable import TUNABLE, TunableMasked, tunable

from .published import write
from .test_causal import KINDS_OF, published
from .test_foreign_writing import write_tokenizer

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

MASKED = ("llada", "Dream")
CAUSAL = ("llama with grouped queries, tied", "llama with biases", "neox")
TOKENS = torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each layout."""
    found = {}
    for name in (*MASKED, *CAUSAL):
        folder = tmp_path_factory.mktemp("bases") / "base"
        found[name] = folder
        if name in MASKED:
            write(folder, name, shards=2)
            write_tokenizer(folder)
        else:
            folder.mkdir()
            published(folder, name)
    return found


def loaded(folder: Path, name: str) -> Any:
    """A model in float32, so that nothing is rounded."""
    if name in MASKED:
        return load_foreign(folder, "cpu", dtype=torch.float32)
    return load_decoder(folder, cast(Any, KINDS_OF[name][0]), "cpu")


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    if not isinstance(model, DecoderLM):
        return model.net(TOKENS).float()
    empty = TOKENS[:, :0]
    return model.model(TOKENS, model.model.memory(empty, empty.sum(1), empty.sum(1)))


def adapted(folder: Path, name: str, **changes: Any) -> tuple[Any, Adapters]:
    """A model with adapters that add something."""
    model, before = loaded(folder, name), logits_of(loaded(folder, name))
    torch.manual_seed(1)
    adapters = add_adapters(model, LowRankConfig(**{"rank": 3, "alpha": 5.0, **changes}))
    torch.testing.assert_close(logits_of(model), before, rtol=1e-5, atol=1e-5)  # they begin by adding nothing
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert (logits_of(model) - before).abs().max() > 0.1
    return model, adapters


def kept(folder: Path, adapters: Adapters, base: Path, family: str) -> Path:
    record = {"format": 1, "family": family, "base": str(base), "digest": digest_of_weights(base)}
    save_adapters(folder, adapters, record=record, card="# Adapters")
    return folder


@pytest.mark.parametrize("name", (*MASKED, *CAUSAL))
@pytest.mark.parametrize("targets", ["all", "attention"])
def test_merged_is_unmerged_and_the_base_stays(name, targets, bases, tmp_path):
    base = bases[name]
    files = {file: file.read_bytes() for file in base.iterdir() if file.is_file()}
    model, adapters = adapted(base, name, targets=targets)
    family = name if name in MASKED else KINDS_OF[name][0]
    folder = kept(tmp_path / "adapter", adapters, base, family)
    merged = merge(folder, tmp_path / "merged")
    torch.testing.assert_close(logits_of(loaded(merged, name)), logits_of(model), rtol=1e-5, atol=1e-5)
    assert {file: file.read_bytes() for file in files} == files
    assert sorted(merged.glob("*.safetensors")) and (merged / "tokenizer.json").exists()
    if name in CAUSAL:  # which are read in float32
        torch.testing.assert_close(logits_of(load(folder, device="cpu")), logits_of(model), rtol=1e-5, atol=1e-5)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(merged).eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(TOKENS).logits, logits_of(model), rtol=1e-4, atol=1e-4)
    else:
        assert load(folder, device="cpu").family == name
    assert model_config(folder)["family"] == family


@pytest.mark.parametrize("name", CAUSAL)
def test_peft_computes_the_same_with_the_model_of_transformers(name, bases, tmp_path):
    model, adapters = adapted(bases[name], name)
    folder = kept(tmp_path / "adapter", adapters, bases[name], KINDS_OF[name][0])
    net = transformers.AutoModelForCausalLM.from_pretrained(bases[name])
    theirs = peft.PeftModel.from_pretrained(net, str(folder)).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_adapters_that_peft_trained_are_read(name, bases, tmp_path):
    net = transformers.AutoModelForCausalLM.from_pretrained(bases[name])
    targets = ["query_key_value", "dense"] if name == "neox" else ["q_proj", "v_proj", "down_proj"]
    theirs = peft.get_peft_model(net, peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=targets))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.eval().save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    torch.testing.assert_close(logits_of(load(tmp_path / "adapter", device="cpu")), expected, rtol=1e-4, atol=1e-4)
    moved = tmp_path / "elsewhere"
    shutil.copytree(bases[name], moved)
    found = load_adapters(tmp_path / "adapter", moved, device="cpu")
    torch.testing.assert_close(logits_of(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", (*MASKED, *CAUSAL))
def test_weights_go_back_to_where_they_came_from(name, bases, tmp_path):
    """What a whole model is written as is its base, to the last bit, as long as nothing has changed."""
    model = loaded(bases[name], name)
    change = Replaced(tunable(model).net, tunable(model).places())
    write_published(bases[name], tmp_path / "again", change, "")
    assert is_written(bases[name], tmp_path / "again", change)
    for file in bases[name].glob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "again" / file.name)
        assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
    net = model.model if isinstance(model, DecoderLM) else model.net
    with torch.no_grad():
        next(net.parameters())[0, 0] += 1
    assert not is_written(bases[name], tmp_path / "again", change)


def test_attention_and_pointwise_maps_are_all_of_a_block(bases):
    for name, number in {"llada": (4, 3), "Dream": (4, 3), CAUSAL[0]: (4, 3), "neox": (2, 2)}.items():
        places = tunable(loaded(bases[name], name)).places()
        attention, mlp, both = (targets_of(places, which) for which in ("attention", "mlp", "all"))
        assert (len(attention), len(mlp)) == tuple(2 * count for count in number)  # of two blocks
        assert attention.keys() | mlp.keys() == both.keys() and not attention.keys() & mlp.keys()


def test_merging_rounds_to_how_the_base_is_stored(bases, tmp_path):
    base = tmp_path / "half"
    write(base, "llada")
    write_tokenizer(base)
    weights = {key: value.bfloat16() for key, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    model, adapters = adapted(base, "llada")
    folder = kept(tmp_path / "adapter", adapters, base, "llada")
    stored = load_file(merge(folder, tmp_path / "merged") / "model.safetensors")
    name = "model.transformer.blocks.0.q_proj"
    down, up = adapters.pairs()[name]
    whole = weights[f"{name}.weight"].float() + 5 / 3 * up @ down
    assert torch.equal(stored[f"{name}.weight"], whole.bfloat16())
    exact = merge(folder, tmp_path / "exact", precision="float32")
    torch.testing.assert_close(load_file(exact / "model.safetensors")[f"{name}.weight"], whole)
    torch.testing.assert_close(logits_of(loaded(exact, "llada")), logits_of(model), rtol=1e-5, atol=1e-5)


def test_what_does_not_belong_together_is_named(bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["llada"], base)
    folder = kept(tmp_path / "adapter", adapted(base, "llada")[1], base, "llada")
    with pytest.raises(ModelError, match="is not empty; give a new folder"):
        merge(folder, base)
    with pytest.raises(ModelError, match="holds no adapters"):
        merge(base, tmp_path / "out")
    with pytest.raises(ModelError, match=r"is no published model, and .* holds adapters of one"):
        load_adapters(folder, "builtin:e2e-aligned")
    file = sorted(base.glob("*.safetensors"))[0]
    weights = load_file(file)
    save_file({key: value + 1 for key, value in weights.items()}, file)
    with pytest.raises(ModelError, match="holds other weights than those that the adapters"):
        load(folder, device="cpu")
    save_file(weights, file)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rope_theta": 50.0}))
    with pytest.raises(ModelError, match="holds other weights than those that the adapters"):
        load(folder, device="cpu")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="which is not there"):
        load(folder, device="cpu")
    with pytest.raises(ModelError, match="holds other weights"):
        merge(folder, tmp_path / "out", base=bases["Dream"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora=True; manta reads plain LoRA"),
        ({"rank_pattern": {"q": 2}}, "rank_pattern="),
        ({"peft_type": "IA3"}, "is not that of a LoRA adapter"),
        ({"r": 0}, "has r=0"),
        ({"lora_alpha": "x"}, "lora_alpha='x'"),
        ({"lora_alpha": 10**400}, "lora_alpha="),
        ({"r": 10**400}, "has r="),
        ({"r": 64}, "whose rank is not r=64"),
    ],
)
def test_adapters_of_other_kinds_are_refused(change, said, bases, tmp_path):
    folder = kept(tmp_path / "adapter", adapted(bases["llada"], "llada")[1], bases["llada"], "llada")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=said):
        read_adapters(folder)


def test_damaged_adapters_are_refused(bases, tmp_path):
    folder = kept(tmp_path / "adapter", adapted(bases["llada"], "llada")[1], bases["llada"], "llada")
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    first = next(iter(whole))
    for weights, said in (
        ({key: value for key, value in whole.items() if key != first}, "half of the adapter"),
        ({**whole, first: torch.full_like(whole[first], torch.nan)}, "not finite"),
        ({**whole, "head.weight": torch.ones(2, 2)}, "which is no low-rank map"),
        ({**whole, first: whole[first][:, :-1].contiguous()}, "it belongs to another model"),
    ):
        save_file(weights, file)
        with pytest.raises(ModelError, match=said):
            load(folder, device="cpu")
    other = {key.replace("blocks.1", "blocks.7"): value for key, value in whole.items()}
    save_file(other, file)
    with pytest.raises(ModelError, match=r"an adapter for model\.transformer\.blocks\.7"):
        load(folder, device="cpu")
    file.write_bytes(b"no")
    with pytest.raises(ModelError, match="missing or damaged"):
        load(folder, device="cpu")


def test_a_third_kind_is_a_class_and_a_row(bases, monkeypatch):
    """What adapts a model asks its row alone."""
    net = torch.nn.Sequential()
    net.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"out": torch.nn.Linear(6, 4, bias=False)})])
    lm = SimpleNamespace(family="third")
    with pytest.raises(ModelError, match="layout third are not trained on here; give one of llada"):
        add_adapters(cast(Any, lm), LowRankConfig(rank=2))

    class Third(TunableMasked):
        net = property(lambda self: net)

        def places(self) -> dict[str, Place]:
            return {"layer.0.out.weight": Place(ours="blocks.0.out.weight")}

    monkeypatch.setattr("manta.hub.foreign.tunable.TUNABLE", {**TUNABLE, "third": Third})
    with pytest.raises(ConfigError, match="is 4×6, whose rank is 4 at most"):
        add_adapters(cast(Any, lm), LowRankConfig(rank=5))
    assert list(add_adapters(cast(Any, lm), LowRankConfig(rank=2)).pairs()) == ["layer.0.out"]


def test_ranks_that_make_no_sense_are_refused(bases):
    with pytest.raises(ConfigError, match="rank should be at least 1, received 0"):
        LowRankConfig(rank=0)
    with pytest.raises(ConfigError, match="for low-rank adapters"):
        LowRankConfig(alpha=2.0)
    with pytest.raises(ConfigError, match="whose rank is 16 at most"):  # two heads of eight channels for keys
        add_adapters(loaded(bases["Dream"], "Dream"), LowRankConfig(rank=17))


def test_a_rank_too_large_names_the_published_map_with_its_own_rows(bases):
    """Queries, keys and values are one weight of ours: nobody knows its rows."""
    keys = r"published map model\.layers\.0\.self_attn\.k_proj is 16×32, whose rank is 16 at most"
    with pytest.raises(ConfigError, match=keys):
        add_adapters(
            loaded(bases["llama with grouped queries, tied"], "llama with grouped queries, tied"),
            LowRankConfig(rank=17),
        )
