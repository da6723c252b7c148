"""The aligned family: what it is taught, and how it writes and fills in."""

import pytest
import torch

from manta.aligned import AlignmentConfig, alignment_nats, clamped, collapse, least_slots
from manta.errors import ConfigError, RequestError, UsageError
from manta.families.aligned import AlignedLM
from manta.families.aligned_model import AlignedConfig
from manta.families.aligned_objective import LENGTH_WEIGHT, AlignmentMatching, SlotCanvas, spread
from manta.families.canvas import parse_template
from manta.families.events import GenerateOptions, Request, finished
from manta.families.objectives import ObjectiveConfig, lay_out
from manta.families.observer import Observer
from manta.families.trained import StageShares, Teaching
from manta.runtime import make_generator
from manta.text import BOS, EOS, MASK, NULL

from .conftest import make_aligned, make_ar
from .test_objectives import make_batch

PLAIN = ObjectiveConfig(blank_share=0.0)


@pytest.fixture(scope="module")
def lm() -> AlignedLM:
    return make_aligned()


def batch_of(num: int = 6):
    lengths = torch.randint(1, 21, (num,), generator=make_generator(7))
    return make_batch(lengths.tolist())


def test_no_slot_says_what_is_no_word(lm):
    batch = batch_of()
    memory = lm.model.prompt_memory(batch.prompt, batch.prompt_lengths)
    projected = lm.model.trunk.project(memory.states, memory.mask)
    labels = torch.full((len(batch), 16), MASK)
    with torch.no_grad():
        chance = lm.model(labels, torch.ones_like(labels, dtype=torch.bool), projected).softmax(-1)
    assert chance[..., [MASK, BOS, EOS]].sum() == 0 and bool((chance[..., NULL] > 0).all())


def test_the_kind_of_a_text_is_not_asked_for(lm):
    batch = batch_of()
    one = AlignmentMatching(PLAIN, AlignmentConfig(), reveal=False)
    losses = []
    for tag in (0, 1):
        batch.tag.fill_(tag)
        losses.append(one(lm.model, batch, make_generator(1)).total.item())
    assert losses[0] == losses[1]


def test_a_layout_has_room_for_every_text(lm):
    batch = batch_of(64)
    matching = AlignmentMatching(ObjectiveConfig(blank_share=0.5), AlignmentConfig(), reveal=False)
    canvas = matching.lay_out(lm.model, batch, make_generator(0))
    assert bool((canvas.counts >= least_slots(batch.text, batch.text_lengths)).all())
    assert int(canvas.counts.max()) <= lm.model.max_slots and canvas.labels.shape[1] % 16 == 0
    layout = lay_out(batch, 1, matching.layout, make_generator(0), max_cells=lm.model.max_words)
    filled = layout.hole.any(1)
    assert 0 < filled.sum() < 64
    open_ = canvas.mask & ~canvas.known
    free = ~filled
    assert torch.equal(open_[free], canvas.mask[free]), "without a blank to fill nothing is given"
    share = canvas.counts[free] / batch.text_lengths[free]
    assert bool((share >= 1.4 - 1e-6).all() & (share <= 2.4 + 1.0 / batch.text_lengths[free] + 1e-6).all())
    for row in filled.nonzero()[:, 0].tolist():
        given = collapse(canvas.labels[row][canvas.known[row] & canvas.mask[row]].tolist(), -1)
        text = batch.text[row, : batch.text_lengths[row]].tolist()
        kept = [word for word in given if word != NULL]
        around = len(text) - len(kept)
        assert 0 <= around <= 8 and int(open_[row].sum()) >= max(2, 2 * around)
        first = next((at for at, pair in enumerate(zip(kept, text, strict=False)) if pair[0] != pair[1]), len(kept))
        assert kept == text[:first] + text[first + around :]


def test_the_loss_is_that_of_all_alignments_a_word_and_of_the_length(lm):
    batch = batch_of()
    matching = AlignmentMatching(PLAIN, AlignmentConfig(least_room=1.0, most_room=1.0), reveal=False)
    loss = matching(lm.model, batch, make_generator(0))
    memory = lm.model.prompt_memory(batch.prompt, batch.prompt_lengths)
    projected = lm.model.trunk.project(memory.states, memory.mask)
    total, words = 0.0, 0
    for row, count in enumerate((2 * batch.text_lengths).tolist()):
        labels = torch.full((len(batch), count), MASK)
        chances = lm.model(labels, torch.ones_like(labels, dtype=torch.bool), projected).log_softmax(-1)[row]
        text = batch.text[row, : batch.text_lengths[row]].tolist()
        forward = forward_nats(chances.double(), text)
        total, words = total + forward, words + len(text)
    length = torch.nn.functional.cross_entropy(lm.model.length_logits(memory), batch.text_lengths)
    assert loss.count == words and loss.parts["given"] == 0
    assert float(loss.parts["nats"]) == pytest.approx(total / words, rel=1e-4)
    assert loss.total.item() == pytest.approx(total / words + LENGTH_WEIGHT * length.item(), rel=1e-4)


def forward_nats(chances: torch.Tensor, text: list[int]) -> float:
    """The textbook recursion, one state after the other."""
    states = [NULL]
    for word in text:
        states += [word, NULL]
    alpha = torch.full((len(states),), -torch.inf, dtype=torch.float64)
    alpha[:2] = chances[0, states[:2]]
    for slot in range(1, len(chances)):
        before = alpha.clone()
        for state, label in enumerate(states):
            ways = [before[state]] + [before[state - 1]] * (state >= 1)
            if state >= 2 and label != NULL and label != states[state - 2]:
                ways.append(before[state - 2])
            alpha[state] = torch.stack(ways).logsumexp(0) + chances[slot, label]
    return -alpha[-2:].logsumexp(0).item()


def test_a_revealed_row_gives_labels_of_one_alignment_of_its_text(lm):
    batch = batch_of(32)
    matching = AlignmentMatching(ObjectiveConfig(blank_share=0.3), AlignmentConfig(), reveal=True)
    canvas = matching.lay_out(lm.model, batch, make_generator(0))
    memory = lm.model.prompt_memory(batch.prompt, batch.prompt_lengths)
    projected = lm.model.trunk.project(memory.states, memory.mask)
    shown = matching.revealed(lm.model, batch, canvas, projected, make_generator(2))
    assert bool((shown.known >= canvas.known).all())
    assert torch.equal(shown.labels[canvas.known & canvas.mask], canvas.labels[canvas.known & canvas.mask])
    for row in range(len(batch)):
        labels = shown.labels[row][canvas.mask[row]].tolist()
        assert collapse(labels, NULL) == batch.text[row, : batch.text_lengths[row]].tolist()
    free = ~(canvas.known & canvas.mask).any(1)
    assert bool(((shown.known & ~canvas.known)[~free]).any()), "in a blank, too, labels are given"
    share = (shown.known & canvas.mask)[free].sum(1) / canvas.counts[free]
    assert share.min() < 0.25 and share.max() > 0.75 and not (shown.known & ~canvas.mask)[free].any()


@pytest.mark.parametrize("misread", [0, 4, 8])
def test_half_of_the_rows_are_given_in_proportion_to_what_the_model_gets_wrong(lm, monkeypatch, misread):
    """Of sixteen slots some are read as a word that the text lacks; the share that is given is of these, or any."""
    rows, slots, word = 64, 16, 7
    chances = torch.full((rows, slots, lm.tokenizer.vocab_size), 0.0)
    chances[:, 1:, NULL] = chances[:, 0, word] = 5.0
    chances[:, slots - misread :, 99] = 9.0
    monkeypatch.setattr(AlignmentMatching, "_log_chances", lambda *_: chances.log_softmax(-1))
    canvas = SlotCanvas(torch.full((rows, slots), MASK), torch.zeros(rows, slots).bool(), torch.full((rows,), slots))
    batch = make_batch([1] * rows)
    batch.text.fill_(word)
    matching = AlignmentMatching(PLAIN, AlignmentConfig(glance=1.0), reveal=True)
    shown = matching.revealed(lm.model, batch, canvas, (), make_generator(2))
    assert (shown.labels[:, 0] == word).all() and (shown.labels[:, 1:] == NULL).all()
    again = make_generator(2)
    draws, places = torch.rand(2, rows, generator=again), torch.rand(rows, slots, generator=again)
    share = torch.where(draws[0] < 0.5, misread / slots, draws[1])
    assert torch.equal(shown.known, places < share[:, None])


def test_a_word_is_given_once_however_many_of_its_slots_are():
    labels = torch.tensor([[7, 7, NULL, 7, 8, 8, NULL, 9]])
    for known, words in (
        ([1, 1, 0, 0, 0, 0, 0, 0], 1),
        ([1, 0, 1, 1, 0, 1, 1, 0], 3),
        ([0, 0, 1, 0, 0, 0, 1, 0], 0),
        ([1, 1, 1, 1, 1, 1, 1, 1], 3),
    ):
        canvas = SlotCanvas(labels, torch.tensor([known]).bool(), torch.tensor([7]))
        assert canvas.words_given.tolist() == [words], "what lies off the canvas does not count"


def test_what_is_revealed_costs_nothing_and_is_not_counted(lm):
    batch = batch_of(16)
    matching = AlignmentMatching(PLAIN, AlignmentConfig(reveal_share=1.0), reveal=True)
    loss = matching(lm.model, batch, make_generator(5))
    assert 0 < loss.parts["given"] < 1 and (loss.count or 0) < int(batch.text_lengths.sum())
    plain = AlignmentMatching(PLAIN, AlignmentConfig(reveal_share=0.0), reveal=True)(lm.model, batch, make_generator(5))
    assert plain.parts["given"] == 0 and plain.count == int(batch.text_lengths.sum())


def test_all_of_an_alignment_revealed_leaves_nothing_to_tell(lm):
    words, lengths = torch.tensor([[7, 8, 8]]), torch.tensor([3])
    labels = torch.tensor([[7, 8, NULL, 8, NULL]])
    chances = torch.randn(1, 5, 300, generator=make_generator(0)).log_softmax(-1)
    given = clamped(chances, labels, torch.ones_like(labels, dtype=torch.bool))
    assert alignment_nats(given, torch.tensor([5]), words, lengths, blank=NULL).item() == pytest.approx(0, abs=1e-4)


def test_two_stages_of_the_policys_time(lm):
    objective = ObjectiveConfig()
    teaching = Teaching(objective=objective, shares=StageShares(policy=3.0, own=1.0))
    plain, revealed = AlignedLM.stages(lm.model, teaching, {})
    assert (plain.name, plain.share, revealed.name, revealed.share) == ("aligned", 1.0, "revealed", 3.0)
    assert isinstance(plain.objective, AlignmentMatching) and not plain.objective.reveal
    assert isinstance(revealed.objective, AlignmentMatching) and revealed.objective.reveal


def test_it_learns_texts_that_their_prompts_decide_and_writes_them_in_one_call():
    lm = make_aligned(depth=2)
    batch = batch_of(4)
    matching = AlignmentMatching(ObjectiveConfig(blank_share=0.3), AlignmentConfig(), reveal=True)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=5e-3)
    generator = make_generator(0)
    lm.model.train()
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 600)
        loss = matching(lm.model, batch, generator)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimizer.step()
    lm.model.eval()
    rows = [(row.tolist(), None, 0, 1.0) for row in batch.prompt]
    for num_steps in (1, 4):
        events = [
            e for e in lm.write_rows(rows, GenerateOptions(num_steps=num_steps), 4, Observer()) if e.kind == "done"
        ]
        said = {event.index: list(event.tokens) for event in events}
        assert [said[row] for row in range(4)] == [
            text[:n].tolist() for text, n in zip(batch.text, batch.text_lengths, strict=True)
        ]
        assert {event.nfe for event in events} == {num_steps}


def test_a_given_text_stays_as_it_is_and_its_blanks_take_what_they_may(lm):
    given = "the  cat ___{3} on a mat, ___ rain."
    (event,) = finished(lm.generate([Request(prompt="the river", infill=given)], GenerateOptions(num_steps=4)))
    assert event.text.startswith("the  cat") and " on a mat," in event.text and event.text.endswith(" rain.")
    assert event.nfe == 1, "blanks are filled in one call"


def test_a_blank_takes_no_more_words_than_it_may(lm):
    template = parse_template("the ___{2} cat ___{1}", lm.tokenizer, rate=1, max_cells=25)
    words = [lm.tokenizer.encode(word)[0] for word in ("on", "mat", "sat", "river")]
    places = (template.tokens == MASK).nonzero()[:, 0].tolist()
    labels, _ = spread(template.tokens[None], template.tokens[None] == MASK, 2)
    labels = labels[0].tolist()
    given = [token for token in template.tokens.tolist() if token not in (MASK, NULL)]
    labels[2 * places[0] : 2 * places[0] + 4] = words
    labels[2 * places[2] : 2 * places[2] + 2] = [NULL, words[3]]
    one, two, last = (lm.tokenizer.decode([word]).strip() for word in (words[0], words[1], words[3]))
    assert "".join(lm._filled(labels, template).split()) == f"the{one}{two}cat{last}"
    # A run that reaches the given word behind a blank is that word, and is not said twice.
    labels[2 * places[0] : 2 * places[0] + 4] = [words[0], given[1], given[1], given[1]]
    assert "".join(lm._filled(labels, template).split()) == f"the{one}cat{last}"


def test_blanks_side_by_side_have_words_of_their_own(lm):
    template = parse_template("___{2} ___{1}", lm.tokenizer, rate=1, max_cells=25)
    first, second = (lm.tokenizer.encode(word)[0] for word in ("on", "mat"))
    said = [lm.tokenizer.decode([word]).strip() for word in (first, second)]
    assert lm._filled([first, first, NULL, NULL, NULL, second, NULL, NULL], template).split() == said
    # What begins in the first is the first's, however far it goes on.
    assert lm._filled([NULL, NULL, NULL, first, first, NULL, NULL, NULL], template).split() == said[:1]


def test_a_canvas_of_two_slots_a_place():
    tokens, open_ = torch.tensor([[5, MASK, NULL]]), torch.tensor([[False, True, False]])
    labels, wide = spread(tokens, open_, 2)
    assert labels.tolist() == [[5, NULL, MASK, NULL, NULL, NULL]]
    assert wide.tolist() == [[False, False, True, True, False, False]]


def test_drafts_say_the_whole_text_and_become_settled(lm):
    events = list(lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=4)))
    assert [event.kind for event in events] == ["draft", "draft", "draft", "done"]
    assert [event.nfe for event in events] == [1, 2, 3, 4]
    shares = [event.t for event in events]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1
    assert all(0 < event.confidence <= 1 and event.text for event in events)


def test_words_are_drawn_at_a_temperature_by_the_requests_seed(lm):
    def said(seed: int, **options) -> str:
        return lm.write("the cat", seed=seed, num_steps=2, **options)

    assert said(1) == said(2)
    assert said(1, temperature=1.0) == said(1, temperature=1.0) != said(2, temperature=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "consensus"}, "style.*means nothing to aligned models"),
        ({"decoder": "deferred"}, "decoder"),
        ({"rounds": 1}, "rounds"),
        ({"flow_steps": 2}, "flow_steps"),
    ],
)
def test_what_it_does_not_follow_is_refused(lm, options, message):
    with pytest.raises(UsageError, match=message):
        lm.write("the cat", **options)


def test_what_does_not_fit_is_refused(lm):
    with pytest.raises(RequestError, match=r"prompt .*12 tokens"):
        lm.write("the cat sat " * 8)
    with pytest.raises(RequestError, match="text to fill"):
        lm.write("the", infill="___{20} the cat sat on a mat")
    for number in (1, 17, 10**7):
        with pytest.raises(ConfigError, match="slots_per_word"):
            AlignedConfig(slots_per_word=number)
    with pytest.raises(UsageError, match="no sound bound"):
        lm.log_likelihood(batch_of())


def test_left_to_right_it_is_asked_what_its_reading_can_do(lm):
    reading = AlignedLM(lm.model, lm.tokenizer, make_ar())
    with pytest.raises(UsageError, match="needs a drafter"):
        reading.check(GenerateOptions(decoder="verified"))
    reading.check(GenerateOptions(decoder="sequential"))
    with pytest.raises(UsageError):
        lm.check(GenerateOptions(decoder="sequential"))


def test_a_canvas_full_of_words_gives_as_many_as_it_has_slots():
    labels = torch.tensor([[7, 8, 9, 8], [NULL, 7, NULL, 7]])
    for known, words in ((torch.ones(2, 4), [4, 2]), (torch.tensor([[0, 0, 0, 1], [1, 0, 1, 0]]), [1, 0])):
        assert SlotCanvas(labels, known.bool(), torch.tensor([4, 4])).words_given.tolist() == words
