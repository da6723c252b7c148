"""The adapters: what is measured is the model's own way, and every family answers the same questions."""

from itertools import groupby

import pytest
import torch

from manta.control import chain_adjoint, hard_commit, straight_through_commit
from manta.diagnosis.canvas_systems import AlignedSystem, CanvasSystem
from manta.diagnosis.chain_figures import decisions
from manta.diagnosis.systems import AutoregressiveSystem, FlowSystem, system_of
from manta.errors import ModelError
from manta.families.events import GenerateOptions, Request
from manta.text import MASK, NULL

from ..families.conftest import make_aligned, make_ar, make_block, make_lm, make_masked

REQUESTS = [Request(prompt="the cat", seed=3), Request(prompt="some old river", seed=4)]
MAKERS = {
    "latent": make_lm,
    "embedding": lambda: make_lm("embedding"),
    "masked": make_masked,
    "block": make_block,
    "aligned": make_aligned,
    "ar": make_ar,
}


def build(kind, **options):
    return system_of(MAKERS[kind](), REQUESTS, 4, GenerateOptions(num_steps=5), **options)


@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_the_field_is_the_policy_on_its_own_way(kind):
    system = build(kind)
    assert isinstance(system, FlowSystem)
    cells = system.cells[..., None]
    for k, wanted in enumerate(system.trace.cleans):
        with torch.no_grad():
            found = system.field(system.states[k], system.times(float(system.grid[k])), self_cond=system.self_cond(k))
        torch.testing.assert_close(found * cells, wanted * cells, rtol=1e-4, atol=1e-4)


def test_with_all_words_masked_the_field_is_another():
    answers = []
    for words in ("writing", "masked"):
        system = build("latent", words=words)
        assert isinstance(system, FlowSystem)
        last = system.num_steps - 1
        answers.append(system.field_at(last)(system.states[last], system.times(0.9)))
    assert not torch.allclose(*answers)


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_nothing_disturbed_nothing_changes(kind, t):
    system = build(kind)
    assert torch.equal(system.continued(t, system.standing(t)), system.tokens)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "aligned"])
def test_a_disturbance_exchanges_standing_words_alone(kind):
    system = build(kind)
    standing = system.standing(0.8)
    where = (standing != MASK) & system.mask
    disturbed = system.corrupted(standing, 0.2, where, 1)
    changed = disturbed != standing
    assert not bool((changed & ~where).any())
    assert changed.sum(1).tolist() == [max(1, round(0.2 * n)) if n else 0 for n in where.sum(1).tolist()]


@pytest.mark.parametrize("kind", ["masked", "block", "aligned", "ar"])
def test_a_word_that_is_never_taken_back_stays_exchanged(kind):
    system = build(kind)
    standing = system.standing(0.8)
    disturbed = system.corrupted(standing, 0.5, (standing != MASK) & system.mask, 1)
    end = system.continued(0.8, disturbed)
    changed = disturbed != standing
    assert bool(changed.any())
    assert torch.equal(end[changed], disturbed[changed])


@pytest.mark.parametrize("kind", ["masked", "block", "aligned", "ar"])
def test_the_hard_chain_writes_the_text_and_passes_no_gradient(kind):
    system = build(kind)
    assert isinstance(system, CanvasSystem | AutoregressiveSystem)
    steps, state = system.chain(hard_commit)
    weights = state
    for step in steps:
        weights = step.commit(step.policy(weights), weights)
    width = weights.shape[1]
    mask = system.mask[:, :width]
    assert torch.equal(weights.argmax(-1)[mask], system.tokens[:, :width][mask])

    points = system.trace.settled[:, :, :width]
    chosen = (points[1:] != points[:-1]) & mask
    probes = torch.randn(1, *state.shape, generator=torch.Generator().manual_seed(0)) * mask[..., None]
    along, least, largest, without = decisions(chain_adjoint(steps, state, probes, known=~mask), chosen)
    assert bool(along.isnan().all()) and bool(least.isnan().all()) and bool(largest.isnan().all())
    assert without.tolist() == [1.0, 1.0]

    steps, state = system.chain(straight_through_commit)
    _, least, largest, without = decisions(chain_adjoint(steps, state, probes, known=~mask), chosen)
    assert bool((least > 0).all()) and bool((largest >= least).all())
    assert without.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", list(MAKERS))
def test_put_back_to_the_end_a_text_stays(kind):
    system = build(kind)
    assert torch.equal(system.rewritten(system.tokens, 1.0 - 1e-9)[system.mask], system.tokens[system.mask])


@pytest.mark.parametrize("decoder", ["threshold", "deferred"])
def test_texts_of_blocks_end_where_they_end_and_are_measured_alike_alone_and_beside_others(decoder):
    lm = make_block(max_text=14)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.5)
        lm.model.embedding.weight[lm.model.end] *= 3  # so that texts end at different places
    requests = [*REQUESTS, Request(prompt="rain fell over", seed=5)]
    options = GenerateOptions(num_steps=5, decoder=decoder)
    together, end = system_of(lm, requests, 4, options), lm.model.end
    assert len({*together.mask.sum(1).tolist()}) > 1
    for row, request in enumerate(requests):
        alone = system_of(lm, [request], 4, options)
        points, calls = len(alone.trace.settled), together.lengths()[row]
        assert alone.lengths() == [calls] and points == calls + 1
        assert torch.equal(alone.trace.settled[:, 0], together.trace.settled[:points, row])
        assert bool((together.trace.settled[points:, row] == alone.tokens[0]).all())
        for k in range(calls):
            assert torch.equal(alone.trace.logits[k][0], together.trace.logits[k][row])
        assert torch.equal(alone.rewritten(alone.tokens, 0.5)[0], together.rewritten(together.tokens, 0.5)[row])
        words = together.tokens[row][together.mask[row]].tolist()
        assert end not in words[:-1] and bool((together.tokens[row][~together.mask[row]] == end).all())
    for belief in together.trace.beliefs(together.vocab_size):
        torch.testing.assert_close(belief.sum(-1), torch.ones_like(belief[..., 0]))
    first = next(together.trace.beliefs(together.vocab_size))
    assert bool((first[..., MASK] == 1).all()), "nothing is believed before the first call"
    told = list(together.trace.beliefs(together.vocab_size))[1]
    open_ = together.trace.settled[1, :, 4:] == MASK
    assert bool(open_.any()) and bool((told[:, 4:, MASK][open_] == 1).all()), "a call speaks of its block alone"
    assert not told[:, :4, MASK].any()


def test_a_model_without_gradients_is_refused_in_plain_words():
    with pytest.raises(ModelError, match="follows gradients"):
        system_of(object(), REQUESTS, 4, GenerateOptions())


def test_of_slots_a_disturbance_exchanges_words_and_runs_as_one():
    system = build("aligned")
    assert isinstance(system, AlignedSystem)
    mask = torch.zeros_like(system.mask)
    mask[:, :8] = True
    slots = torch.full_like(system.tokens, NULL)
    slots[:, :8] = torch.tensor([300, 300, NULL, 301, 301, 301, 302, MASK])
    seen = set()
    for purpose in range(8):
        changed = system.corrupted(slots, 0.3, mask & (slots != MASK), purpose)
        assert torch.equal(changed[:, 8:], slots[:, 8:]) and torch.equal(changed[:, [2, 7]], slots[:, [2, 7]])
        for row in changed.tolist():
            runs = (row[:2], row[3:6], row[6:7])
            assert all(len(set(run)) == 1 for run in runs), "a run stays one word"
            moved = [run[0] != was for run, was in zip(runs, (300, 301, 302), strict=True)]
            assert sum(moved) == 1, "three words, a third of them"
            seen.add(moved.index(True))
    assert seen == {0, 1, 2}


def test_of_slots_texts_are_what_they_say():
    system = build("aligned")
    (text, _) = system.texts(system.tokens)
    slots = system.tokens[0][system.mask[0]].tolist()
    words = [word for word, _ in groupby(slots) if word != NULL]
    assert text == system.lm.tokenizer.decode(words).strip()


def test_a_call_of_slots_settles_one_of_each_neighbourhood():
    system = build("aligned")
    standing = [(points != MASK).sum(1) for points in system.trace.settled]
    slots = system.mask.sum(1)
    assert torch.equal(standing[0], (~system.mask).sum(1))
    for k, count in enumerate(standing[1:], start=1):
        told = count - standing[0]
        assert bool((told >= k * (slots // 4)).all()) and bool((told <= k * -(-slots // 4)).all())
    assert torch.equal(standing[-1] - standing[0], slots)
