"""On a CUDA device everything runs as on the CPU, and texts agree but for near ties."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.cli import main
from manta.config import from_dict
from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import MantaLM
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.thinking import ThinkingConfig
from manta.hub import ForeignModel, load, shipped
from manta.masked import DECODERS, LearnedConfig
from manta.masked.learned import NUM_WEIGHTS
from manta.operators import KINDS, OperatorContext, line
from manta.operators.attention import attend
from manta.recipes import Recipe, TrainingRun
from manta.text import Tokenizer
from manta.training import Progress
from manta.training.muon import Muon

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
needs_model = pytest.mark.skipif(not (shipped() / "config.json").exists(), reason="no model ships with this copy")
GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "golden.py"))
DEVICES = ("cuda", "cpu")
SHAPE: dict[str, Any] = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "manta": {
        "consensus": "teacher",
        "warm_start": True,
        "model": {**SHAPE, "space": {"channels": 4}},
        "teacher": SHAPE,
    },
    "masked": {"masked": SHAPE},
    "ar": {"teacher": SHAPE},
}


def recipe(family: str, **changes: Any) -> Recipe:
    given = {"data": "builtin:weather", "num_examples": 120, "vocab_size": 512, "batch_tokens": 512, "size": "nano"}
    given |= {"family": family, "num_steps": 16, "checkpoint_minutes": 0.0, **FAMILIES[family]}
    return from_dict(Recipe, {**given, **changes})


def finish(run: TrainingRun, stop_after: int | None = None) -> None:
    steps = 0
    for event in run.events():
        steps += isinstance(event, Progress)
        if steps == stop_after:
            break


def texts(lm: Any, requests: list[Request], **options: Any) -> list[tuple[int, ...]]:
    done = [event for event in lm.generate(requests, GenerateOptions(**options)) if event.kind == "done"]
    return [event.tokens for event in sorted(done, key=lambda event: event.index)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("runs") / family
        finish(TrainingRun(recipe(family), folders[family], device="cuda"))
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(runs, family, tmp_path):
    finish(TrainingRun(recipe(family), tmp_path / "run", device="cuda"), stop_after=9)
    finish(TrainingRun(None, tmp_path / "run", resume=True, device="cuda"))
    ours, whole = load(tmp_path / "run", device="cpu"), load(runs[family], device="cpu")
    assert not isinstance(ours, ForeignModel) and not isinstance(whole, ForeignModel)
    # Some of the device's sums have no fixed order, so weights agree closely and not to the last bit.
    for (name, one), other in zip(ours.model.named_parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3, msg=f"{family} {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_verb_runs_on_the_device(runs, family, tmp_path):
    model, data = str(runs[family]), ["--data", "builtin:weather", "--num", "30", "--device", "cuda"]
    assert main(["generate", model, "--prompt", "city: Oslo", "--device", "cuda"]) == 0
    assert main(["evaluate", model, *data, "--num-seeds", "1", "--out", str(tmp_path / "scores.json")]) == 0
    judge = ["--judge", str(runs["ar"]), "--num-seeds", "1"]
    assert main(["compare", model, *data, *judge, "--out", str(tmp_path / "compared")]) == 0
    assert main(["bench", model, "--quick", "--device", "cuda", "--out", str(tmp_path / "bench.json")]) == 0
    assert "gpu" in json.loads((tmp_path / "bench.json").read_text())["machine"]


@needs_model
@pytest.mark.parametrize("way", GOLDEN["WAYS"])
def test_the_model_that_ships_writes_what_it_writes_on_the_cpu(way):
    lm = load(device="cuda")
    assert isinstance(lm, MantaLM)
    wanted = json.loads(GOLDEN["FILE"].read_text(encoding="utf-8"))["texts"][way]
    pairs = list(zip(GOLDEN["written"](lm, way), wanted, strict=True))
    equal = sum(one == two for ours, theirs in pairs for one, two in zip(ours, theirs, strict=False))
    assert equal >= 0.8 * sum(max(len(ours), len(theirs)) for ours, theirs in pairs)


def random_masked(device: str, **config: Any) -> MaskedLM:
    """A masked model whose words are far from ties, the same on every device."""
    tokenizer = load(device="cpu").tokenizer
    assert isinstance(tokenizer, Tokenizer)
    torch.manual_seed(0)
    model = MaskedModel(MaskedConfig(vocab_size=tokenizer.vocab_size, max_text=48, **SHAPE, **config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return MaskedLM(model.to(device).eval(), tokenizer)


@needs_model
@pytest.mark.parametrize("decoder", [kind for kind in DECODERS if kind not in ("doubt", "learned")])
def test_masked_decoders_write_what_they_write_on_the_cpu(decoder):
    requests = [Request(prompt=f"name[{name}]", seed=seed) for seed, name in enumerate(("Zizzi", "Cotto", "", "Mill"))]
    ours, theirs = (texts(random_masked(device), requests, num_steps=8, decoder=decoder) for device in ("cuda", "cpu"))
    assert sum(one == two for one, two in zip(ours, theirs, strict=True)) >= 3


@needs_model
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"thinking": ThinkingConfig(carry=True, slots=4)}, {"think": 2}),
        ({"thinking": ThinkingConfig(doubts=True)}, {"decoder": "doubt"}),
        ({"elastic": True}, {}),
        ({"classes": 8}, {}),
    ],
)
def test_masked_models_of_every_kind_write_what_they_write_on_the_cpu(shape, options):
    requests = [Request(prompt=f"name[{name}]", seed=seed) for seed, name in enumerate(("Zizzi", "Cotto", "", "Mill"))]
    ours, theirs = (texts(random_masked(device, **shape), requests, num_steps=8, **options) for device in DEVICES)
    assert sum(one == two for one, two in zip(ours, theirs, strict=True)) >= 3


@needs_model
def test_a_learned_schedule_is_the_same_on_both():
    decoder = LearnedConfig(weights=tuple(0.05 * (i % 7 - 3) for i in range(NUM_WEIGHTS)))
    requests = [Request(prompt="name[Zizzi]", seed=seed) for seed in range(4)]
    found = [texts(MaskedLM(lm.model, lm.tokenizer, decoder), requests) for lm in map(random_masked, DEVICES)]
    assert sum(one == two for one, two in zip(*found, strict=True)) >= 3


@needs_model
def test_caches_that_are_refreshed_in_every_call_change_no_text():
    lm, requests = random_masked("cuda"), [Request(prompt="name[Zizzi]", seed=seed) for seed in range(4)]
    same = {"num_steps": 12, "decoder": "block", "block_length": 16}
    whole = texts(lm, requests, **same)
    for cache in ("prefix", "dual"):
        cached = texts(lm, requests, cache=cache, refresh=0, **same)
        assert sum(one == two for one, two in zip(whole, cached, strict=True)) >= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_operators_give_what_they_give_on_the_cpu(kind, causal):
    torch.manual_seed(0)
    operator = KINDS[kind]().build(64, causal=causal)
    x, mask = torch.randn(3, 40, 64), torch.arange(40) < torch.tensor([40, 17, 3])[:, None]
    there = operator(x, OperatorContext(line(40), mask))
    here = operator.cuda()(x.cuda(), OperatorContext(line(40).cuda(), mask.cuda()))
    torch.testing.assert_close(here.cpu()[mask], there[mask], rtol=1e-3, atol=1e-4)


def test_attention_meets_no_kernel_that_is_planned_for_each_shape():
    q, k, v = torch.randn(3, 2, 4, 40, 16, device="cuda", dtype=torch.bfloat16)
    bias = torch.zeros(2, 1, 1, 40, device="cuda")
    with torch.profiler.profile() as profile:
        attend(q, k, v, torch.ones(4, 1, 1, device="cuda"), bias)
    names = [event.key for event in profile.key_averages()]
    assert any("efficient_attention" in name or "flash_attention" in name for name in names)
    assert not any("cudnn" in name for name in names)


def test_muon_moves_alike_matrices_together_as_it_moves_each_alone():
    torch.manual_seed(0)
    there = [torch.randn(shape) for shape in ((8, 12), (12, 8), (8, 12))]
    here = [weight.cuda() for weight in there]
    for weights in (there, here):
        muon = Muon(weights, lr=0.1, weight_decay=0.05)
        for step in range(3):
            for weight in weights:
                weight.grad = torch.cos(weight * (1 + step))
            muon.step()
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
