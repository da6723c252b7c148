"""Diagnoses of a loaded model, made by `manta diagnose` in a process of its own, one at a time."""

import asyncio
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KEPT: Final = 8
"""Diagnoses that are kept to be looked at."""
PREFIX: Final = "manta-diagnosis-"
"""Of the folder that one is written into."""


@dataclass
class Diagnosis:
    """One diagnosis, under way or done."""

    id: str
    """Its name."""
    model: str
    """Name of the model."""
    lines: list[str] = field(default_factory=list)
    """What it has said of its progress."""
    state: str = "running"
    """`running`, `done` or `failed`."""
    page: bytes = b""
    """The page, once it is done."""


class Diagnoses:
    """Makes diagnoses and keeps the last of them."""

    def __init__(self) -> None:
        self.known: dict[str, Diagnosis] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._task is not None and not self._task.done()

    def begin(
        self, name: str, source: str, prompts: Sequence[str], num_steps: int, device: str | None = None
    ) -> Diagnosis:
        """Begin one; nobody may have begun another that is not done.

        Args:
            name: of the model.
            source: what loads it: a folder or a name.
            prompts: what it is watched answering; none: what the verb chooses.
            num_steps: network calls of a text.
            device: where it is measured; None: the verb's choice.
        """
        assert not self.busy, "one diagnosis at a time"
        found = Diagnosis(uuid.uuid4().hex, name)
        self.known[found.id] = found
        for old in list(self.known)[:-KEPT]:
            del self.known[old]
        flags = ["--num-steps", str(num_steps), "--num-prompts", str(len(prompts) or 4)]
        self._task = asyncio.create_task(
            self._make(found, source, list(prompts), flags + (["--device", device] if device else []))
        )
        return found

    async def stop(self, found: Diagnosis) -> None:
        """End one that is under way; nothing becomes of one that is over."""
        if found.state == "running":
            found.lines.append("stopped")
            await self.close()
            found.state = "failed" if found.state == "running" else found.state  # stopped before it had begun

    async def close(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _make(self, found: Diagnosis, source: str, prompts: list[str], flags: list[str]) -> None:
        try:
            await self._run(found, source, prompts, flags)
        except OSError as error:
            found.lines.append(f"it could not be made: {error.strerror or error}")
        finally:
            if found.state == "running":
                found.state = "failed"

    async def _run(self, found: Diagnosis, source: str, prompts: list[str], flags: list[str]) -> None:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as kept:
            folder = Path(kept)
            command = [sys.executable, "-m", "manta", "diagnose", source, "--out", str(folder / "out"), *flags]
            if prompts:
                lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
                (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
                command += ["--prompts", str(folder / "prompts.jsonl")]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=_environment()
            )
            try:
                assert process.stderr is not None
                async for line in process.stderr:
                    found.lines.append(line.decode("utf-8", "replace").strip()[:500])
                    del found.lines[:-100]
                page = folder / "out" / "diagnose.html"
                if await process.wait() == 0 and page.is_file():
                    found.page, found.state = page.read_bytes(), "done"
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def _environment() -> dict[str, str]:
    """The same, with the package that runs now found first."""
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}
