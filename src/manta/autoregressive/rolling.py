"""Texts longer than what a model reads at once, in memory that does not grow with them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from manta.autoregressive.chooser import Chooser, ChooserOfEach, Later
from manta.autoregressive.decode import Reader, Round, Told, decode


def after(last: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Sequence[int]]:
    """What is read of rows whose texts go on behind others: at a text's first place, the last word before it.

    Args:
        last: word before each row's text.
        tokens, starts: see `Reader`.
    """
    return [row if start else [word, *row[1:]] for row, start, word in zip(tokens, starts, last, strict=True)]


class Behind:
    """A reader of rows behind words that are given: places are counted from the first that follows them.

    Args:
        reader: the model before anything is read.
        given: words of each row, as many in all, the one before a text's first among them.
        multiple: widths are a multiple of it.
        at_once: the reader tells the same however many places it reads in a call; else it reads one a call.
    """

    def __init__(
        self, reader: Reader, given: Sequence[Sequence[int]], multiple: int = 1, *, at_once: bool = True
    ) -> None:
        self.reader, self.last, self.behind = reader, [row[-1] for row in given], len(given[0]) - 1
        self.calls = self.places = 0
        """Spent on reading what is given, places of one row."""
        lines = [[*row[:-1], *[row[-1]] * (-self.behind % multiple)] for row in given]  # places beyond are replaced
        if self.behind:
            self.places, width = len(lines[0]), len(lines[0]) if at_once else 1
            for begin in range(0, self.places, width):
                self.calls += 1
                reader([line[begin : begin + width] for line in lines], [begin] * len(lines))

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        """See `Reader`."""
        return self.reader(after(self.last, tokens, starts), [start + self.behind for start in starts])


def write_on(
    reader_of: Callable[[Sequence[int]], Reader],
    choosers: Sequence[Chooser],
    prompts: Sequence[Sequence[int]],
    *,
    window: int,
    max_tokens: int,
    begin: int,
    end: int,
    multiple: int = 1,
    at_once: bool = True,
    **how: Any,
) -> Iterator[Round]:
    """Write rows beyond the model's window; yields what each call commits, see `decode`.

        write `window` words
        while a row has not ended: read its last ⌊window/2⌋ words anew, and write ⌈window/2⌉ behind them

    So a word is told by at least half a window before it, nothing older is kept, and where a window ends depends on the
    text alone: drafted or not, beside others or not, it is the same text.

    Args:
        reader_of: `reader_of(rows)`: the model before anything is read, with the prompts of some of the rows.
        choosers: of each row.
        prompts: tokens of each row's prompt.
        window: most words that are read at once, at least 2.
        max_tokens: most words of a row.
        begin: token before the first word, and before the first that is read anew.
        end: token that ends a text.
        multiple, at_once: see `Behind`.
        how: further arguments of `decode`.

    Raises:
        ModelError: logits that no word can be chosen from.
    """
    kept: list[list[int]] = [[] for _ in prompts]
    rows, done = list(range(len(prompts))), 0
    while rows:
        behind = len(kept[rows[0]])
        room = min(window - behind, max_tokens - done)
        words: list[list[int]] = [[] for _ in rows]
        reader = Behind(reader_of(rows), [[begin, *kept[row]] for row in rows], multiple, at_once=at_once)
        calls, places = (1 + reader.calls, reader.places) if done else (0, 0)  # the prompt is read anew, too
        for step in decode(
            reader,
            Later(ChooserOfEach([choosers[row] for row in rows]), done),
            [prompts[row] for row in rows],
            begin=begin,
            end=end,
            max_tokens=room,
            multiple=multiple,
            **how,
        ):
            for found, new in zip(words, step.words, strict=True):
                found += new
            told = Round([[] for _ in prompts], [[] for _ in prompts], [0] * len(prompts), 1 + calls)
            for place, row in enumerate(rows):
                told.words[row], told.chances[row] = step.words[place], step.chances[place]
                told.processed[row] = step.processed[place] + (places if step.words[place] else 0)
            calls = places = 0
            yield told
        for row, found in zip(rows, words, strict=True):
            kept[row] = [*kept[row], *found][-(window // 2) :]
        done += room
        rows = [row for row, found in zip(rows, words, strict=True) if found[-1] != end and done < max_tokens]
