"""Models that others published, through manta's own layers: LLaDA, Dream, MDLM, causal ones of two layouts, and one
that a package holds.

No code of theirs is run. `transformers` has the masked ones only as code that comes with the weights
(`trust_remote_code`).
"""

from manta.hub.foreign.causal import CAUSAL_KINDS, describe_decoder, load_decoder
from manta.hub.foreign.gguf import load_smollm2
from manta.hub.foreign.mdlm import subs
from manta.hub.foreign.model import KINDS, ForeignModel, describe_foreign, find_foreign, load_foreign

__all__ = [
    "CAUSAL_KINDS",
    "KINDS",
    "ForeignModel",
    "describe_decoder",
    "describe_foreign",
    "find_foreign",
    "load_decoder",
    "load_foreign",
    "load_smollm2",
    "subs",
]
