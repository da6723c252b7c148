"""Answers that are kept in a file, so that no question is asked a model twice, and an interrupted evaluation goes on.

The file is an SQLite database whose answers are JSON: nothing of it is ever unpickled. A key tells the model's weights,
its tokenizer, the way it is asked and the question, so one file serves any number of models.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from manta.errors import DataError

Q = TypeVar("Q", bound=Hashable)
A = TypeVar("A")

COMMIT = 256
"""Answers after which the file is up to date, whatever happens."""
TABLE = "manta_answers"
PATIENCE = 60
"""Seconds that one waits while another writes."""


class KeptAnswers:
    """A file of answers.

    Args:
        path: made if it is not there; None keeps nothing.
        model: whose answers they are: a digest such as `digest_of` makes.

    Raises:
        DataError: the file cannot be used, or is no such file.
    """

    def __init__(self, path: Path | None, model: str) -> None:
        self.path, self.model, self.base = path, model, None
        self.waiting: list[tuple[str, str]] = []
        """Answers that are not written yet: others write into the file, too, so it is held for a moment alone."""
        if path is None:
            return
        with self._told():
            self.base = sqlite3.connect(path, timeout=PATIENCE)
            others = self.base.execute("select name from sqlite_master where type = 'table'").fetchall()
            if others and (TABLE,) not in others:
                raise DataError(f"{path} is a database of something else; name another file")
            self.base.execute(f"create table if not exists {TABLE} (key text primary key, answer text not null)")
            self.base.commit()

    def ask(
        self,
        kind: Mapping[str, Any],
        questions: Sequence[Q],
        find: Callable[[Sequence[Q]], Iterator[tuple[int, A]]],
        *,
        spell: Callable[[Q], Any],
        read: Callable[[Any], A],
        tell: Callable[[A], Any],
    ) -> list[A]:
        """Answers in the order of the questions, each different one asked once.

        Args:
            kind: all that an answer depends on beside its question.
            questions: hashable.
            find: answers some of them, each with its number, as they are found.
            spell: a question as JSON.
            read: an answer from JSON; raises ValueError or TypeError for what is none.
            tell: an answer as JSON.

        Raises:
            DataError: the file holds something else than answers, or cannot be written.
        """
        different = list(dict.fromkeys(questions))
        keys = {question: self._key(kind, spell(question)) for question in different}
        found = {question: answer for question in different if (answer := self._kept(keys[question], read)) is not None}
        left = [question for question in different if question not in found]
        try:
            for count, (number, answer) in enumerate(find(left) if left else (), 1):
                found[left[number]] = answer
                self._keep(keys[left[number]], json.dumps(tell(answer)))
                if count % COMMIT == 0:
                    self._commit()
        finally:
            self._commit()
        return [found[question] for question in questions]

    def _key(self, kind: Mapping[str, Any], question: Any) -> str:
        text = json.dumps([self.model, kind, question], sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()

    def _kept(self, key: str, read: Callable[[Any], A]) -> A | None:
        if self.base is None:
            return None
        with self._told():
            row = self.base.execute(f"select answer from {TABLE} where key = ?", (key,)).fetchone()
        try:
            return None if row is None else read(json.loads(row[0]))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{self.path} holds an answer that is none ({error}); delete the file") from error

    def _keep(self, key: str, answer: str) -> None:
        if self.base is not None:
            self.waiting.append((key, answer))

    def _commit(self) -> None:
        if self.base is not None:
            with self._told():
                self.base.executemany(f"insert or replace into {TABLE} values (?, ?)", self.waiting)
                self.base.commit()
            self.waiting = []

    def _told(self) -> "_Told":
        return _Told(self.path)


class _Told:
    """Turns an error of the database into one line."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, sqlite3.Error):
            busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            way = "another process holds it; come again later" if busy else "name another file"
            raise DataError(f"{self.path} cannot serve to keep answers ({error}); {way}") from error
