"""Masked models that others published, through manta's own layers: LLaDA, Dream, MDLM. No code of theirs is run.

`transformers` has them only as code that comes with the weights (`trust_remote_code`).
"""

from manta.hub.foreign.mdlm import subs
from manta.hub.foreign.model import KINDS, ForeignModel, find_foreign, load_foreign

__all__ = ["KINDS", "ForeignModel", "find_foreign", "load_foreign", "subs"]
