"""Two scales: classes before words, within the budget, and what a model is told and trained on of them."""

import pytest
import torch
from torch import Tensor

from manta.masked import Canvas, ConfidenceConfig, ThresholdConfig, WordSampler, decode
from manta.masked.coarse import Coarse

MASK, VOCAB = 1, 7
CLASS_OF = torch.tensor([0, 0, 1, 1, 2, 2, 2])


class Scripted:
    """The words of a text with a chance each; a word is sure once its class stands."""

    def __init__(self, chances: list[list[float]], settled: list[list[float]]) -> None:
        self.chances, self.settled, self.seen = torch.tensor(chances), torch.tensor(settled), []

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        self.seen.append(tokens[0].tolist())
        told = torch.where((tokens >= VOCAB)[..., None], self.settled, self.chances)
        return told.clamp_min(1e-6).log()[:, start:stop]


def spread(**chances: float) -> list[float]:
    """Chances of words by number, `w2=0.5`; the rest is shared by the others."""
    given = {int(name[1:]): chance for name, chance in chances.items()}
    rest = (1 - sum(given.values())) / (VOCAB - len(given))
    return [given.get(word, rest) for word in range(VOCAB)]


def test_classes_come_before_words_and_words_are_of_their_class():
    """The likeliest word is of the class that is not the likeliest; four calls, two of them for classes."""
    split = spread(w2=0.3, w4=0.22, w5=0.22, w6=0.22)  # class 2 has 0.66, word 2 has most
    net = Scripted([split] * 4, [spread(w5=0.99)] * 4)
    policy, sampler = ConfidenceConfig(num_steps=4).build(), WordSampler()
    found = [
        canvas.tokens[0].tolist()
        for canvas in decode(
            net,
            torch.full((1, 4), MASK),
            policy,
            mask_id=MASK,
            sampler=sampler,
            scales=Coarse(CLASS_OF, MASK),
        )
    ]
    assert found == [[9, 9, 1, 1], [5, 5, 9, 9], [5, 5, 5, 9], [5, 5, 5, 5]]
    assert net.seen == [[1] * 4, *found[:-1]]


def test_sure_words_do_not_wait_and_rows_whose_classes_stand_go_on():
    sure, unsure = spread(w2=0.95), spread(w4=0.3, w5=0.3, w6=0.3)
    net = Scripted([sure, unsure, unsure], [sure, spread(w4=0.99), spread(w6=0.99)])
    tokens = torch.tensor([[MASK, MASK, MASK]])
    settings = {"mask_id": MASK, "sampler": WordSampler(), "max_calls": 8}
    found = [
        canvas.tokens[0].tolist()
        for canvas in decode(net, tokens, ThresholdConfig().build(), scales=Coarse(CLASS_OF, MASK), **settings)
    ]
    assert found == [[2, 9, 9], [2, 4, 6]], "class 2 is surer than the threshold at both"


def test_ends_wait_for_the_words_among_classes_too():
    """The third place would be an end until a word stands at the second: it becomes a word of that text."""

    def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
        known = (tokens[0, 1] != MASK) & (tokens[0, 1] < VOCAB)
        third = spread(w5=0.97) if known else spread(w0=0.9)
        told = torch.tensor([[spread(w2=0.6), spread(w4=0.6), third, spread(w0=0.97)]])
        others = (tokens - VOCAB)[..., None] != CLASS_OF
        return told.log().masked_fill((tokens >= VOCAB)[..., None] & others, -torch.inf)[:, start:stop]

    alone = torch.tensor([0, 1, 1, 1, 2, 2, 2])
    for end_id, expected in ((0, [2, 4, 5, 0]), (None, [2, 4, 0, 0])):
        settings = {"mask_id": MASK, "sampler": WordSampler(), "max_calls": 8, "end_id": 0, "ends_last": True}
        scales = Coarse(alone if end_id == 0 else CLASS_OF, MASK, end_id)
        policy = ThresholdConfig().build()
        *_, canvas = decode(denoiser, torch.full((1, 4), MASK), policy, scales=scales, **settings)
        assert canvas.tokens[0].tolist() == expected


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("budget", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("ends_last", [False, True])
def test_every_budget_is_kept_and_every_word_written(share, budget, ends_last):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 6, VOCAB, generator=generator)

    def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
        others = (tokens - VOCAB)[..., None] != CLASS_OF
        return noise.clone().masked_fill((tokens >= VOCAB)[..., None] & others, -torch.inf)[:, start:stop]

    tokens = torch.full((3, 6), MASK)
    tokens[1, 2], tokens[2] = 4, 3
    classes: dict[tuple[int, int], int] = {}
    calls = 0
    for canvas in decode(
        denoiser,
        tokens,
        ThresholdConfig(threshold=0.6).build(),
        mask_id=MASK,
        sampler=WordSampler(),
        max_calls=budget,
        end_id=0,
        ends_last=ends_last,
        scales=Coarse(CLASS_OF, MASK, None, share),
    ):
        calls += 1
        assert torch.equal(canvas.masked, (canvas.tokens == MASK) | (canvas.tokens >= VOCAB))
        if share == 0:
            assert (canvas.tokens < VOCAB).all()
        for place in ((canvas.tokens >= VOCAB).nonzero()).tolist():
            classes[place[0], place[1]] = int(canvas.tokens[tuple(place)]) - VOCAB
        for (row, place), kind in classes.items():
            word = int(canvas.tokens[row, place])
            if MASK != word < VOCAB and (ends_last or word != 0):
                assert CLASS_OF[word] == kind, "a word is of the class that stood there"
    assert not canvas.masked.any() and (budget is None or calls <= budget)  # pyright: ignore[reportPossiblyUnbound]
    assert canvas.tokens[2].tolist() == [3] * 6 and canvas.tokens[1, 2] == 4  # pyright: ignore[reportPossiblyUnbound]


def on(tokens: list[list[int]], budget: int | None = None, calls: int = 1) -> Canvas:
    given = torch.tensor(tokens)
    masked = (given == MASK) | (given >= VOCAB)
    return Canvas(given, masked.clone(), masked.clone(), torch.ones(given.shape, dtype=torch.float64), budget, calls)


@pytest.mark.parametrize(
    ("share", "budget", "calls"),
    [(0.5, 8, [4, 3, 2, 1, 0, 0]), (0.25, 8, [2, 1, 0]), (0.5, 1, [0]), (1.0, 3, [3, 2, 1]), (0.5, None, [1, 1])],
)
def test_calls_that_settle_classes_are_the_first_of_a_budget(share, budget, calls):
    scales = Coarse(CLASS_OF, MASK, share=share)
    assert [scales.calls(on([[MASK]], budget, call)) for call in range(1, len(calls) + 1)] == calls
    assert Coarse(CLASS_OF, MASK, share=0.0).calls(on([[MASK]])) == 0


def test_the_surest_classes_are_settled_an_even_share_a_call_row_by_row():
    """Class chances of the first row: 0.5, 0.8, 0.95 and an end; two calls are left, so ⌈3/2⌉ are settled."""
    ends = torch.tensor([0, 1, 2, 2, 3, 3, 3])
    scales = Coarse(ends, MASK, end_id=0)
    one = [spread(w2=0.3, w3=0.2), spread(w4=0.5, w5=0.3), spread(w4=0.95), spread(w0=0.99)]
    other = [spread(w2=0.92), spread(w3=0.91), spread(w4=0.93), spread(w5=0.4, w6=0.3)]
    logits = torch.tensor([one, other]).log()
    canvas = on([[MASK] * 4] * 2, budget=4)
    scales.threshold = 0.94
    commit = torch.ones(2, 4, dtype=torch.bool)
    written = scales.settle(canvas, logits, commit)
    assert written.tolist() == [[False, False, True, True], [False] * 4], "a sure word, and a sure end, do not wait"
    assert canvas.tokens.tolist() == [[MASK, VOCAB + 3, MASK, MASK], [VOCAB + 2, MASK, VOCAB + 3, MASK]]
    canvas.calls = 2
    scales.settle(canvas, logits, commit & False)
    assert canvas.tokens.tolist() == [[VOCAB + 2, 10, VOCAB + 3, MASK], [9, VOCAB + 2, 10, VOCAB + 3]]
    canvas.calls = 3
    assert torch.equal(scales.settle(canvas, logits, commit), commit), "it is the words' turn"


def test_words_of_a_row_go_on_once_no_class_waits():
    scales = Coarse(CLASS_OF, MASK)
    canvas = on([[VOCAB + 1, 4], [MASK, VOCAB]], budget=4)
    logits = torch.tensor([[spread(w2=0.5)] * 2] * 2).log()
    commit = torch.tensor([[True, False], [True, True]])
    assert scales.settle(canvas, logits, commit).tolist() == [[True, False], [False, False]]
