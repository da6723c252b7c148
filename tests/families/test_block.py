"""Block-causal models: left to right at one end, masked at the other, and the same with and without a cache between."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from manta.config import from_dict
from manta.errors import ConfigError, RequestError, UsageError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel, NextToken
from manta.families.batching import to_batch
from manta.families.block import BlockCausalLM, BlockMatching, _Text
from manta.families.block_model import BlockCausalConfig, BlockCausalModel, BlockReader
from manta.families.canvas import Piece, Template, parse_template
from manta.families.events import GenerateOptions, Request
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.observer import Observer
from manta.hub import load
from manta.masked import Canvas, DeferredConfig, Extension, ExtensionConfig, MaskedObjectiveConfig
from manta.operators import LinearConfig, WindowedConfig
from manta.recipes import Recipe, TrainingRun
from manta.runtime import make_generator
from manta.text import MASK, NULL, Tokenizer
from manta.training import Progress

SHAPE: dict[str, Any] = {"dim": 16, "heads": 2, "depth": 2, "prompt_depth": 1, "max_prompt": 12, "max_text": 40}
WORDS = "rain and sun over the hill in the morning, wind and snow later; cold by night."
PROMPTS = ["rain", "", "sun over the", "wind and snow"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 3, 512)


def randomised(net: Any, seed: int = 0) -> Any:
    """Weights away from where they begin, so that nothing is hidden by a zero."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.5)
    return net.eval()


def model(size: int, length: int, **changes: Any) -> BlockCausalModel:
    return randomised(BlockCausalModel(BlockCausalConfig(vocab_size=size, block_length=length, **{**SHAPE, **changes})))


def batch_of(size: int, lengths: tuple[int, ...] = (9, 4, 17)) -> Any:
    generator = make_generator(3)
    rows = [torch.randint(4, size, (n,), generator=generator).tolist() for n in lengths]
    return to_batch([[5, 6, 7], [], [9]], rows)


def of_autoregressive(source: AutoregressiveModel) -> BlockCausalModel:
    """A model of blocks of one word with the weights of one from left to right."""
    shape = BlockCausalConfig(vocab_size=source.config.vocab_size, block_length=1, **SHAPE)
    net = BlockCausalModel(shape)
    missing = net.load_state_dict(source.state_dict(), strict=False)
    assert missing.missing_keys == ["own.weight"] and not missing.unexpected_keys
    return net.eval()


def test_blocks_of_one_word_are_left_to_right(tokenizer):
    """Equal weights have the same loss, the same likelihoods and the same texts."""
    source = randomised(AutoregressiveModel(AutoregressiveConfig(vocab_size=tokenizer.vocab_size, **SHAPE)))
    net, batch = of_autoregressive(source), batch_of(tokenizer.vocab_size)
    ours = BlockMatching(MaskedObjectiveConfig())(net, batch, make_generator(0))
    theirs = NextToken()(source, batch, make_generator(0))
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-5, atol=1e-5)
    block, causal = BlockCausalLM(net, tokenizer), AutoregressiveLM(source, tokenizer)
    generators = [make_generator(row) for row in range(3)]
    found = block.log_likelihood(batch, generators)
    torch.testing.assert_close(found.value, causal.log_likelihood(batch).value, rtol=1e-5, atol=1e-4)
    assert found.standard_error is not None and float(found.standard_error.max()) == 0
    requests = [Request(prompt=prompt) for prompt in PROMPTS]
    texts = [[e for e in lm.generate(requests) if e.kind == "done"] for lm in (block, causal)]
    for mine, other in zip(*(sorted(events, key=lambda e: e.index) for events in texts), strict=True):
        assert mine.tokens == other.tokens and mine.nfe == len(mine.tokens) + 1 + (len(mine.tokens) < 40)


def test_one_block_for_the_whole_text_is_a_masked_model():
    masked = randomised(MaskedModel(MaskedConfig(vocab_size=50, **SHAPE)))
    net = BlockCausalModel(BlockCausalConfig(vocab_size=50, block_length=16, shifted=False, **SHAPE))
    missing = net.load_state_dict({k: v for k, v in masked.state_dict().items() if "length." not in k}, strict=False)
    assert missing.missing_keys == ["inside.weight"] and not missing.unexpected_keys
    assert net.inside is not None
    torch.nn.init.zeros_(net.inside.weight)
    tokens = torch.randint(4, 50, (3, 16), generator=make_generator(1))
    shown = tokens.masked_fill(torch.rand(3, 16, generator=make_generator(2)) < 0.5, MASK)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    memory = masked.memory(tokens[:, :4], torch.tensor([4, 0, 2]), torch.tensor([0, 0, 0]))
    projected = masked.trunk.project(memory.states, memory.mask)
    with torch.no_grad():
        torch.testing.assert_close(net(tokens, shown, mask, projected), masked(shown, mask, projected))


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("length", [1, 3, 4, 8])
def test_one_pass_over_both_copies_tells_what_block_after_block_tells(length, shifted):
    net = model(60, length, shifted=shifted)
    clean = torch.randint(4, 60, (3, 24), generator=make_generator(1))
    shown = clean.masked_fill(torch.rand(3, 24, generator=make_generator(2)) < 0.6, MASK)
    memory = net.memory(clean[:, :5], torch.tensor([5, 3, 0]), torch.tensor([0, 0, 0]))
    with torch.no_grad():
        told = net(
            clean, shown, torch.ones_like(clean, dtype=torch.bool), net.trunk.project(memory.states, memory.mask)
        )
        reader = BlockReader(net, memory, 24)
        for begin in range(0, 24, length):
            part = slice(begin, begin + length)
            logits = reader(shown[:, part], 0, length)
            torch.testing.assert_close(logits, told[:, part], rtol=1e-4, atol=1e-5)
            reader.settle(clean[:, part])


@pytest.mark.parametrize("length", [1, 3, 8])
def test_what_is_kept_changes_nothing_to_the_last_bit(length):
    net = model(60, length)
    clean = torch.randint(4, 60, (3, 24), generator=make_generator(1))
    with torch.no_grad():
        memory = net.memory(clean[:, :5], torch.tensor([5, 3, 0]), torch.tensor([0, 0, 0]))
        reader = BlockReader(net, memory, 24)
        for begin in range(0, 24, length):
            tokens = clean[:, begin : begin + length].clone()
            tokens[:, ::2] = MASK
            reader(torch.full_like(tokens, MASK), 0, length)  # the first call, with the clean block before
            kept = reader(tokens, 0, length)
            anew = BlockReader(net, memory, 24)
            anew.settled = reader.settled
            assert torch.equal(anew(tokens, 0, length), kept)
            reader.settle(clean[:, begin : begin + length])


def test_later_words_change_nothing_before_them():
    net = model(60, 4)
    clean = torch.randint(4, 60, (2, 16), generator=make_generator(1))
    other = torch.cat([clean[:, :8], clean[:, 8:].flip(1)], 1)
    mask, memory = torch.ones_like(clean, dtype=torch.bool), net.memory(clean[:, :0], clean[:, 0] * 0, clean[:, 0] * 0)
    projected, hidden = net.trunk.project(memory.states, memory.mask), torch.full_like(clean, MASK)
    with torch.no_grad():
        told, changed = (net(row, hidden, mask, projected) for row in (clean, other))
    assert torch.equal(told[:, :12], changed[:, :12])  # the third block has the same two before it
    assert not torch.equal(told[:, 12:], changed[:, 12:])


def written(lm: BlockCausalLM, requests: list[Request], options: GenerateOptions, size: int) -> dict[int, Any]:
    return {e.index: e for e in lm.generate(requests, options, batch_size=size) if e.kind == "done"}


@pytest.mark.parametrize("decoder", ["threshold", "deferred", "confidence", "block", "remask", "first_hitting"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_the_same_alone_and_in_a_batch(decoder, temperature, tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    options = GenerateOptions(decoder=decoder, temperature=temperature, max_tokens=18, block_steps=3)
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    together, alone = (written(lm, requests, options, size) for size in (4, 1))
    assert [together[i].tokens for i in range(4)] == [alone[i].tokens for i in range(4)]
    assert [together[i].nfe for i in range(4)] == [alone[i].nfe for i in range(4)]
    assert [together[i].processed for i in range(4)] == [alone[i].processed for i in range(4)]
    assert all(event.nfe <= 1 + 3 * 5 and len(event.tokens) <= 18 for event in together.values())


DEFERRED: dict[str, Any] = {"decoder": "deferred", "max_tokens": 18, "threshold": 0.99}


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_whose_blocks_reach_as_far_as_they_need_do_not_see_each_other(steps, temperature, tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    options = GenerateOptions(**DEFERRED, block_steps=steps, temperature=temperature)
    options = replace(options, block_extension=6, extension_step=3, extension_below=0.6)
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    together, alone = (written(lm, requests, options, size) for size in (4, 1))
    for index in range(4):
        one, other = together[index], alone[index]
        assert (one.tokens, one.nfe, one.processed) == (other.tokens, other.nfe, other.processed)
        assert one.chances == other.chances and MASK not in one.tokens
        assert one.nfe <= 1 + (5 * (steps or 4) if steps else 5 * (4 + 6 + 2))


def test_a_block_that_may_not_grow_is_written_as_before_and_one_that_may_is_not(tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    requests = [Request(prompt=prompt) for prompt in PROMPTS]
    plain = written(lm, requests, GenerateOptions(**DEFERRED), 4)
    grown: dict[str, Any] = {**DEFERRED, "block_extension": 4}
    never = written(lm, requests, GenerateOptions(**grown, extension_below=0.0), 4)
    always = written(lm, requests, GenerateOptions(**grown, extension_below=2.0), 4)
    told = [[(e.tokens, e.nfe, e.processed, e.chances) for e in found.values()] for found in (plain, never, always)]
    assert told[0] == told[1] and told[0] != told[2]


def test_the_places_that_a_block_reaches_are_one_with_it_and_others_do_not_see_them():
    net = model(60, 4)
    clean = torch.randint(4, 60, (3, 16), generator=make_generator(1))

    def told(tokens: torch.Tensor, extra: list[int], wide: int) -> torch.Tensor:
        """Logits of the second block, four places wide and `wide` more."""
        reader = BlockReader(net, net.memory(clean[:, :5], torch.tensor([5, 3, 0]), torch.tensor([0, 0, 0])), 16)
        reader(tokens[:, :4], 0, 4)
        reader.settle(tokens[:, :4])
        ahead = Extension(ExtensionConfig(most=8), DeferredConfig(), 3, 4, mask_id=MASK, end_id=net.end)
        ahead.extra = torch.tensor(extra)
        return reader(tokens[:, 4 : 8 + wide], 0, 4 + wide, ahead)

    with torch.no_grad():
        alone, beside = told(clean, [0, 0, 0], 0), told(clean, [0, 3, 8], 8)
        assert torch.equal(beside[0, :4], alone[0]) and torch.equal(beside[1, :7], told(clean, [3, 3, 3], 3)[1])
        assert not torch.equal(beside[1, :4], alone[1])
        other = clean.clone()
        other[:, 9] = 5 + other[:, 9] % 50
        changed = told(other, [0, 3, 8], 8)
        assert torch.equal(changed[0, :4], alone[0]) and not torch.equal(changed[1, 0], beside[1, 0])


def test_a_text_may_be_longer_than_any_that_was_learned(tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 8), tokenizer)
    with torch.no_grad():
        lm.model.embedding.weight[lm.model.end] = 0  # such a model hardly ever ends
    events = list(lm.generate([Request(prompt="rain")], GenerateOptions(max_tokens=300, block_steps=2)))
    done = events[-1]
    assert done.kind == "done" and len(done.tokens) == 300
    assert done.nfe == 1 + 2 * 38 and done.processed == 38 * 16 + 37 * 8
    drafts = [event for event in events if event.kind == "draft"]
    assert max(len(event.tokens) for event in drafts) == 300
    assert len(drafts) == 76
    for earlier, later in itertools.pairwise(drafts):  # what is settled never changes
        settled = len(earlier.tokens) // 8 * 8 - 8
        assert later.tokens[:settled] == earlier.tokens[:settled]


def test_every_block_counts_and_a_whole_block_of_padding_does_not():
    net, config = model(60, 4), MaskedObjectiveConfig()
    batch = batch_of(60)
    clean, mask = net.in_blocks(batch)
    assert clean.shape == (3, 32) and mask.sum(1).tolist() == [12, 8, 20]
    assert clean[1, 4:8].tolist() == [net.end] * 4
    loss = BlockMatching(config)(net, batch, make_generator(0))
    assert loss.count == 40 and torch.isfinite(loss.total)
    longer = to_batch([[5, 6, 7]], [batch.text[0, :9].tolist()])
    lm = BlockCausalLM(net, Tokenizer.train([WORDS], 512))
    apart = lm.log_likelihood(longer, [make_generator(5)], 4).value
    beside = lm.log_likelihood(batch, [make_generator(5), make_generator(6), make_generator(7)], 4).value
    assert torch.equal(apart[0], beside[0])


def test_only_operators_that_compare_pairs_follow_blocks():
    BlockCausalModel(BlockCausalConfig(vocab_size=20, **SHAPE, operator=WindowedConfig(radius=3)))
    with pytest.raises(ConfigError, match="blocks need attention"):
        BlockCausalModel(BlockCausalConfig(vocab_size=20, **SHAPE, operator=LinearConfig()))
    with pytest.raises(ConfigError, match="block_length should be at least 1"):
        BlockCausalConfig(block_length=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_steps": 4}, "means nothing to block-causal models"),
        ({"cache": "dual"}, "means nothing to block-causal models"),
        ({"choose": 2}, "there is one text to choose from"),
        ({"decoder": "sequential"}, "means nothing to block-causal models"),
        ({"window_width": 3}, "has no setting window_width"),
        (
            {"block_extension": 4},
            "the threshold decoder ends with its block, and `block_extension`",
        ),
        ({"decoder": "deferred", "extension_step": 2}, "is for blocks that may grow; set `block_extension`"),
        ({"decoder": "deferred", "block_extension": 4, "confidence": "entropy"}, "set `extension_below`"),
        (
            {"decoder": "first_hitting", "temperature": 1.0, "ends_last": True},
            "an end is a word like any other; leave `ends_last` out",
        ),
        ({"decoder": "deferred", "extension_below": 0.5}, "`extension_below` is for blocks that may grow"),
    ],
)
def test_options_of_others_are_refused(options, said, tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    with pytest.raises(UsageError, match=said):
        list(lm.generate([Request(prompt="rain")], GenerateOptions(**options)))


BLANKS = ["rain and ___{3} over the ___{2}, wind", "___{5} in the morning", "wind and snow ___", "rain ___{9}."]


@pytest.mark.parametrize("decoder", ["threshold", "deferred", "confidence", "first_hitting"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_blanks_are_filled_alike_alone_and_beside_others_and_keep_what_is_given(decoder, temperature, tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    with torch.no_grad():
        lm.model.embedding.weight[lm.model.end] *= 3  # so that some would end early
    options = GenerateOptions(decoder=decoder, temperature=temperature, block_steps=3)
    if decoder == "deferred":
        options = replace(options, block_extension=4, extension_below=2.0)
    asked = [Request(prompt=PROMPTS[i], infill=text, seed=i) for i, text in enumerate(BLANKS)]
    requests = [*asked, Request(prompt="rain", seed=9)]
    together, alone = (written(lm, requests, options, size) for size in (8, 1))
    for index, text in enumerate(BLANKS):
        one, other = together[index], alone[index]
        assert (one.tokens, one.nfe, one.processed, one.text) == (other.tokens, other.nfe, other.processed, other.text)
        template = parse_template(text, tokenizer, rate=1, max_cells=41)
        given, said = template.tokens[:-1].tolist(), list(one.tokens)
        last = max((place for place, token in enumerate(given) if token != MASK), default=0)
        assert len(given) >= len(said) > last and MASK not in said and lm.model.end not in said
        kept = [(place, token) for place, token in enumerate(given) if token != MASK]
        assert [(place, said[place]) for place, _ in kept] == kept
        assert all(one.chances[place] == 1 for place, _ in kept)
        for piece in text.replace("{3}", "").replace("{2}", "").replace("{5}", "").replace("{9}", "").split("___"):
            assert piece.strip() in one.text
    assert together[4].tokens == alone[4].tokens


def test_a_blank_sees_what_is_given_in_its_block_and_before_and_nothing_of_later_blocks(tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    given = [MASK if place in (5, 6) else 280 + place for place in range(16)]

    def filled(changed: int | None) -> tuple[float, ...]:
        tokens = torch.tensor([270 if place == changed else token for place, token in enumerate(given)])
        blanks = (Piece("", 2), Piece("", 0))
        template = Template(torch.cat([tokens, torch.tensor([NULL])]), blanks)
        row = ([5, 6], template, 0)
        [done] = [e for e in lm.write_rows([row], GenerateOptions(), 1, Observer()) if e.kind == "done"]
        assert [t for place, t in enumerate(done.tokens) if place not in (5, 6)] == tokens[tokens != MASK].tolist()
        return done.chances[5:7]

    assert len({filled(place) for place in (None, 8, 11, 15)}) == 1
    assert all(filled(place) != filled(None) for place in (3, 4, 7))


def test_a_block_without_a_blank_takes_no_call_and_words_to_change_are_refused(tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4, absolute_places=True), tokenizer)
    words = "rain and sun over the hill in the morning"
    number = len(tokenizer.encode(words))
    [done] = written(lm, [Request(infill=f"{words} ___{{1}}")], GenerateOptions(), 1).values()
    assert done.nfe == 2 and done.text.startswith(words) and len(done.tokens) in (number, number + 1)
    assert done.processed == -(-(number + 1) // 4) * 4, "what stands before is read once, with the block of the blank"
    [refused] = lm.generate([Request(infill="rain [[and]] sun")])
    assert refused.kind == "failed" and "fills blanks ___; words [[…]] to change are for" in str(refused.error)
    [long] = lm.generate([Request(infill="rain ___{41}")])
    assert long.kind == "failed" and isinstance(long.error, RequestError)
    [whole] = written(lm, [Request(infill="___{40}")], GenerateOptions(), 1).values()
    assert len(whole.tokens) <= 40


def test_whoever_watches_sees_the_text_so_far_and_changes_the_block_that_is_written(tokenizer):
    lm, word = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer), 300

    class Watching(Observer):
        """Wants one word at place 5, and puts another at place 2 after the second call."""

        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []
            self.calls: list[list[int]] = []

        def logits(self, logits: torch.Tensor, settled: torch.Tensor) -> torch.Tensor:
            self.seen.append((logits.shape[1], int((settled[:, :-4] == MASK).sum())))
            assert not logits[:, :-4].any(), "nothing is told of words that are settled"
            logits = logits.clone()
            if logits.shape[1] == 8:
                logits[:, 5, word] = 1e4
            return logits

        def settled(self, page: Canvas) -> None:
            self.calls.append([page.calls, *page.calls_of.tolist()])
            if page.calls == 2:
                page.tokens[:, 2] = word + 1

    watching, requests = Watching(), [Request(prompt=prompt) for prompt in PROMPTS[:2]]
    options = GenerateOptions(max_tokens=12, block_steps=2)
    done = [event for event in lm.generate(requests, options, watching) if event.kind == "done"]
    assert watching.seen == [(4, 0), (4, 0), (8, 0), (8, 0), (12, 0), (12, 0)]
    assert watching.calls == [[k, k, k] for k in range(1, 7)]
    assert [event.tokens[2] for event in done] == [word + 1] * 2 and [event.tokens[5] for event in done] == [word] * 2
    [plain, _] = written(lm, requests, options, 2).values()
    [quiet, _] = [e for e in lm.generate(requests, options, Observer()) if e.kind == "done"]
    assert quiet == plain and plain.tokens[2] != word + 1


@pytest.mark.parametrize("decoder", ["threshold", "deferred"])
def test_ends_that_settle_last_leave_the_words_of_their_block(decoder, tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 8), tokenizer)
    requests = [Request(prompt=prompt) for prompt in PROMPTS]
    options = GenerateOptions(decoder=decoder, max_tokens=16)
    early, late = (written(lm, requests, replace(options, ends_last=last), 4) for last in (False, True))
    assert sum(len(event.tokens) for event in late.values()) > sum(len(event.tokens) for event in early.values())
    alone = written(lm, requests, replace(options, ends_last=True), 1)
    assert all(alone[i].tokens == late[i].tokens and alone[i].nfe == late[i].nfe for i in range(4))


def test_absolute_places_end(tokenizer):
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4, absolute_places=True), tokenizer)
    with pytest.raises(UsageError, match="knows 40 absolute places"):
        list(lm.generate([Request(prompt="rain")], GenerateOptions(max_tokens=41)))


@pytest.mark.parametrize("warm", [False, True])
def test_it_is_trained_from_nothing_or_from_a_left_to_right_model(warm, tmp_path):
    common = {"data": "builtin:weather", "num_examples": 80, "vocab_size": 512, "batch_tokens": 400, "size": "nano"}
    small = {"dim": 32, "depth": 2, "heads": 2, "prompt_depth": 1}
    recipe: dict[str, Any] = {**common, "num_steps": 30, "family": "block", "block": {**small, "block_length": 4}}
    if warm:
        given = {**common, "num_steps": 60, "family": "ar", "teacher": small}
        for _ in TrainingRun(from_dict(Recipe, given), tmp_path / "ar", device="cpu").events():
            pass
        recipe |= {"taught_by": str(tmp_path / "ar"), "warm_start": True, "consensus": "none"}
    run = TrainingRun(from_dict(Recipe, recipe), tmp_path / "run", device="cpu")
    totals = [event.loss for event in run.events() if isinstance(event, Progress)]
    assert sum(totals[-5:]) < sum(totals[:5])
    lm = load(tmp_path / "run", device="cpu")
    assert isinstance(lm, BlockCausalLM) and len(lm.write(["Monday"], block_steps=2)) == 1


def test_what_is_told_of_a_text_by_hand(tokenizer):
    """Blocks of four: two whole ones, then one with an end; then a text that is cut at its room."""
    lm = BlockCausalLM(model(tokenizer.vocab_size, 4), tokenizer)
    end = lm.model.end

    def canvas(words: list[int], sure: list[float], calls: int) -> Canvas:
        given, free = torch.tensor([[0] * 4, words]), torch.ones(2, 4, dtype=torch.bool)
        told = torch.tensor([[0.0] * 4, sure], dtype=torch.float64)
        return Canvas(given, free, given == MASK, told, calls_of=torch.tensor([9, calls]))

    text = _Text(lm, 40)
    drafted = text.draft(1, canvas([5, MASK, 7, end], [0.5] * 4, 2))
    assert (drafted.kind, drafted.tokens, drafted.nfe, drafted.t) == ("draft", (5, MASK, 7), 3, 0.0)
    assert drafted.text == tokenizer.decode([5, 7]).strip() and drafted.confidence == 0
    assert not text.settle(canvas([5, 6, 7, 8], [0.5, 0.25, 2.0, 1.0], 3), 1, 12)
    assert (text.words, text.nfe, text.processed) == ([5, 6, 7, 8], 4, 12)
    assert not text.settle(canvas([9, 10, 11, 12], [0.75] * 4, 2), 1, 8)
    assert (text.nfe, text.processed) == (6, 12 + 8 + 4), "the block before is read again"
    assert text.draft(1, canvas([13, MASK, end, end], [0.5] * 4, 1)).tokens == (5, 6, 7, 8, 9, 10, 11, 12, 13, MASK)
    assert text.settle(canvas([13, end, 14, 15], [0.25] * 4, 1), 1, 4) and text.ended
    done = text.event("done", 6, text.words)
    assert (done.index, done.tokens, done.t) == (6, (5, 6, 7, 8, 9, 10, 11, 12, 13), 1.0)
    assert done.confidence == pytest.approx((0.5 + 0.25 + 1 + 1 + 4 * 0.75 + 0.25) / 9)
    late = _Text(lm, 40)
    late.settle(canvas([5, 6, 7, 8], [1.0] * 4, 2), 1, 16)
    late.settle(canvas([9, 10, 11, 12], [1.0] * 4, 0), 1, 0)
    assert (late.nfe, late.processed) == (3, 16), "a block that the one before has written takes no call"
    late.settle(canvas([13, 14, 15, 16], [1.0] * 4, 1), 1, 4)
    assert (late.nfe, late.processed) == (4, 16 + 4 + 8), "and is read again with it"
    cut = _Text(lm, 6)
    cut.settle(canvas([5, 6, 7, 8], [1.0] * 4, 1), 1, 4)
    assert cut.draft(1, canvas([9, 10, 11, MASK], [0.5] * 4, 1)).tokens == (5, 6, 7, 8, 9, 10)
    assert cut.settle(canvas([9, 10, 11, 12], [0.5, 0.5, 0.0, 0.0], 1), 1, 4) and cut.words == [5, 6, 7, 8, 9, 10]
    assert cut.event("done", 0, cut.words).confidence == pytest.approx(5 / 6)
    exact = _Text(lm, 4)
    assert exact.settle(canvas([5, 6, 7, 8], [1.0] * 4, 1), 1, 4), "no room is left"


def test_texts_are_laid_out_in_whole_blocks_with_an_end_at_least():
    for length, lengths, blocks, width in (
        (4, (7, 8, 3), (2, 3, 1), 16),
        (3, (16, 47, 1), (6, 16, 1), 48),
        (1, (16,), (17,), 32),
    ):
        rows = [list(range(4, 4 + n)) for n in lengths]
        net = model(60, length)
        tokens, mask = net.in_blocks(to_batch([[]] * len(rows), rows))
        assert tokens.shape[1] == width and mask.sum(1).tolist() == [n * length for n in blocks]
        for row, text in enumerate(rows):
            assert tokens[row].tolist() == [*text, *[net.end] * (width - len(text))]
            assert mask[row].tolist() == [place < blocks[row] * length for place in range(width)]


def test_a_fresh_model_reads_the_word_before_and_its_place_in_the_block():
    torch.manual_seed(0)
    net = BlockCausalModel(BlockCausalConfig(vocab_size=60, block_length=3, **SHAPE))
    assert net.own is not None and not net.own.weight.any() and net.own.bias is None
    assert net.inside is not None and 0.05 < float(net.inside.weight.std()) < 0.15
    tokens, before = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 5, 6, 7]])
    with torch.no_grad():
        read = net.read(tokens, before, 4)
        for place in range(4):
            expected = net.embedding.weight[before[0, place]] + net.inside.weight[(4 + place) % 3]
            torch.testing.assert_close(read[0, place], expected)
    assert BlockCausalModel(BlockCausalConfig(vocab_size=60, block_length=1, **SHAPE)).inside is None
    for text, prompt, places in ((40, 12, 43), (8, 30, 30)):
        shape = {**SHAPE, "max_text": text, "max_prompt": prompt, "absolute_places": True}
        told = BlockCausalModel(BlockCausalConfig(vocab_size=60, block_length=3, **shape)).places
        assert told is not None and told.num_embeddings == places
