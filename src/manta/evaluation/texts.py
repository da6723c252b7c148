"""Texts that some other system has written, in the place of a model, so that one evaluator measures both."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from manta.errors import DataError
from manta.evaluation.writing import Contestant
from manta.families.events import BATCH, Event, GenerateOptions, Request, Writer
from manta.metrics.words import normal
from manta.text.files import is_folder, kind_of, read_records
from manta.text.places import find_places, records_of
from manta.text.tables import PARQUET

PROMPTS: Final = ("prompt", "MR")
TEXTS: Final = ("text", "output")
"""Names of a record's prompt and text: ours, and those of the E2E challenge's files."""


class RecordedTexts(Writer):
    """Answers each prompt with the text that a file holds for it; of several, the n-th time with the n-th.

    Args:
        texts: of each prompt, in the order of the file; under None those without a prompt.
        where: what errors call the file.
        spare: texts of the file that are left out, since nobody asks for them.
        failed: its records that tell why there is no text.
    """

    family = "texts"

    def __init__(
        self, texts: Mapping[str | None, Sequence[str]], where: str, *, spare: int = 0, failed: int = 0
    ) -> None:
        self.texts, self.where, self.spare, self.failed = texts, where, spare, failed
        self._texts: dict[str | None, list[str]] = {}
        for prompt, known in texts.items():  # whether accents are composed is no difference between prompts
            self._texts.setdefault(None if prompt is None else normal(prompt), []).extend(known)

    def __len__(self) -> int:
        return self.spare + sum(map(len, self.texts.values()))

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
        lost = f" ({self.failed} of its lines tell of a failure)" if self.failed else ""
        return f"{self.where} holds {known} {what}{lost}, and more are asked for; see --num and --split"


def recorded_texts(source: str | Path | Sequence[str | Path], asked: Iterable[str | None] | None = None) -> Contestant:
    """Read texts to evaluate.

    Args:
        source: a .jsonl, .csv, .tsv or Parquet file with a record a text, or several such files: `prompt` and `text`,
            or `text` alone for data without prompts; `MR` and `output` serve too, as the systems of the E2E challenge
            have published theirs. A folder, or a URL that fsspec knows, gives its .jsonl and Parquet files, by their
            paths; such as what `manta generate --engine ray --out` has written.
        asked: the prompts that will be asked for, so that no other texts are held in memory; None holds all.

    Raises:
        DataError: a file is missing, broken, empty, or of another kind.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    wanted = None if asked is None else Counter(None if prompt is None else normal(prompt) for prompt in asked)
    texts: dict[str | None, list[str]] = {}
    spare = failed = 0
    for where, record in (record for each in sources for record in _records(each)):
        if record.get("text") is None and record.get("error"):
            failed += 1  # a line that `manta generate` could not serve
            continue
        prompt, text = _pair(record, where)
        known = texts.setdefault(prompt, []) if prompt is None or wanted is None else texts.get(prompt, [])
        if wanted is not None and len(known) >= wanted[None if prompt is None else normal(prompt)]:
            spare += 1
            continue
        texts.setdefault(prompt, []).append(text)
    name = str(sources[0]) if len(sources) == 1 else f"{len(sources)} files from {sources[0]} on"
    if not spare and not any(texts.values()):
        raise DataError(f"{name} holds no texts; it needs at least one record")
    shown = Path(name).name if len(sources) == 1 else name
    return Contestant(shown, RecordedTexts(texts, name, spare=spare, failed=failed), {})


def _records(source: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of one file, of the files of a folder, or of a URL."""
    file = Path(source)
    if not is_folder(file) and "://" not in str(source) and kind_of(file) != PARQUET:
        if kind_of(file) not in (".jsonl", ".csv", ".tsv"):
            raise DataError(
                f"{file} is no .jsonl, .csv or .tsv file, no Parquet file and no folder of such; give a record a text, "
                "with `prompt` and `text`"
            )
        yield from read_records(file)
        return
    for place in find_places(source, (".jsonl", PARQUET)):
        yield from records_of(place)


def _pair(record: Mapping[str, Any], where: str) -> tuple[str | None, str]:
    if not any(name in record for name in TEXTS):
        known = ", ".join(record) or "nothing"
        raise DataError(f"{where} has neither `text` nor `output`, only {known}; rename its field")
    prompt = next((record[name] for name in PROMPTS if name in record), None)
    text = next(record[name] for name in TEXTS if name in record)
    if not isinstance(text, str) or not isinstance(prompt, str | None):
        raise DataError(f"{where}: prompt and text should be strings")
    return prompt if (prompt or "").strip() else None, text
