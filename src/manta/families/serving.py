"""From requests to events: each is read by itself, and those of equal options are written together."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from manta.errors import MantaError, RequestError, UsageError
from manta.families.events import BATCH, Event, GenerateOptions, Request, Writer, checked_options, counted
from manta.families.observer import Observer
from manta.runtime import check_seed


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
        """Write what was read, by one set of options; an event's index counts the rows."""

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
            raise UsageError(f"a {self.family} model tells no observer what it writes; leave `observer` out")
        self.check(options)
        rows: dict[int, Any] = {}
        alike: dict[GenerateOptions, list[int]] = {}
        for index, request in enumerate(requests):
            if not isinstance(request, Request):
                raise UsageError(
                    f"requests should hold Requests, received {type(request).__name__}; `write` takes texts"
                )
            how = options if request.options is None else request.options
            try:
                if how is not options:
                    self.check(how)
                check_seed(request.seed)
                rows[index] = self.read(request, how)
            except (RequestError, UsageError) as error:
                yield failed(index, error)
            else:
                alike.setdefault(how, []).append(index)
        for how, chosen in alike.items():
            for event in self.write_rows([rows[index] for index in chosen], how, batch_size, observer or Observer()):
                yield replace(event, index=chosen[event.index])


def failed(index: int, error: MantaError) -> Event:
    """What becomes of a request that cannot be served."""
    return Event("failed", index, "", (), 0.0, 0.0, 0, error=error)
