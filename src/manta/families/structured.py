"""Texts that are held to a pattern: what the options ask for, and the next token left to right."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError
from manta.families.options import GenerateOptions, spelled
from manta.text import Tokenizer
from manta.text.automaton import TokenAutomaton, automaton_of


def automaton_for(options: GenerateOptions, tokenizer: Tokenizer) -> TokenAutomaton | None:
    """The automaton that the options hold a text to; None for a free one.

    Raises:
        UsageError: see `automaton_of`.
    """
    if options.pattern is None and options.schema is None:
        return None
    return automaton_of(tokenizer, options.pattern, options.schema)


def check_room(automaton: TokenAutomaton, room: int) -> None:
    """Refuse a pattern whose shortest text does not fit.

    Args:
        automaton: of the pattern.
        room: most tokens of a text.

    Raises:
        UsageError: as said.
    """
    least = int(automaton.distance[automaton.start])
    if least > room:
        raise UsageError(
            f"the shortest text of the pattern, or schema, takes {least} tokens, and there is room for {room}; shorten "
            f"it, or raise {spelled('max_tokens')}"
        )


class NextHeld:
    """Leaves of the next token's logits those from which a text that matches can still be reached in time.

    Args:
        automaton: of the pattern.
        end: token that ends a text.
        room: most tokens of a text.
        rows: texts side by side.
    """

    def __init__(self, automaton: TokenAutomaton, end: int, room: int, rows: int) -> None:
        self.automaton, self.end, self.room = automaton, end, room
        self._reached = [(0, automaton.start)] * rows
        self._distance, self._accepting = automaton.distance.tolist(), automaton.accepting.tolist()

    def __call__(
        self, logits: Float[Tensor, "b k v"], written: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "b k v"]:
        """Logits of the places behind what is written and each draft; −inf for what leads nowhere.

        Args:
            logits: of the next token, then of those behind each token of the draft.
            written: tokens of each row.
            drafts: guesses of each row.
        """
        told = torch.full_like(logits, -torch.inf)
        for row, (words, draft) in enumerate(zip(written, drafts, strict=True)):
            if words and words[-1] == self.end:
                told[row] = logits[row]  # nobody looks at it
                continue
            state = self._state(row, words)
            for place in range(logits.shape[1]):
                left = self.room - len(words) - place - 1
                allowed = [t for t, target in self.automaton.onward(state).items() if self._distance[target] <= left]
                if self._accepting[state]:
                    allowed.append(self.end)
                if not allowed:  # behind a draft that was not followed, or the end of the room
                    told[row, place:] = logits[row, place:]
                    break
                told[row, place, allowed] = logits[row, place, allowed]
                if place >= len(draft) or (onward := self.automaton.onward(state).get(draft[place])) is None:
                    told[row, place + 1 :] = logits[row, place + 1 :]
                    break
                state = onward
        return told

    def _state(self, row: int, words: Sequence[int]) -> int:
        """Where the words of a row have led."""
        count, state = self._reached[row]
        for word in words[count:]:
            state = self.automaton.onward(state)[word]
        self._reached[row] = len(words), state
        return state
