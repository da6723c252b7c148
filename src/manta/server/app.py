"""The application: routes, and what becomes of errors."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from manta import __version__
from manta.config import nearest
from manta.errors import MantaError, RequestError, UsageError
from manta.families import FAMILIES
from manta.families.events import Event
from manta.nets.integers import count_parameters
from manta.server.asking import read_asked
from manta.server.diagnoses import Diagnoses
from manta.server.engine import Busy, Closing, Engine
from manta.server.guard import Guard, refusal, status_of
from manta.server.measures import Measures
from manta.server.schemas import Asking, Chat, Completion, Diagnosing, Edit, Infill, described
from manta.server.settings import ServeSettings, check_settings
from manta.server.telling import FORMS, Telling

PAGE: Final = Path(__file__).parent / "page"
FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/replay.js": ("replay.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
"""The page's files by their paths."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing from elsewhere, and no script but its files; a diagnosis brings its style along."""
ALONE: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
"""The same of a diagnosis that is opened by itself."""
TAKEN: Final[dict[str, type[BaseModel]]] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": Chat,
    "/v1/infill": Infill,
    "/v1/edit": Edit,
}
"""What the paths that write take."""
LEFT: Final = 499
"""Status told of a client that has left; nobody reads it but the counters."""
HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Of a stream: neither kept nor held back on its way."""


class ErrorBody(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An answer that says what was wrong."""

    error: ErrorBody


REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorAnswer, "description": "What was asked is wrong, or beyond the model."},
    401: {"model": ErrorAnswer, "description": "The key is missing or wrong."},
    403: {"model": ErrorAnswer, "description": "A page of an unknown origin, or an unknown host."},
    404: {"model": ErrorAnswer, "description": "There is no such model."},
    413: {"model": ErrorAnswer, "description": "The request is too large."},
    429: {"model": ErrorAnswer, "description": "The queue is full; `Retry-After` says when to come again."},
    503: {"model": ErrorAnswer, "description": "The server is shutting down."},
}


@dataclass(frozen=True)
class Served:
    """A model that is served."""

    name: str
    """By which it is asked for."""
    source: str
    """What loads it: a folder or a name."""
    lm: Any
    """The model."""
    engine: Engine
    """What writes with it."""

    @property
    def diagnosed(self) -> bool:
        """Whether it can be: watched, and of one task."""
        return getattr(self.lm, "observed", False) and not self.lm.tasks

    def row(self) -> dict[str, Any]:
        """What /v1/models tells of it."""
        lm, row = self.lm, FAMILIES[self.lm.family]
        net = getattr(lm, "model", getattr(lm, "net", None))
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "manta",
            "manta": {
                "family": lm.family,
                "kind": row.words,
                "prompted": lm.prompted,
                "fills": lm.fills,
                "changes": lm.changes,
                "chat": lm.frame is not None,
                "tasks": list(lm.tasks),
                "diagnosed": self.diagnosed,
                "likelihood": lm.likelihood,
                "parameters": None if net is None else count_parameters(net),
                "capacity": getattr(lm, "capacity", None),
                "options": described(row.options),
            },
        }


class NoModel(HTTPException):
    """No model has that name."""

    code = "model_not_found"
    """What programs know it by."""


def named(served: Mapping[str, Served], name: str | None) -> Served:
    """The model of a name, the first without one.

    Raises:
        HTTPException: 404.
    """
    found = next(iter(served.values())) if name is None else served.get(name)
    if found is None:
        shown = str(name)[:80]
        raise NoModel(404, f"there is no model {shown!r}{nearest(shown, served)}; see /v1/models")
    return found


class Asker:
    """Answers requests with the models that are served.

    Args:
        served: by name, the first one for whoever names none.
        settings: limits.
        measures: counters.
    """

    def __init__(self, served: Mapping[str, Served], settings: ServeSettings, measures: Measures) -> None:
        self.served, self.settings, self.measures = served, settings, measures

    async def answer(self, form: str, asked: Asking, request: Request) -> Response:
        """Write what is asked, whole or as a stream."""
        began, served = time.perf_counter(), named(self.served, asked.model)
        # Patterns take a while to read, and so may a long prompt: not on the event loop.
        read = await asyncio.to_thread(read_asked, asked, served.lm, self.settings)

        def written(event: Event, tokens: int) -> None:
            self.measures.calls.labels(served.name).inc(event.nfe)
            self.measures.tokens.labels(served.name).inc(tokens)

        telling = Telling(FORMS[form], served.name, served.lm, read, began, written)
        streams = bool(asked.stream)
        writing = served.engine.enter(read.requests, drafts=streams)
        usage = asked.stream_options is None or asked.stream_options.include_usage
        told = telling.stream(writing, drafts=bool(asked.diffusing), usage=usage)
        # What is refused is refused with a status, not in the middle of a stream.
        found = await _unless_left(request, anext(told, b"") if streams else telling.whole(writing))
        if found is None:
            return Response(status_code=LEFT)
        if not streams:
            return JSONResponse(found)
        return StreamingResponse(_after(found, told), media_type="text/event-stream", headers=HEADERS)


async def _after(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """A stream whose first part was already taken."""
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def _unless_left(request: Request, work: Awaitable[Any]) -> Any:
    """What comes of some work; None if the client leaves before."""

    async def worked() -> Any:
        return await work

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(worked()), asyncio.create_task(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def create_app(models: Mapping[str, tuple[str, Any]], settings: ServeSettings | None = None) -> FastAPI:
    """Make the application.

    Args:
        models: from a name to `(what loads it, the model)`; models of texts.
        settings: limits, keys and origins; None for the usual ones.

    Raises:
        UsageError: there is no model, or the settings let in anybody from elsewhere.
    """
    settings = settings or ServeSettings()
    check_settings(settings)
    if not models:
        raise UsageError("a server needs a model")
    measures, diagnoses = Measures(), Diagnoses()
    served: dict[str, Served] = {}
    for name, (source, lm) in models.items():
        how = {"batch_size": settings.batch_size, "patience": settings.patience_ms / 1000, "queue": settings.queue}
        counted = partial(measures.outcome, name)
        engine = Engine(lm, seen=measures.batches.labels(name).observe, ended=counted, **how)
        served[name] = Served(name, source, lm, engine)
        measures.watch(name, served[name].engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await diagnoses.close()
        for each in served.values():
            await asyncio.to_thread(each.engine.close)

    app = FastAPI(
        title="manta",
        version=__version__,
        summary="Texts in a few network calls: completions, infilling, editing, and drafts as they form.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
    )
    _add_texts(app, Asker(served, settings, measures))
    _add_diagnoses(app, served, diagnoses)
    _add_rest(app, served, settings, measures)
    _add_refusals(app)
    paths = [route.path for route in app.routes if hasattr(route, "path")]  # pyright: ignore[reportAttributeAccessIssue]
    app.add_middleware(Guard, settings=settings, measures=measures, paths=paths)
    if settings.origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after"],
        )
    return app


def _add_texts(app: FastAPI, asker: Asker) -> None:
    """What writes."""

    @app.post("/v1/completions", summary="Write texts")
    async def complete(asked: Completion, request: Request) -> Response:
        return await asker.answer("completion", asked, request)

    @app.post("/v1/chat/completions", summary="Answer in a conversation")
    async def chat(asked: Chat, request: Request) -> Response:
        return await asker.answer("chat", asked, request)

    @app.post("/v1/infill", summary="Fill blanks of a text")
    async def infill(asked: Infill, request: Request) -> Response:
        return await asker.answer("infill", asked, request)

    @app.post("/v1/edit", summary="Change a text, or words of it")
    async def edit(asked: Edit, request: Request) -> Response:
        return await asker.answer("edit", asked, request)


def _add_diagnoses(app: FastAPI, served: Mapping[str, Served], diagnoses: Diagnoses) -> None:
    """What says why a model fails."""

    def known(name: str) -> Any:
        if name not in diagnoses.known:
            raise HTTPException(404, "there is no such diagnosis; it may be too old")
        return diagnoses.known[name]

    @app.post("/v1/diagnoses", summary="Diagnose a model: manta diagnose in a process of its own", status_code=202)
    async def diagnose(asked: Diagnosing) -> dict[str, Any]:
        found = named(served, asked.model)
        if found.lm.tasks:
            raise RequestError(f"{found.name} tells tasks apart, and one of them alone is diagnosed; export it first")
        if not found.diagnosed:
            raise RequestError(f"a model of the family {found.lm.family} cannot be diagnosed; see docs/diagnostics.md")
        if len(asked.prompts) == 1:
            raise RequestError("a diagnosis takes two prompts at least, for a spread")
        if diagnoses.busy:
            raise Busy(30, "a diagnosis is under way, and there is one at a time")
        device = str(found.lm.device)
        begun = diagnoses.begin(found.name, found.source, asked.prompts, asked.num_steps, device)
        return {"id": begun.id, "model": begun.model, "state": begun.state}

    def told(found: Any) -> dict[str, Any]:
        return {"id": found.id, "model": found.model, "state": found.state, "lines": found.lines[-20:]}

    @app.get("/v1/diagnoses/{name}", summary="How a diagnosis goes on")
    async def progress(name: str) -> dict[str, Any]:
        return told(known(name))

    @app.delete("/v1/diagnoses/{name}", summary="Stop a diagnosis")
    async def stop(name: str) -> dict[str, Any]:
        found = known(name)
        await diagnoses.stop(found)
        return told(found)

    @app.get("/v1/diagnoses/{name}/page", summary="The page of a diagnosis")
    async def page(name: str) -> Response:
        found = known(name)
        if found.state != "done":
            raise HTTPException(404, f"the diagnosis is {found.state}")
        headers = {"content-security-policy": ALONE}
        return Response(found.page, headers=headers, media_type="text/html; charset=utf-8")


def _add_rest(app: FastAPI, served: Mapping[str, Served], settings: ServeSettings, measures: Measures) -> None:
    """What tells of the server, and the page."""

    @app.get("/health", summary="Whether it serves, and how full it is")
    async def health() -> dict[str, Any]:
        if dead := [name for name, each in served.items() if not each.engine.alive]:
            raise Closing(f"nothing is written with {', '.join(dead)} any more; start the server anew")
        waiting, running = (sum(getattr(s.engine, of) for s in served.values()) for of in ("waiting", "running"))
        return {"status": "ok", "version": __version__, "waiting": waiting, "running": running, "queue": settings.queue}

    @app.get("/v1/models", summary="What is served, and which options each model follows")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [each.row() for each in served.values()]}

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        return named(served, name).row()

    @app.get("/metrics", summary="Counters, as Prometheus reads them")
    async def counters() -> Response:
        return Response(measures.text(), media_type=measures.content_type)

    def add_file(path: str, file: str, kind: str) -> None:
        body = (PAGE / file).read_bytes()
        headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}

        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def send() -> Response:
            return Response(body, headers=headers, media_type=kind)

    for path, (file, kind) in FILES.items():
        add_file(path, file, kind)


def _add_refusals(app: FastAPI) -> None:
    """Every error as OpenAI's clients read it."""

    def answer(
        status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
    ) -> Response:
        return JSONResponse(refusal(status, " ".join(message.split()), code, param), status, headers or None)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if len(first["loc"]) < 2 or first["type"] == "json_invalid":
            say = "a request holds one JSON object, and says so: `content-type: application/json`"
            return answer(400, say, "malformed")
        where = str(first["loc"][1])[:80]
        # Of a field of several kinds, what is wrong with a value of one of them says more than that it is none.
        mine = [each for each in error.errors() if each["loc"][1:2] == first["loc"][1:2]]
        first = next((each for each in mine if not each["type"].endswith("_type")), first)
        if first["type"] == "extra_forbidden" and request.url.path in TAKEN:
            known = [field.alias or name for name, field in TAKEN[request.url.path].model_fields.items()]
            return answer(400, f"no field {where!r}{nearest(where, known)}", "unknown_field", where)
        return answer(400, f"{where}: {first['msg']}"[:500], "malformed", where)

    @app.exception_handler(MantaError)
    async def wrong(request: Request, error: MantaError) -> Response:
        return answer(status_of(error), str(error), "not_served")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return answer(429, str(error), "queue_full", **{"Retry-After": str(error.seconds)})

    @app.exception_handler(Closing)
    async def closing(request: Request, error: Closing) -> Response:
        return answer(503, str(error), "closing", **{"Retry-After": "5"})

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, str(error.detail), getattr(error, "code", None))
