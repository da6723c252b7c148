"""A whole job: its input cut into parts of fixed lines, each written by whichever worker is free, until all are there.

A text depends on its line, its place in the input and the job's options, never on who writes it, so a part that is
written twice is the same twice, and a part that is there need not be written again. Ray's data set holds the numbers of
the missing parts alone: what passes between processes is a number there and an outcome back, and files do the rest.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

from manta import __version__, errors
from manta.cluster.folder import JobFolder, identity, model_digest
from manta.cluster.local import connected, cores, require_ray
from manta.cluster.part import PartWriter, Writing
from manta.cluster.rows import KINDS, Staged, stage
from manta.errors import MantaError, ModelError, UsageError
from manta.families.events import BATCH, counted
from manta.families.lines import check_prompted
from manta.families.options import GenerateOptions
from manta.runtime import MAX_SEED, check_seed
from manta.text.places import find_places

PART_ROWS: Final = 256
"""Lines of a part."""


@dataclass(frozen=True, kw_only=True)
class ManyTexts:
    """Texts by the million, into a folder."""

    input: str
    """A file of JSON lines or a Parquet file, a folder of such, or a URL of either."""
    out: Path
    """The folder for the texts, on all machines of a cluster the same."""
    model: str | None = None
    """As for `manta.hub.load`; where workers have copies of their own, they are compared."""
    num_samples: int = 1
    """Texts for each line."""
    seed: int = 0
    """Sample j of line i uses seed + i·num_samples + j, unless the line has a seed of its own."""
    batch_size: int = BATCH
    """Texts that a worker writes at once; it does not change them."""
    device: Literal["cpu", "cuda"] | None = None
    """Of the workers; None: cuda where the cluster has such devices, one a worker."""
    out_format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the parts."""
    part_rows: int = PART_ROWS
    """Lines of a part."""
    workers: int | None = None
    """Processes; None: as many as the cluster has cores, or devices."""
    address: str | None = None
    """See `connected`."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    done: int
    """Lines that are written, those of earlier starts among them."""
    rows: int
    """Lines in all."""
    failed: int
    """Lines that failed since this start."""
    rate: float
    """Lines a second since this start; 0 while it is not known."""

    @property
    def left(self) -> float | None:
        """Seconds to the end at this rate; None while it is not known."""
        return (self.rows - self.done) / self.rate if self.rate else None


@dataclass(frozen=True)
class Outcome:
    """A finished job."""

    rows: int
    """Lines of the input."""
    written: int
    """Lines that this start has written; earlier ones wrote the others."""
    failed: int
    """Lines that failed, all starts together."""
    parts: int
    """Files."""
    seconds: float
    """Of this start, from the first part asked for to the last one written."""
    first_failure: dict[str, Any] | None
    """What is told of the first line that failed."""


def silent(progress: Progress) -> None:
    """Say nothing."""


def write_many(
    asked: ManyTexts,
    settings: GenerateOptions | None = None,
    *,
    prompted: bool | None = None,
    repetition: Any = None,
    progress: Callable[[Progress], None] = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Write a text for each line of the input, or go on where an earlier start was stopped, however it ended.

    Args:
        asked: what is written, and where.
        settings: how; a line's `options` count over them.
        prompted: whether the model was trained on prompts, as far as that is known.
        repetition: the direction that `escape_scale` leads away from; None: none was measured.
        progress: told when a part is there.
        warn: told what should be known of the input.

    Raises:
        UsageError: options that do not fit, a folder with another job, no Ray, or no cluster.
        DataError: the input is missing, empty or damaged as a whole.
        RequestError: the model answers prompts and there are none, or the other way round, in the whole input.
        ModelError: the model cannot be loaded, or fails on everything.
    """
    for name in ("num_samples", "batch_size", "part_rows"):
        counted(getattr(asked, name), name, 1)
    if asked.workers is not None:
        counted(asked.workers, "workers", 1)
    check_seed(asked.seed)
    require_ray()
    settings = settings or GenerateOptions()
    folder = JobFolder(asked.out, f".{asked.out_format}")
    folder.claim()
    try:
        job, rows = _read(folder, asked, settings, prompted, repetition, warn)
        parts = -(-rows // asked.part_rows)
        missing = sorted(set(range(parts)) - folder.finished())
        seconds, written = 0.0, 0
        if missing:
            with connected(asked.address, workers=asked.workers) as ray:
                device = asked.device or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
                job |= {"device": device}
                folder.refuse_other(job)
                if folder.job() is None:
                    folder.begin(job)
                how = _writing(asked, settings, repetition, job)
                seconds, written = _run(_outcomes(ray, how, asked, missing), missing, rows, asked.part_rows, progress)
        if lost := set(range(parts)) - folder.finished():
            raise ModelError(f"part {min(lost)} of {parts} is not there; the same command writes it")
        shutil.rmtree(folder.lines, ignore_errors=True)
        failed = sum(1 for _ in folder.failures())
        return Outcome(rows, written, failed, parts, seconds, next(folder.failures(), None))
    finally:
        folder.release()


def _read(
    folder: JobFolder,
    asked: ManyTexts,
    settings: GenerateOptions,
    prompted: bool | None,
    repetition: Any,
    warn: Callable[[str], None],
) -> tuple[dict[str, Any], int]:
    """Read the input, and see that the folder's job, if it has one, is this one.

    Returns:
        What the texts depend on but the device, and how many lines there are.
    """
    job = _job(asked, settings, repetition)
    folder.refuse_other(job)
    try:
        found = _stage(folder, asked, prompted, warn)
        job |= {"input_digest": found.digest, "rows": found.rows, "input": asked.input}
        folder.refuse_other(job)
    except MantaError:
        shutil.rmtree(folder.lines, ignore_errors=True)
        raise
    return job, found.rows


def _job(asked: ManyTexts, settings: GenerateOptions, repetition: Any) -> dict[str, Any]:
    """What the texts depend on, as far as it is known before the input is read."""
    escape = None if repetition is None else blake2b(repetition.cpu().numpy().tobytes(), digest_size=16).hexdigest()
    return {
        "manta": __version__,
        "model": asked.model,
        "model_digest": model_digest(asked.model),
        **{name: getattr(asked, name) for name in ("num_samples", "seed", "part_rows", "out_format")},
        "repetition": escape,
        "options": {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(settings).items()},
    }


def _stage(folder: JobFolder, asked: ManyTexts, prompted: bool | None, warn: Callable[[str], None]) -> Staged:
    """Read the input; of a job that begins, also see whether it is what the model can answer."""
    places = find_places(asked.input, KINDS)
    found = stage(places, folder.lines, asked.part_rows, folder.finished())
    if asked.seed + found.rows * asked.num_samples - 1 > MAX_SEED:
        raise UsageError(
            f"a seed lies between 0 and {MAX_SEED}, and {found.rows:,} lines go beyond; give a smaller one"
        )
    if folder.job() is None:
        # A prompt that a model cannot answer costs its own line, unless that is every line.
        answered = found.answered if found.answered == found.rows else 0
        if warning := check_prompted(prompted, answered, found.bare, found.rows, asked.input):
            warn(warning)
    return found


def _writing(asked: ManyTexts, settings: GenerateOptions, repetition: Any, job: dict[str, Any]) -> Writing:
    """What every worker is told."""
    own = asked.address is None and not os.environ.get("RAY_ADDRESS")
    threads = max(1, cores() // (asked.workers or cores())) if own and "OMP_NUM_THREADS" not in os.environ else None
    return Writing(
        out=str(asked.out.absolute()),
        kind=f".{asked.out_format}",
        identity=identity(job),
        model=_absolute(asked.model),
        model_digest=job["model_digest"],
        device=job["device"],
        settings=settings,
        repetition=repetition,
        threads=threads,
        **{name: getattr(asked, name) for name in ("num_samples", "seed", "part_rows", "batch_size")},
    )


def _absolute(model: str | None) -> str | None:
    """A model's folder as other processes find it; a name of the hub or of one that ships as it is."""
    return str(Path(model).absolute()) if model and Path(model).exists() else model


def _run(
    outcomes: Iterator[dict[str, Any]],
    missing: Sequence[int],
    rows: int,
    part_rows: int,
    progress: Callable[[Progress], None],
) -> tuple[float, int]:
    """Follow the missing parts until all are there; the seconds that it took and the lines that were written.

    Raises:
        MantaError: a worker says that the job has to stop.
    """
    left = sum(min(part_rows, rows - part * part_rows) for part in missing)
    start, before, written, failed = time.perf_counter(), rows - left, 0, 0
    progress(Progress(before, rows, 0, 0.0))
    for done in outcomes:
        if done["stopped"]:
            kind = getattr(errors, done["stopped"], ModelError)
            raise kind(f"{done['why']} ({before + written:,} of {rows:,} lines are written)")
        written, failed = written + done["rows"], failed + done["failed"]
        progress(Progress(before + written, rows, failed, written / (time.perf_counter() - start)))
    return time.perf_counter() - start, written


def _outcomes(ray: Any, how: Writing, asked: ManyTexts, missing: list[int]) -> Iterator[dict[str, Any]]:
    """What becomes of each missing part, as it comes; a part whose worker dies is given to another.

    Raises:
        ModelError: the workers cannot go on.
    """
    resources = ray.cluster_resources()
    gpus = how.device == "cuda"
    workers = asked.workers or max(1, int(resources.get("GPU" if gpus else "CPU", 1)))
    workers = min(workers, len(missing))
    # A block a part, and no more parts waiting with a worker than one: who is free takes the next.
    numbers = ray.data.from_items([{"part": part} for part in missing], override_num_blocks=len(missing))
    writing = numbers.map(
        PartWriter,
        fn_constructor_args=(how,),
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=1 if gpus else None,
    )
    try:
        for batch in writing.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            columns = {name: values.tolist() for name, values in batch.items()}
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    except ray.exceptions.RayError as error:
        *_, reason = filter(None, map(str.strip, str(error).splitlines() or [""]))
        raise ModelError(
            f"the workers stopped ({type(error).__name__}: {reason[:300]}); the same command goes on where they were"
        ) from error
