"""A model of texts of any family, as a model of `transformers`: one network call, and writing."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel  # pyright: ignore[reportMissingImports]
from transformers.generation.utils import GenerationMixin  # pyright: ignore[reportMissingImports]
from transformers.modeling_outputs import CausalLMOutput  # pyright: ignore[reportMissingImports]
from transformers.utils.generic import ModelOutput  # pyright: ignore[reportMissingImports]

from manta.errors import ModelError, UsageError
from manta.families.trained import TrainedWriter
from manta.hub.auto.calls import call
from manta.hub.auto.config import MantaTextConfig, told
from manta.hub.auto.found import named
from manta.hub.auto.writing import asked, write
from manta.hub.folder import load_writer
from manta.hub.folder import model_config as stored_config
from manta.hub.saving import push_to_hub, save_pretrained


@dataclass
class FlowOutput(ModelOutput):
    """What a call of a flow tells."""

    loss: Tensor | None = None
    """None: a flow is taught by states, see `manta train`."""
    logits: Tensor | None = None
    """Of every word, "b n v"."""
    clean: Tensor | None = None
    """Estimate of the clean state, "b m c", which a solver moves towards."""


class MantaLanguageModel(PreTrainedModel, GenerationMixin):
    """A model of texts, of any family that manta trains.

    Args:
        config: of its folder.
        lm: the model; a folder gives it by `from_pretrained`.

    Raises:
        ModelError: none is given: weights are never drawn here.
    """

    config_class = MantaTextConfig
    base_model_prefix = "net"
    main_input_name = "input_ids"
    _no_split_modules: list[str] = []  # noqa: RUF012  (as the class above has it)
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: MantaTextConfig, lm: TrainedWriter[Any] | None = None) -> None:
        if lm is None:
            raise ModelError("a model of manta is read from its folder; use from_pretrained, or train one")
        super().__init__(config)
        self.lm = lm
        """The model, with `generate` and `write` of manta."""
        self.net: nn.Module = lm.model
        causal = getattr(lm, "causal", None)
        self.beside: nn.Module | None = None if causal is None else causal.model
        """The left-to-right reading of an aligned model that has kept one."""
        self.generation_config = GenerationConfig(do_sample=False, max_new_tokens=lm.capacity)
        self.post_init()
        self.eval()

    def init_weights(self) -> None:
        """Nothing: they are there."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> "MantaLanguageModel":
        """The model of a folder, or of the hub by its name, in float32, through `manta.load`.

        Args:
            name: a folder, or `owner/name`.
            inputs: none.
            kwargs: `device_map` names one device; `dtype` can be float32 alone; what the Auto classes add is accepted.

        Raises:
            ModelError: there is none, it is damaged, or it is no model of texts of manta.
            UsageError: something that manta does not follow.
        """
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        if dtype not in (None, "auto", "float32", torch.float32):
            raise UsageError(f"a model of manta computes in float32, received dtype={dtype}; leave it out")
        device = _device(kwargs.pop("device_map", None))
        path = named(name, {key: value for key, value in kwargs.items() if key != "dtype" and key != "torch_dtype"})
        lm = load_writer(path, device=device)
        if not isinstance(lm, TrainedWriter):
            raise ModelError(f"{name} is a published model of the layout {lm.family}; load it with manta.load")
        found = cls(MantaTextConfig(**told(stored_config(path))), lm)
        found.config.name_or_path = str(name)
        return found

    def get_input_embeddings(self) -> nn.Module:
        """The table that words are read by."""
        return self.lm.model.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        timesteps: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        prompt_ids: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        self_cond: Tensor | None = None,
        style: str = "diverse",
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """One network call, the prompt's encoder beside it.

        | family | `input_ids` | logits at i are of |
        |---|---|---|
        | ar, decoder | the token that begins a row, and the text so far | the token at i + 1 |
        | masked, block, aligned | a canvas, the mask token where a word is hidden | the token (or label) at i |
        | manta | the words that are settled, the mask token elsewhere; may be left out | the token at i |

        Args:
            input_ids: as above, "b n"; of a block-causal model n is a multiple of its blocks' length, and words are
                hidden in the last block alone.
            attention_mask: 1 on each row's canvas, "b n"; padding is at the right.
            inputs_embeds: of a Manta-LM: the state, "b m c".
            timesteps: of a Manta-LM: its time, "b", 0 is noise and 1 is data.
            labels: left to right as is usual in `transformers`, the tokens themselves, shifted here; of a masked or
                block-causal model the hidden tokens, −100 elsewhere; the loss is their mean cross-entropy in nats.
            prompt_ids: what the texts answer to, "b p"; of a decoder it is part of the row.
            prompt_attention_mask: 1 at real tokens, which stand at the left.
            self_cond: of a Manta-LM: its last estimate of the clean state.
            style: kind of text asked for, `diverse` or `consensus`, where the family has styles.
            num_items_in_batch: labels of several batches that are learned from as one; the loss is their share.
            kwargs: `return_dict` and `use_cache`, which change nothing.

        Returns:
            `CausalLMOutput`, or of a Manta-LM a `FlowOutput`.

        Raises:
            UsageError: something is missing, or means nothing to the family.
        """
        for name, value in kwargs.items():
            if name not in ("return_dict", "use_cache") and value is not None and value is not False:
                raise UsageError(f"`{name}` means nothing to a call of a model of manta; leave it out")
        prompt = (prompt_ids, prompt_attention_mask)
        state = (inputs_embeds, timesteps, self_cond)
        logits, clean = call(self.lm, input_ids, attention_mask, prompt, state, style)
        if clean is not None:
            if labels is not None:
                raise UsageError("a Manta-LM is taught by states and times; train it with manta train")
            return FlowOutput(logits=logits, clean=clean)
        return CausalLMOutput(loss=self._loss(logits, labels, num_items_in_batch), logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor | None, items: Tensor | int | None) -> Tensor | None:
        if labels is None:
            return None
        if self.lm.family == "aligned":
            raise UsageError("an aligned model is taught by all alignments of a text; train it with manta train")
        if self.lm.family in ("ar", "decoder"):
            logits, labels = logits[:, :-1], labels[:, 1:]
        how = "mean" if items is None else "sum"
        nats = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction=how)
        return nats if items is None else nats / items

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Write texts by the family's own `generate`.

        Args:
            inputs, input_ids: the prompts' tokens, "b p"; None for none.
            generation_config: `do_sample`, `temperature`, `top_k`, `top_p`, `max_new_tokens` and
                `num_return_sequences` are followed; anything else that is set is refused.
            streamer: gets the prompt, drafts by `put_draft` where it takes them, the text, and the end; for one text.
            attention_mask: 0 at padding, on either side.
            seed: sample j of row i uses `seed + i * num_return_sequences + j`.
            kwargs: the same settings one by one, and options of manta such as `num_steps=8`.

        Returns:
            Each row with its text behind, padded at the right; with `return_dict_in_generate=True`, in an output with
            `sequences`.

        Raises:
            UsageError: a setting that manta does not follow, or that does not fit the family.
            RequestError: a prompt that the model cannot serve.
        """
        rows = inputs if input_ids is None else input_ids
        config = [self.generation_config, *([] if generation_config is None else [generation_config])]
        settings = asked(self.lm, [each.to_diff_dict() for each in config], kwargs)
        return write(self.lm, rows, attention_mask, settings, seed, streamer)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, repo_id: str = "", **kwargs: Any
    ) -> None:
        """Write the model's folder, see `manta.hub.save_pretrained`.

        Args:
            save_directory: new, empty, or of a model that this one replaces.
            push_to_hub: publish it, too.
            repo_id: name on the hub; without it, the directory's.
            kwargs: what `transformers` adds, such as `state_dict`; the weights that are stored are this model's.
        """
        save_pretrained(self.lm, Path(save_directory))
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Publish it, see `manta.hub.push_to_hub`, which has the arguments; `commit_message` is its `message`."""
        if "commit_message" in kwargs:
            kwargs["message"] = kwargs.pop("commit_message")
        return push_to_hub(self.lm, repo_id, **kwargs)


def _device(asked: Any) -> str | None:
    """A device map of one device as manta names it."""
    if isinstance(asked, dict) and set(asked) == {""}:
        asked = asked[""]
    if asked in (None, "auto"):
        return None
    if isinstance(asked, int):
        return f"cuda:{asked}"
    if isinstance(asked, str | torch.device):
        return str(asked)
    raise UsageError(f"a model of manta lives on one device, received device_map={str(asked)[:60]}")
