"""The noise of words: what is drawn with it are those words again, and of drawn words it is standard normal."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from manta.autoregressive.quantile import noise_of_words, words_of_noise


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 0.5, 3.0]), size=st.integers(2, 40))
def test_words_are_drawn_again_with_their_noise(seed, scale, size):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, 5, size, generator=generator)
    words = torch.randint(size, (3, 5), generator=generator)
    chance = logits.double().softmax(-1).gather(-1, words[..., None])[..., 0]
    draws = torch.rand(3, 5, generator=generator).clamp(0.01, 0.99)
    again = words_of_noise(logits, noise_of_words(logits, words, draws))
    assert torch.equal(again[chance > 1e-3], words[chance > 1e-3])


def test_noise_of_drawn_words_is_standard_normal():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 12, generator=generator).expand(40_000, 12)
    words = torch.multinomial(logits[:1].softmax(-1)[0], 40_000, replacement=True, generator=generator)
    noise = noise_of_words(logits, words, torch.rand(40_000, generator=generator))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    below = torch.stack([(noise < cut).float().mean() for cut in (-1.0, 0.0, 1.0)])
    torch.testing.assert_close(below, torch.tensor([0.1587, 0.5, 0.8413]), atol=0.01, rtol=0)


def test_the_likeliest_word_has_the_lowest_noise():
    logits = torch.tensor([2.0, 0.0, 1.0])
    low, high = (words_of_noise(logits, torch.tensor(noise)) for noise in (-4.0, 4.0))
    assert int(low) == 0 and int(high) == 1
