"""From requests to events: each is read by itself, and those are written together whose options allow it."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from manta.errors import MantaError, RequestError, UsageError
from manta.families.asked import follows
from manta.families.choosing import least_risk, seed_of
from manta.families.events import BATCH, Event, GenerateOptions, Request, Writer, checked_options, counted
from manta.families.observer import Observer
from manta.families.options import given
from manta.runtime import check_seed
from manta.text import MASK, NULL


class RequestWriter(Writer):
    """Reads requests one by one and writes them side by side."""

    observed: bool = False
    """Whether an observer is told of what is written."""

    @abstractmethod
    def check(self, options: GenerateOptions) -> None:
        """Refuse options that do not fit each other or the model.

        Raises:
            UsageError: as said.
        """

    @abstractmethod
    def read(self, request: Request, options: GenerateOptions) -> Any:
        """A request in tokens.

        Raises:
            RequestError: a prompt or a text to fill that does not fit the model.
        """

    @abstractmethod
    def write_rows(
        self, rows: Sequence[Any], options: GenerateOptions, batch_size: int, observer: Observer
    ) -> Iterator[Event]:
        """Write what was read, by what its options share, see `together`; an event's index counts the rows."""

    def check_task(self, task: str | None) -> None:
        """Refuse a request for a task that the model has not, or for none where it has some.

        Raises:
            RequestError: as said.
        """
        if task is not None and not self.tasks:
            raise RequestError("the model has no tasks to choose from; leave `task` out")
        if self.tasks and task not in self.tasks:
            wrong = "say which task is asked for" if task is None else f"the model has no task {task[:60]!r}"
            raise RequestError(f"{wrong}; its tasks are {', '.join(self.tasks)}: set `task`")

    def of_task(self, task: str | None) -> "RequestWriter":
        """What writes for one of its tasks: itself, where it has none and none is named.

        Raises:
            RequestError: it has no such task, or has some and none is named.
        """
        self.check_task(task)
        return self

    def samples(self, request: Request, options: GenerateOptions) -> list[Any]:
        """A request in tokens, once for each text that is to be chosen from, with seeds of their own."""
        seeds = (seed_of(request.seed, sample) for sample in range(options.choose))
        return [self.read(replace(request, seed=seed), options) for seed in seeds]

    def likelihoods(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[float]:
        """Exact log-likelihood of each text given its prompt, in nats.

        Raises:
            UsageError: the model has none.
        """
        raise UsageError(
            f"a model of the family {self.family} has no exact likelihood to choose by; leave `choose_by` out"
        )

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        options: GenerateOptions | None = None,
        observer: Observer | None = None,
        *,
        batch_size: int = BATCH,
    ) -> Iterator[Event]:
        """Write texts; yields drafts as they form, if the family has any, and one `done` event a request.

        A request's text depends on its prompt, its seed and its options, never on the batch it rides in. One that the
        model cannot serve fails alone, before any text is written: its only event is of the kind `failed`. An observer
        sees one batch after the other.

        Args:
            requests: may have options of their own.
            options: of all requests that have none.
            observer: who watches.
            batch_size: most texts written at once.

        Raises:
            UsageError: `options` do not fit each other or the model, or something else is given for requests, options
                or observer.
        """
        batch_size, options = counted(batch_size, "batch_size", 1), checked_options(options) or GenerateOptions()
        if observer is not None and not isinstance(observer, Observer):
            raise UsageError(
                f"observer should be an Observer, received {type(observer).__name__}; make a subclass of it"
            )
        if observer is not None and not self.observed:
            raise UsageError(
                f"a model of the family {self.family} tells no observer what it writes; leave `observer` out"
            )
        self._check(options, observer)
        rows: dict[int, Any] = {}
        alike: dict[tuple[GenerateOptions, str | None], list[int]] = {}
        for index, request in enumerate(requests):
            if not isinstance(request, Request):
                raise UsageError(
                    f"requests should hold Requests, received {type(request).__name__}; `write` takes texts"
                )
            how = options if request.options is None else request.options
            try:
                if how is not options:
                    self._check(how, observer)
                check_seed(request.seed)
                if request.history and self.frame is None:
                    raise RequestError("the model has no chat frame, so it holds no conversations; leave `history` out")
                self.check_task(request.task)
                rows[index] = self.read(request, how) if how.choose == 1 else self.samples(request, how)
            except (RequestError, UsageError) as error:
                yield failed(index, error)
            else:
                alike.setdefault((self.together(how), request.task), []).append(index)
        for (how, task), chosen in alike.items():
            some, writer = [rows[index] for index in chosen], self.of_task(task)
            if how.choose == 1:
                events = writer.write_rows(some, how, batch_size, observer or Observer())
            else:
                events = writer._several(some, how, batch_size)
            for event in events:
                yield replace(event, index=chosen[event.index])

    def _check(self, options: GenerateOptions, observer: Observer | None) -> None:
        """Refuse options that do not fit each other, the model or an observer."""
        self.check(options)
        if options.choose > 1 and observer is not None:
            raise UsageError("an observer sees a text being written, and several are chosen from; leave `choose` out")
        if options.choose > 1 and options.choose_by == "likelihood":
            self.likelihoods([], [])
            if "num_steps" in given(options) and options.num_steps < 2:
                raise UsageError("the likelihood takes a network call of its own; set `num_steps` to 2 or more")

    def _several(self, rows: Sequence[Sequence[Any]], options: GenerateOptions, batch_size: int) -> Iterator[Event]:
        """Write several texts for each request side by side, and tell one."""
        num, reading = options.choose, int(options.choose_by == "likelihood")
        counted_calls = reading and follows(self.family, "num_steps") and options.num_steps > 1
        calls = options.num_steps - 1 if counted_calls else options.num_steps
        single = replace(options, choose=1, choose_by="risk", num_steps=calls)
        written: dict[int, list[Event]] = {}
        for event in self.write_rows([row for some in rows for row in some], single, batch_size, Observer()):
            if event.kind != "done":
                continue
            index = event.index // num
            texts = written.setdefault(index, [])
            texts.append(event)
            if len(texts) == num:
                del written[index]
                texts.sort(key=lambda event: event.index)
                best = texts[self._best([row[0] for row in rows[index]], texts, options)]
                yield replace(best, index=index, nfe=max(event.nfe for event in texts) + reading)

    def _best(self, prompts: Sequence[Sequence[int]], texts: Sequence[Event], options: GenerateOptions) -> int:
        """Which of the texts for a request is told."""
        words = [[token for token in event.tokens if token not in (NULL, MASK)] for event in texts]
        if options.choose_by == "risk":
            return least_risk(words)
        said = [place for place, text in enumerate(words) if text]
        if not said:
            return 0
        likely = self.likelihoods([prompts[place] for place in said], [words[place] for place in said])
        return max(zip(likely, [-place for place in said], strict=True))[1] * -1


def failed(index: int, error: MantaError) -> Event:
    """What becomes of a request that cannot be served."""
    return Event("failed", index, "", (), 0.0, 0.0, 0, error=error)
