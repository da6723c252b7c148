"""Requests have options of their own, each text is what it is alone, and one that cannot be served fails alone."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from manta.errors import RequestError, UsageError
from manta.families.events import GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.text import MASK, NULL

from .conftest import MAKERS, make_ar, make_lm, make_masked

OWN: dict[str, list[dict[str, Any]]] = {
    "manta": [{"num_steps": 3}, {"num_steps": 3}, {"temperature": 1.0}, {"style": "consensus", "solver": "heun"}],
    "aligned": [{"num_steps": 3}, {"num_steps": 3}, {"temperature": 1.0}, {"num_steps": 1}],
    "masked": [{"num_steps": 3}, {"num_steps": 3}, {"decoder": "block"}, {"cache": "dual"}],
    "ar": [{"temperature": 0.8}, {"temperature": 0.8}, {"max_tokens": 3}, {"temperature": 1.0, "top_k": 4}],
}


def done(lm: Any, requests: list[Request], **more: Any) -> dict[int, Any]:
    return {e.index: (e.text, e.tokens, e.nfe) for e in finished(lm.generate(requests, **more))}


@pytest.fixture(scope="module", params=OWN)
def lm(request):
    return MAKERS[request.param]()


def test_a_text_of_a_mixed_batch_is_what_it_is_alone(lm):
    own = [None, *(GenerateOptions(**options) for options in OWN[lm.family])]
    requests = [Request(prompt="the cat", seed=i, options=how) for i, how in enumerate(own)]
    together = done(lm, requests)
    for i, how in enumerate(own):
        alone = Request(prompt="the cat", seed=i)
        assert done(lm, [alone], options=how) == {0: together[i]}
    assert done(lm, list(reversed(requests)), batch_size=2) == {len(own) - 1 - i: text for i, text in together.items()}


def test_a_request_that_cannot_be_served_fails_alone_and_before_the_others_are_written(lm):
    foreign = GenerateOptions(top_k=3, temperature=1.0) if lm.family != "ar" else GenerateOptions(style="consensus")
    requests = [
        Request(prompt="the cat", seed=1),
        Request(prompt="rain fell over quiet hills " * 5),
        Request(prompt="the cat", options=foreign),
        Request(prompt="some old river", seed=2),
        Request(prompt="the cat", seed=-1),
        Request(prompt="the cat", seed=2**63),
    ]
    events = list(lm.generate(requests))
    lost, written = events[:4], events[4:]
    assert [(event.kind, event.index, event.text) for event in lost] == [("failed", i, "") for i in (1, 2, 4, 5)]
    assert isinstance(lost[0].error, RequestError) and "reads at most 12" in str(lost[0].error)
    assert isinstance(lost[1].error, UsageError) and "means nothing to" in str(lost[1].error)
    assert all(isinstance(event.error, UsageError) and "a seed lies between" in str(event.error) for event in lost[2:])
    texts = {event.index: event.text for event in written if event.kind == "done"}
    assert texts == {0: lm.write("the cat", seed=1), 3: lm.write("some old river", seed=2)}
    with pytest.raises(RequestError, match="reads at most 12"):
        lm.write([request.prompt for request in requests])


def test_options_of_the_call_that_do_not_fit_are_an_error_of_the_call(lm):
    wrong = GenerateOptions(style="consensus") if lm.family == "ar" else GenerateOptions(max_tokens=3)
    with pytest.raises(UsageError, match="means nothing to"):
        next(iter(lm.generate([Request()], wrong)))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_a_text_or_more(size):
    with pytest.raises(UsageError, match="batch_size should be"):
        next(iter(make_ar().generate([Request()], batch_size=size)))


class Counting(Observer):
    """Counts what it is told, and makes one word certain."""

    def __init__(self, word: int) -> None:
        self.word, self.told = word, 0

    def logits(self, logits, settled):
        self.told += 1
        assert logits.shape[:2] == settled.shape
        return logits.index_fill(-1, torch.tensor([self.word]), 1e4)


@pytest.mark.parametrize("make", [make_lm, make_masked, make_ar])
def test_an_observer_sees_every_family_and_what_it_says_is_written(make):
    lm, watch = make(), Counting(300)
    [done] = [event for event in lm.generate([Request(prompt="the cat")], observer=watch) if event.kind == "done"]
    assert watch.told > 0 and set(done.tokens) == {300}


@pytest.mark.parametrize("make", [make_lm, make_masked, make_ar])
def test_a_text_draws_from_the_generator_of_its_seed_alone(make, no_global_draws):
    lm = make()
    requests = [Request(prompt="the cat", seed=5), Request(seed=6)]
    with no_global_draws():
        list(lm.generate(requests, GenerateOptions(temperature=1.0)))
        if lm.family == "manta":
            list(lm.generate(requests, GenerateOptions(num_steps=6, solver="renoise", rounds=1)))
        if lm.family == "masked":
            list(lm.generate(requests, GenerateOptions(num_steps=4, decoder="remask")))


def test_a_model_left_to_right_tells_the_words_so_far_and_the_logits_of_the_next():
    class Told(Observer):
        calls: list[tuple[torch.Tensor, torch.Tensor]] = []  # noqa: RUF012

        def logits(self, logits, settled):
            self.calls.append((logits, settled))
            return logits

    lm, watch = make_ar(), Told()
    requests = [Request(prompt="the cat"), Request(prompt="some old river")]
    rows = [event.tokens for event in finished(lm.generate(requests, observer=watch))]
    assert len(watch.calls) == min(24, 1 + max(map(len, rows))) > 2
    for k, (logits, settled) in enumerate(watch.calls):
        assert logits.shape[:2] == settled.shape == (2, k + 1)
        assert not logits[:, :k].any() and logits[:, k].any()
        assert (settled[:, k] == MASK).all()
        for row, words in enumerate(rows):
            assert settled[row, :k].tolist() == [*words, *[lm.model.end] * k][:k]
            if k < len(words):
                assert int(logits[row, k].argmax()) == words[k]


def test_an_observer_is_not_passed_over_in_silence(monkeypatch):
    lm = make_ar()
    monkeypatch.setattr(lm, "observed", False)
    with pytest.raises(UsageError, match="tells no observer"):
        next(iter(lm.generate([Request()], observer=Observer())))


WRONG = """
from manta.errors import UsageError
from manta.families.events import Request
from manta.families.observer import Observer
from manta.families.serving import RequestWriter

class Nothing(RequestWriter):
    family, observed = "ar", True
    check = read = write_rows = lambda self, *_: None

one = [Request()]
for wrong in (
    lambda: list(Nothing().generate(["the cat"])),
    lambda: list(Nothing().generate(one, {"temperature": 1.0})),
    lambda: list(Nothing().generate(one, observer=Observer)),
    lambda: Request(options={"temperature": 1.0}),
):
    try:
        wrong()
    except UsageError as error:
        print(error)
"""


def test_what_is_no_request_no_options_and_no_observer_is_named():
    # In a process of its own, as users meet it: here annotations are checked before.
    told = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, check=True).stdout
    assert [line.partition(" should")[0] for line in told.splitlines()] == [
        "requests",
        "options",
        "observer",
        "options",
    ]


def test_a_wrapped_field_hands_on_what_words_are_read_from():
    class Bare(Observer):
        def field(self, field, page, cond):
            return lambda state, t, **given: state

    with pytest.raises(UsageError, match="hand on the `aux`"):
        list(make_lm().generate([Request(prompt="the cat")], observer=Bare()))


@pytest.mark.parametrize(("style", "kind"), [("diverse", 0), ("consensus", 1)])
@pytest.mark.parametrize("make", [make_lm, make_masked])
def test_a_style_is_the_kind_of_text_that_was_trained_on(make, style, kind, monkeypatch):
    lm, kinds = make(), []
    memory = lm.model.memory

    def remembering(prompt, lengths, kind, **how):
        kinds.append(kind.tolist())
        return memory(prompt, lengths, kind, **how)

    monkeypatch.setattr(lm.model, "memory", remembering)
    list(lm.generate([Request(prompt="the cat"), Request()], GenerateOptions(style=style, num_steps=3)))
    assert kinds == [[kind, kind]]


@pytest.mark.parametrize("make", [make_lm, make_masked, make_ar])
def test_a_text_is_what_its_words_say_without_nulls_and_margins(make):
    lm = make()
    for event in lm.generate([Request(prompt="the cat", seed=1), Request(seed=2)], GenerateOptions(temperature=1.0)):
        words = [token for token in event.tokens if token not in (NULL, MASK)]
        assert event.text == lm.tokenizer.decode(words).strip()
        assert event.text or event.kind == "draft"


def test_a_request_that_failed_has_no_text_and_no_share_of_anything():
    [event] = make_lm().generate([Request(prompt="the cat " * 40)])
    assert (event.kind, event.index, event.text, event.tokens) == ("failed", 0, "", ())
    assert (event.t, event.confidence, event.nfe) == (0.0, 0.0, 0) and isinstance(event.error, RequestError)
