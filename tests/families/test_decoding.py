"""From a request's options to a canvas that is written, and from a canvas to events, by hand."""

from typing import Any

import pytest
import torch

from manta.errors import UsageError
from manta.families.decoding import batches, canvas_events, chosen_decoder, looks_at_parts, write_canvas
from manta.families.options import GenerateOptions
from manta.masked import DECODERS, Canvas

MASK, END = 1, 0
CHANCE = torch.tensor([[[0.0, 0, 0.5, 0.45, 0.03, 0.02], [0.0, 0, 0.15, 0.4, 0.2, 0.25], [0.9, 0, 0.1, 0, 0, 0]]])
"""The first place is surer of its word, the second of its lead over the next, and the third is an end."""


def written(decoder: str, options: GenerateOptions, max_calls: int = 3, **more: Any) -> list[list[int]]:
    """The canvas after each call."""
    settings = {"mask_id": MASK, "generators": [torch.Generator().manual_seed(0)], "width": 3, "end_id": END, **more}
    tokens = torch.full((1, 3), MASK)
    steps = write_canvas(
        lambda tokens, start, stop: CHANCE.log()[:, start:stop].clone(),
        tokens,
        DECODERS[decoder](),
        options,
        max_calls=max_calls,
        **{"ends_last": True, **settings},
    )
    return [canvas.tokens[0].tolist() for canvas in steps]


def test_the_confidence_asked_for_ranks_the_places():
    assert written("confidence", GenerateOptions()) == [[2, MASK, MASK], [2, 3, MASK], [2, 3, END]]
    assert written("confidence", GenerateOptions(confidence="margin"))[0] == [MASK, 3, MASK]
    assert written("confidence", GenerateOptions(confidence="entropy"))[0] == [2, MASK, MASK]


def test_a_decoder_of_so_many_calls_takes_its_budget():
    assert written("confidence", GenerateOptions(), max_calls=1) == [[2, 3, END]]
    assert len(written("confidence", GenerateOptions(), max_calls=2)) == 2


def test_ends_wait_unless_places_are_drawn_and_words_at_a_temperature():
    assert written("threshold", GenerateOptions(), ends_last=False)[0] == [MASK, MASK, END]
    assert written("threshold", GenerateOptions())[0] == [2, MASK, MASK]

    def first_ends(options: GenerateOptions) -> int:
        found = 0
        for seed in range(30):
            steps = written("first_hitting", options, generators=[torch.Generator().manual_seed(seed)])
            found += steps[0][2] == END
        return found

    assert first_ends(GenerateOptions()) == 0
    assert first_ends(GenerateOptions(temperature=1.0)) > 2


def test_a_cache_keeps_what_lies_outside_of_the_window():
    spans = []

    def denoiser(tokens, start, stop):
        spans.append((start, stop))
        return torch.eye(12)[None, 2:, :].repeat(1, 2, 1)[:, start:stop].log()

    cases: list[tuple[dict[str, Any], int]] = [({}, 20), ({"cache": "dual", "refresh": 0}, 20)]
    for cached, whole in (*cases, ({"cache": "dual", "refresh": 99}, 1)):
        spans.clear()
        options = GenerateOptions(window_masked=1, threshold=0.9, **cached)
        decoder = chosen_decoder(options)
        settings = {"mask_id": MASK, "generators": [], "width": 20, "end_id": None, "ends_last": False}
        list(write_canvas(denoiser, torch.full((1, 20), MASK), decoder, options, max_calls=40, **settings))
        assert sum(span == (0, 20) for span in spans) == whole


def test_a_canvas_becomes_events():
    canvas = Canvas(
        tokens=torch.tensor([[7, 8, MASK, 9, 5], [6, 6, 6, 5, 5]]),
        writable=torch.tensor([[False, True, True, True, False], [True, True, True, False, False]]),
        masked=torch.tensor([[False, False, True, False, False], [False] * 5]),
        confidence=torch.tensor([[torch.inf, 0.5, torch.inf, 0.3, 9.0], [0.2, 0.4, 0.6, 9.0, 9.0]]).double(),
        processed=30,
        calls_of=torch.tensor([4, 2]),
    )
    mask = torch.tensor([[True, True, True, True, False], [True, True, True, False, False]])
    one, two = canvas_events(canvas, mask, [str, lambda words: "two"], 1, "draft")
    assert (one.kind, one.index, one.text, one.tokens) == ("draft", 0, "[7, 8, 1, 9]", (7, 8, MASK, 9))
    assert (one.t, one.confidence) == (pytest.approx(3 / 4), pytest.approx((1 + 0.5 + 0.3) / 3))
    assert (one.nfe, one.processed, two.nfe, two.processed) == (5, 15, 3, 15)
    assert (two.index, two.text, two.t, two.confidence) == (1, "two", 1.0, pytest.approx(0.4))
    nothing = Canvas(canvas.tokens, canvas.writable, mask, canvas.confidence, calls_of=canvas.calls_of)
    assert [(event.t, event.confidence) for event in canvas_events(nothing, mask, [str, str], 0, "draft")] == [
        (0, 0)
    ] * 2


def test_free_texts_are_written_apart_from_those_to_fill():
    filled = [False, True, False, False, True]
    assert list(batches(filled, 2)) == [[0, 2], [3], [1, 4]]
    assert list(batches(filled, 1)) == [[0], [2], [3], [1], [4]]
    assert list(batches([], 3)) == []


def test_a_decoder_is_the_options_else_the_models_own_else_deferred():
    own = DECODERS["block"](threshold=0.6)
    assert chosen_decoder(GenerateOptions(), own) == own
    assert chosen_decoder(GenerateOptions(block_length=5), own) == DECODERS["block"](threshold=0.6, block_length=5)
    assert chosen_decoder(GenerateOptions(decoder="remask"), own) == DECODERS["remask"]()
    assert chosen_decoder(GenerateOptions(rounds=2)) == DECODERS["deferred"](rounds=2)
    assert [looks_at_parts(DECODERS[kind]()) for kind in ("deferred", "block", "threshold", "remask")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoder": "remask", "threshold": 0.5},
            "remask decoder has no setting threshold; it is for deferred, threshold, block and doubt;",
        ),
        (
            {"decoder": "deferred", "block_length": 3},
            "block_length; it is for confidence, threshold, block and doubt;",
        ),
        ({"decoder": "confidence", "rounds": 1}, "no setting rounds; it is for deferred and doubt;"),
        (
            {"decoder": "remask", "confidence": "margin"},
            "is for deferred, confidence, threshold, block, doubt and learned; leave",
        ),
        ({"decoder": "first_hitting", "confidence": "margin"}, "draws its places"),
        ({"decoder": "threshold", "cache": "dual"}, "a cache saves nothing"),
    ],
)
def test_settings_that_a_decoder_does_not_look_at_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        chosen_decoder(GenerateOptions(**options))


def test_settings_that_a_decoder_looks_at_pass():
    random = DECODERS["confidence"](order="random")
    with pytest.raises(UsageError, match="draws its places"):
        chosen_decoder(GenerateOptions(confidence="margin"), random)
    with pytest.raises(UsageError, match="goes by a factor"):
        chosen_decoder(GenerateOptions(threshold=0.5), DECODERS["threshold"](factor=0.9))
    chosen_decoder(GenerateOptions(confidence="margin"), DECODERS["confidence"]())
    chosen_decoder(GenerateOptions(cache="dual"))
    chosen_decoder(GenerateOptions(cache="dual", block_length=4, decoder="threshold"))
