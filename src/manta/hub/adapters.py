"""Low-rank adapters of published models, in the format of `peft`: trained, kept, read and added to the weights.

    W ← W + (alpha / rank) · B A,    A "r n", B "m r"

Hu et al., "LoRA", arXiv 2106.09685. `peft` puts the maps A and B beside the frozen weights of manta's own nets and
describes them in its `adapter_config.json`; their names are those of the published model, so that `peft` finds them in
the model of `transformers` too. To read adapters takes no `peft`: they are added to the weights as these are loaded.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from manta.config import shortened
from manta.errors import ConfigError, ModelError
from manta.families.decoder import DecoderLM
from manta.hub.foreign import CAUSAL_KINDS, ForeignModel, find_foreign, load_decoder, load_foreign
from manta.hub.foreign.checkpoint import INDEX, check_weight, claims_of, headers
from manta.hub.foreign.published import Place
from manta.hub.foreign.tunable import tunable
from manta.runtime import atomic_folder, read_json

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
"""Files of an adapter's folder: what `peft` reads, and what manta knows of the model it belongs to."""
FORMAT = 1
"""Version of `base.json`."""
PREFIX = "base_model.model."
"""Before the names of `peft`'s weights."""
MOST_RANK, MOST_ALPHA = 1 << 20, 1e9
"""Largest numbers of an adapter that is read."""
SAMPLES, SAMPLE = 16, 1 << 16
"""Stretches of a file of weights by which it is known again, and bytes of each."""
UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Keys of an `adapter_config.json` that are read, or change nothing of a trained adapter."""

Targets = Literal["all", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Low-rank adapters beside frozen weights."""

    rank: int | None = None
    """Rank of each adapter; None trains the whole model."""
    alpha: float | None = None
    """What an adapter adds is weighed by alpha / rank; None: twice the rank."""
    targets: Targets = "all"
    """Linear maps that get one, in every block: those of `attention`, those of the `mlp`, or `all`."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"lora.rank should be at least 1, received {self.rank}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha should be above 0 and finite, received {self.alpha}")
        if self.rank is None and (self.alpha is not None or self.targets != "all"):
            raise ConfigError("lora.alpha and lora.targets are for low-rank adapters; give their rank too")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        assert self.rank is not None, "there are adapters"
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


class LowRank:
    """What adapters add to published weights.

    Args:
        pairs: A and B of each published module, in its own rows.
        scale: alpha / rank.
        source: named in errors.
    """

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float, source: str) -> None:
        self.pairs, self.scale, self.source = pairs, scale, source

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """A published weight with what its adapter adds, in float32; one without an adapter as it is.

        Raises:
            ModelError: the two are of different sizes.
        """
        part, _, kind = name.rpartition(".")
        if kind != "weight" or part not in self.pairs:
            return value
        down, up = (each.to(torch.float32) for each in self.pairs[part])
        if (up.shape[0], down.shape[1]) != tuple(value.shape) or up.shape[1] != down.shape[0]:
            raise ModelError(
                f"{self.source} has an adapter of {up.shape[0]}×{down.shape[1]} for {name}, which is "
                f"{'×'.join(map(str, value.shape))}; it belongs to another model"
            )
        return value.to(torch.float32) + self.scale * (up @ down)


class SideBySide(nn.Module):
    """A linear map as several, each of some of its rows.

    Args:
        whole: the map.
        sizes: rows of each.
    """

    def __init__(self, whole: nn.Linear, sizes: list[int]) -> None:
        super().__init__()
        weights = whole.weight.detach().split(sizes)
        biases = [None] * len(sizes) if whole.bias is None else whole.bias.detach().split(sizes)
        self.parts = nn.ModuleList()
        for weight, bias in zip(weights, biases, strict=True):
            part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            part.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                part.bias = nn.Parameter(bias, requires_grad=False)
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        """What the whole map gives."""
        return torch.cat([part(x) for part in self.parts], -1)


class Adapters(nn.Module):
    """The adapters of a net, and nothing else of it.

    Args:
        layers: `peft`'s layers by the published names of their modules.
        orders: of a module, the published order of its rows, where that is another than ours.
        config: what they are like.
    """

    def __init__(self, layers: Mapping[str, Any], orders: Mapping[str, Tensor], config: LowRankConfig) -> None:
        super().__init__()
        self.names, self.orders, self.config = list(layers), orders, config
        self.down = nn.ModuleDict({_key(name): layer.lora_A["default"] for name, layer in layers.items()})
        self.up = nn.ModuleDict({_key(name): layer.lora_B["default"] for name, layer in layers.items()})

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of each published module, in its own rows."""
        found = {}
        for name in self.names:
            down, up = (part[_key(name)].get_parameter("weight").detach().cpu() for part in (self.down, self.up))
            found[name] = (down, up[self.orders[name]] if name in self.orders else up)
        return found

    def change(self, source: str) -> LowRank:
        """What they add to the published weights."""
        return LowRank(self.pairs(), self.config.scale, source)


def _key(name: str) -> str:
    return name.replace(".", "/")


def targets_of(places: Mapping[str, Place], targets: Targets) -> dict[str, Place]:
    """Published modules that get adapters: the linear maps of the blocks, with their places.

    Args:
        places: of all published weights.
        targets: which.
    """
    found = {}
    for name, place in places.items():
        part, _, kind = name.rpartition(".")
        if kind != "weight" or not re.search(r"(^|\.)blocks\.\d+\.", place.ours) or "norm" in place.ours:
            continue
        attention = ".operator." in place.ours or place.ours.split(".")[-2] in ("query", "key", "value", "out")
        if targets == "all" or attention == (targets == "attention"):
            found[part] = place
    return found


def check_rank(model: Any, config: LowRankConfig) -> None:
    """Refuse adapters that would be no smaller than what they stand beside.

    Args:
        model: a published one, see `Tunable`; its net may be on the meta device.
        config: of the adapters.

    Raises:
        ConfigError: the rank is larger than the smaller side of a map.
    """
    told = tunable(model)
    for name, place in targets_of(told.places(), config.targets).items():
        rows, columns = told.net.get_parameter(place.ours).shape
        if place.rows is not None:  # one of several published maps that are one weight of ours
            rows = place.rows[1] - place.rows[0]
        least = min(rows, columns)
        if config.rank is not None and config.rank > least:
            raise ConfigError(
                f"lora.rank is {config.rank}, and the published map {name} is {rows}×{columns}, whose rank is {least} "
                "at most; give less"
            )


def add_adapters(model: Any, config: LowRankConfig) -> Adapters:
    """Put adapters into a model's net, which then computes with them; all of its own weights are frozen.

    They begin by adding nothing: B is 0, and A is drawn from torch's own generator.

    Args:
        model: a published one, see `Tunable`; its net is changed.
        config: what they are like.

    Raises:
        ModelError: `peft` is not installed.
        ConfigError: the rank is too large.
    """
    peft = require_peft()
    check_rank(model, config)
    net = tunable(model).net
    net.requires_grad_(False)
    chosen = targets_of(tunable(model).places(), config.targets)
    modules = {}
    for name, place in chosen.items():
        module = place.ours.removesuffix(".weight")
        if place.rows is not None:
            alike = sorted(other.rows for other in chosen.values() if other.ours == place.ours and other.rows)
            if isinstance(whole := net.get_submodule(module), nn.Linear):
                parent, _, last = module.rpartition(".")
                setattr(net.get_submodule(parent), last, SideBySide(whole, [end - begin for begin, end in alike]))
            module = f"{module}.parts.{alike.index(place.rows)}"
        modules[name] = module
    assert config.rank is not None, "there are adapters"
    how = {"r": config.rank, "lora_alpha": config.scale * config.rank, "target_modules": list(modules.values())}
    peft.inject_adapter_in_model(peft.LoraConfig(**how), net)
    layers: dict[str, Any] = {name: net.get_submodule(module) for name, module in modules.items()}
    orders = {name: place.order for name, place in chosen.items() if place.order is not None}
    adapters = Adapters(layers, orders, config)
    return adapters.to(torch.float32).requires_grad_(True)  # also beside frozen weights of bfloat16


def require_peft() -> Any:
    """The package `peft`.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError('low-rank adapters need peft; install it with: pip install "manta[hf]"') from error
    return peft


def save_adapters(folder: Path, adapters: Adapters, *, record: Mapping[str, Any], card: str) -> None:
    """Write adapters in `peft`'s format, whole or not at all.

    Args:
        folder: new, empty, or of earlier adapters.
        adapters: as trained.
        record: what is known of them, see `record_of`.
        card: text of their card.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    blocks = {tuple(map(re.escape, re.split(r"\.\d+\.", name))) for name in adapters.names}
    names = sorted(r"\.\d+\.".join(parts) for parts in blocks)
    config = require_peft().LoraConfig(
        r=adapters.config.rank,
        lora_alpha=adapters.config.scale * (adapters.config.rank or 1),
        target_modules="|".join(names),
        base_model_name_or_path=str(record["base"]).removeprefix("hf:"),
        task_type="CAUSAL_LM" if record["family"] in CAUSAL_KINDS else None,
        inference_mode=True,
    )
    with atomic_folder(folder) as new:
        config.save_pretrained(str(new))
        (new / WEIGHTS).write_bytes(_bytes(adapters))
        (new / BASE).write_text(json.dumps(dict(record), indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")


def are_saved(folder: Path, adapters: Adapters) -> bool:
    """Whether a folder holds these adapters already, to the last bit."""
    try:
        return (folder / WEIGHTS).read_bytes() == _bytes(adapters)
    except OSError:
        return False


def _bytes(adapters: Adapters) -> bytes:
    weights = {}
    for name, (down, up) in adapters.pairs().items():
        weights[f"{PREFIX}{name}.lora_A.weight"] = down.contiguous()
        weights[f"{PREFIX}{name}.lora_B.weight"] = up.contiguous()
    return save(weights, metadata={"format": "pt"})


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters, and not a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def record_of(folder: Path) -> dict[str, Any]:
    """What is known of adapters: `family` (the layout of their model), `base` (its folder or name), `digest` (of its
    weights), `prompted`, `recipe`; of those that manta did not write, `base` alone.

    Raises:
        ModelError: a file is damaged, or names no base.
    """
    if (folder / BASE).exists():
        found = read_json(folder / BASE)
        if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("base"), str):
            raise ModelError(f"{folder / BASE} is not of this version of manta (format {FORMAT})")
        return found
    base = _config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / CONFIG} does not name the model that it belongs to (base_model_name_or_path)")
    return {"base": base if Path(base).is_dir() else f"hf:{base}"}


def read_adapters(folder: Path) -> LowRank:
    """Adapters in `peft`'s format, whoever trained them.

    Raises:
        ModelError: a file is missing or damaged, or says what is no plain low-rank map; the message names it.
    """
    config = _config(folder)
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha", 8)
    sizes = isinstance(rank, int) and isinstance(alpha, int | float)
    if not sizes or not 1 <= rank <= MOST_RANK or not abs(alpha) <= MOST_ALPHA:
        raise ModelError(f"{folder / CONFIG} has r={shortened(rank)} and lora_alpha={shortened(alpha)}; copy it again")
    file = folder / WEIGHTS
    headers(file)  # which refuses what is no plain file of tensors
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        told = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if told is None or value.ndim != 2 or not value.is_floating_point():
            raise ModelError(f"{file} holds {shortened(name)}, which is no low-rank map; manta reads plain LoRA")
        check_weight(name, value, file)
        pairs.setdefault(told[1], {})[told[2]] = value
    if lone := [name for name, pair in pairs.items() if len(pair) < 2]:
        raise ModelError(f"{file} holds half of the adapter of {lone[0]}; copy it again")
    if odd := [name for name, pair in pairs.items() if len(pair["A"]) != rank or pair["B"].shape[1] != rank]:
        raise ModelError(f"{file} holds an adapter of {odd[0]} whose rank is not r={rank} of {CONFIG}; copy it again")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank({name: (pair["A"], pair["B"]) for name, pair in pairs.items()}, scale, str(folder))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    config = read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{file} is not that of a LoRA adapter, which is what manta reads")
    usual = (None, False, "none", 0, [], {}, "")
    odd = [key for key in sorted(config.keys() - UNDERSTOOD) if config[key] not in usual]
    odd += [key for key in ("alpha_pattern", "rank_pattern") if config.get(key)]
    if odd:
        raise ModelError(f"{file} has {odd[0][:80]}={shortened(config[odd[0]])}; manta reads plain LoRA")
    return config


def load_adapted(folder: Path, base: Path, device: str | None = None) -> ForeignModel | DecoderLM:
    """A published model with adapters added to its weights.

    Args:
        folder: of the adapters.
        base: folder of the model.
        device: see `load_foreign`.

    Raises:
        ModelError: the two do not belong together, or a file is missing or damaged.
    """
    change = checked_change(folder, base)
    kind = find_foreign(base)
    if kind in CAUSAL_KINDS:
        model: Any = load_decoder(base, kind, device, change=change)
    else:
        model = load_foreign(base, device, change=change)
    return model


def checked_change(folder: Path, base: Path) -> LowRank:
    """What adapters add to the weights of the model that they belong to.

    Raises:
        ModelError: it is no published model, or another than the one they were trained on.
    """
    record, kind = record_of(folder), find_foreign(base)
    if kind is None:
        raise ModelError(f"{base} is no published model, and {folder} holds adapters of one")
    if "digest" in record and record["digest"] != digest_of_weights(base):
        raise ModelError(
            f"{base} holds other weights than those that the adapters in {folder} were trained on, or another "
            "configuration or tokenizer; bring them back, or "
            f"name their folder as `base` in {folder / BASE}"
        )
    change, known = read_adapters(folder), {name for file in claims_of(base) for name in headers(file)}
    if left := sorted(name for name in change.pairs if f"{name}.weight" not in known):
        raise ModelError(f"{folder} has an adapter for {left[0]}, which {base} does not have")
    return change


def digest_of_weights(folder: Path) -> str:
    """What tells a checkpoint from others, from a few reads: its configuration, its tokenizer, the index, and of its
    files of weights the sizes, headers and some stretches, not every byte.

    Raises:
        ModelError: there are no weights.
    """
    found = sha256((folder / INDEX).read_bytes() if (folder / INDEX).is_file() else b"")
    for file in (folder / "config.json", folder / "tokenizer.json"):
        found.update(file.read_bytes() if file.is_file() else b"")
    for file in sorted(claims_of(folder)):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            head = stream.read(8)
            found.update(head + stream.read(min(size, int.from_bytes(head, "little"))))
            for part in range(SAMPLES):
                stream.seek(part * max(0, size - SAMPLE) // (SAMPLES - 1))
                found.update(stream.read(SAMPLE))
    return found.hexdigest()
