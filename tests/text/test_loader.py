import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import CheckpointError, ConfigError
from manta.text import NULL, Batch, Corpus, Example, Loader, Tokenizer, build
from manta.text.loader import permutation

ROWS = 97


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    tokenizer = Tokenizer.train(["a b c d e f g"] * 5, 512)
    random = np.random.default_rng(0)
    examples = [
        Example(" ".join(random.choice(list("abcdefg"), 1 + i % 23)) + f" {i}", f"p {i % 11}") for i in range(80)
    ]
    examples += [Example(f"consensus {i}", f"p {i % 11}", 1) for i in range(10)] + [
        Example(f"prose {i}") for i in range(7)
    ]
    folder = tmp_path_factory.mktemp("corpus") / "c"
    assert build(examples, tokenizer, folder, max_prompt=16, max_text=64).rows == ROWS
    return Corpus.open(folder)


def epoch_of(loader):
    """The batches up to the end of the present epoch."""
    start = loader.epoch
    while loader.epoch == start:
        yield next(loader)


def equal(a: Batch, b: Batch) -> bool:
    parts = [(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__]
    return all(ours is theirs if ours is None else torch.equal(ours, theirs) for ours, theirs in parts)


# The permutation


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutation_is_one(size, key):
    values = permutation(np.arange(size), size, key)
    assert sorted(values.tolist()) == list(range(size))


def test_permutation_of_a_part_is_the_part_of_the_permutation():
    whole = permutation(np.arange(1000), 1000, 5)
    np.testing.assert_array_equal(permutation(np.array([7, 999, 0]), 1000, 5), whole[[7, 999, 0]])


def test_permutation_needs_no_memory_of_its_size():
    values = permutation(np.arange(10), 10**12, 3)
    assert len(set(values.tolist())) == 10
    assert values.max() > 10**11


@pytest.mark.parametrize("size", [5, 48])
def test_permutation_is_fair(size):
    """Where the first element goes, and whether two keep their order, over many keys: χ² within 5 deviations."""
    keys = 400
    tables = np.array([permutation(np.arange(size), size, key) for key in range(keys)])
    for position in (0, size - 1):
        counts = np.bincount(tables[:, position], minlength=size)
        chi2 = ((counts - keys / size) ** 2 / (keys / size)).sum()
        assert abs(chi2 - (size - 1)) < 5 * np.sqrt(2 * (size - 1))
    assert abs((tables[:, 0] < tables[:, 1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(keys)


# Batches


def test_each_epoch_visits_every_row_once_in_its_own_order(corpus):
    loader = Loader(corpus, batch_tokens=128, seed=1, pool=16)
    orders = [[int(i) for batch in epoch_of(loader) for i in batch.index] for _ in range(3)]
    assert all(sorted(order) == list(range(ROWS)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert set(orders[0][:16]) != set(orders[1][:16])
    assert orders[0] == [int(i) for b in epoch_of(Loader(corpus, batch_tokens=128, seed=1, pool=16)) for i in b.index]
    assert orders[0] != [int(i) for b in epoch_of(Loader(corpus, batch_tokens=128, seed=2, pool=16)) for i in b.index]


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_batches_hold_their_rows_within_the_budget(corpus, multiple):
    loader = Loader(corpus, batch_tokens=160, multiple=multiple, pool=32)
    sizes = set()
    for batch in epoch_of(loader):
        b, n = batch.text.shape
        p = batch.prompt.shape[1]
        sizes.add(b)
        assert b == 1 or b * (n + p) <= 160
        assert n % multiple == 0
        assert n - int(batch.text_lengths.max()) < multiple
        assert p == int(batch.prompt_lengths.max())
        for row, index in enumerate(batch.index.tolist()):
            length, prompt_length = int(batch.text_lengths[row]), int(batch.prompt_lengths[row])
            assert batch.text[row, :length].tolist() == corpus.text(index).tolist()
            assert batch.prompt[row, :prompt_length].tolist() == corpus.prompt(index).tolist()
            assert (batch.text[row, length:] == NULL).all()
            assert (batch.prompt[row, prompt_length:] == NULL).all()
            assert batch.tag[row] == corpus.tags[index]
    assert len(sizes) > 1


def test_a_row_over_the_budget_comes_alone(corpus):
    assert {len(batch) for batch in epoch_of(Loader(corpus, batch_tokens=1))} == {1}


def test_bigger_pools_pad_less(corpus):
    def padding(pool):
        batches = list(epoch_of(Loader(corpus, batch_tokens=200, pool=pool)))
        return sum(b.text.numel() for b in batches) / sum(int(b.text_lengths.sum()) for b in batches)

    assert padding(ROWS) < padding(10) - 0.05
    assert padding(ROWS) < 1.15


# The position


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 40), st.sampled_from([7, 32, 97, 500]), st.sampled_from([None, 0.5]), st.integers(0, 3))
def test_resumed_equals_uninterrupted(corpus, steps, pool, tag_share, seed):
    settings: dict[str, Any] = {"batch_tokens": 400, "multiple": 4, "pool": pool, "tag_share": tag_share, "seed": seed}
    through = Loader(corpus, **settings)
    for _ in range(steps):
        next(through)
    state = json.loads(json.dumps(through.state_dict()))
    resumed = Loader(corpus, **settings)
    next(resumed)
    resumed.load_state_dict(state)
    for _ in range(10):
        assert equal(next(through), next(resumed))
    assert through.state_dict() == resumed.state_dict()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(0, 60), st.sampled_from([7, 32, 97]), st.sampled_from([None, 0.5]))
def test_skipping_stands_where_as_many_batches_would(corpus, first, count, pool, tag_share):
    settings: dict[str, Any] = {"batch_tokens": 400, "multiple": 4, "pool": pool, "tag_share": tag_share, "seed": 2}
    read, skipped = Loader(corpus, **settings), Loader(corpus, **settings)
    for loader in (read, skipped):
        for _ in range(first):
            next(loader)
    for _ in range(count):
        next(read)
    skipped.skip(count)
    assert skipped.state_dict() == read.state_dict()
    assert all(equal(next(skipped), next(read)) for _ in range(4))


def test_skipping_reads_no_tokens(corpus, monkeypatch):
    loader, last = Loader(corpus, batch_tokens=128, pool=16), Loader(corpus, batch_tokens=128, pool=16)
    batches = [next(last) for _ in range(40)]
    with monkeypatch.context() as without:
        without.setattr(Corpus, "text", None)
        loader.skip(39)
    assert equal(next(loader), batches[39])


def test_a_position_in_another_order_is_refused(corpus):
    state = Loader(corpus, batch_tokens=100).state_dict()
    with pytest.raises(CheckpointError, match="seed=0 then, 1 now"):
        Loader(corpus, batch_tokens=100, seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="damaged"):
        Loader(corpus, batch_tokens=100).load_state_dict({"epoch": 1})


# Tags


def test_tag_share_holds_and_every_row_of_a_tag_comes_equally_often(corpus):
    loader = Loader(corpus, batch_tokens=200, pool=20, tag_share=0.5)
    seen = Counter()
    for epoch in range(1, 5):
        tags = torch.cat([batch.tag for batch in epoch_of_counting(loader, seen)])
        assert len(tags) == ROWS
        assert int(tags.sum()) == round(0.5 * ROWS)
        for tag, drawn in ((1, epoch * round(0.5 * ROWS)), (0, epoch * (ROWS - round(0.5 * ROWS)))):
            counts = [seen[i] for i in range(ROWS) if corpus.tags[i] == tag]
            assert sum(counts) == drawn
            assert max(counts) - min(counts) <= 1


def epoch_of_counting(loader, seen):
    for batch in epoch_of(loader):
        seen.update(batch.index.tolist())
        yield batch


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_tag_alone(corpus, share):
    tags = torch.cat([batch.tag for batch in epoch_of(Loader(corpus, batch_tokens=200, tag_share=share))])
    assert len(tags) == ROWS
    assert (tags == share).all()


def test_tag_share_without_both_tags_changes_nothing(tmp_path):
    tokenizer = Tokenizer.train(["a b c"] * 5, 512)
    build([Example(f"a {i}") for i in range(20)], tokenizer, tmp_path / "c", max_prompt=0, max_text=8)
    corpus = Corpus.open(tmp_path / "c")
    order = [b.index.tolist() for b in epoch_of(Loader(corpus, batch_tokens=20))]
    assert order == [b.index.tolist() for b in epoch_of(Loader(corpus, batch_tokens=20, tag_share=0.5))]
    assert next(Loader(corpus, batch_tokens=20)).prompt.shape[1] == 0


@pytest.mark.parametrize("wrong", [{"batch_tokens": 0}, {"multiple": 0}, {"pool": 0}, {"seed": -1}, {"tag_share": 1.5}])
def test_numbers_out_of_range(corpus, wrong):
    with pytest.raises(ConfigError, match="give a"):
        Loader(corpus, **{"batch_tokens": 10, **wrong})
