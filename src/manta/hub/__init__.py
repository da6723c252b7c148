"""Models on disk: load, save, the model that ships, and masked models that others published."""

from manta.hub import llada
from manta.hub.causal import CausalModel, load_causal
from manta.hub.folder import (
    LanguageModel,
    card_of,
    is_saved,
    load,
    load_writer,
    model_config,
    published_kind,
    refuse_strangers,
    save_model,
    shipped,
)
from manta.hub.foreign import ForeignModel, find_foreign, load_foreign, load_smollm2
from manta.hub.merging import load_adapters, merge
from manta.hub.saving import push_to_hub, save_pretrained

__all__ = [
    "CausalModel",
    "ForeignModel",
    "LanguageModel",
    "card_of",
    "find_foreign",
    "is_saved",
    "llada",
    "load",
    "load_adapters",
    "load_causal",
    "load_foreign",
    "load_smollm2",
    "load_writer",
    "merge",
    "model_config",
    "published_kind",
    "push_to_hub",
    "refuse_strangers",
    "save_model",
    "save_pretrained",
    "shipped",
]
