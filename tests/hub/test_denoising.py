"""A call in steps writes what `write` writes; a callback sees every step, closes the loop, and stops it."""

from typing import Any

import pytest
import torch

from manta.errors import RequestError, UsageError
from manta.families.events import Request
from manta.families.observer import Observer
from manta.families.options import read_options
from manta.hub.denoising import MantaPipeline
from manta.text import MASK

from ..families.conftest import make_aligned, make_ar, make_lm, make_masked

PROMPTS = ["the cat sat", "some old river"]


@pytest.fixture(scope="module", params=["manta", "masked"])
def pipe(request) -> MantaPipeline:
    return MantaPipeline(make_lm() if request.param == "manta" else make_masked())


@pytest.fixture(scope="module")
def flow() -> MantaPipeline:
    return MantaPipeline(make_lm())


@pytest.mark.parametrize("watched", [False, True])
def test_it_writes_what_the_model_writes(watched, pipe):
    names = ["latents", "tokens"] if pipe.lm.family == "manta" else ["tokens"]
    watch: dict[str, Any] = {}
    if watched:
        watch["callback_on_step_end"] = lambda pipe, step, t, tensors: tensors
        watch["callback_on_step_end_tensor_inputs"] = names
    found = pipe(PROMPTS, num_inference_steps=6, num_texts_per_prompt=2, seed=4, temperature=0.5, **watch)
    assert found.texts == pipe.lm.write(PROMPTS, num_steps=6, num_samples=2, seed=4, temperature=0.5)
    assert all(calls <= 6 for calls in found.nfe)
    for text, row in zip(found.texts, found.sequences, strict=True):
        assert pipe.lm.tokenizer.decode([token for token in row.tolist() if token > 1]).strip() == text


def test_a_generator_gives_its_seed(pipe):
    expected = [pipe.lm.write(PROMPTS[0], num_steps=4, seed=seed) for seed in (11, 5)]
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 5)]
    assert pipe([PROMPTS[0]] * 2, num_inference_steps=4, generator=generators).texts == expected
    assert pipe(PROMPTS[0], num_inference_steps=4, generator=generators[0]).texts == expected[:1]


class Seen(Observer):
    """What the family's own loop tells."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []
        self.words: list[torch.Tensor] = []

    def moved(self, reached: Any) -> None:
        self.states.append(reached.state.clone())

    def settled(self, page: Any) -> None:
        words = page.settled if hasattr(page, "settled") else page.tokens.masked_fill(page.masked, MASK)
        self.words.append(words.clone())


def test_a_callback_sees_every_step(pipe):
    seen, told = Seen(), []
    names = ["latents", "tokens"] if pipe.lm.family == "manta" else ["tokens"]

    def callback(its: MantaPipeline, step: int, t: float, tensors: dict[str, Any]) -> None:
        assert its is pipe and list(tensors) == names
        told.append((step, t, tensors))

    pipe(PROMPTS, num_inference_steps=6, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    requests = [Request(prompt=prompt, seed=k) for k, prompt in enumerate(PROMPTS)]
    list(pipe.lm.generate(requests, read_options({"num_steps": 6}), seen))
    assert [step for step, _, _ in told] == list(range(len(told))) and pipe.num_timesteps == len(told) == 5
    times = [t for _, t, _ in told]
    assert times == sorted(times) and times[-1] == 1.0 and times[0] < 1
    assert all(torch.equal(tensors["tokens"], words) for (_, _, tensors), words in zip(told, seen.words, strict=True))
    for (_, _, tensors), state in zip(told, seen.states, strict=False):
        assert torch.equal(tensors["latents"], state)


def test_what_a_callback_returns_is_where_the_flow_goes_on(flow):
    """Steered back to a recorded state at each step, a flow of other noise ends as the recorded one did."""
    states: list[torch.Tensor] = []
    words: list[torch.Tensor] = []

    def record(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> None:
        states.append(tensors["latents"])
        words.append(tensors["tokens"])

    def replay(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert tensors["latents"].shape == states[step].shape
        return {"latents": states[step], "tokens": words[step]}

    how: dict[str, Any] = {"num_inference_steps": 6, "callback_on_step_end_tensor_inputs": ["latents", "tokens"]}
    how |= {"style": "consensus"}  # one length, whatever the seed
    first = flow(PROMPTS[0], seed=1, callback_on_step_end=record, **how)
    free = flow(PROMPTS[0], seed=2, **how)
    again = flow(PROMPTS[0], seed=2, callback_on_step_end=replay, **how)
    assert free.texts != first.texts and again.texts == first.texts

    def only_once(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + 3.0} if step == 1 else {}

    assert flow(PROMPTS[0], seed=1, callback_on_step_end=only_once, **how).texts != first.texts


def test_latents_of_a_finished_plan_are_replaced_too(flow):
    """Calls that stay at the end of the flow read what the callback has put there."""
    how: dict[str, Any] = {"num_inference_steps": 6, "flow_steps": 2, "seed": 1}
    last: list[torch.Tensor] = []

    def push(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any] | None:
        last.append(tensors["latents"])
        return {"latents": torch.full_like(tensors["latents"], 2.0)} if step == 2 else None

    flow(PROMPTS[0], callback_on_step_end=push, callback_on_step_end_tensor_inputs=["latents"], **how)
    assert torch.equal(last[1], last[2]) and (last[3] == 2.0).all() and (last[4] == 2.0).all()


def test_it_begins_where_it_is_told_to(flow):
    begun: list[torch.Tensor] = []

    class Watch(Observer):
        def before(self, k: int, page: Any, state: Any) -> Any:
            if k == 0:
                begun.append(state)
            return state

    request = Request(prompt=PROMPTS[0], seed=9)
    options = read_options({"num_steps": 5, "style": "consensus"})
    [done] = [e for e in flow.lm.generate([request], options, Watch()) if e.kind == "done"]
    found = flow(PROMPTS[0], num_inference_steps=5, seed=1, latents=begun[0], style="consensus")
    assert found.texts == [done.text] != flow(PROMPTS[0], num_inference_steps=5, seed=1, style="consensus").texts
    with pytest.raises(UsageError, match=r"latents should be a tensor of shape"):
        flow(PROMPTS[0], latents=torch.zeros(1, 1, 1))


def test_words_of_a_callback_stand(pipe):
    word = pipe.lm.tokenizer.encode("rain")[0]

    def callback(its: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        tokens = tensors["tokens"].clone()
        tokens[:, 0] = word
        if step == 0:
            tokens[:, 1:] = MASK  # all others are asked for again
        return {"tokens": tokens}

    how: dict[str, Any] = {"num_inference_steps": 6, "callback_on_step_end_tensor_inputs": ["tokens"]}
    found = pipe(PROMPTS, callback_on_step_end=callback, **how)
    assert all(row[0] == word for row in found.sequences.tolist()) and MASK not in found.sequences
    free = pipe(PROMPTS, num_inference_steps=6)
    assert any(row[0] != word for row in free.sequences.tolist())


def test_a_callback_stops_the_call(pipe):
    steps: list[int] = []

    def callback(its: MantaPipeline, step: int, t: float, tensors: dict[str, Any]) -> None:
        steps.append(step)
        if step == 1:
            its._interrupt = True

    found = pipe(PROMPTS, num_inference_steps=8, callback_on_step_end=callback)
    assert steps == [0, 1] and pipe.interrupt and pipe.num_timesteps == 2
    requests = [Request(prompt=prompt, seed=k) for k, prompt in enumerate(PROMPTS)]
    events = list(pipe.lm.generate(requests, read_options({"num_steps": 8})))
    drafts = [[event for event in events if event.index == k][1] for k in range(2)]
    assert found.texts == [event.text for event in drafts] and found.nfe == [event.nfe for event in drafts]
    assert pipe(PROMPTS, num_inference_steps=8).texts == pipe.lm.write(PROMPTS, num_steps=8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "is told of .*tokens, not of 'prompt_embeds'"),
        ({"num_texts_per_prompt": 0}, "num_texts_per_prompt should be"),
        ({"generator": [torch.Generator()] * 2}, "1 texts are asked for, received 2 generators"),
        ({"num_inference_step": 3}, "no option 'num_inference_step'"),
        ({"callback_on_step_end": lambda *_: {"noise": 1}}, "returns the tensors that it was told of"),
        ({"choose": 2, "temperature": 1.0}, "leave cache and choose out"),
    ],
)
def test_a_mistake_is_said(given, said, pipe):
    with pytest.raises(UsageError, match=said):
        pipe(PROMPTS[0], **given)


def test_who_has_no_steps_says_so():
    for make in (make_ar, make_aligned):
        with pytest.raises(UsageError, match="denoises in steps"):
            MantaPipeline(make())
    masked = MantaPipeline(make_masked())
    with pytest.raises(UsageError, match="told of tokens, not of 'latents'"):
        masked("the", callback_on_step_end_tensor_inputs=["latents"])
    with pytest.raises(UsageError, match="no latents to begin at"):
        masked("the", latents=torch.zeros(1, 2, 6))
    with pytest.raises(RequestError, match="the prompt has 320 characters"):
        masked("the cat " * 40)


def test_it_is_kept_and_read_again(flow, tmp_path):
    flow.save_pretrained(tmp_path / "model")
    again = MantaPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert again(PROMPTS, seed=3).texts == flow(PROMPTS, seed=3).texts
