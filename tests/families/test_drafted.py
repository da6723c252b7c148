"""Words that a drafter guesses right are committed together; how many are guessed, and what is read for it."""

from typing import Any

import pytest
import torch

from manta.autoregressive import Drafter, Told
from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import padded_prompts
from manta.families.cached import CachedReader
from manta.families.events import GenerateOptions
from manta.families.next_words import Line
from manta.families.observer import Observer
from manta.families.trained import StageShares, Teaching
from manta.operators import AttentionConfig, LinearConfig
from manta.runtime import make_generator

from .conftest import make_ar

PROMPT = [20, 31, 40]


class Knowing(Drafter):
    """Guesses the words of a text, as many as are of use, and keeps what it is asked."""

    def __init__(self, text: tuple[int, ...]) -> None:
        super().__init__()
        self.text, self.counts, self.memories = text, [], []

    def begin(self, memory: Any) -> None:
        self.memories.append(memory)

    def draft(self, told):
        self.counts.append(list(told.counts))
        starts = [len(words) for words in told.written]
        return [list(self.text[s : s + count]) for s, count in zip(starts, told.counts, strict=True)]


def texts(lm: AutoregressiveLM, rows: int = 1, **options: Any) -> list[Any]:
    asked = [Line(PROMPT, 0)] * rows
    events = lm.write_rows(asked, GenerateOptions(max_tokens=12, **options), rows, Observer())
    return [event for event in events if event.kind == "done"]


@pytest.fixture(scope="module")
def drafted() -> tuple[AutoregressiveLM, tuple[int, ...]]:
    lm = make_ar()
    with lm.endless():
        [plain] = texts(lm, decoder="sequential")
    assert len(plain.tokens) == 12 and plain.nfe == 13
    return lm, plain.tokens


def knowing(lm: AutoregressiveLM, text: tuple[int, ...]) -> Knowing:
    lm.table = found = Knowing(text)  # pyright: ignore[reportAttributeAccessIssue]
    return found


@pytest.mark.parametrize(("num_drafts", "calls"), [(1, 6), (2, 4), (3, 3), (5, 2), (11, 1)])
def test_as_many_words_are_committed_a_call_as_were_guessed_and_one(drafted, num_drafts, calls):
    lm, text = drafted
    drafter = knowing(lm, text)
    with lm.endless():
        [found] = texts(lm, decoder="verified", num_drafts=num_drafts)
    assert found.tokens == text and found.nfe == 1 + calls
    assert len(drafter.memories) == 1 and len(drafter.counts) == calls
    assert drafter.counts[0] == [num_drafts]


@pytest.mark.parametrize(
    ("rows", "decoder", "drafts"), [(1, "", 7), (8, "", 3), (16, "", 1), (32, "", 0), (8, "verified", 7)]
)
def test_how_many_are_guessed_where_no_number_is_asked(drafted, rows, decoder, drafts):
    lm, text = drafted
    drafter = knowing(lm, text)
    with lm.endless():
        found = texts(lm, rows, decoder=decoder)
    assert {event.tokens for event in found} == {text}
    assert {max(counts) for counts in drafter.counts[:1]} == ({drafts} if drafts else set())


def test_places_are_kept_for_the_text_and_its_drafts(drafted, monkeypatch):
    lm, text = drafted
    knowing(lm, text)
    rooms, begin = [], CachedReader.__init__
    monkeypatch.setattr(CachedReader, "__init__", lambda self, *a: rooms.append(a[-1]) or begin(self, *a))
    with lm.endless():
        for drafts, places in ((1, 12 + 1 + 4), (7, 12 + 7 + 4)):
            texts(lm, decoder="verified", num_drafts=drafts)
            assert rooms.pop() >= places


@torch.no_grad()
@pytest.mark.parametrize("operator", [LinearConfig(), AttentionConfig()])
def test_what_is_read_of_a_row_is_the_same_to_the_last_bit_beside_any_others(operator):
    model = make_ar(operator=operator).model
    prompts = [[5, 6, 7, 8], [9, 10], []]
    lines = torch.randint(4, 90, (3, 4), generator=make_generator(1)).tolist()

    def read(rows: list[int]) -> Told:
        tokens, lengths = padded_prompts([prompts[row] for row in rows], torch.device("cpu"))
        memory = model.memory(tokens, lengths, torch.zeros_like(lengths))
        return CachedReader(model, memory, 16)([lines[row] for row in rows], [0] * len(rows))

    together = read([0, 1, 2])
    for row in range(3):
        alone = read([row])
        assert torch.equal(alone.logits[0], together.logits[row]) and torch.equal(alone.hidden[0], together.hidden[row])


def test_what_is_watched_is_written_word_by_word_though_a_drafter_is_there(drafted):
    lm, text = drafted
    drafter = knowing(lm, text)

    class Watching(Observer):
        seen = 0

        def logits(self, logits, settled):
            self.seen += 1
            return logits

    watching = Watching()
    with lm.endless():
        *_, done = lm.write_rows([Line(PROMPT, 0)], GenerateOptions(max_tokens=12), 1, watching)
    assert (done.tokens, done.nfe, watching.seen) == (text, 13, 12) and not drafter.counts


def test_a_drafter_has_a_quarter_of_the_models_time():
    teaching = Teaching(shares=StageShares(policy=3.0, own=1.0))
    stages = AutoregressiveLM.stages(make_ar(draft_horizon=3).model, teaching, {})
    assert [(stage.name, stage.share, stage.part) for stage in stages] == [
        ("teacher", 1.0, ""),
        ("drafter", 0.25, "drafter"),
    ]
    assert len(AutoregressiveLM.stages(make_ar().model, teaching, {})) == 1


def test_a_drafter_that_guesses_more_than_it_may_makes_no_text_longer(drafted):
    lm, text = drafted

    class Eager(Knowing):
        def draft(self, told):
            return [[*self.text[len(words) :], 5, 6] for words in told.written]

    lm.table = Eager((*text, 5, 6))  # pyright: ignore[reportAttributeAccessIssue]
    with lm.endless():
        [found] = texts(lm, decoder="verified", num_drafts=11)
        [whole] = [
            event
            for event in lm.write_rows([Line(PROMPT, 0)], GenerateOptions(max_tokens=7, num_drafts=6), 1, Observer())
            if event.kind == "done"
        ]
    assert found.tokens == text and whole.tokens == text[:7]
