"""What a model folder says of itself, as a configuration of `transformers`."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

from manta.hub.folder import MODEL_CLASS, MODEL_TYPE


class MantaTextConfig(PreTrainedConfig):
    """The `config.json` of a model of texts.

    Its own keys stay together in `manta`, since some of them, such as `decoder`, mean other things to `transformers`.

    Args:
        manta: contents of the folder's `config.json`.
        vocab_size: tokens of the tokenizer.
        hidden_size: width.
        num_hidden_layers: blocks that write the text.
        num_attention_heads: attention heads.
        max_position_embeddings: most tokens of a text.
        kwargs: as for any configuration of `transformers`.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        manta: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        hidden_size: int | None = None,
        num_hidden_layers: int | None = None,
        num_attention_heads: int | None = None,
        max_position_embeddings: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.manta, self.vocab_size, self.hidden_size = manta, vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration from what a folder's `config.json` holds, or from what one of these was saved as."""
        return super().from_dict(config_dict if "manta" in config_dict else told(config_dict), **kwargs)


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `transformers` is told of a folder.

    Args:
        config: contents of its `config.json`.
    """
    own = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    shape = config.get("model")
    shape = shape if isinstance(shape, Mapping) else {}
    sizes = {"vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "depth"}
    sizes |= {"num_attention_heads": "heads", "max_position_embeddings": "max_text"}
    described = {theirs: shape.get(ours) for theirs, ours in sizes.items()}
    return {"architectures": [MODEL_CLASS], "manta": own, **described}
