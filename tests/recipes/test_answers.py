"""A teacher's answers: recombined prompts, answers tried anew, and targets that are there already."""

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manta.config import from_dict
from manta.errors import ConfigError, DataError
from manta.families.autoregressive import AutoregressiveLM
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.recipes.answers import ANEW, agrees, answers, can_be_checked, recombine
from manta.recipes.prepare import guided_by
from manta.recipes.recipe import resolve
from manta.text import read
from manta.text.hashing import part_of, split_of
from manta.text.sources import admits, read_whole

from .test_drafting import trained

NET = {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1}
PUB, CAFE = "name[The Mill], eatType[pub]", "name[Cotto], eatType[coffee shop]"


def slots(prompt: str) -> list[tuple[str, str]]:
    """A prompt of either form, read by hand."""
    pairs = (slot.rstrip("]").split("[" if slot.endswith("]") else ": ", 1) for slot in prompt.split(", "))
    return [(key, value) for key, value in pairs]


@pytest.mark.parametrize("form", ["{}[{}]", "{}: {}"])
def test_recombined_prompts_have_the_keys_of_one_and_values_of_any(form):
    rng = random.Random(3)
    rows = [{key: f"{key} {rng.randrange(3)}" for key in rng.sample("abcd", rng.randint(1, 3))} for _ in range(30)]
    prompts = [", ".join(form.format(*slot) for slot in row.items()) for row in rows]
    made = recombine([*prompts, "some prose, of no form", ""], 20, seed=0)
    shapes = {tuple(row) for row in rows}
    assert len(set(made)) == 20 and not set(made) & set(prompts)
    assert all(tuple(key for key, _ in slots(prompt)) in shapes for prompt in made)
    assert all(value.startswith(key) for prompt in made for key, value in slots(prompt))
    assert made == recombine([*prompts, "some prose, of no form", ""], 20, seed=0) != recombine(prompts, 20, seed=1)


def test_forms_are_not_mixed_and_prose_gives_nothing():
    brackets, colons = ["food[fish], area[north]", "food[soup], area[east]"], ["food: rice, area: west", "food: tea"]
    made = recombine(brackets + colons, 50, seed=0)
    assert set(made) == {"food[fish], area[east]", "food[soup], area[north]", "food: tea, area: west", "food: rice"}
    assert recombine(["a stop, a comma and a full stop.", "Note this[1] too"], 5, seed=0) == []


def test_weather_prompts_recombine():
    prompts = [example.prompt or "" for example in read("builtin:weather", num=20)]
    assert len(recombine(prompts, 10, seed=0)) == 10


def test_what_is_rare_is_recombined_as_often_as_what_is_frequent():
    rng = random.Random(0)
    rows = [[("a", "common"), ("b", str(i % 7))] for i in range(95)]
    rows += [[("a", "rare"), ("b", str(i)), ("c", str(i)), ("d", str(rng.randrange(9)))] for i in range(5)]
    made = recombine([", ".join(f"{key}[{value}]" for key, value in row) for row in rows], 60, seed=0)
    many = [prompt for prompt in made if prompt.count("[") == 4]
    values = Counter(slots(prompt)[0][1] for prompt in many)
    assert len(many) > 30, "all that two keys allow are soon made"
    assert 0.3 < values["rare"] / values.total() < 0.7


def test_prompts_that_are_held_out_are_never_made():
    prompts = [example.prompt or "" for example in read("builtin:weather", num=20)]
    held, half = admits("builtin:weather"), admits("builtin:weather", "train:1/2")
    made = recombine(prompts, 300, seed=0, admitted=held)
    assert len(made) == 300 and all(split_of(prompt) == "train" for prompt in made)
    assert not all(split_of(prompt) == "train" for prompt in recombine(prompts, 300, seed=0))
    assert sum(map(half, made)) == sum(part_of("train:1/2").holds(prompt) for prompt in made) in range(100, 200)


def test_prompts_of_other_official_splits_are_held_out(tmp_path):
    for name, area in (("trainset.csv", "north"), ("devset.csv", "east"), ("testset_w_refs.csv", "west")):
        (tmp_path / name).write_text(f'mr,ref\n"food[fish], area[{area}]",Fish in the {area}.\n')
    held = admits(f"e2e:{tmp_path}")
    places = ("north", "east", "west", "south")
    assert [held(f"food[fish], area[{area}]") for area in places] == [True, False, False, True]


class Told(AutoregressiveLM):
    """A teacher that tells what it is given to tell, at each temperature, and keeps what it was asked."""

    def __init__(self, greedy: dict[str, str], drawn: dict[str, list[str]]) -> None:
        self.greedy, self.drawn, self.asked = greedy, drawn, []

    def generate(self, requests, options, batch_size):  # pyright: ignore[reportIncompatibleMethodOverride]
        for index, request in reversed(list(enumerate(requests))):
            self.asked.append((request.prompt, options.temperature, request.seed))
            told = self.drawn[request.prompt][request.seed - 1] if options.temperature else self.greedy[request.prompt]
            yield SimpleNamespace(index=index, text=told, done=True, committed=True, error=None)


def test_a_wrong_answer_is_drawn_anew_until_it_agrees_and_left_out_if_it_never_does(monkeypatch):
    from manta.recipes import answers as module

    monkeypatch.setattr(module, "finished", lambda events: list(events))
    right, prose = "The Mill is a pub.", "a prompt of another kind"
    teacher: Any = Told(
        {PUB: "The Mill.", CAFE: "Cotto is a pub.", prose: "whatever"},
        {PUB: ["The Mill is a place.", right, "never asked for"], CAFE: ["Cotto is a pub."] * 3},
    )
    assert answers(teacher, [PUB, prose, CAFE], retries=3) == [(PUB, right), (prose, "whatever")]
    assert teacher.asked[:3] == [(CAFE, 0.0, 0), (prose, 0.0, 0), (PUB, 0.0, 0)]
    anew = sorted((prompt, seed) for prompt, temperature, seed in teacher.asked[3:] if temperature == ANEW)
    assert anew == [(CAFE, 1), (CAFE, 2), (CAFE, 3), (PUB, 1), (PUB, 2)]
    assert answers(teacher, [PUB, CAFE]) == [(PUB, "The Mill."), (CAFE, "Cotto is a pub.")]


def test_what_the_checker_can_read():
    assert can_be_checked(PUB) and not can_be_checked("place: Fernley, day: Monday") and not can_be_checked("")
    assert agrees(PUB, "The Mill is a pub.") and not agrees(PUB, "The Mill is a coffee shop.")
    assert agrees("place: Fernley", "anything")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ar") / "run"
    trained(folder)
    return folder


def written_by(folder: Path) -> AutoregressiveLM:
    found = load(folder, device="cpu")
    assert isinstance(found, AutoregressiveLM)
    return found


def run_of(folder: Path, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 8} | changes
    return TrainingRun(from_dict(Recipe, recipe), folder, device="cpu")


def test_a_left_to_right_model_begins_as_its_teacher_and_learns_its_answers(teacher, tmp_path):
    made = run_of(tmp_path / "run", family="ar", taught_by=str(teacher), consensus_share=1.0, recombined=9)
    own = written_by(teacher).model.state_dict()
    begun = {}
    for event in made.events():
        if str(getattr(event, "text", "")).startswith("stages:"):
            begun = {name: value.clone() for name, value in made.parts.teacher.state_dict().items()}
    assert made.plan == {"teacher": 8}
    assert begun.keys() == own.keys() and all(torch.equal(begun[name], own[name]) for name in own)
    [targets] = (tmp_path / "run").glob("targets-teacher-*.jsonl")
    told = list(read_whole(str(targets)))
    known = {example.prompt for example in read("builtin:weather", num=60)}
    assert sum(example.prompt not in known for example in told) == 9
    assert load(teacher, device="cpu").write([example.prompt for example in told]) == [e.text for e in told]
    assert made.parts.consensus is not None and made.recipe.consensus == "teacher"


def test_a_taught_left_to_right_model_resumes_exactly(teacher, tmp_path):
    whole = {"family": "ar", "taught_by": str(teacher), "recombined": 5}
    assert list(run_of(tmp_path / "whole", **whole).events())
    parted, steps = run_of(tmp_path / "parted", **whole), 0
    events = parted.events()
    for event in events:
        steps += hasattr(event, "loss")
        if steps == 4:
            break
    events.close()
    assert list(TrainingRun(None, tmp_path / "parted", resume=True, device="cpu").events())
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parted")]
    assert weights[0] == weights[1] != (teacher / "model" / "model.safetensors").read_bytes()
    assert written_by(tmp_path / "whole").model.config == written_by(teacher).model.config


def test_targets_that_are_given_are_learned_and_copied(tmp_path):
    rows = [(example.prompt, example.text) for example in read("builtin:weather", num=30)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "text": f"Well: {t}"}) + "\n" for p, t in rows))
    made = run_of(tmp_path / "run", family="masked", masked=NET, targets=str(file))
    assert list(made.events())
    assert made.recipe.consensus == "given"
    corpus = made.parts.consensus
    assert corpus is not None and corpus.report.consensus == 30
    file.unlink()
    again = TrainingRun(None, tmp_path / "run", resume=True, device="cpu")
    assert any("is finished" in str(getattr(event, "text", "")) for event in again.events())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert '"targets": "mine.jsonl"' in card and str(tmp_path) not in card


def test_targets_that_are_not_there_stop_a_run_before_anything_is_trained(tmp_path, monkeypatch):
    for family, shape in (("masked", {"masked": NET}), ("manta", {"teacher": NET, "model": NET})):
        with pytest.raises(DataError, match=r"none\.jsonl"):
            list(run_of(tmp_path / "run", family=family, targets=str(tmp_path / "none.jsonl"), **shape).events())
        assert not (tmp_path / "run").exists(), "the next try finds the folder free"
    monkeypatch.chdir(tmp_path)
    assert run_of(tmp_path / "other", family="masked", masked=NET, targets="mine.jsonl").asked.targets == str(
        tmp_path / "mine.jsonl"
    )


def test_answers_that_are_made_again_are_the_teachers_and_not_its_pupils(teacher, tmp_path):
    events, steps = run_of(tmp_path / "run", family="ar", taught_by=str(teacher)).events(), 0
    for event in events:
        steps += hasattr(event, "loss")
        if steps == 5:
            break
    events.close()
    [targets] = (tmp_path / "run").glob("targets-teacher-*.jsonl")
    before = targets.read_bytes()
    targets.unlink()
    assert list(TrainingRun(None, tmp_path / "run", resume=True, device="cpu").events())
    assert targets.read_bytes() == before


def test_a_teacher_without_one_right_answer_is_an_error(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"name[The Mill], near[Café {n}]", "text": f"rain {n}"}) + "\n" for n in range(60)
        )
    )
    data = {"data": str(tmp_path / "pairs.jsonl"), "family": "ar"}
    made = run_of(tmp_path / "ar", teacher=NET, vocab_size=512, **data)
    assert list(made.events())
    with pytest.raises(DataError, match="the teacher has no answer that says the slots of its prompt"):
        list(run_of(tmp_path / "own", taught_by=str(tmp_path / "ar"), retries=1, **data).events())


def test_what_goes_against_targets_and_retries_is_said(teacher, tmp_path):
    for changes, message in (
        ({"targets": "mine.jsonl", "consensus": "medoid"}, "set both, or neither"),
        ({"consensus": "given"}, "set both, or neither"),
        ({"retries": 2, "consensus": "medoid"}, "none answers here; leave retries out"),
        ({"retries": 2, "targets": "mine.jsonl"}, "leave retries out"),
        ({"family": "masked", "retries": 2}, "leave retries out"),
        ({"family": "ar", "recombined": 9}, "leave recombined out"),
        ({"family": "ar", "consensus": "medoid"}, "without a teacher learns from the texts"),
        ({"family": "ar", "warm_start": True}, "leave warm_start out"),
    ):
        with pytest.raises(ConfigError, match=message):
            guided_by(resolve(from_dict(Recipe, {"data": "builtin:weather", **changes})))
    with pytest.raises(ConfigError, match="recombined should be 0 or more"):
        Recipe(recombined=-1)
    with pytest.raises(ConfigError, match="retries should lie between 0 and 64"):
        Recipe(retries=65)
    with pytest.raises(DataError, match=r"meaning representations like .* leave retries=2 out"):
        list(run_of(tmp_path / "checked", family="ar", taught_by=str(teacher), retries=2).events())
    (tmp_path / "prose.txt").write_text("It rained.\n" * 40)
    with pytest.raises(DataError, match="has no prompts with their texts"):
        list(run_of(tmp_path / "run", family="masked", masked=NET, targets=str(tmp_path / "prose.txt")).events())
