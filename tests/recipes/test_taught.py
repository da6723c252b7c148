"""A teacher that is there already: it answers, lends its weights, and stays with an aligned model to write by."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from manta.aligned import collapse
from manta.cli.train import run
from manta.config import from_dict
from manta.errors import CheckpointError, ConfigError, DataError, ModelError, RequestError, UsageError
from manta.families.aligned import ROOMS, AlignedLM
from manta.families.aligned_model import AlignedModel
from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import padded_prompts, to_batch
from manta.families.canvas import Prompts
from manta.families.choosing import least_risk
from manta.families.events import GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.hub import load, save_model
from manta.recipes import Recipe, TrainingRun
from manta.recipes.budget import Clock, Watch
from manta.recipes.prepare import guided_by
from manta.recipes.recipe import resolve
from manta.recipes.stages import TextParts
from manta.text import NULL, Corpus, read

from .small import small
from .test_drafting import trained

PROMPTS = ["place: Saltmouth, day: Sunday, sky: cloudy, low: 5, high: 12", "place: Fernley, day: Monday", ""]


def taught(folder: Path, model: Path, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 8, "family": "aligned"}
    if changes.get("family", "aligned") == "aligned":
        recipe |= {"aligned": {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1}}
    recipe |= {"taught_by": str(model)} | changes
    return TrainingRun(from_dict(Recipe, recipe), folder, device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ar") / "run"
    trained(folder)
    return folder


@pytest.fixture(scope="module")
def aligned(teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("aligned") / "run"
    made = taught(folder, teacher)
    assert list(made.events())
    assert made.plan == {"aligned": 2, "revealed": 6}
    return folder


def test_its_answers_are_the_texts_that_are_learned(aligned, teacher):
    assert not (aligned / "teacher").exists()
    [targets] = aligned.glob("targets-teacher-*.jsonl")
    answered = [example for example in read(str(targets))]
    prompts = [example.prompt for example in answered]
    assert load(teacher, device="cpu").write(prompts) == [example.text for example in answered]


def test_a_model_that_reads_both_ways_begins_as_its_teacher_and_keeps_none(teacher, tmp_path):
    shape = {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1, "causal": True, "draft_horizon": 2}
    run = taught(tmp_path / "run", teacher, aligned=shape, num_steps=12)
    assert list(run.events())
    assert run.plan == {"aligned": 2, "revealed": 8, "drafter": 2}
    lm = load(tmp_path / "run", device="cpu")
    assert isinstance(lm, AlignedLM) and lm.causal is not None and lm.causal.drafter is lm.model.drafter
    assert lm.extras() == {} and not any(name.startswith("causal.") for name in lm.parts())
    assert lm.write(PROMPTS, decoder="verified") == lm.write(PROMPTS, decoder="sequential")
    drafts = GenerateOptions(decoder="verified", num_drafts=2)
    (event,) = finished(lm.generate([Request(prompt=PROMPTS[0])], drafts))
    assert event.processed > event.nfe > 1
    given = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 8, "consensus": "none"}
    for name in ("inherit", "converted_from"):
        more = {"conversion": {"operator": {"kind": "windowed"}}} if name == "converted_from" else {}
        part = TrainingRun(from_dict(Recipe, {**given, **more, name: str(tmp_path / "run")}), tmp_path / name)
        assert list(part.events())
        half = load(tmp_path / name, device="cpu")
        assert isinstance(half, AlignedLM) and half.model.config.causal and half.model.drafter is None
        assert half.write(PROMPTS, decoder="verified") == half.write(PROMPTS, decoder="sequential")


def test_its_first_weights_are_the_teachers(teacher, tmp_path):
    shape = {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1, "causal": True}
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 8, "family": "aligned"}
    recipe |= {"aligned": shape, "taught_by": str(teacher)}
    asked = TextParts.resolved(from_dict(Recipe, recipe), print)
    parts = TextParts.prepared(asked, tmp_path, torch.device("cpu"), Watch(Clock()))
    parts.specs()[0].begin()
    net, own = parts.modules["model"], load(teacher, device="cpu").model
    assert isinstance(net, AlignedModel)
    reading, theirs = net.reading(), own.state_dict()
    heading = "memory_encoder.heading.weight"  # answers begin as people's texts, of which alone the teacher was told
    theirs[heading] = theirs[heading][torch.tensor([0, 0, 2])]
    assert all(torch.equal(value, theirs[name]) for name, value in reading.state_dict().items())


def test_slots_that_are_to_learn_answers_need_some():
    both = {"family": "aligned", "data": "builtin:weather", "aligned": {"causal": True}}
    found = guided_by(resolve(from_dict(Recipe, both)))
    assert found.alignment.slots_learn == "answers" and found.consensus_share == 0.75
    assert found.aligned.styles
    alone = guided_by(resolve(from_dict(Recipe, {**both, "consensus": "none"})))
    assert alone.alignment.slots_learn == "all" and alone.aligned.styles is False
    for wrong in ({"consensus": "none"}, {"consensus_share": 0.0}):
        recipe = resolve(from_dict(Recipe, {**both, **wrong, "alignment": {"slots_learn": "answers"}}))
        with pytest.raises(ConfigError, match="slots are to learn answers"):
            guided_by(recipe)


def test_styles_of_a_left_to_right_model_need_answers(teacher):
    told = {"family": "ar", "data": "builtin:weather", "teacher": {"styles": True}}
    for wrong in ({}, {"consensus_share": 0.0, "consensus": "given", "targets": "answers.jsonl"}):
        with pytest.raises(ConfigError, match=r"teacher\.styles tells people's texts from answers"):
            guided_by(resolve(from_dict(Recipe, {**told, **wrong})))
    assert guided_by(resolve(from_dict(Recipe, {**told, "targets": "answers.jsonl"}))).teacher.styles


def test_it_stays_to_write_and_to_read_by(aligned, teacher):
    lm, own = load(aligned, device="cpu"), load(teacher, device="cpu")
    assert isinstance(lm, AlignedLM)
    assert isinstance(own, AutoregressiveLM)
    assert lm.causal is not None
    weights, theirs = lm.causal.model.state_dict(), own.model.state_dict()
    assert weights.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in weights.items())
    told = own.write(PROMPTS)
    assert lm.write(PROMPTS, decoder="sequential") == told == lm.write(PROMPTS, decoder="verified")
    assert lm.write(PROMPTS, seed=3, temperature=1.0, decoder="verified") == own.write(PROMPTS, seed=3, temperature=1.0)
    drafts = GenerateOptions(decoder="verified", num_drafts=3)
    (event,) = finished(lm.generate([Request(prompt=PROMPTS[0])], drafts))
    assert event.processed > event.nfe > 1
    examples = list(read("builtin:weather", "test", 5))
    encode = lm.tokenizer.encode
    batch = to_batch([encode(e.prompt or "") for e in examples], [encode(e.text) for e in examples])
    assert lm.likelihood == own.likelihood == "exact"
    assert torch.equal(lm.log_likelihood(batch).value, own.log_likelihood(batch).value)


def test_a_model_that_has_kept_no_teacher_says_so(aligned, tmp_path):
    lm = load(aligned, device="cpu")
    assert isinstance(lm, AlignedLM) and lm.ngrams is not None
    corpus = Corpus.open(aligned / "corpus-consensus")
    assert lm.ngrams.tokens == corpus.text_tokens + len(corpus), "its texts, its teacher's answers and their ends"
    save_model(tmp_path / "alone", AlignedLM(lm.model, lm.tokenizer, ngrams=lm.ngrams), recipe={}, card="")
    alone = load(tmp_path / "alone", device="cpu")
    assert alone.write(PROMPTS, num_steps=2) == lm.write(PROMPTS, num_steps=2)
    assert alone.likelihood == "none"
    with pytest.raises(UsageError, match="kept no teacher"):
        alone.write(PROMPTS, decoder="sequential")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3, "temperature": 1.0}, "top_k` means nothing to aligned models but to their decoders"),
        ({"max_tokens": 3}, "max_tokens` means nothing"),
        ({"num_drafts": 3}, "num_drafts` means nothing"),
        ({"decoder": "verified", "num_steps": 4}, "num_steps` means nothing to autoregressive"),
        ({"decoder": "block"}, "block decoder means nothing to aligned"),
    ],
)
def test_options_of_one_reading_are_refused_by_the_other(aligned, options, message):
    with pytest.raises(UsageError, match=message):
        load(aligned, device="cpu").write(PROMPTS, **options)


def test_blanks_are_filled_left_to_right_too(aligned):
    text = load(aligned, device="cpu").write(infill="the ___ rain", decoder="sequential")
    assert text.startswith("the ") and text.endswith(" rain") and "___" not in text
    with pytest.raises(RequestError, match="words \\[\\[…\\]\\] to change"):
        load(aligned, device="cpu").write(infill="the [[long]] rain", decoder="sequential")


def test_an_interrupted_run_ends_as_one_that_was_not(aligned, teacher, tmp_path):
    parted, steps = taught(tmp_path / "parted", teacher), 0
    events = parted.events()
    for event in events:
        steps += hasattr(event, "loss")
        if steps == 4:
            break
    events.close()
    assert list(TrainingRun(None, tmp_path / "parted", resume=True, device="cpu").events())
    for name in ("model.safetensors", "parts.safetensors"):
        assert (tmp_path / "parted" / "model" / name).read_bytes() == (aligned / "model" / name).read_bytes()


def test_another_teacher_is_noticed_when_resuming(tmp_path):
    trained(tmp_path / "ar")
    events = taught(tmp_path / "run", tmp_path / "ar").events()
    for event in events:
        if hasattr(event, "loss"):
            break
    events.close()
    (tmp_path / "ar").rename(tmp_path / "before")
    trained(tmp_path / "ar", seed=1)
    with pytest.raises(CheckpointError, match="taught by"):
        list(TrainingRun(None, tmp_path / "run", resume=True, device="cpu").events())


def test_any_family_can_be_taught_by_it(teacher, tmp_path):
    shape = {"masked": {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1}}
    made = taught(tmp_path / "masked", teacher, family="masked", **shape)
    assert list(made.events())
    assert made.plan == {"masked": 8} and made.recipe.consensus == "teacher" and made.recipe.warm_start
    assert list((tmp_path / "masked").glob("targets-teacher-*.jsonl"))


def test_what_cannot_teach_or_be_taught_is_refused_before_anything_is_written(teacher, tmp_path):
    shipped = Path(__file__).parents[2] / "src" / "manta" / "models" / "e2e"
    with pytest.raises(ModelError, match="of the family manta; a teacher"):
        taught(tmp_path / "a", shipped)
    for changes, message in (
        ({"family": "ar", "max_text": 50}, "the model has max_text=96 and keeps it"),
        ({"teacher": {"dim": 32}}, "keeps its shape"),
        ({"drafter_of": str(teacher)}, "drafter has no teacher"),
        ({"max_text": 200}, "teacher.max_text=96"),
    ):
        with pytest.raises(ConfigError, match=message):
            taught(tmp_path / "a", teacher, **changes)
    assert not (tmp_path / "a").exists()


def test_a_text_without_a_prompt_is_nothing_to_align(tmp_path):
    (tmp_path / "prose.txt").write_text("It rained all day.\n" * 40)
    with pytest.raises(DataError, match="has no prompts, and an aligned model"):
        run([str(tmp_path / "prose.txt"), "--family", "aligned", "--num-steps", "8", "--out", str(tmp_path / "run")])


def test_a_damaged_teacher_of_a_folder_is_named(aligned, tmp_path):
    for change in ({"dim": 10**9}, {"depth": 10**9}, {"vocab_size": 600}, {"depth": "many"}):
        copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(aligned / "model", copy)
        config = json.loads((copy / "config.json").read_text())
        config["causal"] |= change
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"config.json does not describe a model"):
            load(copy, device="cpu")
    (copy / "parts.safetensors").unlink()
    with pytest.raises(ModelError, match=r"config.json"):
        load(copy, device="cpu")


def test_the_text_that_is_told_is_the_likeliest_of_those_of_all_canvases(aligned):
    lm = load(aligned, device="cpu")
    assert isinstance(lm, AlignedLM)
    assert lm.causal is not None
    how = GenerateOptions(num_steps=3, choose=4, choose_by="likelihood")
    (event,) = finished(lm.generate([Request(prompt=PROMPTS[0])], how))
    assert event.nfe == 3
    batch = Prompts(*padded_prompts([lm.tokenizer.encode(PROMPTS[0])] * 4, "cpu"), ())
    rooms = torch.linspace(*ROOMS, 4).tolist()
    beginning = lm._beginning(batch, [None] * 4, GenerateOptions(), encode=True, rooms=rooms)
    assert len(set(beginning.mask.sum(1).tolist())) > 1
    *_, last = lm._settled(beginning, GenerateOptions(num_steps=2), Observer())
    told = [collapse(labels[mask].tolist(), NULL) for labels, mask in zip(last.labels, beginning.mask, strict=True)]
    prompts = [lm.tokenizer.encode(PROMPTS[0])] * 4
    likely = [
        float(lm.causal.log_likelihood(to_batch([prompt], [words])).value) if words else -math.inf
        for prompt, words in zip(prompts, told, strict=True)
    ]
    assert list(event.tokens) == told[likely.index(max(likely))]
    (alike,) = finished(lm.generate([Request(prompt=PROMPTS[0])], GenerateOptions(num_steps=2, choose=4)))
    assert list(alike.tokens) == told[least_risk(told)] and alike.nfe == 2


def test_of_a_text_to_fill_the_likeliest_of_blanks_of_all_sizes_is_told(aligned):
    lm = load(aligned, device="cpu")
    assert isinstance(lm, AlignedLM)
    assert lm.causal is not None
    how = GenerateOptions(num_steps=2, choose=4, choose_by="likelihood")
    [event] = finished(lm.generate([Request(prompt=PROMPTS[0], infill="It ___{8} rain.")], how))
    single = GenerateOptions(num_steps=1)
    requests = [Request(prompt=PROMPTS[0], infill=f"It ___{{{size}}} rain.") for size in (8, 6, 4, 2)]
    told = [row.tokens for row in finished(lm.generate(requests, single))]
    prompt = lm.tokenizer.encode(PROMPTS[0])
    likely = [float(lm.causal.log_likelihood(to_batch([prompt], [list(words)])).value) for words in told]
    assert event.tokens == told[likely.index(max(likely))]
    assert event.text.startswith("It ") and event.text.endswith(" rain.") and event.nfe == 2


def test_to_choose_takes_a_reading_and_a_call_for_it(aligned):
    lm = load(aligned, device="cpu")
    assert isinstance(lm, AlignedLM)
    with pytest.raises(UsageError, match="a network call of its own"):
        lm.write(PROMPTS, num_steps=1, choose=2, choose_by="likelihood")
    with pytest.raises(UsageError, match="no exact likelihood"):
        AlignedLM(lm.model, lm.tokenizer).write(PROMPTS, choose=2, choose_by="likelihood")


def test_noise_of_texts_comes_from_the_teacher_of_the_run(tmp_path, capsys):
    how = {"warm_start": True, "objective": {"coupling": "teacher"}, "num_steps": 12}
    recipe = from_dict(Recipe, small(1, **how))
    run = TrainingRun(recipe, tmp_path / "run", device="cpu")
    for _ in run.events():
        pass
    matching = run.specs[1].objective
    assert run.specs[1].name == "policy" and cast(Any, matching).coupling.teacher is run.parts.teacher
    assert cast(Any, run.specs[2].objective).ordinary is matching
    recipe = from_dict(Recipe, small(1, objective={"coupling": "teacher"}))
    with pytest.raises(ConfigError, match="this run has none"):
        list(TrainingRun(recipe, tmp_path / "other", device="cpu").events())
