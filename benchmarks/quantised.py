"""Quantised models: quality, size and speed, beside floating point and simpler ways to quantise.

    python benchmarks/quantised.py texts --models builtin:e2e --data e2e:PATH --out benchmarks/results/quantised.json
    python benchmarks/quantised.py images --models RUNS/nets-dic-0 RUNS/nets-dit-0 RUNS/nets-udit-0 --data PATH.npz \
        --num 250 --calls 4 8 16 32 --out benchmarks/results/quantised.json
    python benchmarks/quantised.py speed --out benchmarks/results/quantised.json
    python benchmarks/quantised.py writing --out benchmarks/results/quantised.json

PATH is e2e-dataset.zip or its folder; PATH.npz is fashion_mnist_20k_5k.npz, and the nets are those of
`images.py --suite nets --minutes 5 --keep RUNS`. Texts are those of the test split; images are compared by one
classifier of ours. Every way to quantise sees the same trajectories. `speed` calls stacks of blocks with random
weights, on one thread: all ways take turns within a round, and the least seconds of each count. `writing` is the same
for whole texts of models of random weights: eight calls of a Manta-LM, and greedy words left to right. Finished rows in
--out are kept, and gain the --calls that they lack; rows of a model that was trained anew have to be taken out before.

`--torchao` adds a control to `texts`, `images` and `speed`: `Int8DynamicActivationInt8Weight` of torchao (licence
BSD-3-Clause), which rounds each row of a linear map's inputs by its own largest number, as our dynamic way does, and
leaves convolutions and tables as they are. It is no part of manta's environment: `pip install --no-deps torchao`.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from e2e import references, scores
from torch import nn

from manta.bench import machine
from manta.evaluation.images import ImageEvaluator, as_told
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.events import GenerateOptions, Request
from manta.families.image_flow import DrawOptions
from manta.families.manta_lm import MantaLM
from manta.families.model import MantaConfig, MantaModel
from manta.hub import load, save_model
from manta.nets.integer_nets import with_integers
from manta.nets.integers import IntegerSpec, integer_maps, pack
from manta.nets.trunk import Trunk
from manta.operators import AttentionConfig, OperatorContext, line
from manta.quantisation import Observed, Quantising, fitted, observed, quantised
from manta.recipes.quantising import QuantisationPlan, merged_maps, work_of
from manta.runtime import atomic_write, resolve_device

NAIVE: dict[str, Any] = {"groups": 1, "shift": False, "spread": 0.0, "clip": False, "compensated": False}
WAYS: dict[str, Quantising | None] = {
    "float32": None,
    "w8a8": Quantising(),
    "w8a8, groups of times": Quantising(groups="auto"),
    "w8a8, naive": Quantising(**NAIVE),
    "w8a8, dynamic": Quantising(inputs="dynamic"),
    "w4a8": Quantising(bits=4),
    "w4a8, groups of times": Quantising(bits=4, groups="auto"),
    "w4a8, maps of times too": Quantising(bits=4, once=4),
    "w4a8, naive": Quantising(bits=4, **NAIVE),
    "w4a8, dynamic": Quantising(bits=4, inputs="dynamic"),
    "w8": Quantising(inputs="float"),
}
TORCHAO = "torchao, dynamic"
BUDGETS = (4, 8, 16)
SPEED = {"w8a8": (8, "static"), "w4a8": (4, "static"), "w8a8, dynamic": (8, "dynamic")}
"""Bits of the weights and inputs of the ways whose speed is told."""
WIDTHS, DEPTH = (160, 512, 1024), 4
CALLS = ((1, 1), (1, 64), (32, 64))
"""Rows and elements of each of a call; one of one is a word of a left-to-right model."""


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("texts", "images", "speed", "writing"))
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--data")
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS), help="ways to quantise")
    parser.add_argument("--calls", type=int, nargs="+", default=list(BUDGETS), help="budgets of texts or images")
    parser.add_argument("--torchao", action="store_true", help="measure torchao's dynamic integers, too")
    parser.add_argument("--num", type=int, default=500, help="images drawn and compared with")
    parser.add_argument("--classifier", type=Path, help="file that keeps the classifier")
    parser.add_argument("--every", type=int, default=1, help="take every so many test prompts")
    parser.add_argument("--seconds", type=float, default=20, help="of each shape of `speed`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    result["machine"] = machine(resolve_device())
    rows: list[dict[str, Any]] = result.setdefault(args.suite, [])

    def keep(row: dict[str, Any]) -> None:
        if not any(row is other for other in rows):
            rows.append(row)
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
        print(json.dumps(row)[:600], flush=True)

    if args.suite == "speed":
        least = {"float32", "bfloat16", *SPEED, *([TORCHAO] if args.torchao else ())}
        rows[:] = [row for row in rows if least <= set(row["milliseconds"])]  # all ways take turns within a run
        done = {(row["width"], row["rows"], row["elements"]) for row in rows}
        for width in WIDTHS:
            for shape in CALLS:
                if (width, *shape) not in done:
                    keep(seconds_of(width, *shape, args.seconds, torchao=args.torchao))
        return
    if args.suite == "writing":
        for family in ("manta", "ar"):
            for num in (1, 32):
                if (family, num) not in {(row["family"], row["texts"]) for row in rows}:
                    keep(seconds_of_texts(family, num, args.seconds))
        return
    for name in args.models:
        model = load(name, device="cpu")
        kind = getattr(getattr(model.model.config, "net", None), "kind", model.family)
        begun = {row["way"]: row for row in rows if row["model"] == kind}
        ways = [*args.only, *([TORCHAO] if args.torchao else ())]
        left = [way for way in ways if missing(begun.get(way), args.calls)]
        if left:
            measured(model, name, kind, {way: begun.get(way) for way in left}, args, keep)


def missing(row: dict[str, Any] | None, calls: Sequence[int]) -> list[int]:
    """Budgets of which a row has no scores yet."""
    return [each for each in calls if row is None or str(each) not in row["scores"]]


def measured(
    model: Any, name: str, kind: str, ways: Mapping[str, dict[str, Any] | None], args: argparse.Namespace, keep: Any
) -> None:
    """Quantise a model in several ways, and measure what each of them writes or draws.

    Raises:
        SystemExit: a row that was begun is of other integers.
    """
    plan = QuantisationPlan()
    work, before = work_of(model, name, args.data, plan), copy(model)
    before.model = net = merged_maps(model.model)
    watched = any(WAYS.get(way) is not None for way in ways)
    seen = observed(net, lambda: work.run(before, plan)) if watched else {}
    if args.suite == "images":
        evaluator = ImageEvaluator(args.data, before, num=args.num, classifier=args.classifier)
    else:
        test = references(args.data, "test")
        test = replace(test, prompts=test.prompts[:: args.every], references=test.references[:: args.every])
    for way, begun in ways.items():
        how, now = WAYS.get(way), copy(before)
        row: dict[str, Any] = {"model": kind, "way": way, "parameters": sum(p.numel() for p in net.parameters())}
        if seen:
            row["ranges"] = ranges(seen)
        if how is not None:
            found = fitted(net, seen, how)
            now.model, now.quantised = quantised(net, found), {part: each.spec for part, each in found.items()}
            errors = [each.error for each in found.values() if each.error is not None]
            row["mean_error"] = sum(errors) / len(errors)
            row["grouped"] = sum(each.spec.groups > 1 for each in found.values())
            row["maps"] = len(found)
        if way == TORCHAO:
            now.model = with_torchao(net)
            row["bytes"] = bytes_of(now.model)
        else:
            row["bytes"] = stored(now, torch.float32 if how is None else torch.bfloat16)
        row["scores"] = {}
        if begun is not None:
            if (row["bytes"], row["parameters"]) != (begun["bytes"], begun["parameters"]):
                raise SystemExit(f"the row {kind}, {way} is of other integers; take it out of {args.out}")
            row = begun
        for calls in missing(row, args.calls):
            start = time.perf_counter()
            if args.suite == "images":
                told = as_told(evaluator.measure(now, DrawOptions(num_steps=calls), seed=10_000))["figures"]
            else:
                told = scores(now, test, GenerateOptions(num_steps=calls, style="consensus", fluency=0.0))
            row["scores"][str(calls)] = {**told, "seconds_of_all": round(time.perf_counter() - start, 2)}
        row["scores"] = dict(sorted(row["scores"].items(), key=lambda score: int(score[0])))
        keep(row)


def with_torchao(net: nn.Module) -> nn.Module:
    """A copy of a net whose linear maps are torchao's, of eight bits and dynamic inputs."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # pyright: ignore

    new = deepcopy(net)
    quantize_(new, Int8DynamicActivationInt8WeightConfig())
    return new


def bytes_of(net: nn.Module) -> int:
    """Bytes of the weights of a net with maps of torchao, the others as a model folder would hold them."""
    total = 0
    for value in net.state_dict().values():
        parts = [getattr(value, name, None) for name in ("qdata", "scale")]
        if parts[0] is None:
            size = 2 if value.ndim >= 2 and value.is_floating_point() else value.element_size()
            total += size * value.numel()
        else:
            total += sum(part.numel() * part.element_size() for part in parts if part is not None)
    return total


def ranges(seen: Mapping[str, Observed]) -> dict[str, Any]:
    """How much the widest channel of maps that are told the time changes over it, the widest over the narrowest."""
    changes = {}
    for name, looked in seen.items():
        if looked.timed:
            widest = [float((moment.high - moment.low).max()) for moment in looked.moments.values()]
            changes[name] = max(widest) / max(min(widest), 1e-9)
    order = sorted(changes.values())
    most = max(changes, key=lambda name: changes[name])
    told = {"maps": len(order), "median": order[len(order) // 2], "over_two": sum(change > 2 for change in order)}
    return {**told, "most": order[-1], "of": most}


def stored(model: Any, dtype: torch.dtype) -> int:
    """Bytes of the file of a model's weights."""
    with TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", model, recipe={}, card="", dtype=dtype)
        return (Path(folder) / "model" / "model.safetensors").stat().st_size


def seconds_of(width: int, rows: int, elements: int, budget: float, *, torchao: bool = False) -> dict[str, Any]:
    """Least seconds of a call of four blocks, of each way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Trunk(width, DEPTH, (AttentionConfig(),), heads=max(2, width // 64), cross=True, modulation=True).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    nets: dict[str, nn.Module] = {"float32": net, "bfloat16": deepcopy(net).bfloat16()}
    for name, (bits, inputs) in SPEED.items():
        nets[name] = with_random_integers(net, bits, inputs)
    if torchao:
        nets[TORCHAO] = with_torchao(net)
    context = OperatorContext(line(elements, torch.device("cpu")), torch.ones(rows, elements, dtype=torch.bool))
    x, modulation = torch.randn(rows, elements, width), 0.1 * torch.randn(1, 1, 6 * width)
    memory, calls = torch.randn(rows, 32, width), {}

    def call_of(each: Any, dtype: torch.dtype) -> Callable[[], Any]:
        state, told = x.to(dtype), modulation.to(dtype)
        read = each.project(memory.to(dtype))
        return lambda: each(state, context, memory=read, modulation=told)

    with torch.no_grad():
        for name, each in nets.items():
            calls[name] = call_of(each, torch.bfloat16 if name == "bfloat16" else torch.float32)
        for call in calls.values():
            call()
        least, end = dict.fromkeys(calls, float("inf")), time.perf_counter() + budget
        rounds = 0
        while time.perf_counter() < end or rounds < 3:
            for name, call in calls.items():
                begun = time.perf_counter()
                call()
                least[name] = min(least[name], time.perf_counter() - begun)
            rounds += 1
    milliseconds = {name: round(1000 * seconds, 3) for name, seconds in least.items()}
    return {"width": width, "rows": rows, "elements": elements, "rounds": rounds, "milliseconds": milliseconds}


def seconds_of_texts(family: str, num: int, budget: float) -> dict[str, Any]:
    """Least seconds of some texts written by a model of more than 20M parameters, of each way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = load().tokenizer
    shape: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "dim": 512, "heads": 8, "depth": 6, "prompt_depth": 2}
    limits: dict[str, Any] = {"max_prompt": 64, "max_text": 63}
    if family == "manta":
        config = MantaConfig(**shape, **limits)
        lm: Any = MantaLM(MantaModel(config), tokenizer, config.time.build())
    else:
        lm = AutoregressiveLM(AutoregressiveModel(AutoregressiveConfig(**shape, **limits)), tokenizer)
    for parameter in lm.model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    prompts = [f"name[{name}], eatType[pub], food[Chinese], area[riverside]" for name in ("Aromi", "Zizzi", "Cotto")]
    asked = [Request(prompt=prompts[i % len(prompts)], seed=i) for i in range(num)]
    options = (
        GenerateOptions(num_steps=8) if family == "manta" else GenerateOptions(max_tokens=32, decoder="sequential")
    )
    seen = observed(lm.model, lambda: list(lm.generate(asked[:3], options)))
    models = {"float32": lm}
    for name in ("w8a8", "w4a8", "w8a8, dynamic", "w8"):
        models[name] = copy(lm)
        models[name].model = quantised(lm.model, fitted(lm.model, seen, WAYS[name] or Quantising()))
    least, end, rounds = dict.fromkeys(models, float("inf")), time.perf_counter() + budget, 0
    while time.perf_counter() < end or rounds < 3:
        for name, model in models.items():
            begun = time.perf_counter()
            list(model.generate(asked, options, batch_size=num))
            least[name] = min(least[name], time.perf_counter() - begun)
        rounds += 1
    size = sum(p.numel() for p in lm.model.parameters())
    seconds = {name: round(value, 4) for name, value in least.items()}
    return {"family": family, "texts": num, "parameters": size, "rounds": rounds, "seconds": seconds}


def with_random_integers(net: nn.Module, bits: Any, inputs: Any) -> nn.Module:
    """A copy of a net with maps of integers drawn at random, folded where that can be."""
    static, specs = inputs == "static", {}
    for name, part in net.named_modules():
        if isinstance(part, nn.Linear):
            folded = static and name.endswith(("operator.qkv", "mlp.gate_up"))
            specs[name] = IntegerSpec(bits=bits, inputs=inputs, shift=static, spread=static, folded=folded)
    new = with_integers(deepcopy(net), specs)
    for _, part in integer_maps(new):
        values = torch.randint(-7, 8, part.shape, dtype=torch.int8)
        part.weight.copy_(values if bits == 8 else pack(values))
        part.weight_scale.fill_(0.01)
        if static:
            part.step.fill_(0.03)
    return new.eval()


if __name__ == "__main__":
    main()
