"""Noise that belongs to its text, in place of noise that is drawn afresh."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from manta.autoregressive.quantile import noise_of_words
from manta.errors import ConfigError
from manta.families.autoregressive import AutoregressiveModel
from manta.text import HUMAN, Batch


class Coupling:
    """Pairs a text with the noise that it has under a left-to-right model.

    A latent of r words has their noise in its first r channels, and fresh noise in the others. Given its noise a text
    is as good as determined, so that the flow from it is straight, and a text that is written from noise of its own has
    words that go together.

    Args:
        teacher: the left-to-right model; frozen.

    Source: Liu et al., arXiv 2209.03003, for couplings that straighten a flow; Parallel Token Prediction, arXiv
        2512.21323, for words as functions of their noise. Channels of a latent state are ours.
    """

    def __init__(self, teacher: AutoregressiveModel) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def __call__(
        self, batch: Batch, free: Bool[Tensor, "b"], shape: tuple[int, int, int], generator: torch.Generator
    ) -> Float[Tensor, "b m c"]:
        """The noise of each text, NaN where it is to be fresh.

        Args:
            batch: the texts, at the beginning of their canvases.
            free: rows whose texts are written from nothing. Human ones of these are coupled; answers are no draws.
            shape: rate, latents and channels of the state.
            generator: of where in its interval each word's noise lies.
        """
        rate, cells, channels = shape
        given, _, asked = self.teacher.shifted(batch)
        memory = self.teacher.memory(batch.prompt, batch.prompt_lengths, torch.full_like(batch.tag, HUMAN))
        logits, words = self.teacher(given, memory)[:, :-1].float(), batch.text.long()
        draws = torch.rand(words.shape, generator=generator).to(words.device)
        own = noise_of_words(logits, words, draws)
        ours = asked[:, 1:] & (free & (batch.tag == HUMAN))[:, None]
        own = own.masked_fill(~ours, torch.nan)[:, : cells * rate]
        own = F.pad(own, (0, cells * rate - own.shape[1]), value=torch.nan)
        return F.pad(own.view(-1, cells, rate), (0, channels - rate), value=torch.nan)

    @staticmethod
    def check(rate: int, channels: int) -> None:
        """Refuse a state that has no room for the noise of its words.

        Raises:
            ConfigError: as said.
        """
        if channels < rate:
            raise ConfigError(
                f"objective.coupling=teacher puts the noise of {rate} words into a latent, and it has {channels} "
                f"channels; set model.space.channels to {rate} or more"
            )
