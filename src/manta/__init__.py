"""Parallel text generation as control: train a model on your own text, then write whole passages in a few calls.

`manta.load(path)` opens a model folder and `manta.train(...)` makes one; `manta.save_pretrained` writes one anew and
`manta.push_to_hub` publishes it. They are imported when they are first used, so that `import manta` stays instant and
loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manta.hub import load, push_to_hub, save_pretrained
    from manta.recipes import train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "push_to_hub", "save_pretrained", "train"]

_HOMES = {
    "load": "manta.hub",
    "push_to_hub": "manta.hub",
    "save_pretrained": "manta.hub",
    "train": "manta.recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'manta' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
