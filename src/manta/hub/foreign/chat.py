"""What instruct models put around a prompt: their published chat templates, as plain strings, so that none is run."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.data.foreign import ForeignTokenizer

_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>")


@dataclass(frozen=True, kw_only=True)
class ChatFrame:
    """A conversation of one user's turn, up to where the answer begins."""

    before: str
    """What stands before the prompt, with the names of special tokens."""
    after: str
    """What stands after it."""
    end: str
    """Name of the token that ends a turn: the answer does not go beyond it."""
    trimmed: bool
    """White space around the prompt is left out."""

    def encode(self, prompt: str, tokenizer: ForeignTokenizer) -> list[int]:
        """Token ids of the framed prompt; names of special tokens in the prompt itself stay plain text."""
        before, after = (tokenizer.encode(part, special_names=True) for part in (self.before, self.after))
        return before + tokenizer.encode(prompt.strip() if self.trimmed else prompt) + after


def find_frame(folder: Path, tokenizer: ForeignTokenizer) -> ChatFrame | None:
    """The frame of a checkpoint whose `tokenizer_config.json` has the template of LLaDA's or Dream's instruct models.

    The template is recognised by the tokens it names and is not run; a model with another template is given plain
    prompts.

    Args:
        folder: of the checkpoint.
        tokenizer: which has to know the frame's tokens.

    Returns:
        None where there is no template, no known one, or one whose tokens the tokenizer lacks.

    Source: the checkpoints LLaDA-8B-Instruct (Llama 3's turns) and Dream-v0-Instruct-7B (ChatML).
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = config["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(template, str):
        return None
    frame = _known(template, config)
    if frame is None:
        return None
    names = re.findall(r"<\|\w+\|>", frame.before + frame.after)
    return frame if all(tokenizer.id_of(name) is not None for name in names) else None


def _known(template: str, config: dict[str, Any]) -> ChatFrame | None:
    if "<|start_header_id|>" in template and "<|eot_id|>" in template:
        start = config.get("bos_token") if "bos_token" in template else ""
        start = start.get("content") if isinstance(start, dict) else start
        role = "<|start_header_id|>{}<|end_header_id|>\n\n"
        before, after = f"{start or ''}{role.format('user')}", f"<|eot_id|>{role.format('assistant')}"
        return ChatFrame(before=before, after=after, end="<|eot_id|>", trimmed=True)
    if "<|im_start|>" in template and "<|im_end|>" in template:
        system = _SYSTEM.search(template)
        before = f"<|im_start|>system\n{system[1]}<|im_end|>\n" if system else ""
        after = "<|im_end|>\n<|im_start|>assistant\n"
        return ChatFrame(before=f"{before}<|im_start|>user\n", after=after, end="<|im_end|>", trimmed=False)
    return None
