"""Drafts by a small recurrent net that begins from what the model's last word was read from."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.autoregressive import Drafter, Drafting
from manta.families.prompted import PromptedModel
from manta.nets.blocks import SwiGLU
from manta.operators.cross_attention import CrossAttention, ProjectedMemory
from manta.operators.normalise import rms_normalise
from manta.text import Batch
from manta.types import Loss

LEAST_PLACES = 8
"""Places of a text that a drafter goes on from in a step, however short the text is."""
TOKENS_A_PLACE = 4
"""Of longer texts one place for so many tokens."""


class RecurrentDrafter(Drafter):
    """A recurrent cell over the model's own token table and head, which reads the prompt where the model has one apart.

    ``s_0 = h``,  the hidden vector that the last committed word w_0 was read from
    ``s ← s_{j-1} + W [norm(s_{j-1}), e(w_{j-1})]``
    ``s ← s + cross_attention(norm(s), prompt)``
    ``s_j = s + swiglu(norm(s))``
    ``logits_j = head(norm(P s_j))``,  w_j chosen with the noise of its place

    Where prompt and text share a row, the hidden vector knows the prompt: there is no cross-attention, and the head
    reads ``P s_j`` without a norm, as it reads the model's own hidden vectors.

    Each draft sees the words drafted before it, without which a plan of several words does not hold together. The cell
    has no operator over the text, so its cost a word does not grow, and it is no network call.

    Args:
        model: whose words are drafted; its token embeddings and head are not part of the drafter's own weights.
        horizon: words ahead that it is taught, at least 1.
        prompted: it reads the prompt, with as many heads as the model has.

    Source: recurrent drafter: Zhang et al., arXiv 2403.09919; hidden states of the model as its input: Li et al.,
        "EAGLE", arXiv 2401.15077. That the cell reads the prompt is ours.
    """

    def __init__(self, model: PromptedModel, horizon: int, *, prompted: bool = True) -> None:
        super().__init__()
        self.horizon, dim = horizon, model.config.dim
        self._model = (model,)  # in a tuple, or the model would be registered, and stored, a second time
        self.take = nn.Linear(2 * dim, dim, bias=False)
        nn.init.zeros_(self.take.weight)
        self.cross = CrossAttention(dim, model.config.heads) if prompted else None
        self.mlp = SwiGLU(dim)
        self.project = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.project.weight)
        self._memory: ProjectedMemory | None = None

    def begin(self, memory: Any) -> None:
        """See `Drafter`; memory has `states` and `mask`."""
        self._memory = self.read(memory)

    def read(self, memory: Any) -> ProjectedMemory | None:
        """What the cell reads of a prompt's `states` and `mask`; None if it reads none."""
        return None if self.cross is None else self.cross.project(memory.states, memory.mask)

    def draft(self, told: Drafting) -> list[list[int]]:
        """See `Drafter`; nothing before the first call, when there is no hidden vector to begin from."""
        assert self.cross is None or self._memory is not None, "begin was not called"
        if told.hidden is None or not any(told.counts):
            return [[] for _ in told.written]
        state, starts = told.hidden[:, None], [len(words) for words in told.written]
        word = torch.tensor([[words[-1]] for words in told.written], device=state.device)
        found = []
        for ahead in range(max(told.counts)):
            state, logits = self.step(state, word, self._memory)
            word = told.choose.words(logits.float(), [start + ahead for start in starts])
            found.append(word)
        rows = torch.cat(found, 1).tolist()
        return [row[:count] for row, count in zip(rows, told.counts, strict=True)]

    def step(
        self, state: Float[Tensor, "b n d"], words: Int64[Tensor, "b n"], memory: ProjectedMemory | None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n v"]]:
        """One word on, at n places that do not see each other."""
        (model,) = self._model
        state = state + self.take(torch.cat([rms_normalise(state), model.embedding(words)], -1))
        if self.cross is not None and memory is not None:
            state = state + self.cross(rms_normalise(state), memory)
        state = state + self.mlp(rms_normalise(state))
        told = self.project(state)
        return state, model.head(told if self.cross is None else rms_normalise(told))


class DraftLoss:
    """What a drafter is taught: the words that a text goes on with, from places drawn in it.

    ``Σ_j decay^j · CE(logits_j, w_{i+j}) / Σ_j decay^j``  over drawn places i and j = 1 … horizon, every word before
    the one asked for given. The model is frozen and read once for each text.

    Args:
        places: drawn in each text. None: one for every `TOKENS_A_PLACE` tokens that the batch's texts have in the
            mean, `LEAST_PLACES` at least: a batch of few long texts tells as much as one of many short ones.
        decay: weight of each further word.
    """

    def __init__(self, places: int | None = None, decay: float = 0.8) -> None:
        self.places, self.decay = places, decay

    def __call__(self, model: Any, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with the nats of the first and of the last word ahead."""
        drafter: RecurrentDrafter = model.drafter
        with torch.no_grad():
            given, words, real = model.shifted(batch)
            memory = model.memory(batch.prompt, batch.prompt_lengths, model.kinds(batch.tag))
            hidden = model.hidden(given, memory)
        horizon = drafter.horizon
        mean = float(batch.text_lengths.float().mean())
        places = self.places or max(LEAST_PLACES, round(mean / TOKENS_A_PLACE))
        drawn = torch.rand(len(words), places, generator=generator).to(words.device)
        first = real.long().argmax(1, keepdim=True)  # of the text, behind a prompt that shares its row
        # A word behind each place, if only the end, is there to tell.
        place = first + (drawn * (real.sum(1, keepdim=True) - 1)).long()
        words, real = F.pad(words, (0, horizon + 1)), F.pad(real, (0, horizon + 1))
        state = hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))
        read = drafter.read(memory)
        total, weight, parts, count = hidden.new_zeros(()), 0.0, {}, 0
        for ahead in range(1, horizon + 1):
            state, logits = drafter.step(state, words.gather(1, place + ahead - 1), read)
            asked = real.gather(1, place + ahead)
            if not bool(asked.any()):  # no text is that long
                break
            nats = F.cross_entropy(logits[asked].float(), words.gather(1, place + ahead)[asked])
            if ahead in (1, horizon):
                parts[f"nats_{ahead}"] = nats.detach()
            share = self.decay ** (ahead - 1)
            total, weight, count = total + share * nats, weight + share, count + int(asked.sum())
        return Loss(total / max(weight, 1.0), parts, count)
