"""Texts that some other system has written, in the place of a model, so that one evaluator measures both."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from manta.errors import DataError
from manta.evaluation.writing import Contestant
from manta.families.events import BATCH, Event, GenerateOptions, Request, Writer
from manta.metrics.words import normal
from manta.text.files import read_records

PROMPTS: Final = ("prompt", "MR")
TEXTS: Final = ("text", "output")
"""Names of a record's prompt and text: ours, and those of the E2E challenge's files."""


class RecordedTexts(Writer):
    """Answers each prompt with the text that a file holds for it; of several, the n-th time with the n-th.

    Args:
        texts: of each prompt, in the order of the file; under None those without a prompt.
        where: what errors call the file.
    """

    family = "texts"

    def __init__(self, texts: Mapping[str | None, Sequence[str]], where: str) -> None:
        self.texts, self.where = texts, where
        self._texts: dict[str | None, list[str]] = {}
        for prompt, known in texts.items():  # whether accents are composed is no difference between prompts
            self._texts.setdefault(None if prompt is None else normal(prompt), []).extend(known)

    def __len__(self) -> int:
        return sum(map(len, self.texts.values()))

    def generate(
        self,
        requests: Sequence[Request],
        options: GenerateOptions | None = None,
        observer: Any = None,
        *,
        batch_size: int = BATCH,
    ) -> Iterator[Event]:
        """Yield the recorded texts; they cost no network calls, and no option changes them.

        Raises:
            DataError: a prompt has no text, or fewer than it is asked for.
        """
        asked: dict[str | None, int] = {}
        for index, request in enumerate(requests):
            key = None if request.prompt is None else normal(request.prompt)
            known, turn = self._texts.get(key, ()), asked.get(key, 0)
            if turn >= len(known):
                raise DataError(self._lack(request.prompt, len(known)))
            asked[key] = turn + 1
            yield Event("done", index, known[turn], (), 1.0, 1.0, 0)

    def _lack(self, prompt: str | None, known: int) -> str:
        """Say which text is missing, and what to do."""
        if prompt is not None and set(self.texts) == {None}:
            return f"{self.where} holds texts without prompts, and the data asks for {prompt!r}; add a field `prompt`"
        what = "texts without a prompt" if prompt is None else f"texts for {prompt!r}"
        return f"{self.where} holds {known} {what}, and more are asked for; see --num and --split"


def recorded_texts(path: str | Path) -> Contestant:
    """Read texts to evaluate.

    Args:
        path: a .jsonl, .csv or .tsv file with a record a text: `prompt` and `text`, or `text` alone for data without
            prompts; `MR` and `output` serve too, as the systems of the E2E challenge have published theirs.

    Raises:
        DataError: the file is missing, broken, empty, or of another kind.
    """
    file = Path(path)
    if file.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        raise DataError(f"{file} is no .jsonl, .csv or .tsv file; give a record a text, with `prompt` and `text`")
    texts: dict[str | None, list[str]] = {}
    for where, record in read_records(file):
        prompt, text = _pair(record, where)
        texts.setdefault(prompt, []).append(text)
    if not texts:
        raise DataError(f"{file} holds no texts; it needs at least one record")
    return Contestant(file.name, RecordedTexts(texts, str(file)), {})


def _pair(record: Mapping[str, Any], where: str) -> tuple[str | None, str]:
    if not any(name in record for name in TEXTS):
        known = ", ".join(record) or "nothing"
        raise DataError(f"{where} has neither `text` nor `output`, only {known}; rename its field")
    prompt = next((record[name] for name in PROMPTS if name in record), None)
    text = next(record[name] for name in TEXTS if name in record)
    if not isinstance(text, str) or not isinstance(prompt, str | None):
        raise DataError(f"{where}: prompt and text should be strings")
    return prompt if (prompt or "").strip() else None, text
