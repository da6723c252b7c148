"""Left to right with drafts: the text is the one without, whatever is drafted; draws are draws."""

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from manta.autoregressive import Chooser, Drafter, Drafting, Told, decode, truncate
from manta.errors import ModelError, UsageError

from ..bounds import binomial_bounds

BEGIN, END, VOCAB = 0, 1, 5


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


class Table:
    """A model of two words of memory: logits of the next word are a row of a random table."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        made = torch.randn(VOCAB, VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))
        made[..., BEGIN] = -torch.inf
        self.logits = made
        self.read: list[list[int]] = [[] for _ in range(rows)]
        self.widths: list[int] = []

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        self.widths.append(len(tokens[0]))
        told = []
        for row, new, start in zip(self.read, tokens, starts, strict=True):
            assert start <= len(row), "no place is skipped"
            row[start:] = new
            told.append([self.after(row[: start + j + 1]) for j in range(len(new))])
        logits = torch.stack([torch.stack(rows) for rows in told])
        lengths = torch.tensor([float(len(row)) for row in self.read])
        return Told(logits, lengths[:, None, None].expand(-1, logits.shape[1], 1))

    def select(self, rows: Sequence[int]) -> None:
        self.read = [list(self.read[row]) for row in rows]

    def after(self, words: Sequence[int]) -> Tensor:
        before, last = ([BEGIN, *words])[-2:]
        return self.logits[before, last]


class Guesses(Drafter):
    """Drafts at random, right in a share of the cases."""

    def __init__(self, model: Table, share: float, seed: int = 0) -> None:
        super().__init__()
        self.model, self.share, self.rng = model, share, torch.Generator().manual_seed(seed)
        self.seen: list[Drafting] = []

    def draft(self, told: Drafting) -> list[list[int]]:
        self.seen.append(told)
        found = []
        for row, (words, count) in enumerate(zip(told.written, told.counts, strict=True)):
            line = [BEGIN, *words]
            for place in range(len(words), len(words) + count):
                if torch.rand((), generator=self.rng) < self.share:
                    guess = told.choose.among(row, place, *self.ranked(line), VOCAB)
                else:
                    guess = int(torch.randint(VOCAB, (), generator=self.rng))
                line.append(guess)
            found.append(line[len(words) + 1 :])
        return found

    def ranked(self, line: Sequence[int]) -> tuple[list[int], list[float]]:
        """What the model thinks, the likeliest word first."""
        chances, words = self.model.after(line).softmax(-1)[1:].sort(descending=True)
        return (words + 1).tolist(), chances.tolist()


def written(rows: int, *, drafter: bool, share: float = 0.7, num_drafts: int = 3, multiple: int = 1, **settings):
    model = Table(rows)
    choose = Chooser(generators=generators(rows), **settings)
    texts: list[list[int]] = [[] for _ in range(rows)]
    rounds = list(
        decode(
            model,
            choose,
            [()] * rows,
            begin=BEGIN,
            end=END,
            max_tokens=12,
            drafter=Guesses(model, share) if drafter else None,
            num_drafts=num_drafts,
            multiple=multiple,
        )
    )
    for step in rounds:
        for row, words in zip(texts, step.words, strict=True):
            row += words
    return texts, rounds, model


WAYS = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 2}, {"temperature": 1.3, "top_p": 0.8}]


@pytest.mark.parametrize("settings", WAYS)
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_drafts_never_change_a_text(settings, share):
    for rows, num_drafts in product((1, 5), (1, 2, 7)):
        plain, slow, _ = written(rows, drafter=False, **settings)
        text, quick, _ = written(rows, drafter=True, share=share, num_drafts=num_drafts, **settings)
        assert text == plain
        assert len(quick) <= len(slow)
        assert all(len(row) == 12 or row[-1] == END for row in text)
        assert all(END not in row[:-1] for row in text)


def test_right_drafts_commit_all_words_of_a_call_and_wrong_ones_a_single_word():
    plain, slow, _ = written(1, drafter=False)
    words = len(plain[0])
    _, quick, _ = written(1, drafter=True, share=1.0, num_drafts=3)
    assert [len(step.words[0]) for step in quick] == [4] * (words // 4) + [words % 4] * (words % 4 > 0)
    assert [len(step.words[0]) for step in slow] == [1] * words


def test_a_call_is_filled_up_to_a_multiple_of_places():
    _, rounds, model = written(1, drafter=True, share=1.0, num_drafts=2, multiple=4)
    assert set(model.widths) == {4}
    assert all(step.processed == [4] for step in rounds)
    _, _, model = written(6, drafter=False, multiple=4)
    assert set(model.widths) == {2}, "six rows of two places are a multiple of four"


def test_no_more_is_drafted_than_a_text_can_hold():
    model = Table(1)
    model.logits[..., END] = -torch.inf
    drafter = Guesses(model, 1.0)
    rounds = list(decode(model, Chooser(), [()], begin=BEGIN, end=END, max_tokens=6, drafter=drafter, num_drafts=4))
    assert [seen.counts for seen in drafter.seen] == [[4], [0]]
    assert [len(step.words[0]) for step in rounds] == [5, 1]


def test_without_drafts_all_rows_are_read_at_the_same_place_when_some_have_ended():
    model, seen = Table(4), []
    rounds = list(
        decode(
            lambda tokens, starts: seen.append(list(starts)) or model(tokens, starts),
            Chooser(temperature=1.0, generators=generators(4)),
            [()] * 4,
            begin=BEGIN,
            end=END,
            max_tokens=12,
        )
    )
    assert seen == [[place] * 4 for place in range(len(rounds))]
    assert len({sum(map(bool, (step.words[row] for step in rounds))) for row in range(4)}) > 1, "they end apart"


def test_the_hidden_vector_of_a_draft_is_that_of_the_last_word():
    model = Table(2)
    drafter = Guesses(model, 0.5)
    list(decode(model, Chooser(), [(), ()], begin=BEGIN, end=END, max_tokens=8, drafter=drafter, num_drafts=3))
    assert drafter.seen[0].hidden is None
    for seen in drafter.seen[1:]:
        assert seen.hidden is not None
        assert seen.hidden.shape == (2, 1)


def test_chances_are_those_of_the_words():
    texts, rounds, model = written(1, drafter=True)
    told = [chance for step in rounds for chance in step.chances[0]]
    line = [BEGIN]
    for word, chance in zip(texts[0], told, strict=True):
        assert chance == pytest.approx(model.after(line).softmax(-1)[word].item(), abs=1e-6)
        line.append(word)


def test_given_words_stand_and_those_after_them_follow_from_them():
    model, given = Table(1), [[None, 3, 3, None, None]]
    rounds = list(decode(model, Chooser(), [()], begin=BEGIN, end=END, max_tokens=5, given=given))
    words = [word for step in rounds for word in step.words[0]]
    assert words[1:3] == [3, 3]
    assert words[3] == int(model.after([3, 3]).argmax())


def test_an_end_among_the_given_words_ends_the_text():
    rounds = list(decode(Table(1), Chooser(), [()], begin=BEGIN, end=END, max_tokens=4, given=[[2, END, 3, None]]))
    assert [step.words for step in rounds] == [[[2]], [[END]]]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.5, None, 1.0), (2.0, None, 1.0), (2.0, 2, 1.0), (2.0, None, 0.6)]
)
def test_words_are_drawn_from_the_softmax_at_their_temperature(temperature, top_k, top_p):
    logits = torch.tensor([-60.0, -60.0, 1.0, 0.0, 2.0])
    choose = Chooser(temperature=temperature, top_k=top_k, top_p=top_p, generators=generators(300))
    words = choose.words(logits.expand(300, 2, -1), [0] * 300).flatten().tolist()
    chance = (logits / temperature).softmax(-1)
    kept = {4, 2} if top_k or top_p < 1 else {2, 3, 4}
    low, high = binomial_bounds(600, float(chance[4] / chance[list(kept)].sum()))
    assert set(words) == kept
    assert low <= words.count(4) <= high


def test_who_watches_may_change_the_next_word():
    def never(logits: Tensor, so_far: Sequence[Sequence[int]]) -> Tensor:
        return logits.index_fill(-1, torch.tensor([END]), -torch.inf)

    rounds = list(decode(Table(2), Chooser(), [(), ()], begin=BEGIN, end=END, max_tokens=9, watch=never))
    assert len(rounds) == 9
    with pytest.raises(UsageError, match="word by word"):
        next(
            decode(
                Table(1), Chooser(), [()], begin=BEGIN, end=END, max_tokens=9, watch=never, drafter=Guesses(Table(1), 1)
            )
        )


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UsageError, match="2 generators"):
        next(decode(Table(2), Chooser(temperature=1.0), [(), ()], begin=BEGIN, end=END, max_tokens=3))
    model = Table(1)
    model.logits[:] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        next(decode(model, Chooser(), [()], begin=BEGIN, end=END, max_tokens=3))


@pytest.mark.parametrize("drafter", [False, True])
def test_texts_are_draws_from_the_joint(drafter):
    """Chi-square of the first two words of 1,000 texts, 1 in 10,000 above the bound."""
    rows = 1000
    texts, _, model = written(rows, drafter=drafter, share=0.5, num_drafts=2, temperature=1.0)
    expected = {}
    for first in range(1, VOCAB):
        chance = model.after([BEGIN]).softmax(-1)[first].item()
        if first == END:
            expected[first,] = chance
            continue
        for second in range(1, VOCAB):
            expected[first, second] = chance * model.after([BEGIN, first]).softmax(-1)[second].item()
    counts = {pair: sum(tuple(text[: len(pair)]) == pair for text in texts) for pair in expected}
    assert sum(counts.values()) == rows
    misfit = sum((counts[pair] - rows * p) ** 2 / (rows * p) for pair, p in expected.items())
    assert misfit < 39.1, "12 degrees of freedom"


def test_truncation_keeps_the_likeliest_words():
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    assert truncate(logits, top_k=2).isfinite().tolist() == [[True, True, False, False, False]]
    assert truncate(logits, top_p=0.71).isfinite().tolist() == [[True, True, True, False, False]]
    assert truncate(logits, top_p=0.5).isfinite().tolist() == [[True, False, False, False, False]]
    assert truncate(logits, top_p=1e-6).isfinite().sum() == 1
    torch.testing.assert_close(truncate(logits, top_k=5, top_p=1.0), logits)


def test_noise_belongs_to_a_place_whatever_is_asked_before():
    first, second = (Chooser(temperature=1.0, generators=generators(2)) for _ in range(2))
    late = first.noise(1, 5, VOCAB)
    for place in range(6):
        kept = second.noise(1, place, VOCAB)
    assert torch.equal(late, kept)
    second.forget(1, 4)
    assert torch.equal(second.noise(1, 5, VOCAB), kept)


class Places(Table):
    """Tells of each place its number as the hidden vector."""

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        told = super().__call__(tokens, starts)
        first = torch.tensor([float(start) for start in starts])[:, None, None]
        return Told(told.logits, first + torch.arange(float(told.logits.shape[1]))[None, :, None])


class Looking(Drafter):
    """Drafts what the model would say, and keeps what it was shown."""

    def __init__(self, reader: Table) -> None:
        super().__init__()
        self.reader, self.seen = reader, []

    def begin(self, memory) -> None:
        pass

    def draft(self, told: Drafting) -> list[list[int]]:
        drafts = []
        for row, (words, count) in enumerate(zip(told.written, told.counts, strict=True)):
            if told.hidden is not None:
                self.seen.append((len(words), float(told.hidden[row, 0])))
            draft: list[int] = []
            while len(draft) < min(count, len(words) % 3):
                draft.append(int(self.reader.after([*words, *draft]).argmax()))
            drafts.append(draft)
        return drafts


def test_a_drafter_sees_what_the_last_word_was_read_from():
    reader = Places(1, seed=3)
    drafter = Looking(reader)
    *_, last = decode(
        reader, Chooser(), [()], begin=BEGIN, end=VOCAB, max_tokens=12, drafter=drafter, num_drafts=3, multiple=1
    )
    assert last is not None and len(drafter.seen) > 3
    apart = {written - place for written, place in drafter.seen}
    assert len(apart) == 1, "the vector is that of the last word, however many were drafted before it"


def test_words_are_kept_until_they_add_up_to_the_bound_and_not_beyond():
    """Chances of a half, a quarter and two eighths are exact: at a bound that is met, no further word is kept."""
    logits = torch.tensor([4.0, 2.0, 1.0, 1.0]).log()
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.875, 3), (0.9, 4), (1.0, 4)):
        assert int(truncate(logits, top_p=top_p).isfinite().sum()) == kept, top_p
    for top_k, kept in ((1, 1), (2, 2), (4, 4), (9, 4), (None, 4)):
        assert int(truncate(logits, top_k=top_k).isfinite().sum()) == kept, top_k
