"""Several texts for a request, of which one is told."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from manta.errors import UsageError
from manta.families.aligned import AlignedLM
from manta.families.choosing import least_risk, seed_of
from manta.families.events import Event, GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.runtime import check_seed
from manta.text import MASK, NULL

from .conftest import MAKERS, make_aligned, make_ar, make_lm, make_masked

OPTIONS: dict[str, dict[str, Any]] = {
    "manta": {"num_steps": 3},
    "aligned": {"num_steps": 3, "temperature": 1.0},
    "masked": {"num_steps": 3, "temperature": 1.0},
    "ar": {"temperature": 1.0},
}


@pytest.fixture(scope="module", params=OPTIONS)
def lm(request):
    return MAKERS[request.param]()


def ngrams(text: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def risk_by_hand(texts: list[list[int]]) -> int:
    gains = []
    for one in texts:
        gain = 0.0
        for other in texts:
            if other is one:
                continue
            scores = []
            for n in (1, 2, 3, 4):
                a, b = ngrams(one, n), ngrams(other, n)
                if a or b:
                    both = sum(min(a.count(gram), b.count(gram)) for gram in set(a))
                    precision, recall = both / max(1, len(a)), both / max(1, len(b))
                    scores.append(0.0 if both == 0 else 2 * precision * recall / (precision + recall))
            gain += sum(scores) / len(scores) if scores else 1.0
        gains.append(round(gain, 9))
    return gains.index(max(gains))


def test_the_text_most_like_the_others_has_the_least_risk():
    assert least_risk([[1, 2, 3, 4], [9, 9], [1, 2, 3, 5], [1, 2, 3, 4, 5]]) == 0
    assert least_risk([[7]]) == 0 and least_risk([[], []]) == 0
    assert least_risk([[5, 6], [5, 6], [8]]) == 0, "of equals the first"
    for texts in itertools.product(([], [1], [1, 2], [2, 1, 2], [1, 2, 3, 1, 2]), repeat=3):
        assert least_risk([list(text) for text in texts]) == risk_by_hand([list(text) for text in texts])


def test_seeds_of_a_requests_texts_are_its_own_and_all_different():
    assert seed_of(5, 0) == 5
    seeds = [seed_of(seed, sample) for seed in (0, 1, 2**63 - 1) for sample in range(64)]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        check_seed(seed)


def test_what_is_told_is_one_of_the_texts_and_the_one_of_least_risk(lm):
    if lm.family == "aligned":
        return  # its texts differ by their canvases, too, see the tests of a model that has kept its teacher
    options = OPTIONS[lm.family]
    prompts, num = ["the cat", "river rain hills"], 5
    told = {
        e.index: e
        for e in finished(
            lm.generate(
                [Request(prompt=p, seed=i) for i, p in enumerate(prompts)], GenerateOptions(choose=num, **options)
            )
        )
    }
    for index, prompt in enumerate(prompts):
        requests = [Request(prompt=prompt, seed=seed_of(index, sample)) for sample in range(num)]
        events = sorted(finished(lm.generate(requests, GenerateOptions(**options))), key=lambda event: event.index)
        words = [[token for token in event.tokens if token not in (NULL, MASK)] for event in events]
        best = events[least_risk(words)]
        assert (told[index].text, told[index].tokens) == (best.text, best.tokens)
        assert told[index].nfe == max(event.nfe for event in events)
        assert len({event.tokens for event in events}) > 1


def test_what_is_chosen_does_not_depend_on_its_batch(lm):
    options = {**OPTIONS[lm.family], "choose": 3}
    prompts = ["the cat", "river", "rain fell over quiet hills", "nobody spoke", "the mat"]
    alone = [lm.write(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    assert lm.write(prompts, batch_size=64, **options) == alone == lm.write(prompts, batch_size=4, **options)


def test_a_likelihood_chooses_where_it_is_exact():
    lm = make_ar()
    how = {"temperature": 1.0, "max_tokens": 6}
    (event,) = finished(
        lm.generate([Request(prompt="the cat")], GenerateOptions(choose=6, choose_by="likelihood", **how))
    )
    requests = [Request(prompt="the cat", seed=seed_of(0, sample)) for sample in range(6)]
    texts = sorted(finished(lm.generate(requests, GenerateOptions(**how))), key=lambda event: event.index)
    words = [[token for token in text.tokens if token not in (NULL, MASK)] for text in texts]
    likely = lm.likelihoods([lm.tokenizer.encode("the cat")] * 6, words)
    assert event.tokens == texts[likely.index(max(likely))].tokens
    assert event.nfe == max(text.nfe for text in texts) + 1
    for make in (make_lm, make_masked, make_aligned):
        with pytest.raises(UsageError, match="no exact likelihood"):
            make().write("the cat", choose=2, choose_by="likelihood")


def test_a_request_may_choose_beside_one_that_does_not(lm):
    options = OPTIONS[lm.family]
    requests = [
        Request(prompt="the cat", options=GenerateOptions(choose=3, **options)),
        Request(prompt="the cat", options=GenerateOptions(**options)),
    ]
    told = {event.index: event.text for event in finished(lm.generate(requests))}
    assert told == {0: lm.write("the cat", choose=3, **options), 1: lm.write("the cat", **options)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose": 0}, "choose"),
        ({"choose_by": "likelihood"}, "there is one text"),
        ({"choose": 2, "choose_by": "luck"}, "choose_by"),
    ],
)
def test_what_cannot_be_chosen_is_refused(lm, options, message):
    with pytest.raises(UsageError, match=message):
        lm.write("the cat", **{**OPTIONS[lm.family], **options})


def test_samples_that_cannot_differ_and_observers_are_refused():
    with pytest.raises(UsageError, match="at temperature 0 there is one text"):
        make_ar().write("the cat", choose=2)
    with pytest.raises(UsageError, match="an observer sees"):
        list(make_lm().generate([Request()], GenerateOptions(choose=2), Observer()))


def test_two_calls_are_enough_to_choose_by_likelihood():
    lm = make_ar()
    how = {"choose": 2, "choose_by": "likelihood", "max_tokens": 4, "temperature": 1.0}
    with pytest.raises(UsageError, match="num_steps"):
        lm._check(GenerateOptions(num_steps=1, **how), None)
    lm.check = lambda options: None  # a family that counts calls and has an exact likelihood would get so far
    lm._check(GenerateOptions(num_steps=2, **how), None)
    with pytest.raises(UsageError, match="likelihood takes a network call"):
        lm._check(GenerateOptions(num_steps=1, **how), None)


def test_of_texts_without_words_the_first_is_told_and_of_others_the_likeliest():
    lm = make_ar()
    how = GenerateOptions(choose=3, choose_by="likelihood", temperature=1.0)

    def told(*texts: tuple[int, ...]) -> int:
        events = [Event("done", index, "", text, 1.0, 0.5, 3) for index, text in enumerate(texts)]
        return lm._best([[5, 6]] * len(texts), events, how)

    assert told((), (NULL,), (MASK, NULL)) == 0
    assert told((), (NULL, MASK), (7, 8)) == 2
    texts = ((7, 8), (9, 10, 11), (12,))
    likely = lm.likelihoods([[5, 6]] * 3, [list(text) for text in texts])
    assert told(*texts) == likely.index(max(likely))
    assert told(texts[1], texts[1]) == 0, "of equals the first"


def test_the_reading_of_likelihoods_is_one_of_the_calls_that_may_be_made(monkeypatch):
    source = make_aligned()
    lm, asked = AlignedLM(source.model, source.tokenizer, make_ar()), []
    write_rows = lm.write_rows
    monkeypatch.setattr(lm, "write_rows", lambda rows, how, *rest: asked.append(how) or write_rows(rows, how, *rest))
    for budget in (2, 3, 8):
        how = GenerateOptions(choose=2, choose_by="likelihood", num_steps=budget, temperature=1.0)
        [done] = finished(lm.generate([Request(prompt="the cat")], how))
        assert (asked[-1].num_steps, asked[-1].choose) == (budget - 1, 1) and done.nfe == budget
    how = GenerateOptions(choose=2, num_steps=3, temperature=1.0)
    [done] = finished(lm.generate([Request(prompt="the cat")], how))
    assert asked[-1].num_steps == 3 == done.nfe


def test_texts_of_a_masked_model_differ_by_what_is_drawn_and_by_nothing_else():
    lm = make_masked()
    alike = GenerateOptions(choose=2, style="consensus")
    with pytest.raises(UsageError, match="all the same"):
        lm.check(alike)
    for drawn in ({"temperature": 0.5}, {"style": "diverse"}, {"decoder": "first_hitting"}, {"choose": 1}):
        lm.check(replace(alike, **drawn))
