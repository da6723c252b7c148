"""What instruct models put around a prompt: their published chat templates, as plain strings, so that none is run."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.errors import ModelError
from manta.runtime import read_json
from manta.text.foreign import ForeignTokenizer

MOST_BYTES = 4 << 20
"""Of the largest template."""

_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>")


@dataclass(frozen=True, kw_only=True)
class ChatFrame:
    """A conversation by turns, up to where the answer begins."""

    start: str = ""
    """What stands before the first turn, with the names of special tokens."""
    opening: str
    """What stands before the words of a turn, `{}` for whose they are."""
    closing: str
    """What stands after them."""
    system: str = ""
    """What the system says where nobody lets it say something else; empty: nothing."""
    end: str
    """Name of the token that ends a turn: the answer does not go beyond it."""
    trimmed: bool
    """White space around a turn's words is left out."""

    @property
    def before(self) -> str:
        """What stands before the prompt where nothing was said before it."""
        system = f"{self.opening.format('system')}{self.system}{self.closing}" if self.system else ""
        return f"{self.start}{system}{self.opening.format('user')}"

    @property
    def after(self) -> str:
        """What stands between the prompt and its answer."""
        return f"{self.closing}{self.opening.format('assistant')}"

    def encode(self, prompt: str, tokenizer: ForeignTokenizer, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of the framed conversation; names of special tokens in what somebody says stay plain text.

        Args:
            prompt: the user's last turn.
            tokenizer: of the model.
            history: `(role, text)` of what was said before.
        """
        turns = [*history, ("user", prompt)]
        if turns[0][0] != "system" and self.system:
            turns.insert(0, ("system", self.system))
        ids, frame = [], self.start
        for role, words in turns:
            ids += tokenizer.encode(frame + self.opening.format(role), special_names=True)
            ids += tokenizer.encode(words.strip() if self.trimmed else words)
            frame = self.closing
        return ids + tokenizer.encode(frame + self.opening.format("assistant"), special_names=True)


def find_frame(folder: Path, tokenizer: ForeignTokenizer) -> ChatFrame | None:
    """The frame of a checkpoint that has the template of LLaDA's or Dream's instruct models.

    The template is recognised by the tokens it names and is not run; a model with another template is given plain
    prompts, and a warning says so.

    Args:
        folder: of the checkpoint.
        tokenizer: which has to know the frame's tokens.

    Returns:
        None where there is no template, no known one, or one whose tokens the tokenizer lacks.

    Raises:
        ModelError: a file that may hold a template is damaged.

    Source: the checkpoints LLaDA-8B-Instruct (Llama 3's turns) and Dream-v0-Instruct-7B (ChatML).
    """
    settings = _settings(folder / "tokenizer_config.json")
    templates = _templates(folder, settings)
    if not templates:
        return None
    file, template = next(iter(templates.items()))  # the others are for other uses, or overruled
    frame = _known(template, settings)
    names = [] if frame is None else re.findall(r"<\|\w+\|>", frame.start + frame.opening + frame.closing)
    if frame is not None and all(tokenizer.id_of(name) is not None for name in names):
        return frame
    warnings.warn(
        f"{folder / file} has a chat template that manta does not know, or whose tokens the tokenizer lacks; prompts "
        "are given to the model as they are, so write them in that template",
        stacklevel=2,
    )
    return None


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Chat templates by the file that holds them, the one that counts first, as `transformers` looks for them."""
    found: dict[str, str] = {}
    places = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for file in places:
        if file.exists():
            found[str(file.relative_to(folder))] = _text(file)
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        held = settings if name == "tokenizer_config.json" else _settings(folder / name)
        template = _default(held.get("chat_template"))
        if template is not None:
            found.setdefault(name, template)
    main = "chat_template.jinja"
    named = [name for name in found if name.startswith("additional_chat_templates")]
    return {name: found[name] for name in sorted(found, key=lambda name: (name != main, name in named))}


def _default(template: Any) -> str | None:
    """The template of plain conversations, among several by name."""
    if isinstance(template, list):
        pairs = [(row.get("name"), row.get("template")) for row in template if isinstance(row, dict)]
        template = dict(pair for pair in pairs if isinstance(pair[0], str))
    if isinstance(template, dict):
        template = template.get("default", next(iter(template.values()), None))
    return template if isinstance(template, str) else None


def _settings(file: Path) -> dict[str, Any]:
    found = read_json(file) if file.exists() else {}
    return found if isinstance(found, dict) else {}


def _text(file: Path) -> str:
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        raise ModelError(f"{file} is no plain file of a template's size; copy it again")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read ({error}); copy it again") from error


def _known(template: str, config: dict[str, Any]) -> ChatFrame | None:
    if "<|start_header_id|>" in template and "<|eot_id|>" in template:
        start = config.get("bos_token") if "bos_token" in template else ""
        start = start.get("content") if isinstance(start, dict) else start
        start = start if isinstance(start, str) else ""
        opening = "<|start_header_id|>{}<|end_header_id|>\n\n"
        return ChatFrame(start=start, opening=opening, closing="<|eot_id|>", end="<|eot_id|>", trimmed=True)
    if "<|im_start|>" in template and "<|im_end|>" in template:
        system = _SYSTEM.search(template)
        return ChatFrame(
            opening="<|im_start|>{}\n",
            closing="<|im_end|>\n",
            system=system[1] if system else "",
            end="<|im_end|>",
            trimmed=False,
        )
    return None
