"""Models of texts for `transformers`: after `register()` its Auto classes and pipelines take folders of manta.

    from manta.hub.auto import register
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    register()
    net = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline("text-generation", model=net, tokenizer=tokenizer)("name[Blue Spice]", return_full_text=False)

A folder is the one that `manta.load` reads: nothing is written twice, and one loader checks what it holds.
"""

from manta.errors import ModelError

try:
    import transformers
except ImportError as error:
    raise ModelError('manta.hub.auto needs transformers; install it with: pip install "manta[hf]"') from error

from manta.hub.auto.config import MantaTextConfig
from manta.hub.auto.model import FlowOutput, MantaLanguageModel
from manta.hub.auto.tokenizer import MantaTokenizer
from manta.hub.folder import MODEL_TYPE

__all__ = ["FlowOutput", "MantaLanguageModel", "MantaTextConfig", "MantaTokenizer", "register"]


def register() -> None:
    """Make folders of manta known to `AutoConfig`, `AutoTokenizer`, `AutoModel` and its kinds for causal and masked
    language models; calling it again changes nothing."""
    transformers.AutoConfig.register(MODEL_TYPE, MantaTextConfig, exist_ok=True)
    transformers.AutoTokenizer.register(MantaTextConfig, tokenizer_class=MantaTokenizer, exist_ok=True)
    for kind in (transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM):
        kind.register(MantaTextConfig, MantaLanguageModel, exist_ok=True)
