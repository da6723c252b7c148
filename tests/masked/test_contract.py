"""What every decoder promises, and what each commits call by call, told once more in plain Python, a row at a time."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.masked import (
    DECODERS,
    BlockConfig,
    CacheConfig,
    ConfidenceConfig,
    DecoderConfig,
    DeferredConfig,
    DoubtConfig,
    FirstHittingConfig,
    LearnedConfig,
    Policy,
    RemaskConfig,
    ThresholdConfig,
    WordSampler,
    decode,
)
from manta.masked.coarse import Coarse
from manta.masked.elastic import Elastic

END, MASK, VOCAB, WIDTH = 0, 1, 6, 14

SETTINGS: dict[str, DecoderConfig] = {
    **{kind: config() for kind, config in DECODERS.items()},
    "deferred, narrow": DeferredConfig(window_masked=3, window_width=5, threshold=0.6),
    "deferred, rounds": DeferredConfig(window_masked=4, window_width=9, threshold=0.6, rounds=2, share=0.3),
    "block of 4": BlockConfig(block_length=4, threshold=0.6),
    "threshold, low": ThresholdConfig(threshold=0.5),
    "factor": ThresholdConfig(factor=0.8),
    "factor in blocks": ThresholdConfig(factor=0.8, block_length=3),
    "confidence, 5": ConfidenceConfig(num_steps=5),
    "confidence, blocks": ConfidenceConfig(num_steps=10, block_length=4),
    "confidence, more blocks than calls": ConfidenceConfig(num_steps=3, block_length=2),
    "random": ConfidenceConfig(num_steps=5, order="random"),
    "remask, often": RemaskConfig(num_steps=9, eta=0.3),
    "doubt, often": DoubtConfig(threshold=0.6, least_right=0.8, rounds=3),
    "remask, loop": RemaskConfig(num_steps=12, schedule="loop", eta=0.2),
}
BUDGETS = (None, 1, 2, 4, 9)
ENDS = {"no ends": {}, "ends end": {"end_id": END}, "ends last": {"end_id": END, "ends_last": True}}


class Restless:
    """A denoiser that answers otherwise whenever other words stand; ends are likely everywhere."""

    def __init__(self, seed: int = 0) -> None:
        self.base = 2 * torch.randn(WIDTH, VOCAB, generator=torch.Generator().manual_seed(seed))
        self.base[:, END] += 1
        self.mix = torch.randn(WIDTH, VOCAB, WIDTH, VOCAB, generator=torch.Generator().manual_seed(seed + 1))

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        known = torch.nn.functional.one_hot(tokens, VOCAB).float() * (tokens != MASK)[..., None]
        return (self.base + 0.5 * torch.einsum("bnv,nvmw->bmw", known, self.mix))[:, start:stop].clone()


class Doubting(Restless):
    """The same, and each word is right with a probability that depends on all that stand."""

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        logits = super().__call__(tokens, start, stop)
        self.chance = super().__call__(tokens, 0, WIDTH).softmax(-1).gather(-1, tokens[..., None])[..., 0].sqrt()
        return logits

    def right(self) -> Tensor:
        return self.chance


class Spy(WordSampler):
    """Remembers what was proposed."""

    def __call__(self, logits: Tensor, start: int = 0, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.start = start
        self.word, self.sure = super().__call__(logits, start)
        return self.word, self.sure


@dataclass
class Step:
    """One call."""

    before: Tensor
    """Masked before it."""
    word: Tensor
    sure: Tensor
    tokens: Tensor
    """After it."""
    masked: Tensor
    """After it, words taken back among them."""
    confidence: Tensor


def canvases(seed: int = 0) -> Tensor:
    """Rows with given words here and there, a free one, and one with nothing to write."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.where(torch.rand(5, WIDTH, generator=generator) < 0.7, MASK, 4)
    tokens[0], tokens[1] = MASK, 5
    return tokens


def steps_of(
    config: DecoderConfig, tokens: Tensor, *, temperature: float = 0.0, seed: int = 0, **settings
) -> list[Step]:
    generators = [torch.Generator().manual_seed(row) for row in range(len(tokens))]
    sampler = Spy(temperature, generators, WIDTH)
    found, before, denoiser = [], tokens == MASK, Restless(seed)
    if isinstance(config, DoubtConfig):
        denoiser = Doubting(seed)
        settings["judge"] = denoiser.right
    for canvas in decode(denoiser, tokens, config.build(), mask_id=MASK, sampler=sampler, **settings):
        assert canvas.calls == len(found) + 1
        kept = (canvas.tokens.clone(), canvas.masked.clone(), canvas.confidence.clone())
        found.append(Step(before, sampler.word, sampler.sure, *kept))
        before = canvas.masked.clone()
    return found


def most_calls(config: DecoderConfig, words: int, budget: int | None) -> int:
    """The stated bound."""
    own = words
    if isinstance(config, DeferredConfig):
        own += config.rounds * math.ceil(words * config.share)
    if isinstance(config, DoubtConfig):
        own += 2 * config.rounds * words + 1
    if isinstance(config, ConfidenceConfig | RemaskConfig):
        own = config.num_steps
    return own if budget is None else min(own, budget)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_decoder_keeps_its_promises(name, budget, ends):
    config, tokens = SETTINGS[name], canvases()
    free = tokens == MASK
    remask = isinstance(config, RemaskConfig | DoubtConfig)
    steps = steps_of(config, tokens, temperature=1.0, max_calls=budget, **ENDS[ends])
    assert not steps[-1].masked.any(), "every row ends"
    assert len(steps) <= most_calls(config, WIDTH, budget)
    for index, step in enumerate(steps):
        assert torch.equal(step.tokens[~free], tokens[~free]), "given words never change"
        assert torch.equal(step.masked, free & (step.tokens == MASK))
        new = step.before & ~step.masked
        if not remask and "rounds" not in name:
            assert (new.any(1) | ~step.before.any(1)).all(), "a word of every open row"
            assert not (step.masked & ~step.before).any(), "a committed word stays"
        if ends == "no ends":
            assert torch.equal(step.tokens[new], step.word[new])
            assert torch.equal(step.confidence[new], step.sure[new])
        if ends == "ends end":
            for row in range(len(tokens)):
                for stretch in stretches(free[row].tolist()):
                    words = step.tokens[row, stretch].tolist()
                    if END in words and not remask and "rounds" not in name:
                        assert set(words[words.index(END) :]) == {END}, "all behind an end is ends"
        last = index + 1 == (min(budget or 999, getattr(config, "num_steps", 999)))
        if ends == "ends last" and not last:
            left = (step.before & (step.word != END)).any(1, keepdim=True)
            assert not (left & new & (step.tokens == END)).any(), "an end only where no words are left"


def stretches(free: list[bool]) -> list[list[int]]:
    """Runs of writable places."""
    found: list[list[int]] = [[]]
    for place, writable in enumerate(free):
        if writable:
            found[-1].append(place)
        elif found[-1]:
            found.append([])
    return [places for places in found if places]


def windows_of(config: DecoderConfig, free: list[int], open_: list[int]) -> list[list[int]]:
    """The places of each window, from left to right, each without those of the ones before."""
    found = []
    while open_:
        if isinstance(config, DeferredConfig):
            limit = open_[0] + config.window_width
            window = [place for place in open_[: config.window_masked] if place < limit]
        elif (length := getattr(config, "block_length", None)) is None:
            window = open_
        else:
            block = (open_[0] - free[0]) // length
            window = [place for place in open_ if (place - free[0]) // length == block]
        found.append(window)
        open_ = [place for place in open_ if place not in window]
    return found


def expected(
    config: DecoderConfig, free: list[int], open_: list[int], masked: list[int], sure, left: int | None
) -> set:
    """What a row commits in a call, from the decoder's definition; `left` calls are left, this one included."""
    if not open_:
        return set()
    windows = windows_of(config, free, open_)
    ranked = [sorted(window, key=lambda place: (-sure[place], place)) for window in windows]
    share = math.ceil(len(masked) / left) if left else 0
    if isinstance(config, ConfidenceConfig):
        assert config.block_length is None
        count = share
    elif isinstance(config, ThresholdConfig) and config.factor is not None:
        count = 1
        while count < len(ranked[0]) and all(
            sure[place] >= 1 - config.factor / (number + 2) for number, place in enumerate(ranked[0][: count + 1])
        ):
            count += 1
    else:
        assert isinstance(config, ThresholdConfig | DeferredConfig | LearnedConfig)
        threshold = 0.9 if isinstance(config, LearnedConfig) else config.threshold  # which learning begins with
        count = max(1, sum(sure[place] >= threshold for place in ranked[0]))
    order = [place for window in ranked for place in window]
    return set(order[: max(min(count, len(ranked[0])), share)])


DEFINED = [
    name for name, config in SETTINGS.items() if not isinstance(config, RemaskConfig | DoubtConfig | FirstHittingConfig)
]
DEFINED = [name for name in DEFINED if name not in ("random", "deferred, rounds")]
DEFINED = [name for name in DEFINED if "blocks" not in name or "factor" in name]


@pytest.mark.parametrize("ends", ["no ends", "ends last"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", DEFINED)
def test_each_call_commits_what_the_definition_says(name, budget, ends):
    config, tokens = SETTINGS[name], canvases(1)
    calls = min((c for c in (budget, getattr(config, "num_steps", None)) if c is not None), default=None)
    for seed in range(3):
        for index, step in enumerate(steps_of(config, tokens, seed=seed, max_calls=budget, **ENDS[ends])):
            left = None if calls is None else calls - index
            for row in range(len(tokens)):
                masked = step.before[row].nonzero()[:, 0].tolist()
                words = [place for place in masked if step.word[row, place] != END]
                open_ = words if words and ends == "ends last" and left != 1 else masked
                free = (tokens[row] == MASK).nonzero()[:, 0].tolist()
                found = (step.before & ~step.masked)[row].nonzero()[:, 0].tolist()
                assert set(found) == expected(config, free, open_, masked, step.sure[row].tolist(), left)


@pytest.mark.parametrize(
    ("steps", "length", "counts"),
    [
        (4, None, [3, 3, 3, 3]),
        (5, None, [3, 3, 2, 2, 2]),
        (6, 4, [2, 2, 2, 2, 2, 2]),
        (10, 4, [1, 1, 1, 1, 2, 1, 1, 2, 1, 1]),
        (3, 4, [4, 4, 4]),
        (2, 4, [6, 6]),
        (40, 4, [1] * 12),
        (8, 5, [2, 1, 1, 1, 3, 2, 1, 1]),
    ],
)
def test_calls_are_shared_evenly_among_blocks_the_remainder_first(steps, length, counts):
    tokens = torch.full((1, WIDTH), 4)
    tokens[:, 1:13] = MASK
    found = steps_of(ConfidenceConfig(num_steps=steps, block_length=length), tokens)
    assert [int((step.before & ~step.masked).sum()) for step in found] == counts
    if length == 4:
        for step in found:
            committed = (step.before & ~step.masked)[0].nonzero()[:, 0]
            untouched = step.masked[0].nonzero()[:, 0]
            blocks_before = [(int(place) - 1) // 4 for place in untouched]
            assert all((int(place) - 1) // 4 <= min(blocks_before, default=9) for place in committed)


def test_blocks_without_a_word_to_write_get_no_calls():
    """Three blocks of four, the middle one given: two are written, with two calls each."""
    tokens = torch.full((1, 12), MASK)
    tokens[:, 4:8] = 4
    sampler = WordSampler()
    logits = torch.randn(1, 12, VOCAB, generator=torch.Generator().manual_seed(0))
    policy = ConfidenceConfig(num_steps=4, block_length=4).build()
    left = [
        int(canvas.masked.sum())
        for canvas in decode(
            lambda tokens, start, stop: logits[:, start:stop].clone(), tokens, policy, mask_id=MASK, sampler=sampler
        )
    ]
    assert left == [6, 4, 2, 0]


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        (1, [0]),
        (2, [0 + 5, 0]),
        (4, [13, 6, 0 + 5, 0]),
        (5, [15, 10, 5, 0 + 5, 0]),
        (10, [17, 14, 11, 8, 6, 4, 2, 0 + 5, 2, 0]),
    ],
)
def test_rounds_of_taking_back_keep_calls_of_the_budget(budget, left):
    """Twenty words of which none is sure, and five taken back; a call that finishes them shows the five again."""
    logits = torch.randn(1, 20, VOCAB, generator=torch.Generator().manual_seed(0)) / 4
    policy = DeferredConfig(window_masked=20, threshold=1.0, rounds=1, share=0.25).build()
    sampler = WordSampler()
    tokens = torch.full((1, 20), MASK)
    found = [
        int(canvas.masked.sum())
        for canvas in decode(
            lambda tokens, start, stop: logits[:, start:stop].clone(),
            tokens,
            policy,
            mask_id=MASK,
            sampler=sampler,
            max_calls=budget,
        )
    ]
    assert found == left


@pytest.mark.parametrize("budget", [None, 14])
def test_taking_back_takes_the_least_certain_words_and_no_others(budget):
    config, tokens = DeferredConfig(window_masked=4, threshold=0.6, rounds=2, share=0.3), canvases(2)
    policy, rounds = config.build(), [0] * len(tokens)
    remask = policy.remask

    def spy(canvas, sampler):
        back = remask(canvas, sampler)
        for row in range(len(tokens)):
            if back is None or not back[row].any():
                continue
            rounds[row] += 1
            assert not canvas.masked[row].any(), "once all are written"
            writable = canvas.writable[row].nonzero()[:, 0].tolist()
            order = sorted(writable, key=lambda place: (float(canvas.confidence[row, place]), place))
            assert back[row].nonzero()[:, 0].tolist() == sorted(order[: math.ceil(len(writable) * 0.3)])
        return back

    policy.remask = spy  # pyright: ignore[reportAttributeAccessIssue]
    list(decode(Restless(), tokens, policy, mask_id=MASK, sampler=WordSampler(), max_calls=budget))
    assert rounds == [2 * int(some) for some in (tokens == MASK).any(1)]


class Fixed:
    """A denoiser that says the same words whatever stands."""

    def __init__(self, words: str) -> None:
        """`E` for an end, lower case letters for words of falling confidence."""
        chance = torch.full((1, len(words), VOCAB), 0.1)
        for place, letter in enumerate(words):
            chance[0, place, END if letter == "E" else 3] = 20.0 if letter == "E" else 1.0 - 0.1 * (ord(letter) - 97)
        self.logits = chance.log()

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        return self.logits.expand(len(tokens), -1, -1)[:, start:stop].clone()


def written(config: DecoderConfig, words: str, **settings) -> list[str]:
    tokens = torch.full((1, len(words)), MASK)
    sampler = WordSampler(0.0, [torch.Generator()], len(words))
    names = {END: "E", MASK: ".", 3: "w"}
    settings = {"mask_id": MASK, "sampler": sampler, "end_id": END, "ends_last": True, **settings}
    settings.setdefault("judge", lambda: torch.ones(1, len(words)))
    found = decode(Fixed(words), tokens, config.build(), **settings)
    return ["".join(names[t] for t in canvas.tokens[0].tolist()) for canvas in found]


def test_ends_wait_for_the_words_under_a_budget():
    """Twelve words and eight ends in four calls: five words a call, and the ends in the last."""
    words = "abcabcabcabc" + "E" * 8
    for name, config in SETTINGS.items():
        found = written(config, words, max_calls=4)
        assert found[-1] == "w" * 12 + "E" * 8
        for line in found if "rounds" not in name else ():
            assert "E" not in line or "." not in line[:12], name
    counts = [line.count("w") for line in written(ConfidenceConfig(), words, max_calls=4)]
    assert counts == [5, 10, 12, 12]
    lasting = written(ThresholdConfig(threshold=1.0), words, max_calls=4)
    assert [(line.count("w"), line.count("E")) for line in lasting] == [(5, 0), (10, 0), (12, 0), (12, 8)]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_window_of_ends_alone_is_passed_by(name, cache):
    """Ends on the left, words on the right of every window: the words come first, and the decoder comes to an end."""
    words = "EEEEEEaEbEc"
    found = written(SETTINGS[name], words, cache=CacheConfig(kind=cache, refresh=99, delay=0))
    assert found[-1].replace("w", "a") == "EEEEEEaEaEa"
    assert len(found) <= 2 * len(words) + 30
    if name == "deferred, rounds":
        return  # words are taken back when the ends stand
    for line in found[: -1 if isinstance(SETTINGS[name], RemaskConfig | ConfidenceConfig) else None]:
        assert "E" not in line or line.count("w") == 3


def test_an_end_ends_its_stretch_up_to_the_next_given_word():
    tokens = torch.tensor([[MASK, MASK, MASK, 4, MASK, MASK, MASK]])
    policy = ThresholdConfig(threshold=0.9).build()
    found = decode(Fixed("aEabaEa"), tokens, policy, mask_id=MASK, sampler=WordSampler(), end_id=END)
    assert next(found).tokens.tolist() == [[MASK, END, END, 4, MASK, END, END]]
    *_, canvas = found
    assert canvas.tokens.tolist() == [[3, END, END, 4, 3, END, END]]
    assert canvas.confidence[0].isinf().tolist() == [False, False, True, True, False, False, True]


def test_what_follows_an_end_is_not_taken_back():
    config = DeferredConfig(window_masked=9, threshold=0.9, rounds=1, share=0.4)
    found = written(config, "cbaEba", ends_last=False)
    # Four words stand by themselves, and ⌈0.4 · 6⌉ = 3 of them are the least certain.
    assert [line for line in found if "E" in line] == [
        "...EEE",
        "..wEEE",
        ".wwEEE",
        "...EEE",
        "..wEEE",
        ".wwEEE",
        "wwwEEE",
    ]


def doubted(budget: int | None, config: DoubtConfig, chances: list[float], words: str = "abc") -> list[str]:
    """Texts after each call; every call tells the same words, and in turn how likely they all are right."""
    turns = iter(chances)
    return written(config, words, judge=lambda: torch.full((1, len(words)), next(turns)), max_calls=budget)


def test_words_are_taken_back_until_none_is_doubted():
    """The second call looks at the words of the first, the third writes them again, the fourth is content."""
    config = DoubtConfig(threshold=0.5, least_right=0.4, rounds=2)
    assert doubted(None, config, [0.0, 0.3, 0.0, 0.9]) == ["www", "...", "www", "www"]
    assert doubted(None, config, [0.0, 0.9]) == ["www", "www"]
    assert doubted(None, config, [0.0] * 6) == ["www", "...", "www", "...", "www", "www"]
    assert doubted(3, config, [0.0, 0.3, 0.0]) == ["www", "...", "www"]
    assert doubted(2, config, [0.0, 0.3]) == ["www", "www"], "in the last call nothing is taken back"
    assert doubted(1, config, [0.0]) == ["www"]
    assert doubted(None, DoubtConfig(threshold=0.5, rounds=0), [0.0]) == ["www"]


def test_a_row_that_is_done_stays_as_it_is_however_long_others_take():
    """The first row is content after two calls; what the model thinks of it later is not asked."""
    turns = iter([[0.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    *_, canvas = decode(
        Fixed("abc"),
        torch.full((2, 3), MASK),
        DoubtConfig(threshold=0.5).build(),
        mask_id=MASK,
        sampler=WordSampler(),
        judge=lambda: torch.tensor(next(turns))[:, None].expand(2, 3),
    )
    assert canvas.tokens.tolist() == [[3] * 3] * 2
    assert (canvas.calls, canvas.calls_of.tolist()) == (4, [2, 4])


def test_what_an_end_has_filled_up_was_not_looked_at():
    """The end at the first place fills the row in the first call, and the second call looks at it."""
    found = written(
        DoubtConfig(threshold=0.5, rounds=1), "Eab", ends_last=False, judge=lambda: torch.tensor([[0.9, 0.0, 0.0]])
    )
    assert found[0] == "EEE"


def test_a_decoder_that_looks_back_needs_a_model_that_doubts():
    with pytest.raises(UsageError, match="no head that doubts"):
        list(decode(Fixed("abc"), torch.full((1, 3), MASK), DoubtConfig().build(), mask_id=MASK, sampler=WordSampler()))
    for least_right, rounds in ((0.0, 1), (1.0, 1), (0.5, -1)):
        with pytest.raises(ConfigError):
            DoubtConfig(least_right=least_right, rounds=rounds)


class Idle(Policy):
    """A policy that never commits anything."""

    def span(self, canvas, open_):
        zero = torch.zeros(len(open_), dtype=torch.long)
        return zero, zero + open_.shape[1]

    def choose(self, canvas, open_, confidence, sampler):
        return torch.zeros_like(open_)


@pytest.mark.parametrize(("budget", "calls"), [(None, 7), (3, 3)])
def test_a_policy_that_does_not_come_to_an_end_is_an_error(budget, calls):
    tokens, made = torch.full((1, 7), MASK), []
    with pytest.raises(UsageError, match=f"after {calls} network calls"):
        for canvas in decode(Fixed("abcabca"), tokens, Idle(), mask_id=MASK, sampler=WordSampler(), max_calls=budget):
            made.append(canvas.calls)
    assert made == list(range(1, calls + 1))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_canvas_with_nothing_to_write_takes_no_call(name):
    assert steps_of(SETTINGS[name], torch.full((2, WIDTH), 4)) == []


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["deferred, narrow", "block of 4", "confidence, more blocks than calls"])
def test_a_cached_call_computes_what_its_share_needs(name, kind):
    """Five calls for fourteen words: each commits its share of three, though a window holds fewer."""
    left = [
        int(canvas.masked.sum())
        for canvas in decode(
            Fixed("abcdabcdabcdab"),
            torch.full((1, WIDTH), MASK),
            SETTINGS[name].build(),
            mask_id=MASK,
            sampler=WordSampler(),
            cache=CacheConfig(kind=kind, refresh=99, delay=0),
            max_calls=5,
        )
    ]
    before = [WIDTH, *left]
    budget = min(5, getattr(SETTINGS[name], "num_steps", 5))
    for call, (words, rest) in enumerate(zip(before, left, strict=False)):
        assert words - rest >= math.ceil(words / (budget - call))


def test_a_first_call_of_none_surer_than_another_takes_the_leftmost():
    assert written(ThresholdConfig(threshold=1.0), "aaaa", ends_last=False)[0] == "w..."
    assert written(ConfidenceConfig(num_steps=2), "aaaa", ends_last=False)[0] == "ww.."


@pytest.mark.parametrize(("moves", "calls"), [("elastic", 7 + 2 * 9), ("scales", 7 + 7)])
def test_what_is_more_than_words_has_more_calls_before_that_is_an_error(moves, calls):
    """A policy that commits nothing: a canvas that may grow by nine places, and one whose classes come first."""
    vocab, tokens = 9, torch.full((1, 7), MASK)
    elastic = Elastic(tokens, mask_id=MASK, grow_id=vocab, end_id=0, most=9, padded=lambda n: n)
    more: dict[str, Any] = (
        {"elastic": elastic}
        if moves == "elastic"
        else {"scales": Coarse(torch.zeros(vocab + 1, dtype=torch.long), MASK, share=0.0)}
    )

    def flat(tokens, start, stop):
        return torch.zeros(*tokens.shape, vocab + 1)

    with pytest.raises(UsageError, match=f"after {calls} network calls"):
        for _ in decode(flat, tokens, Idle(), mask_id=MASK, sampler=WordSampler(), **more):
            pass
