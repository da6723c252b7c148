"""Published causal models, and ours in their layout, are taught to draft: the copy writes the same texts."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from manta.config import from_dict
from manta.errors import ConfigError
from manta.families.decoder import DecoderLM
from manta.families.events import GenerateOptions, Request, finished
from manta.hub import load
from manta.hub.export import export
from manta.recipes import Recipe, TrainingRun

pytest.importorskip("transformers")
from tests.hub.test_causal import published

SMALL: dict[str, Any] = {"batch_tokens": 200, "num_steps": 4}
PAIRS = [
    ("the cat", "sat on the mat."),
    ("it was", "warm and the sun was on the hill."),
    ("the dog", "ran to the cat."),
]
PROMPTS = ["the cat", "it was", None, "the dog ran to"]


@pytest.fixture(scope="module", params=["llama with grouped queries, tied", "neox"])
def folders(request, tmp_path_factory) -> tuple[Path, Path]:
    """A published model, and the run that taught a copy of it to draft."""
    folder = tmp_path_factory.mktemp("published")
    published(folder / "model", request.param)
    trained(folder / "run", drafter_of=str(folder / "model"), max_text=24)
    return folder / "model", folder / "run"


def trained(out: Path, **changes: Any) -> TrainingRun:
    data = out.with_suffix(".jsonl")
    data.write_text("".join(json.dumps({"prompt": prompt, "text": text}) + "\n" for prompt, text in PAIRS * 4))
    run = TrainingRun(from_dict(Recipe, {**SMALL, "data": str(data), **changes}), out, device="cpu")
    assert list(run.events())
    return run


def written(lm: DecoderLM, batch_size: int = 8, **options: Any) -> list[tuple[int, ...]]:
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    events = finished(lm.generate(requests, GenerateOptions(max_tokens=10, **options), batch_size=batch_size))
    return [event.tokens for event in sorted(events, key=lambda event: event.index)]


def test_the_copy_is_the_model_to_the_last_bit_and_keeps_its_limits(folders):
    before, after = (cast(DecoderLM, load(folder, device="cpu")) for folder in folders)
    drafter = after.model.drafter
    assert drafter is not None and drafter.horizon == 8 and drafter.take.weight.abs().sum() > 0
    weights = after.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.model.state_dict().items())
    assert before.capacity == after.capacity == after.model.longest == 64
    assert after.model.config.vocab_size == 300
    hows: list[dict[str, Any]] = [{}, {"temperature": 1.0}]
    for options in hows:
        plain = written(before, **options)
        assert plain == written(after, decoder="verified", **options)
        assert plain == written(after, 1, decoder="verified", num_drafts=3, **options)
    recipe = after.recipe
    assert recipe is not None and (recipe["max_text"], recipe["max_prompt"]) == (24, 63)
    assert recipe["decoder"]["max_text"] == 64 and "and a drafter" in after.card


def test_it_learns_from_its_own_answers(folders):
    [answers] = folders[1].glob("targets-teacher-*.jsonl")
    assert answers.stat().st_size > 0 and (folders[1] / "corpus-consensus").is_dir()


def test_the_exported_model_is_the_one_without_a_drafter(folders, tmp_path):
    before, after = (cast(DecoderLM, load(folder, device="cpu")) for folder in folders)
    export(after, tmp_path / "out", "llama" if before.model.config.norm == "rms" else "gpt_neox")
    again = cast(DecoderLM, load(tmp_path / "out", device="cpu"))
    assert again.model.drafter is None
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.model.state_dict().items())


def test_a_drafted_model_is_trained_on_and_converted(folders, tmp_path):
    trained(tmp_path / "on", begin_from=str(folders[1]))
    assert cast(DecoderLM, load(tmp_path / "on", device="cpu")).model.drafter is not None
    kernel = {"operator": {"kind": "linear"}}
    trained(tmp_path / "converted", converted_from=str(folders[1]), conversion=kernel, max_text=24)
    assert cast(DecoderLM, load(tmp_path / "converted", device="cpu")).model.drafter is None


def test_ours_is_taught_in_its_own_run_too(tmp_path):
    shape = {"dim": 16, "heads": 2, "depth": 1, "draft_horizon": 2}
    run = trained(tmp_path / "run", family="decoder", vocab_size=512, decoder=shape, num_steps=10)
    assert run.plan == {"words": 8, "drafter": 2}
    lm = cast(DecoderLM, load(tmp_path / "run", device="cpu"))
    assert lm.model.drafter is not None and lm.model.drafter.horizon == 2
    assert written(lm, decoder="verified") == written(lm, decoder="sequential")


def test_what_the_model_decides_is_refused(folders, tmp_path):
    said = (
        ({"decoder": {"dim": 32}}, r"of decoder\.\* only draft_horizon"),
        ({"teacher": {"draft_horizon": 4}}, r"teacher\.draft_horizon is for the families"),
        ({"family": "ar"}, "is of the family decoder; leave family=ar out"),
        ({"max_text": 65}, "decoder.max_text=64"),
        ({"absolute_places": True}, "absolute_places=True out"),
    )
    for changes, message in said:
        with pytest.raises(ConfigError, match=message):
            trained(tmp_path / "run", drafter_of=str(folders[0]), **changes)
    assert not (tmp_path / "run").exists()
