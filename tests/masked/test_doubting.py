"""Taking back what is doubted, call by call on hand-made models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.masked import Canvas, DoubtConfig, WordSampler, decode

MASK = 1


def run(right: Any, begin: list[int], **how: Any) -> list[list[int]]:
    """Canvases after each call; words are 5 + how many of their place there were, `right` is asked call by call.

    Args:
        right: from the number of the call and the canvas before it to the probability that each word is right.
        begin: the canvas.
        how: settings of the decoder and the loop.
    """
    budget = how.pop("max_calls", None)
    policy, calls, shown = DoubtConfig(**how).build(), [], []
    written = [0] * len(begin)

    def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
        calls.append(1)
        shown.append(tokens[0].tolist())
        logits = torch.zeros(1, len(begin), 12)
        for place, word in enumerate(shown[-1]):
            if word == MASK:
                logits[0, place, 5 + written[place]] = 2.0 - 0.1 * place  # the first places are the surest
        return logits[:, start:stop]

    settings: dict[str, Any] = {"mask_id": MASK, "sampler": WordSampler(), "max_calls": budget}
    found = []
    judge = lambda: torch.tensor([right(len(calls), shown[-1])])  # noqa: E731
    for canvas in decode(denoiser, torch.tensor([begin]), policy, judge=judge, **settings):
        found.append(canvas.tokens[0].tolist())
        for place, word in enumerate(found[-1]):
            written[place] += word != MASK and shown[-1][place] == MASK
    return found


def test_the_worst_model_is_followed_to_the_last_round_and_one_look_more():
    """Every word is doubted: it is written, looked at and taken back, twice, and then stays."""
    found = run(lambda call, tokens: [0.0], [MASK])
    assert found == [[5], [MASK], [6], [MASK], [7], [7]]
    found = run(lambda call, tokens: [0.0, 0.0], [MASK, MASK], threshold=1.0)
    assert len(found) <= 2 * 5 + 1 and MASK not in found[-1]
    once = run(lambda call, tokens: [0.0], [MASK], rounds=1)
    assert once == [[5], [MASK], [6], [6]]
    assert run(lambda call, tokens: [0.0], [MASK], rounds=0) == [[5]]


def test_only_what_is_less_likely_right_than_not_and_what_is_written_is_taken_back():
    """The given word and the one at the bound stay, whatever is told of them."""
    right = [[0.0, 0.5, 0.49], [0.0, 0.5, 0.49], [1.0, 0.5, 0.49]]
    found = run(lambda call, tokens: right[min(call, 3) - 1], [9, MASK, MASK], threshold=0.01)
    assert found == [[9, 5, 5], [9, 5, MASK], [9, 5, 6], [9, 5, MASK], [9, 5, 7], [9, 5, 7]]
    kept = run(lambda call, tokens: [0.0, 0.3, 0.3], [9, MASK, MASK], threshold=0.01, least_right=0.25)
    assert kept == [[9, 5, 5], [9, 5, 5]], "one call more, which looks"


def test_a_word_of_this_call_is_not_looked_at_before_the_next():
    """One place a call: the first is looked at from the second call on, the last when all are written."""
    found = run(lambda call, tokens: [0.0, 1.0] if call == 2 else [1.0, 1.0], [MASK, MASK], threshold=1.0)
    assert found == [[5, MASK], [MASK, 5], [6, 5], [6, 5]]


def test_under_a_budget_a_quarter_of_the_calls_is_kept_for_taking_back():
    """Of eight calls two are kept: nine words, or four, are shared among the others that are left."""
    everywhere = torch.ones(2, 9, dtype=torch.bool)
    canvas = Canvas(torch.full((2, 9), MASK), everywhere, everywhere.clone(), torch.ones(2, 9, dtype=torch.float64))
    canvas.masked[1, 4:] = False
    policy = DoubtConfig().build()
    assert policy.share(canvas).tolist() == [0, 0]
    for budget, calls, expected in ((8, 1, [2, 1]), (8, 4, [3, 2]), (8, 6, [9, 4]), (8, 8, [9, 4]), (1, 1, [9, 4])):
        canvas.budget, canvas.calls = budget, calls
        assert policy.share(canvas).tolist() == expected
    found = run(lambda call, tokens: [0.0] * 4, [MASK] * 4, max_calls=4, threshold=1.0)
    assert len(found) == 4 and MASK not in found[-1]
    done = run(lambda call, tokens: [1.0], [MASK], max_calls=9)
    assert done == [[5], [5]]


def test_rows_without_a_place_to_write_take_no_call():
    assert run(lambda call, tokens: [0.0], [9]) == []


def test_settings_at_their_bounds():
    assert DoubtConfig(least_right=0.01, rounds=0).rounds == 0
    wrongs: tuple[dict[str, Any], ...] = ({"least_right": 0.0}, {"least_right": 1.0}, {"rounds": -1})
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            DoubtConfig(**wrong)
    settings: dict[str, Any] = {"mask_id": MASK, "sampler": WordSampler()}
    with pytest.raises(UsageError, match="no head that doubts"):
        next(decode(lambda tokens, start, stop: tokens, torch.tensor([[MASK]]), DoubtConfig().build(), **settings))
