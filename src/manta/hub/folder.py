"""A model folder: `config.json` (the whole resolved recipe), `tokenizer.json`, `model.safetensors`, `README.md`."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from manta.config import from_dict, shortened, to_dict
from manta.errors import ConfigError, MantaError, ModelError, UsageError
from manta.families import DRAWING, FAMILIES
from manta.families.events import Writer
from manta.families.kept import Codec, KeptModel
from manta.families.stored import built
from manta.families.trained import TrainedWriter
from manta.hub.adapters import is_adapter, load_adapted, record_of
from manta.hub.causal import HUB
from manta.hub.foreign import CAUSAL_KINDS, ForeignModel, find_foreign, load_decoder, load_foreign
from manta.hub.foreign.checkpoint import check_weight, headers
from manta.nets.integer_nets import with_integers
from manta.nets.integers import IntegerSpec, integer_maps
from manta.nets.products import has_integer_products
from manta.runtime import atomic_folder, read_json, resolve_device

FORMAT = 1
"""Version of the folder's layout."""

MODEL_TYPE, MODEL_CLASS = "manta", "MantaLanguageModel"
"""What a folder of a model of texts says of itself to `transformers`, see `manta.hub.auto`."""

PARTS = "parts.safetensors"
"""What a family keeps beside its weights, such as a drafter."""

QUANTISED = "quantised"
"""Of `config.json`: how each map of integers is quantised, as far as it is not the usual way."""

LanguageModel = TrainedWriter[Any]
"""A model of any family that manta trains."""


BUILTIN = "builtin:"
"""Before the name of a model that ships with manta."""


def shipped(name: str = "e2e") -> Path:
    """The folder of a model that ships with manta.

    Raises:
        ModelError: none of that name does.
    """
    models = Path(__file__).parent.parent / "models"
    known = sorted(folder.name for folder in models.iterdir() if folder.is_dir()) if models.is_dir() else []
    if name not in known and name != "e2e":
        raise ModelError(f"no model {shortened(name)} ships with manta; there are {', '.join(known)}")
    return models / name


def save_model(
    folder: Path, model: KeptModel, *, recipe: dict[str, Any], card: str, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        folder: made if it is not there; the model of one that is there is replaced, and other files in it stay.
        model: what to save.
        recipe: the resolved recipe that trained it.
        card: text of the model card.
        dtype: precision of stored matrices; vectors stay in float32. They are read back as float32.

    Raises:
        ModelError: the folder holds files and no model of manta.
        OSError: the disk is full or the folder cannot be written; what was there is untouched.
    """
    refuse_strangers(folder)
    config: dict[str, Any] = {"format": FORMAT, "family": model.family, "model": to_dict(model.model.config)}
    config[model.codec.key] = model.codec.fingerprint()
    if model.family in FAMILIES:  # by which `transformers` finds what `manta.hub.auto` registers
        config |= {"model_type": MODEL_TYPE, "architectures": [MODEL_CLASS]}
    if model.prompted is not None:
        config["prompted"] = model.prompted
    if model.quantised is not None:
        config[QUANTISED] = {name: _differing(spec) for name, spec in model.quantised.items()}
    config |= {**model.extras(), "recipe": recipe}
    with atomic_folder(folder) as new:
        model.codec.save(new / model.codec.file)
        (new / "model.safetensors").write_bytes(_stored_weights(model.model.state_dict(), dtype))
        parts = _stored_parts(model, dtype)
        if parts or (folder / PARTS).exists():  # nothing of the model before is left to this one
            (new / PARTS).write_bytes(parts or save({}))
        (new / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")


def is_saved(folder: Path, model: KeptModel, *, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a folder holds a model already, weight for weight; its card and decoding may be another's work since."""
    try:
        config = _read_config(folder)
        same = holds_weights(folder, model.model.state_dict(), dtype=dtype)
        parts = _stored_parts(model, dtype)
        same = same and (not parts or (folder / PARTS).read_bytes() == parts)
    except (ModelError, OSError):
        return False
    fingerprint = model.codec.fingerprint()
    try:
        stored = _read_codec(config, folder).fingerprint()
    except MantaError:
        return False
    return same and config.get(model.codec.key) == fingerprint == stored


def holds_weights(folder: Path, weights: Mapping[str, Tensor], *, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a model folder holds these weights of a net and no others, as they would be stored."""
    try:
        return (folder / "model.safetensors").read_bytes() == _stored_weights(weights, dtype)
    except OSError:
        return False


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


def _stored_weights(weights: Mapping[str, Tensor], dtype: torch.dtype) -> bytes:
    return save({name: _stored(value, dtype) for name, value in weights.items()})


def _stored_parts(model: KeptModel, dtype: torch.dtype) -> bytes:
    """What a family keeps beside its weights; nothing if that is nothing."""
    parts = {name: _stored(value, dtype) for name, value in model.parts().items()}
    return save(parts) if parts else b""


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    kept = value.dtype if not value.is_floating_point() else dtype if value.ndim >= 2 else torch.float32
    return value.detach().to("cpu", kept).contiguous()


def _read_parts(file: Path) -> dict[str, Tensor]:
    """What a family keeps beside its weights; nothing if there is no such file."""
    if not file.exists():
        return {}
    headers(file)  # which refuses what is no plain file of tensors
    parts = load_file(file)
    for name, value in parts.items():
        check_weight(name, value, file)
    return parts


def load(path: str | Path | None = None, *, device: str | None = None) -> Any:
    """Load a model of any kind.

    Args:
        path: a model folder, a folder of adapters, a run folder of `manta train`, a name of the hub (`hf:owner/name`,
            perhaps with `@revision`; needs the network once), or of a model that ships, such as `builtin:e2e-aligned`;
            None takes `builtin:e2e`.
        device: where to put it; None: the first CUDA device, else the CPU.

    Returns:
        A model of texts, with `generate` and `write`; for a published checkpoint of LLaDA, Dream or MDLM, what
        `ForeignModel` says, and for one of Llama's or GPT-NeoX's layout a `DecoderLM`; or an
        `ImageFlow` or a `JointFlow`, with `draw`, or a `Restorer`, with `restore`.

    Raises:
        ModelError: when the folder is missing, damaged, or of another format; the message says which file.
        UsageError: for what is no path or name.
    """
    if path is not None and not isinstance(path, str | Path):
        raise UsageError(f"a model is a path or a name, received {path!r} ({type(path).__name__})")
    folder = shipped() if path is None else find_folder(path)
    if is_adapter(folder):
        return load_adapted(folder, base_of(folder), device)
    kind = find_foreign(folder)
    if kind in CAUSAL_KINDS:
        return load_decoder(folder, kind, device)
    if kind is not None:
        return load_foreign(folder, device)
    config = _read_config(folder)
    codec = _read_codec(config, folder)
    if config.get(codec.key) != codec.fingerprint():
        raise ModelError(f"{folder}/{codec.file} is not the {codec.key} this model was trained with; copy it again")
    where = resolve_device(device)
    try:
        model = _told(_read_model(config, folder / "model.safetensors", codec, where), config)
    except ModelError:
        raise
    except Exception as error:  # whatever a file that anybody may have written makes of our classes
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}/config.json does not describe a model ({type(error).__name__}: {reason}); copy the folder again"
        ) from error
    model.card = card_of(folder)
    if model.quantised is not None and not has_integer_products(where):
        warnings.warn(f"torch has no products of integers on {where}, so this model is no faster there", stacklevel=2)
    return model


def load_tokenizer(path: str | Path | None = None) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a model folder of texts, without the model, and the shape that the folder tells.

    Args:
        path: as for `load`.

    Raises:
        ModelError: as for `load`.
    """
    folder = shipped() if path is None else find_folder(path)
    config = _read_config(folder)
    if config["family"] not in FAMILIES or not isinstance(config.get("model"), dict):
        raise ModelError(f"{folder}/config.json does not describe a model of texts")
    return _read_codec(config, folder), config["model"]


def load_writer(path: str | Path | None = None, *, device: str | None = None) -> LanguageModel | ForeignModel:
    """Load a model of texts.

    Args:
        path: as for `load`.
        device: as for `load`.

    Raises:
        ModelError: as for `load`, or it is no model of texts.
    """
    found = load(path, device=device)
    if not isinstance(found, Writer):
        raise ModelError(f"{path} is a model of {DRAWING[found.family].words}, and this takes a model of texts")
    return found  # pyright: ignore[reportReturnType]


def _read_codec(config: dict[str, Any], folder: Path) -> Codec:
    """The codec of a folder, as its family has them."""
    codec_class: type[Codec] = _class_of(config, folder).codec_class
    return codec_class.load(folder / codec_class.file)


def _class_of(config: dict[str, Any], folder: Path) -> type[KeptModel]:
    """What the model of a folder is read as."""
    family = config["family"]
    if isinstance(family, str) and family in DRAWING:
        return DRAWING[family].load()
    if not isinstance(family, str) or family not in FAMILIES or FAMILIES[family].writer is None:
        raise ModelError(f"{folder} holds a model of the unknown family {shortened(family)}; update manta")
    return FAMILIES[family].load()


def _read_model(config: dict[str, Any], file: Path, codec: Codec, where: torch.device) -> Any:
    """The model that a folder's configuration describes, with the weights of `file`."""
    found = _class_of(config, file.parent)
    specs = _specs(config)
    net = _built(found, from_dict(found.config_class, config["model"], "model"), codec, file, specs)
    return found.stored(net.to(where), codec, config, _read_parts(file.with_name(PARTS)))


def _specs(config: dict[str, Any]) -> dict[str, IntegerSpec] | None:
    """How each map of integers of a folder is quantised; None where there are none."""
    told = config.get(QUANTISED)
    if not isinstance(told, dict | None):
        raise ConfigError(f"{QUANTISED} should be a table, received {shortened(told)}")
    return told and {name: from_dict(IntegerSpec, spec, f"{QUANTISED}.{name[:80]}") for name, spec in told.items()}


def _differing(spec: IntegerSpec) -> dict[str, Any]:
    """What of a specification is not the usual."""
    usual = to_dict(IntegerSpec())
    return {name: value for name, value in to_dict(spec).items() if value != usual[name]}


def _built(
    found: type[KeptModel], shape: Any, codec: Codec, file: Path, specs: dict[str, IntegerSpec] | None
) -> nn.Module:
    """A model with its weights: whatever they and its shape ask for is compared before any memory is taken."""
    stored = {name: size for name, (_, size) in headers(file).items()}
    try:
        found.check_codec(shape, codec)
    except ConfigError as error:
        raise ModelError(f"{file.parent}/config.json says {error}; copy the folder again") from error
    try:
        model = built(lambda shape: with_integers(found.net_class(shape), specs or {}), shape, stored)
    except ConfigError as error:
        raise ModelError(f"{file} does not fit its config.json: {error}") from error
    _load_weights(model, file)
    return model


def _told(model: Any, config: dict[str, Any]) -> Any:
    """The model with what its folder says of its data."""
    if not isinstance(prompted := config.get("prompted"), bool | None):
        raise ConfigError(f"prompted should be true or false, received {prompted!r}")
    model.prompted, model.quantised = prompted, _specs(config)
    model.recipe = recipe if isinstance(recipe := config.get("recipe"), dict) else None
    return model


def model_config(path: str | Path | None = None) -> dict[str, Any]:
    """What a model folder records of itself: family, shape, recipe and the fingerprint of its tokenizer.

    Args:
        path: as for `load`.

    Returns:
        The contents of its `config.json`; for adapters what is known of them; empty for a checkpoint that manta did
        not write.

    Raises:
        ModelError: when the folder is missing, damaged, or of another format.
    """
    folder = shipped() if path is None else find_folder(path)
    if is_adapter(folder):
        return record_of(folder)
    return {} if find_foreign(folder) is not None else _read_config(folder)


def card_of(path: str | Path | None = None) -> str:
    """The card of a model folder; empty where there is none.

    Args:
        path: as for `load`.

    Raises:
        ModelError: when the folder is missing.
    """
    card = (shipped() if path is None else find_folder(path)) / "README.md"
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""


def find_folder(path: str | Path) -> Path:
    """The folder of a model, fetched if it is of the hub; `path` is as for `load`.

    Raises:
        ModelError: there is none.
    """
    name = str(path)
    if name.startswith(BUILTIN):
        return shipped(name.removeprefix(BUILTIN))
    if name.startswith(HUB):
        return _from_hub(name.removeprefix(HUB))
    folder = Path(path)
    try:
        if (folder / "model" / "config.json").is_file():
            return folder / "model"
        if is_adapter(folder / "adapter") and not (folder / "config.json").exists():
            return folder / "adapter"
        if (folder / "recipe.json").is_file() and not (folder / "config.json").is_file():
            teacher = (folder / "teacher" / "config.json").is_file()
            raise ModelError(
                f"the run in {path} has not finished, so there is no model yet; continue it: "
                f"manta train --resume --out {path}"
                + (f"; its teacher writes already: {path}/teacher" if teacher else "")
            )
        if name and folder.is_dir():
            return folder
    except (OSError, ValueError) as error:
        raise ModelError(f"no model at {shortened(name)} ({error})") from error
    raise ModelError(
        f"no model at {path or repr(name)}; give the folder that `manta train --out` wrote, or, for one of the hub, "
        f"{HUB}OWNER/NAME"
    )


def base_of(folder: Path) -> Path:
    """The folder of the model that adapters belong to.

    Args:
        folder: of the adapters.

    Raises:
        ModelError: it is not where they say.
    """
    base = record_of(folder)["base"]
    try:
        return find_folder(base)
    except ModelError as error:
        raise ModelError(
            f"the adapters in {folder} belong to {base}, which is not there ({error}); bring it back, or load both: "
            "manta.hub.load_adapters(ADAPTERS, BASE)"
        ) from error


def published_kind(path: str | Path) -> str | None:
    """Which published layout a model has; None for one that manta wrote.

    Args:
        path: as for `load`.

    Raises:
        ModelError: there is no such folder, or it holds adapters, or no model.
    """
    folder = find_folder(path)
    if is_adapter(folder):
        raise ModelError(
            f"{path} holds adapters and no model to go on with; merge them first: manta.hub.merge(ADAPTERS, OUT)"
        )
    if (kind := find_foreign(folder)) is None:
        _read_config(folder)
    return kind


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", "tokenizer.json", "model.safetensors", "README.md"]
    patterns += [PARTS, "model.safetensors.index.json", "model-*.safetensors"]
    patterns += ["vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json", "processor_config.json"]
    patterns += ["adapter_config.json", "adapter_model.safetensors", "base.json"]
    patterns += ["chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"]
    try:
        name, _, revision = name.partition("@")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"the hub gives no model {shortened(name)} ({reason}); check the name and the connection"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    config = read_json(file)
    if not isinstance(config, dict) or config.get("format") != FORMAT or "family" not in config:
        raise ModelError(f"{file} is not of this version of manta (format {FORMAT})")
    return config


def _load_weights(model: torch.nn.Module, file: Path) -> None:
    """Load weights of the expected names and shapes; one that is not finite is an error that names it."""
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is missing or damaged ({error}); copy it again") from error
    expected = model.state_dict()
    for name, value in weights.items():
        integers = not expected[name].is_floating_point()
        if value.dtype != expected[name].dtype if integers else not value.is_floating_point():
            wanted = f"{expected[name].dtype}" if integers else "numbers with a fraction"
            raise ModelError(f"{file} holds {name} as {value.dtype}, not as {wanted}; copy it again")
        check_weight(name, value, file)
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in weights.items()})
    try:
        for _, part in integer_maps(model):
            part.check()
    except ConfigError as error:
        raise ModelError(f"{file}: {error}; copy it again") from error
