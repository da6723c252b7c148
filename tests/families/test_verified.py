"""The verified decoder writes exactly the sequential text, alone and in any batch, in any precision."""

from typing import Any

import pytest
import torch

from manta.autoregressive import Chooser, Drafting, NgramDrafter, count_ngrams
from manta.errors import ConfigError, ModelError, UsageError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.cached import CachedReader
from manta.families.drafters import DraftLoss
from manta.families.events import GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.hub import load, save_model
from manta.operators import CAUSAL, KINDS, FourierConfig, WindowedConfig
from manta.operators.cross_attention import CrossAttention
from manta.runtime import make_generator
from manta.text import BOS, EOS

from .conftest import SMALL, random_weights
from .test_autoregressive import make_ar
from .test_objectives import make_batch

PROMPTS = ["the cat", "rain fell over hills", None, "quiet"]
REQUESTS = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
WAYS = [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 9}, {"temperature": 1.2, "top_p": 0.7}]


def written(lm: AutoregressiveLM, batch_size: int = 64, requests=REQUESTS, **options):
    events = finished(lm.generate(requests, GenerateOptions(**options), batch_size=batch_size))
    return sorted(events, key=lambda event: event.index)


def with_table(lm: AutoregressiveLM) -> AutoregressiveLM:
    """A model whose table was counted in its own texts, so that some drafts are right and some are not."""
    texts = [list(event.tokens) for event in written(lm, decoder="sequential")]
    texts += [list(event.tokens) for event in written(lm, decoder="sequential", temperature=1.0)]
    size = lm.model.config.vocab_size
    lm.table = NgramDrafter(count_ngrams(texts * 2, vocab_size=size, begin=BOS, end=EOS), size, BOS)
    return lm


def make(drafter: str, **config) -> AutoregressiveLM:
    config = {"max_text": 16, **config}
    return make_ar(draft_horizon=4, **config) if drafter == "recurrent" else with_table(make_ar(**config))


@pytest.mark.parametrize("drafter", ["table", "recurrent"])
@pytest.mark.parametrize("options", WAYS)
def test_the_text_is_the_sequential_one(drafter, options):
    lm = make(drafter)
    plain = [event.tokens for event in written(lm, decoder="sequential", **options)]
    assert plain == [event.tokens for event in written(lm, 1, decoder="sequential", **options)]
    for batch_size, num_drafts in ((64, 7), (3, 2), (1, 3)):
        found = written(lm, batch_size, decoder="verified", num_drafts=num_drafts, **options)
        assert [event.tokens for event in found] == plain


@pytest.mark.parametrize("drafter", ["table", "recurrent"])
def test_the_text_is_the_sequential_one_in_bfloat16(drafter):
    lm = make(drafter, max_text=9)
    lm.model.to(torch.bfloat16)
    plain = [event.tokens for event in written(lm, requests=REQUESTS[:3], decoder="sequential")]
    for batch_size in (3, 1):
        found = written(lm, batch_size, REQUESTS[:3], decoder="verified", num_drafts=3)
        assert [event.tokens for event in found] == plain


def test_right_drafts_save_calls_and_every_place_is_counted():
    lm = make("table")
    slow, quick = written(lm, 1, decoder="sequential"), written(lm, 1, decoder="verified", num_drafts=7)
    for before, after in zip(slow, quick, strict=True):
        ended = len(before.tokens) < 16
        assert before.nfe == 1 + len(before.tokens) + ended
        assert after.nfe < before.nfe
        assert after.processed % 4 == 0
        assert after.processed >= len(after.tokens)
        assert 0 < after.confidence <= 1
        assert after.confidence == pytest.approx(before.confidence, abs=1e-6)


def test_places_of_their_own_are_told_too():
    lm = make("table", absolute_places=True)
    plain = [event.tokens for event in written(lm, decoder="sequential")]
    assert [event.tokens for event in written(lm, 3, decoder="verified")] == plain


def test_a_window_answers_alone_too():
    lm = make("table", operator=WindowedConfig(radius=3))
    plain = [event.tokens for event in written(lm, decoder="sequential")]
    assert [event.tokens for event in written(lm, 3, decoder="verified")] == plain


def test_words_are_drafted_unless_that_is_refused_or_somebody_watches():
    class Watcher(Observer):
        calls = 0

        def logits(self, logits, settled):
            self.calls += 1
            return logits

    lm, watcher = make("table"), Watcher()
    assert written(lm, 1)[0].nfe < written(lm, 1, decoder="sequential")[0].nfe
    [event] = finished(lm.generate(REQUESTS[:1], observer=watcher))
    assert event.nfe == written(lm, 1, decoder="sequential")[0].nfe
    assert watcher.calls == event.nfe - 1


def test_what_cannot_be_verified_is_refused():
    plain, fourier = make_ar(), make_ar(operator=FourierConfig())
    with pytest.raises(UsageError, match="needs a drafter"):
        written(plain, decoder="verified")
    with pytest.raises(UsageError, match="needs attention, and this model's operator is fourier"):
        written(with_table(fourier), decoder="verified")
    assert written(fourier)[0].tokens == written(fourier, decoder="sequential")[0].tokens
    with pytest.raises(UsageError, match="num_drafts"):
        written(make("table"), decoder="sequential", num_drafts=3)
    with pytest.raises(UsageError, match="deferred decoder means nothing to autoregressive models; it is for masked"):
        written(plain, decoder="deferred")
    with pytest.raises(ConfigError, match="draft_horizon"):
        AutoregressiveConfig(draft_horizon=-1)


def test_drafts_of_a_text_are_told_as_it_is_committed():
    lm = make("table")
    events = [event for event in lm.generate(REQUESTS[:1])]
    drafts = [event.tokens for event in events if event.kind == "draft"]
    [done] = [event for event in events if event.kind == "done"]
    assert drafts
    assert all(done.tokens[: len(words)] == words for words in drafts)
    assert [len(words) for words in drafts] == sorted(len(words) for words in drafts)


@pytest.mark.parametrize("drafter", ["table", "recurrent"])
def test_a_folder_keeps_the_drafter(drafter, tmp_path):
    lm = make(drafter)
    lm.model.to(torch.bfloat16).float()  # as stored
    save_model(tmp_path / "m", lm, recipe={}, card="")
    again = load(tmp_path / "m", device="cpu")
    assert isinstance(again, AutoregressiveLM)
    ours, theirs = (written(x, 1, decoder="verified") for x in (lm, again))
    assert [(event.tokens, event.nfe) for event in ours] == [(event.tokens, event.nfe) for event in theirs]
    assert (tmp_path / "m" / "parts.safetensors").exists() == (drafter == "table")


def test_what_is_read_of_a_place_does_not_depend_on_what_is_read_beside_it():
    model = make_ar(max_text=64).model
    tokens = torch.randint(4, 300, (5, 56)).tolist()
    prompt = torch.randint(4, 300, (5, 15))
    memory = model.memory(prompt, torch.tensor([15, 3, 0, 7, 9]), torch.zeros(5, dtype=torch.long))
    with torch.no_grad():
        alone = CachedReader(model, memory.rows(torch.tensor([1])), 96)
        one = [alone([tokens[1][place : place + 4]], [place]) for place in range(52)]
        together = CachedReader(model, memory, 96)
        for start in (0, 4, 12, 20, 28, 36, 44):
            starts = [max(0, start - 4 * row) for row in (1, 0, 2, 3, 1)]
            told = together([tokens[row][begin : begin + 8] for row, begin in enumerate(starts)], starts)
            for ahead in range(8):
                if start + ahead < len(one):
                    assert torch.equal(told.logits[1, ahead], one[start + ahead].logits[0, 0])


@pytest.mark.parametrize("kind", CAUSAL)
def test_rows_of_any_operator_may_end_at_different_places(kind):
    lm = make_ar(operator=KINDS[kind](), max_text=12)
    with torch.no_grad():
        lm.model.embedding.weight[lm.model.end] *= (
            12 if kind == "linear" else 8
        )  # so that some end early and others do not
    alone = [event.tokens for event in written(lm, 1, temperature=1.0)]
    assert len({len(words) for words in alone}) > 1
    assert [event.tokens for event in written(lm, temperature=1.0)] == alone


def test_a_draft_has_a_word_to_be_told_wherever_it_begins():
    model = make_ar(draft_horizon=3).model
    for seed in range(30):
        loss = DraftLoss(places=1)(model, make_batch([1], vocab=300), torch.Generator().manual_seed(seed))
        assert loss.count == 1
        assert loss.total.requires_grad


def test_a_table_is_not_left_to_the_next_model_of_a_folder(tmp_path):
    save_model(tmp_path / "m", make("table"), recipe={}, card="")
    save_model(tmp_path / "m", make("recurrent"), recipe={}, card="")
    again = load(tmp_path / "m", device="cpu")
    assert isinstance(again, AutoregressiveLM)
    assert again.table is None


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_table_is_refused_by_its_name(tmp_path, damage):
    save_model(tmp_path / "m", make("table"), recipe={}, card="")
    file = tmp_path / "m" / "parts.safetensors"
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    with pytest.raises(ModelError, match=r"parts\.safetensors is missing or damaged"):
        load(tmp_path / "m", device="cpu")


def test_the_draft_loss_is_what_it_says():
    """One text, one place, two words ahead: by hand."""
    model = make_ar(draft_horizon=2).model
    model.requires_grad_(False).get_submodule("drafter").requires_grad_(True)
    batch, generator = make_batch([1], vocab=300), torch.Generator().manual_seed(0)
    loss = DraftLoss(places=3, decay=0.5)(model, batch, generator)
    given, words, _ = model.shifted(batch)
    drafter = model.drafter
    assert drafter is not None
    with torch.no_grad():
        memory = model.memory(batch.prompt, batch.prompt_lengths, torch.zeros(1, dtype=torch.long))
        hidden, read = model.hidden(given, memory), drafter.read(memory)
        _, logits = drafter.step(hidden[:, :1], words[:, :1], read)
    nats = -logits.float().log_softmax(-1)[0, 0, model.end]
    # Of the word and the end, only the word has a word after it; two ahead there is none.
    assert loss.total.item() == pytest.approx(nats.item(), abs=1e-5)
    assert float(loss.parts["nats_1"]) == pytest.approx(nats.item(), abs=1e-5)
    loss.total.backward()
    assert all((p.grad is not None) == name.startswith("drafter") for name, p in model.named_parameters())


@pytest.mark.parametrize(("lengths", "places"), [([5, 1, 9], 8), ([33, 31], 8), ([40, 60], 12), ([95], 24)])
def test_long_texts_are_gone_on_with_from_more_places(lengths, places):
    model = make_ar(draft_horizon=2, max_text=96).model
    batch = make_batch(lengths, vocab=300)
    told, same, other = (
        DraftLoss(*some)(model, batch, make_generator(3)).total.item() for some in ((), (places,), (places + 1,))
    )
    assert told == same != other


def test_the_draft_loss_is_the_weighted_mean_of_each_place_and_word_ahead():
    """Place by place and word by word, of texts of different lengths, as the same draws choose them."""
    model = make_ar(draft_horizon=3).model
    drafter = model.drafter
    assert drafter is not None
    batch = make_batch([5, 1, 9], vocab=300)
    loss = DraftLoss(places=6, decay=0.5)(model, batch, make_generator(4))
    drawn = torch.rand(3, 6, generator=make_generator(4))
    given, words, real = model.shifted(batch)
    with torch.no_grad():
        memory = model.memory(batch.prompt, batch.prompt_lengths, torch.zeros(3, dtype=torch.long))
        hidden, read = model.hidden(given, memory), drafter.read(memory)
        nats: dict[int, list[float]] = {1: [], 2: [], 3: []}
        for row in range(3):
            length = int(real[row].sum())  # words and the end
            for place in (int(share * (length - 1)) for share in drawn[row]):
                state = hidden[:, place : place + 1].clone()
                for ahead in (1, 2, 3):
                    if place + ahead >= length:
                        break
                    word = words[:, place + ahead - 1 : place + ahead]
                    state, logits = drafter.step(state, word, read)
                    told = logits[row, 0].float().log_softmax(-1)
                    nats[ahead].append(-float(told[words[row, place + ahead]]))
    means = {ahead: sum(values) / len(values) for ahead, values in nats.items()}
    expected = sum(0.5 ** (ahead - 1) * mean for ahead, mean in means.items()) / 1.75
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert loss.count == sum(map(len, nats.values())) and set(loss.parts) == {"nats_1", "nats_3"}
    for ahead in (1, 3):
        assert float(loss.parts[f"nats_{ahead}"]) == pytest.approx(means[ahead], rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_is_a_word_after_the_other_by_the_noise_of_its_place(temperature):
    model = make_ar(draft_horizon=3).model
    drafter = model.drafter
    assert drafter is not None
    memory = model.memory(torch.tensor([[5, 6], [7, 8]]), torch.tensor([2, 1]), torch.zeros(2, dtype=torch.long))
    hidden = torch.randn(2, 32, generator=make_generator(0))

    def chooser() -> Chooser:
        return Chooser(temperature=temperature, generators=[make_generator(seed) for seed in (3, 4)])

    told = Drafting([[5, 6], [7]], [[10, 11], [12]], hidden, [3, 1], chooser())
    drafter.begin(memory)
    found = drafter.draft(told)
    assert [len(row) for row in found] == [3, 1]
    choose, read = chooser(), drafter.read(memory)
    state, word = hidden[:, None], torch.tensor([[11], [12]])
    for ahead in range(3):
        state, logits = drafter.step(state, word, read)
        word = choose.words(logits.float(), [2 + ahead, 1 + ahead])
        assert found[0][ahead] == int(word[0]) and (ahead > 0 or found[1][0] == int(word[1]))
    assert drafter.draft(Drafting([[5], [7]], [[10], [12]], None, [3, 1], chooser())) == [[], []]
    assert drafter.draft(Drafting([[5], [7]], [[10], [12]], hidden, [0, 0], chooser())) == [[], []]


@torch.no_grad()
def test_a_drafter_begins_by_passing_its_state_on():
    """Before it is taught, the word before is not taken in, and the state is read as it is."""
    torch.manual_seed(0)
    model = AutoregressiveModel(AutoregressiveConfig(vocab_size=60, draft_horizon=2, **SMALL))
    drafter = model.drafter
    assert drafter is not None and drafter.horizon == 2
    assert not drafter.take.weight.any() and torch.equal(drafter.project.weight, torch.eye(32))
    for linear in (drafter.take, drafter.project):
        assert linear.bias is None
    random_weights(drafter)
    assert isinstance(drafter.cross, CrossAttention)
    memory = model.memory(torch.tensor([[5, 6]]), torch.tensor([2]), torch.tensor([0]))
    read, state, words = (
        drafter.read(memory),
        torch.randn(1, 3, 32),
        torch.tensor([[7, 8, 9]]),
    )

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    s = state + torch.cat([norm(state), model.embedding(words)], -1) @ drafter.take.weight.T
    s = s + drafter.cross(norm(s), read)
    s = s + drafter.mlp(norm(s))
    after, logits = drafter.step(state, words, read)
    torch.testing.assert_close(after, s, rtol=1e-3, atol=1e-4)
    expected = model.head(norm(s @ drafter.project.weight.T))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_drafter_learns_to_follow_its_model():
    lm = make_ar(draft_horizon=3, max_text=16)
    model, drafter = lm.model, lm.model.drafter
    assert drafter is not None
    model.requires_grad_(False)
    drafter.requires_grad_(True)
    texts = [list(event.tokens) for event in written(lm, decoder="sequential")]
    batch = make_batch([len(text) for text in texts], vocab=300)
    for row, text in enumerate(texts):
        batch.text[row, : len(text)] = torch.tensor(text)
    prompts = [lm.tokenizer.encode(prompt or "") for prompt in PROMPTS]
    width = max(map(len, prompts))
    prompt = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in prompts])
    batch = type(batch)(
        prompt=prompt,
        text=batch.text,
        tag=batch.tag,
        index=batch.index,
        prompt_lengths=torch.tensor([len(tokens) for tokens in prompts]),
        text_lengths=batch.text_lengths,
    )
    before = sum(event.nfe for event in written(lm, 1, num_drafts=3))
    optimizer, generator = torch.optim.Adam(drafter.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(70):
        optimizer.zero_grad()
        DraftLoss(places=8)(model, batch, generator).total.backward()
        optimizer.step()
    after = sum(event.nfe for event in written(lm, 1, num_drafts=3))
    assert after < 0.8 * before


def test_the_shape_says_whether_there_is_a_drafter():
    shape: dict[str, Any] = {"vocab_size": 64, "dim": 16, "heads": 2, "depth": 1}
    assert AutoregressiveModel(AutoregressiveConfig(**shape)).drafter is None
    net = AutoregressiveModel(AutoregressiveConfig(**shape, draft_horizon=5))
    assert net.drafter is not None
    assert not any("head" in name.split(".")[1] for name in net.state_dict() if name.startswith("drafter."))
