"""Texts that some other system has written, in the place of a model, so that one evaluator measures both."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from manta.data.files import read_records
from manta.errors import DataError
from manta.evaluation.writing import Contestant
from manta.families.events import Event, GenerateOptions, Request, Writer

FIELDS: Final = (("prompt", "text"), ("MR", "output"))
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

    def generate(self, requests: Sequence[Request], options: GenerateOptions | None = None) -> Iterator[Event]:
        """Yield the recorded texts; they cost no network calls, and no option changes them.

        Raises:
            DataError: a prompt has no text, or fewer than it is asked for.
        """
        asked: dict[str | None, int] = {}
        for index, request in enumerate(requests):
            known, turn = self.texts.get(request.prompt, ()), asked.get(request.prompt, 0)
            if turn >= len(known):
                what = "texts without a prompt" if request.prompt is None else f"texts for {request.prompt!r}"
                raise DataError(
                    f"{self.where} holds {len(known)} {what}, and more are asked for; see --num and --split"
                )
            asked[request.prompt] = turn + 1
            yield Event("done", index, known[turn], (), 1.0, 1.0, 0)


def recorded_texts(path: str | Path) -> Contestant:
    """Read texts to evaluate.

    Args:
        path: a .jsonl, .csv or .tsv file with a record a text: `prompt` and `text`, or `text` alone; or `MR` and
            `output`, as the systems of the E2E challenge have published theirs.

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
    for prompt, text in FIELDS:
        if text in record:
            pair = record.get(prompt), record[text]
            if not isinstance(pair[1], str) or not isinstance(pair[0], str | None):
                raise DataError(f"{where}: `{prompt}` and `{text}` should be strings")
            return pair
    raise DataError(f"{where} has neither `text` nor `output`, only {', '.join(record) or 'nothing'}; rename its field")
