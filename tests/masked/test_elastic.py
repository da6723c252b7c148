"""The elastic canvas: the layout of training, told once more a row at a time, and what becomes of places."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.errors import UsageError
from manta.masked import (
    CacheConfig,
    Canvas,
    ConfidenceConfig,
    DeferredConfig,
    DoubtConfig,
    ThresholdConfig,
    WordSampler,
    decode,
)
from manta.masked.elastic import OFF, Elastic, merged
from manta.runtime import make_generator

END, MASK, GROW = 0, 1, 9
IDS: dict[str, Any] = {"mask_id": MASK, "grow_id": GROW, "end_id": END}


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    hide=st.floats(0, 1),
    share=st.sampled_from([0.0, 0.5, 0.95]),
    seed=st.integers(0, 500),
)
def test_a_layout_keeps_words_in_order_and_hides_the_rest(lengths, hide, share, seed):
    generator = make_generator(seed)
    n = max(lengths) + 1
    place = torch.arange(n)
    mask = place <= torch.tensor(lengths)[:, None]
    tokens = torch.randint(2, 9, mask.shape, generator=generator)
    tokens = torch.where(place < torch.tensor(lengths)[:, None], tokens, END)
    hidden = (torch.rand(mask.shape, generator=generator) < hide) & mask
    shares = torch.full((len(lengths),), share)
    shares[0] = 0.0
    laid = merged(tokens, hidden, mask, shares, generator, most=n + 3, **IDS)
    assert ((laid.shown != OFF).sum(1) <= n + 3).all()
    for row, length in enumerate(lengths):
        real = laid.shown[row] != OFF
        told = laid.hidden[row] & real
        assert (laid.shown[row][told] == MASK).all() and not (laid.hidden[row] & ~real).any()
        assert torch.equal(laid.shown[row][~told], torch.where(real, laid.target[row], OFF)[~told])
        assert torch.equal(laid.shown[row][real & ~told], tokens[row, : length + 1][~hidden[row, : length + 1]])
        if row == 0:
            assert torch.equal(laid.target[row][real], tokens[row, : length + 1])
            assert torch.equal(told[real], hidden[row, : length + 1])
            continue
        # Read from left to right, the targets spell the text, where a place that grows takes two words or more.
        assert spells(laid.target[row][real].tolist(), tokens[row, : length + 1].tolist())


def spells(target: list[int], text: list[int]) -> bool:
    """Whether a text can be cut into what the places stand for: a word, several, or none."""
    if not target:
        return not text
    first, rest = target[0], target[1:]
    if first == GROW:
        return any(END not in text[:k] and spells(rest, text[k:]) for k in range(2, len(text) + 1))
    return (bool(text) and first == text[0] and spells(rest, text[1:])) or (first == END and spells(rest, text))


def test_places_are_joined_as_often_as_the_share_says():
    tokens = torch.full((400, 21), 5)
    tokens[:, 20] = END
    mask, hidden = torch.ones_like(tokens).bool(), torch.ones_like(tokens).bool()
    laid = merged(tokens, hidden, mask, torch.full((400,), 0.6), make_generator(0), most=99, **IDS)
    places = ((laid.target == 5) | (laid.target == GROW)).sum(1).float()
    assert places.mean() == pytest.approx(1 + 19 * 0.4, abs=0.3)
    grows = (laid.target == GROW).float().sum() / places.sum()
    assert grows == pytest.approx(1 - 0.4, abs=0.05)
    spare = (laid.target == END).sum(1).float().mean() - 1
    assert spare == pytest.approx(21 * 0.05, abs=0.2)


class Scripted:
    """Tells, for a canvas, the class with probability 0.97 that a script has for it."""

    def __init__(self, script: dict[str, str]) -> None:
        """From the canvas, `.` for a mask, to what each place is: a digit, `E` for no word, `+` for growing."""
        self.script = script

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        assert (start, stop) == (0, tokens.shape[1])
        names = {MASK: ".", OFF: "", END: "E"}
        logits = torch.full((*tokens.shape, 10), 0.03 / 9).log()
        for row in range(len(tokens)):
            seen = "".join(names.get(t, str(t)) for t in tokens[row].tolist())
            for place, letter in enumerate(self.script[seen]):
                if letter != ".":
                    logits[row, place, {"E": END, "+": GROW}.get(letter) or int(letter.replace("E", "0"))] = 0.0
        return logits


def run(script: dict[str, str], begin: list[str], most: int = 6, config=None, **settings) -> list[list[str]]:
    """Canvases after each call, each row as a string."""
    width = max(map(len, begin))
    names = {".": MASK, "E": END}
    rows = [[names.get(c) or (0 if c == "E" else int(c)) for c in row] + [OFF] * (width - len(row)) for row in begin]
    tokens = torch.tensor(rows)
    fixed = settings.pop("fixed", None)
    elastic = Elastic(tokens, **IDS, most=most, padded=lambda n: n, fixed=fixed)
    told = {MASK: ".", OFF: "", END: "E"}
    config = config or ThresholdConfig(threshold=0.9)
    settings = {"mask_id": MASK, "sampler": WordSampler(), "end_id": END, "ends_last": True, **settings}
    return [
        ["".join(told.get(t, str(t)) for t in row) for row in canvas.tokens.tolist()]
        for canvas in decode(Scripted(script), tokens, config.build(), elastic=elastic, **settings)
    ]


def test_a_place_grows_into_two_and_a_place_of_no_word_vanishes():
    script = {"..": "+E", "...": "2+E", "2...": "234E", "234.": "234E"}
    assert run(script, [".."]) == [["..."], ["2..."], ["234."], ["234E"]]
    assert run({"....": "2E3E", "23.": "23E"}, ["...."]) == [["23."], ["23E"]]


def test_rows_change_apart_from_each_other():
    script = {"..": "+E", "...": "23E", "4.": "4E", "23.": "23E", "4E": "4E", "23E": "23E"}
    found = run(script, ["..", "4."])
    assert found == [["...", "4E"], ["23.", "4E"], ["23E", "4E"]]
    assert run(script, [".."]) == [[row[0]] for row in found]


def test_there_is_no_more_growing_than_room_and_none_in_the_last_call():
    script = {"...": "++E", "....": "2++E", "2...": "23+E", "2....": "2345E", "23..": "234E", "2345.": "2345E"}
    script |= {"234.": "234E", "23E": "23E", "2..": "23E", "23.": "23E"}
    found = run({**script, "....": "234E"}, ["..."], most=4)
    assert found[0] == ["...."] and found[-1] == ["234E"], "one of two places grows where there is room for one"
    (only,) = run({"...": "++E"}, ["..."], max_calls=1)
    assert len(only[0]) == 3 and "." not in only[0]


def test_places_that_change_are_no_words_to_take_back():
    """A round of taking back waits for what has grown to be written, and then takes a word back."""
    config = DeferredConfig(threshold=0.9, rounds=1, share=0.3)
    script = {".E": "+E", "..E": "23E", "23E": "23E", ".3E": "23E", "2.E": "23E"}
    found = run(script, [".E"], config=config)
    assert found[0] == ["..E"], "grown, and not taken back"
    assert found[-1] == ["23E"] and len(found) == 3
    gone = run({"4..": "4E2", "4.": "42", "42": "42"}, ["4.."], config=config)
    assert gone[-1] == ["42"]


def test_a_fixed_place_does_not_grow():
    fixed = torch.tensor([[True, False, False]])
    script = {"...": "++E", "....": "234E", "2...": "234E", "234.": "234E", "2E": "2E"}
    *_, last = run(script, ["..."], fixed=fixed, max_calls=5)
    assert len(last[0]) <= 4


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), most=st.integers(3, 12), budget=st.sampled_from([None, 1, 2, 5]))
def test_every_canvas_comes_to_an_end_within_its_bounds(seed, most, budget):
    """Whatever a model says, with growing as likely as any word."""
    noise = make_generator(seed)
    begin = torch.full((3, 3), MASK)
    begin[1, 2] = OFF
    elastic = Elastic(begin, **IDS, most=most, padded=lambda n: -(-n // 4) * 4)
    calls = 0
    for canvas in decode(
        lambda tokens, start, stop: 3 * torch.randn(*tokens.shape, 10, generator=noise),
        begin,
        ConfidenceConfig(num_steps=3).build() if budget == 2 else ThresholdConfig(threshold=0.6).build(),
        mask_id=MASK,
        sampler=WordSampler(1.0, [make_generator(seed + k) for k in range(3)], 16),
        elastic=elastic,
        end_id=END,
        ends_last=True,
        max_calls=budget,
    ):
        calls += 1
        lengths = (canvas.tokens != OFF).sum(1)
        assert (lengths <= most).all() and (lengths >= 1).all()
        assert torch.equal(canvas.tokens != OFF, torch.arange(canvas.tokens.shape[1]) < lengths[:, None])
        assert GROW not in canvas.tokens and torch.equal(canvas.masked, canvas.tokens == MASK)
        assert (elastic.origin[canvas.tokens != OFF] >= 0).all() and (elastic.origin.diff(dim=1)[:, :1] >= -3).all()
    assert not canvas.masked.any() and (budget is None or calls <= budget)


def test_what_needs_places_to_stay_is_refused():
    begin = torch.full((1, 3), MASK)
    elastic = Elastic(begin, **IDS, most=5, padded=lambda n: n)
    for config, cache in ((ThresholdConfig(), CacheConfig(kind="dual")), (DoubtConfig(), None)):
        with pytest.raises(UsageError, match="elastic canvas move"):
            how = {"mask_id": MASK, "sampler": WordSampler(), "elastic": elastic, "cache": cache}
            next(decode(Scripted({}), begin, config.build(), judge=lambda: torch.ones(1, 3), **how))


def test_places_that_have_grown_are_counted() -> None:
    tokens = torch.tensor([[MASK, END], [2, END]])
    elastic = Elastic(tokens, **IDS, most=6, padded=lambda n: n)
    script = {".E": "+E", "..E": "23E", "2E": "2E", "23E": "23E"}
    settings: dict[str, Any] = {"mask_id": MASK, "sampler": WordSampler(), "end_id": END, "ends_last": True}
    for _ in decode(Scripted(script), tokens, ThresholdConfig(threshold=0.9).build(), elastic=elastic, **settings):
        pass
    assert elastic.grown.tolist() == [1, 0]


def canvas_of(tokens: list[list[int]], budget: int | None = None, calls: int = 1) -> Canvas:
    given = torch.tensor(tokens)
    masked = given == MASK
    return Canvas(given, masked.clone(), masked.clone(), torch.ones(given.shape, dtype=torch.float64), budget, calls)


def logits_with(rows: list[list[dict[int, float]]]) -> Tensor:
    """Logits of chances by word; the rest is shared by the others."""

    def spread(given: dict[int, float]) -> list[float]:
        return [given.get(word, (1 - sum(given.values())) / (10 - len(given))) for word in range(10)]

    told = [[spread(place) for place in row] for row in rows]
    return torch.tensor(told).log()


def test_what_grows_and_vanishes_is_decided_by_chances_place_by_place():
    """Half is enough to grow, nine tenths to vanish; the last place stays, and so does what is written."""
    canvas = canvas_of([[MASK, MASK, MASK, MASK, 5, MASK, MASK, OFF]])
    elastic = Elastic(canvas.tokens, **IDS, most=9, padded=lambda n: n)
    sure = [{GROW: 0.55}, {GROW: 0.45}, {END: 0.95}, {END: 0.85}, {GROW: 0.9}, {GROW: 0.45}, {END: 0.97}, {}]
    word = torch.tensor([[3, GROW, END, END, 7, GROW, END, 3]])
    commit = torch.tensor([[False, True, False, False, False, False, False, False]])
    told, done = elastic.decided(canvas, logits_with([sure]), word, commit)
    assert told.tolist() == [[GROW, GROW, OFF, END, 7, GROW, END, 3]]
    assert done.tolist() == [[True, True, True, False, False, False, False, False]]
    crowded = Elastic(canvas.tokens, **IDS, most=8, padded=lambda n: n)
    told, done = crowded.decided(canvas, logits_with([sure]), word, commit)
    assert done.tolist() == [[True, False, True] + [False] * 5], "there is room for the leftmost alone"
    eager = Elastic(canvas.tokens, **IDS, most=9, padded=lambda n: n, grow=0.4, shrink=0.8)
    assert eager.decided(canvas, logits_with([sure]), word, commit)[1].tolist() == [
        [True, True, True, True, False, False, False, False]
    ]


def test_room_is_what_the_longest_canvas_leaves_and_what_has_not_grown_yet():
    canvas = canvas_of([[MASK, 2, OFF, OFF], [MASK, 2, 3, END]])
    elastic = Elastic(canvas.tokens, **IDS, most=6, padded=lambda n: n)
    assert elastic.room(canvas).tolist() == [4, 2]
    elastic.grown = torch.tensor([3, 6])
    assert elastic.room(canvas).tolist() == [3, 0]
    assert Elastic(canvas.tokens, **IDS, most=3, padded=lambda n: n).room(canvas).tolist() == [1, 0]


@pytest.mark.parametrize(("budget", "calls"), [(None, 1), (5, 4), (5, 5)])
def test_growing_is_barred_without_room_in_fixed_places_and_in_the_last_call(budget, calls):
    canvas = canvas_of([[MASK, MASK, OFF], [MASK, MASK, MASK]], budget, calls)
    fixed = torch.tensor([[False, True, False], [False, False, False]])
    elastic = Elastic(canvas.tokens, **IDS, most=3, padded=lambda n: n, fixed=fixed)
    logits = torch.zeros(2, 3, 10)
    elastic.bound(logits, canvas)
    barred = logits[..., GROW].isinf().tolist()
    assert barred == ([[True] * 3] * 2 if calls == 5 else [[False, True, False], [True] * 3])
    assert not logits[..., :GROW].any()


def test_a_canvas_is_laid_out_with_what_each_place_has():
    canvas = canvas_of([[2, GROW, OFF, MASK, 6], [GROW, GROW, 7, OFF, OFF]])
    canvas.tokens[0, 3] = MASK
    canvas.confidence = torch.arange(10, dtype=torch.float64).view(2, 5)
    canvas.masked = torch.tensor([[False, True, False, True, False], [True, True, False, False, False]])
    canvas.writable = canvas.masked | torch.tensor([[False] * 4 + [True], [False, False, True, False, False]])
    fixed = torch.tensor([[True, False, False, True, False], [False] * 5])
    elastic = Elastic(canvas.tokens, **IDS, most=9, padded=lambda n: n + 1, fixed=fixed)
    elastic.mark(canvas)
    elastic.lay_out(canvas)
    assert canvas.tokens.tolist() == [[2, MASK, MASK, MASK, 6, OFF], [MASK] * 4 + [7, OFF]]
    assert canvas.masked.tolist() == [[False, True, True, True, False, False], [True] * 4 + [False] * 2]
    assert canvas.writable.tolist() == [[False, True, True, True, True, False], [True] * 5 + [False]]
    inf = float("inf")
    assert canvas.confidence.tolist() == [[0, 1, 1, 3, 4, inf], [5, 5, 6, 6, 7, inf]]
    assert elastic.origin.tolist() == [[0, 1, 1, 3, 4, OFF], [0, 0, 1, 1, 2, OFF]]
    assert elastic.fixed.tolist() == [[True, False, False, True, False, False], [False] * 6]
    assert elastic.grown.tolist() == [1, 2]


def test_a_layout_by_hand_where_all_are_joined_and_none_is_spare(monkeypatch):
    monkeypatch.setattr("manta.masked.elastic.SPARE", 0.0)
    tokens = torch.tensor([[2, 3, 4, 5, 6, 7, END], [2, 3, 4, END, END, END, END]])
    hidden = torch.tensor([[False, True, True, True, False, True, True], [True, True, True, True, False, False, False]])
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    laid = merged(tokens, hidden, mask, torch.ones(2), make_generator(0), most=9, **IDS)
    assert laid.shown.tolist() == [[2, MASK, 6, MASK, MASK], [MASK, MASK, OFF, OFF, OFF]]
    assert laid.target.tolist() == [[2, GROW, 6, 7, END], [GROW, END, OFF, OFF, OFF]]
    assert laid.hidden.tolist() == [[False, True, False, True, True], [True, True, False, False, False]]
    monkeypatch.setattr("manta.masked.elastic.SPARE", 1.0)
    spare = merged(tokens, hidden, mask, torch.tensor([1e-9, 0.0]), make_generator(0), most=9, **IDS)
    assert spare.target[0].tolist() == [2, 3, END, 4, END, 5, 6, 7, END], "of five places behind hidden words two fit"
    assert spare.shown[0].tolist() == [2, MASK, MASK, MASK, MASK, MASK, 6, MASK, MASK]
    assert spare.target[1].tolist() == [2, 3, 4, END, OFF, OFF, OFF, OFF, OFF], "a row without a share has none"


def test_places_are_joined_and_spared_by_the_generator_alone(no_global_draws):
    tokens = torch.full((6, 9), 5)
    mask = torch.ones_like(tokens).bool()
    with no_global_draws():
        one, two = (
            merged(tokens, mask, mask, torch.full((6,), 0.5), make_generator(3), most=20, **IDS) for _ in range(2)
        )
    assert torch.equal(one.shown, two.shown) and torch.equal(one.target, two.target)
