"""A model folder: `config.json` (the whole resolved recipe), `tokenizer.json`, `model.safetensors`, `README.md`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from manta.config import from_dict, to_dict
from manta.data import Tokenizer
from manta.errors import ConfigError, MantaError, ModelError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.manta_lm import MantaLM, Split
from manta.families.masked import MaskedConfig, MaskedLM, MaskedModel
from manta.families.model import MantaConfig, MantaModel
from manta.hub.foreign import ForeignModel, find_foreign, load_foreign
from manta.masked import DecoderConfig, DeferredConfig
from manta.runtime import atomic_folder, json_tensors, resolve_device
from manta.runtime import load_json_tensors as tensors_from_json

FORMAT = 1
"""Version of the folder's layout."""

LanguageModel = MantaLM | MaskedLM | AutoregressiveLM


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A masked model's own decoder, as stored."""

    decoder: DecoderConfig = field(default_factory=DeferredConfig)
    """Any decoder, by kind."""


def shipped() -> Path:
    """The folder of the model that ships with manta."""
    return Path(__file__).parent.parent / "models" / "e2e"


def save_model(
    folder: Path, lm: LanguageModel, *, recipe: dict[str, Any], card: str, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        folder: made if it is not there; the model of one that is there is replaced, and other files in it stay.
        lm: what to save.
        recipe: the resolved recipe that trained it.
        card: text of the model card.
        dtype: precision of stored matrices; vectors stay in float32. They are read back as float32.

    Raises:
        ModelError: the folder holds files and no model of manta.
        OSError: the disk is full or the folder cannot be written; what was there is untouched.
    """
    refuse_strangers(folder)
    config: dict[str, Any] = {"format": FORMAT, "family": lm.family, "model": to_dict(lm.model.config)}
    config["tokenizer"] = lm.tokenizer.fingerprint()
    if isinstance(lm, MantaLM):
        config["splits"] = {str(budget): to_dict(split) for budget, split in sorted(lm.splits.items())}
        config["time_density"] = json_tensors(lm.density.state_dict())
    if isinstance(lm, MaskedLM) and lm.decoder is not None:
        config["decoder"] = to_dict(lm.decoder)
    config["recipe"] = recipe
    with atomic_folder(folder) as new:
        lm.tokenizer.save(new / "tokenizer.json")
        (new / "model.safetensors").write_bytes(_stored_weights(lm, dtype))
        (new / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")


def is_saved(folder: Path, lm: LanguageModel, *, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a folder holds a model already, weight for weight; its card and decoding may be another's work since."""
    try:
        config = _read_config(folder)
        same = (folder / "model.safetensors").read_bytes() == _stored_weights(lm, dtype)
    except (ModelError, OSError):
        return False
    fingerprint = lm.tokenizer.fingerprint()
    try:
        tokenizer = Tokenizer.load(folder / "tokenizer.json").fingerprint()
    except MantaError:
        return False
    return same and config.get("tokenizer") == fingerprint == tokenizer


def refuse_strangers(folder: Path) -> None:
    """Refuse to write a model into a folder that is somebody else's.

    Raises:
        ModelError: it holds files and no model of manta.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        _read_config(folder)
    except ModelError as error:
        raise ModelError(
            f"{folder} holds files and no model of manta, and some would be overwritten; move it elsewhere, or delete "
            "it if it is a model that was damaged"
        ) from error


def _stored_weights(lm: LanguageModel, dtype: torch.dtype) -> bytes:
    weights = {
        k: v.detach().to("cpu", dtype if v.ndim >= 2 else torch.float32).contiguous()
        for k, v in lm.model.state_dict().items()
    }
    return save(weights)


def load(path: str | Path | None = None, *, device: str | None = None) -> LanguageModel | ForeignModel:
    """Load a model to write with.

    Args:
        path: a model folder, a run folder of `manta train`, or a hub name (`owner/name`, needs network once); None
            takes the model that ships.
        device: where to put it; None: the first CUDA device, else the CPU.

    Returns:
        A model with `generate` and `write`; for a published checkpoint of LLaDA, Dream or MDLM, what `ForeignModel`
        says.

    Raises:
        ModelError: when the folder is missing, damaged, or of another format; the message says which file.
    """
    folder = shipped() if path is None else _find(path)
    if find_foreign(folder) is not None:
        return load_foreign(folder, device)
    config = _read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if config.get("tokenizer") != tokenizer.fingerprint():
        raise ModelError(f"{folder}/tokenizer.json is not the tokenizer this model was trained with; copy it again")
    where = resolve_device(device)
    try:
        if config["family"] == "manta":
            shape = from_dict(MantaConfig, config["model"], "model")
            model = MantaModel(shape)
            _load_weights(model, folder / "model.safetensors")
            density = shape.time.build()
            density.load_state_dict(tensors_from_json(config["time_density"]))
            splits = {int(k): from_dict(Split, v, f"splits.{k}") for k, v in config.get("splits", {}).items()}
            return MantaLM(model.to(where), tokenizer, density, splits)
        if config["family"] == "masked":
            model = MaskedModel(from_dict(MaskedConfig, config["model"], "model"))
            _load_weights(model, folder / "model.safetensors")
            decoder = from_dict(Decoding, {"decoder": config["decoder"]}).decoder if config.get("decoder") else None
            return MaskedLM(model.to(where), tokenizer, decoder)
        if config["family"] == "ar":
            model = AutoregressiveModel(from_dict(AutoregressiveConfig, config["model"], "model"))
            _load_weights(model, folder / "model.safetensors")
            return AutoregressiveLM(model.to(where), tokenizer)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelError(f"{folder}/config.json does not describe a model ({error}); copy the folder again") from error
    raise ModelError(f"{folder} holds a model of the unknown family {config['family']!r}; update manta")


def model_config(path: str | Path | None = None) -> dict[str, Any]:
    """What a model folder records of itself: family, shape, recipe and the fingerprint of its tokenizer.

    Args:
        path: as for `load`.

    Returns:
        The contents of its `config.json`; empty for a checkpoint that manta did not write.

    Raises:
        ModelError: when the folder is missing, damaged, or of another format.
    """
    folder = shipped() if path is None else _find(path)
    return {} if find_foreign(folder) is not None else _read_config(folder)


def _find(path: str | Path) -> Path:
    folder = Path(path)
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if folder.is_dir():
        return folder
    if not folder.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "/", "~")):
        return _from_hub(str(path))
    raise ModelError(f"no model at {path}; give the folder that `manta train --out` wrote")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", "tokenizer.json", "model.safetensors", "README.md"]
    patterns += ["model.safetensors.index.json", "model-*.safetensors"]
    patterns += ["vocab.json", "merges.txt", "tokenizer_config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"no folder {name}, and the hub does not give a model of that name ({reason})") from error


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise ModelError(f"{folder} is not a model folder: {file.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or "family" not in config:
        raise ModelError(f"{file} is not of this version of manta (format {FORMAT})")
    return config


def _load_weights(model: torch.nn.Module, file: Path) -> None:
    """Load strictly: an unexpected, missing or misshapen weight is an error that names it."""
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is missing or damaged ({error}); copy it again") from error
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(weights))
    wrong += [name for name in expected if name in weights and expected[name].shape != weights[name].shape]
    if wrong:
        raise ModelError(f"{file} does not fit its config.json: {wrong[0]} ({len(wrong)} weights differ)")
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in weights.items()})
