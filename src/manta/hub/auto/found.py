"""What `transformers` calls a model, and what goes with it, in terms of manta."""

import os
from collections.abc import Mapping
from typing import Any

from manta.errors import UsageError
from manta.hub.causal import HUB

PASSED = frozenset(
    {
        "_commit_hash",
        "_from_auto",
        "_from_pipeline",
        "adapter_kwargs",
        "attn_implementation",
        "cache_dir",
        "config",
        "force_download",
        "local_files_only",
        "low_cpu_mem_usage",
        "proxies",
        "revision",
        "tokenizer_type",
        "token",
        "trust_remote_code",
        "use_fast",
        "use_safetensors",
    }
)
"""What the Auto classes and pipelines hand on, and what changes nothing of a folder that one loader reads."""


OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
"""Of them, those that say how a folder is fetched."""


def named(name: str | os.PathLike[str], given: Mapping[str, Any]) -> str:
    """A model as `manta.load` takes it: a name that is no folder is one of the hub.

    Args:
        name: as `from_pretrained` takes it.
        given: what else it was given.

    Raises:
        UsageError: for something that manta does not follow.
    """
    for key, value in given.items():
        if key not in PASSED and value not in (None, False, ""):
            raise UsageError(f"{key}={str(value)[:40]} means nothing to a folder of manta; leave it out")
    text, revision = os.fspath(name), given.get("revision")
    if os.path.isdir(text) or ":" in text:
        return text
    for key in OF_THE_HUB:
        if given.get(key):
            raise UsageError(
                f"{key} is not handed on to the hub; set its environment variables, such as HF_TOKEN, HF_HOME or "
                "HF_HUB_OFFLINE, and leave it out"
            )
    return f"{HUB}{text}@{revision}" if revision else HUB + text
