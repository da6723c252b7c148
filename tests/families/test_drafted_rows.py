"""Decoders, whose prompt and text share a row, write the sequential text in fewer calls with a drafter."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from manta.errors import ConfigError, UsageError
from manta.families.batching import to_batch
from manta.families.decoder import DecoderConfig, DecoderLM, DecoderModel
from manta.families.drafters import DraftLoss
from manta.families.events import GenerateOptions
from manta.families.next_words import Line
from manta.families.observer import Observer
from manta.families.trained import Teaching
from manta.hub import load, save_model
from manta.operators import AttentionConfig, LinearConfig, WindowedConfig
from manta.quantisation import Quantising, fitted, observed, quantised
from manta.runtime import make_generator
from manta.text import ForeignTokenizer

from .test_decoder import END, TOKENIZER, make

ROWS = [Line([20, 31], 0), Line([40, 25], 1), Line([40, 25, 33], 2), Line([], 3), Line([28, 27, 35], 4)]


def drafted(**changes: Any) -> DecoderLM:
    return make(draft_horizon=3, **changes)


def texts(lm: DecoderLM, batch_size: int, temperature: float = 0.0, **options: Any) -> list[Any]:
    rows = [row._replace(temperature=temperature) for row in ROWS]
    events = lm.write_rows(rows, GenerateOptions(max_tokens=13, **options), batch_size, Observer())
    return sorted((event for event in events if event.kind == "done"), key=lambda event: event.index)


@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"operator": WindowedConfig(radius=5)}])
def test_the_text_is_the_sequential_one_alone_and_in_any_batch(shape):
    lm = drafted(**shape)
    for temperature in (0.0, 1.0):
        plain = [event.tokens for event in texts(lm, 8, temperature, decoder="sequential")]
        for batch_size, num_drafts in ((8, 7), (1, 2)):
            found = texts(lm, batch_size, temperature, decoder="verified", num_drafts=num_drafts)
            assert [event.tokens for event in found] == plain


def test_drafts_that_are_right_save_calls():
    """A model that always tells one word is drafted for by what passes its hidden vector on."""
    torch.manual_seed(0)
    shape = replace(make().model.config, draft_horizon=2)
    model = DecoderModel(shape)
    with torch.no_grad():
        for block in model.trunk.blocks:
            for name in ("operator.out", "mlp.down"):
                block.get_parameter(f"{name}.weight").zero_()
        model.embedding.weight.copy_(model.embedding.weight[:1].expand_as(model.embedding.weight))
    lm = DecoderLM(model, TOKENIZER)
    with lm.endless():
        slow, quick = (texts(lm, 1, decoder=name) for name in ("sequential", "verified"))
    assert [event.tokens for event in slow] == [event.tokens for event in quick]
    assert {event.nfe for event in slow} == {14} and {event.nfe for event in quick} == {4}


@torch.no_grad()
def test_a_drafter_begins_by_telling_what_the_model_tells():
    torch.manual_seed(0)
    model = DecoderModel(replace(make().model.config, draft_horizon=2))
    drafter = model.drafter
    assert drafter is not None and drafter.cross is None and drafter.read(None) is None
    assert sorted(drafter.state_dict()) == ["mlp.gate_up.weight", "mlp.out.weight", "project.weight", "take.weight"]
    hidden = torch.randn(1, 3, 16)
    state, logits = drafter.step(hidden, torch.tensor([[5, 6, 7]]), None)
    torch.testing.assert_close(state, hidden)
    torch.testing.assert_close(logits, model.head(hidden))


def test_the_loss_is_of_the_text_and_not_of_its_prompt():
    model = drafted().model
    drafter, prompts, words = model.drafter, [[5, 6, 7, 8], [], [9]], [[11, 12], [13, 14, 15], [16]]
    assert drafter is not None
    batch = to_batch(prompts, words)
    loss = DraftLoss(places=5, decay=0.5)(model, batch, make_generator(4))
    drawn, nats = torch.rand(3, 5, generator=make_generator(4)), {1: [], 2: [], 3: []}
    with torch.no_grad():
        for prompt, text, shares in zip(prompts, words, drawn.tolist(), strict=True):
            asked = [*text, END]
            row = torch.tensor([[model.begin, *prompt, *text]])
            hidden = model.hidden(row, model.memory(row[:, :0], row[:, 0] * 0, row[:, 0] * 0))
            for place in (int(share * len(text)) for share in shares):
                state = hidden[:, len(prompt) + place][:, None]
                for ahead in range(1, min(3, len(text) - place) + 1):
                    state, logits = drafter.step(state, torch.tensor([[asked[place + ahead - 1]]]), None)
                    nats[ahead].append(-float(logits[0, 0].log_softmax(-1)[asked[place + ahead]]))
    means = {ahead: sum(found) / len(found) for ahead, found in nats.items() if found}
    weights = {ahead: 0.5 ** (ahead - 1) for ahead in means}
    expected = sum(weights[ahead] * means[ahead] for ahead in means) / sum(weights.values())
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert loss.count == sum(map(len, nats.values()))


def test_a_text_that_may_be_a_window_is_not_asked_for_its_end():
    model = make().model
    model.longest = 3
    assert model.shifted(to_batch([[5], [5]], [[6, 7], [6, 7, 8]]))[2].sum(1).tolist() == [3, 3]


def test_stages_shape_and_refusals():
    stages = DecoderLM.stages(drafted().model, Teaching(), {})
    assert [(stage.name, stage.part, stage.answers) for stage in stages] == [
        ("words", "", False),
        ("drafter", "drafter", True),
    ]
    assert [stage.name for stage in DecoderLM.stages(make().model, Teaching(), {})] == ["words"]
    with pytest.raises(ConfigError, match="draft_horizon should be 0 or more"):
        DecoderConfig(draft_horizon=-1)
    with pytest.raises(UsageError, match="needs a drafter"):
        make().check(GenerateOptions(decoder="verified"))
    with pytest.raises(UsageError, match="needs attention"):
        drafted(operator=LinearConfig()).check(GenerateOptions(decoder="verified"))
    with pytest.raises(UsageError, match="num_drafts"):
        drafted().check(GenerateOptions(decoder="sequential", num_drafts=2))
    drafted().check(GenerateOptions(decoder="verified", num_drafts=2))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_integers_is_drafted_for_by_its_own_table_and_head(tied, tmp_path):
    """Whatever takes the place of the model's table and head is what its drafter reads and tells by."""
    lm = drafted(tied=tied, operator=AttentionConfig(normalised=False))
    lm.model.to(torch.bfloat16).float()  # as stored
    lm.tokenizer = ForeignTokenizer.of_own(TOKENIZER)
    seen = observed(lm.model, lambda: texts(lm, 8, decoder="verified"))
    found = fitted(lm.model, seen, Quantising(bits=8, inputs="dynamic", groups=1))
    after = lm.with_net(quantised(lm.model, found))
    after.quantised = {name: each.spec for name, each in found.items()}
    save_model(tmp_path / "m", after, recipe={}, card="")
    again = load(tmp_path / "m", device="cpu")
    hidden, words = torch.randn(1, 3, 16), torch.tensor([[5, 6, 7]])
    ours, theirs = (each.model.drafter.step(hidden, words, None)[1] for each in (after, again))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, lm.model.drafter.step(hidden, words, None)[1], rtol=0.1, atol=0.1)
    texts_of = [[event.tokens for event in texts(again, 1, decoder=name)] for name in ("verified", "sequential")]
    assert texts_of[0] == texts_of[1]
