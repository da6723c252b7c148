"""Damaged model folders, our own and published ones: each has to write, or to be refused by a typed error, in time.

    python benchmarks/fuzz_folders.py --num 5000 --out benchmarks/results/fuzz_folders.json

A damage is drawn from its seed, so that a folder that fails can be made again: `--first SEED --num 1`. Folders are
loaded in a process of their own, which is started anew when it dies or takes too long, so that both are counted.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from copy import copy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LIMIT = 20.0
"""Seconds a folder may take."""
KINDS = (
    *("manta", "masked", "ar", "llada", "Dream", "mdlm", "block", "aligned", "image", "latents", "restorer", "joint"),
    *("integers", "image of integers"),
)
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 3, 10**9, 10**12, 2**31, 2**63, 10**40, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf")),
    *(True, False, None, "", "attention", "x" * 10_000, [], {}, [[[]]], {"kind": "latent"}, "\0", "é"),
)
"""What is put in the place of another value."""


def make_folders(root: Path) -> dict[str, Path]:
    """A sound folder of every kind, as small as can be."""
    from safetensors.torch import save_file
    from tests.hub import published
    from tests.hub.test_foreign_writing import write_tokenizer

    from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
    from manta.families.masked import MaskedLM
    from manta.families.masked_model import MaskedConfig, MaskedModel
    from manta.hub import load, save_model
    from manta.text import Tokenizer

    folders = {kind: root / kind for kind in KINDS}
    shipped = load()
    shutil.copytree(Path(sys.modules["manta"].__file__ or "").parent / "models" / "e2e", folders["manta"])
    tokenizer = shipped.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    shape: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "dim": 16, "heads": 1, "depth": 1, "max_text": 12}
    masked = MaskedLM(MaskedModel(MaskedConfig(**shape)), tokenizer)
    save_model(folders["masked"], masked, recipe={}, card="")
    ar = AutoregressiveLM(AutoregressiveModel(AutoregressiveConfig(**shape)), tokenizer)
    save_model(folders["ar"], ar, recipe={}, card="")
    drawing = images()
    integers = {
        "integers": of_integers(small_manta(tokenizer, shape)),
        "image of integers": of_integers(drawing["image"]),
    }
    for kind, lm in {**texts(tokenizer, shape), **drawing, **integers}.items():
        save_model(folders[kind], lm, recipe={}, card="")
    for kind in published.CONFIGS:
        weights = published.write(folders[kind], kind, mask_token_id=53, shards=2 if kind == "Dream" else 1)
        write_tokenizer(folders[kind])
        if kind != "Dream":
            save_file(weights, folders[kind] / "model.safetensors", metadata={"format": "pt"})
    return folders


def texts(tokenizer: Any, shape: dict[str, Any]) -> dict[str, Any]:
    """Models of texts of the younger families."""
    from manta.families.aligned import AlignedLM
    from manta.families.aligned_model import AlignedConfig, AlignedModel
    from manta.families.block import BlockCausalLM
    from manta.families.block_model import BlockCausalConfig, BlockCausalModel

    return {
        "block": BlockCausalLM(BlockCausalModel(BlockCausalConfig(**shape)), tokenizer),
        "aligned": AlignedLM(AlignedModel(AlignedConfig(**shape)), tokenizer),
    }


def small_manta(tokenizer: Any, shape: dict[str, Any]) -> Any:
    """A Manta-LM."""
    from manta.families.manta_lm import MantaLM
    from manta.families.model import MantaConfig, MantaModel
    from manta.spaces import LatentSpaceConfig

    config = MantaConfig(**shape, space=LatentSpaceConfig(rate=4, channels=4, encoder_depth=1))
    return MantaLM(MantaModel(config), tokenizer, config.time.build())


def of_integers(model: Any) -> Any:
    """The same, quantised to four bits in groups of times."""
    from manta.quantisation import Quantising, fitted, observed, quantised

    found = fitted(model.model, observed(model.model, lambda: use(model)), Quantising(bits=4, groups=2))
    new = copy(model)
    new.model, new.quantised = quantised(model.model, found), {name: each.spec for name, each in found.items()}
    return new


def images() -> dict[str, Any]:
    """Models that draw, mend and describe images."""
    import torch

    from manta.families.image_flow import ImageFlow, shaped
    from manta.families.image_model import ImageConfig, ImageModel
    from manta.families.joint_flow import JointFlow, joint_shaped
    from manta.families.joint_model import JointConfig, JointModel
    from manta.families.restorer import Restorer, RestorerConfig, RestorerModel
    from manta.image import ImageCodec
    from manta.image.captioned import CaptionedCodec
    from manta.nets.grid import DicConfig, DitConfig
    from manta.spaces import LatentGridConfig

    codec = ImageCodec(height=8, width=8, channels=3, classes=("a", "b"))
    small = DicConfig(width=8, depths=(1, 1, 1, 1, 1))
    latent = ImageConfig(net=DitConfig(width=16, depth=1, heads=1, patch=1), space=LatentGridConfig(width=4), bits=2)
    words = CaptionedCodec(height=8, width=8, channels=3, places=4, words=("a", "cat", "red"))
    return {
        "image": ImageFlow(ImageModel(shaped(ImageConfig(net=small), codec)), codec),
        "latents": ImageFlow(ImageModel(shaped(latent, codec)), codec, torch.ones(2, 4)),
        "restorer": Restorer(RestorerModel(RestorerConfig(tile=16, net=small))),
        "joint": JointFlow(JointModel(joint_shaped(JointConfig(dim=16, depth=1, heads=1), words)), words),
    }


def use(model: Any) -> None:
    """Have a model do what it is for, as little of it as can be."""
    import numpy as np

    if model.family == "image":
        model.draw(num_steps=2)
    elif model.family == "restorer":
        model.restore(np.zeros((9, 9, 3), np.uint8), task="rain")
        model.understand("take the rain away")
    elif model.family == "joint":
        model.describe(model.draw(num_steps=2), num_steps=1)
    else:
        model.write(
            ["the cat"], **({"num_steps": 4} if model.family in ("manta", "masked", "aligned") else {"max_tokens": 8})
        )


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file of a folder; says what was done."""
    file = draw.choice([f for f in sorted(folder.iterdir()) if f.name != "README.md"])
    if file.suffix == ".json" and draw.random() < 0.7:
        return f"{file.name}: {damage_json(file, draw)}"
    if file.suffix == ".safetensors" and draw.random() < 0.6:
        return f"{file.name}: {damage_weights(file, draw)}"
    raw, kind = bytearray(file.read_bytes()), draw.randrange(7)
    if kind == 0:
        file.write_bytes(raw[: draw.randrange(len(raw))])
        return f"{file.name}: cut"
    if kind == 1:
        for _ in range(draw.choice((1, 3, 50))):
            raw[draw.randrange(min(len(raw), draw.choice((16, 2000, len(raw)))))] = draw.randrange(256)
        file.write_bytes(raw)
        return f"{file.name}: bytes"
    file.unlink()
    if kind == 2:
        os.mkfifo(file)
    elif kind == 3:
        file.mkdir()
    elif kind == 4:
        file.symlink_to(draw.choice(("/dev/zero", "/dev/full", file.name, "nowhere", ".")))
    elif kind == 5:
        file.write_bytes(draw.choice((b"", b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"null", b"[]", b'"a"')))
    return f"{file.name}: {('pipe', 'folder', 'link', 'rubbish', 'missing')[kind - 2]}"


def damage_json(file: Path, draw: random.Random) -> str:
    """Replace, drop or double a value somewhere in a JSON file."""
    found = json.loads(file.read_text())
    place, path = found, []
    while isinstance(place, dict | list) and place:
        key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        path.append(str(key))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.15:
            value = draw.choice(VALUES)
            if draw.random() < 0.15:
                del place[key]
                value = "dropped"
            else:
                place[key] = value
            break
        place = place[key]
    text = json.dumps(found)
    if draw.random() < 0.05:
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    file.write_text(text)
    return f"{'.'.join(path)[:80]} = {repr(value)[:40]}"


def damage_weights(file: Path, draw: random.Random) -> str:
    """Change a tensor of a file, or its header."""
    import torch
    from safetensors.torch import load_file, save_file

    if draw.random() < 0.4:
        raw = file.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        name = draw.choice([name for name in header if name != "__metadata__"])
        key = draw.choice(("dtype", "shape", "data_offsets"))
        header[name][key] = draw.choice(("I8", "F64", "BOOL", [2**62, 4], [0], [], [-1, 2], [10**12], [0, 2**63], None))
        changed = json.dumps(header).encode()
        length = draw.choice((len(changed), 2**63, 2**31, 0, len(changed) + 1))
        file.write_bytes(length.to_bytes(8, "little") + changed + raw[8 + size :])
        return f"header of {name}: {key} = {header[name][key]}"
    weights = load_file(file)
    name = draw.choice(sorted(weights))
    value = weights[name].clone()
    kind = draw.choice(("nan", "inf", "large", "renamed", "dropped", "added", "int", "empty", "shape", "half"))
    if kind in ("nan", "inf", "large"):
        value = value if value.is_floating_point() else value.float()
        value.view(-1)[draw.randrange(value.numel())] = {"nan": torch.nan, "inf": torch.inf, "large": 3e38}[kind]
    changes = {
        "int": lambda: value.int(),
        "empty": lambda: value.new_zeros(0),
        "shape": lambda: value.flatten().clone(),
        "half": lambda: value.half(),
    }
    weights[name] = changes[kind]() if kind in changes else value
    if kind in ("renamed", "added"):
        weights[f"{name}.other"] = value.clone()
    if kind in ("renamed", "dropped"):
        del weights[name]
    save_file(weights, file)
    return f"{name}: {kind}"


def work(connection: Any) -> None:
    """Load folders and write with them, until told to stop."""
    import torch

    import manta
    from manta.errors import MantaError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a backend says as it panics
    while (folder := connection.recv()) is not None:
        try:
            use(manta.load(folder, device="cpu"))
            connection.send(("wrote", ""))
        except MantaError as error:
            connection.send((f"typed: {type(error).__name__}", str(error)))
        except BaseException as error:
            connection.send(("untyped", f"{type(error).__name__}: {error}"[:300]))


class Worker:
    """A process that loads folders, started anew when it has died or been stopped."""

    def __init__(self) -> None:
        self.process: Any = None

    def __call__(self, folder: Path) -> tuple[str, str]:
        """What has become of a folder."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
            self.limit = LIMIT + 40  # the first folder waits for the imports
        self.connection.send(str(folder))
        if not self.connection.poll(self.limit):
            self.stop()
            return f"over {LIMIT:g} s", ""
        self.limit = LIMIT
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            status = self.process.exitcode
            self.process = None
            return "crashed", f"exit status {status}"

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


def main() -> None:
    """Read the command line, damage folders and count what becomes of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=5000, help="folders")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds of folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    worker = Worker()
    with tempfile.TemporaryDirectory() as root:
        folders = make_folders(Path(root))
        for seed in range(args.first, args.first + args.num):
            draw = random.Random(seed)
            kind = args.only[seed % len(args.only)]
            damaged = Path(root) / "damaged"
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(folders[kind], damaged)
            done = damage(damaged, draw)
            outcome, said = worker(damaged)
            counts[outcome] += 1
            if not outcome.startswith(("typed", "wrote")):
                faults.append({"seed": seed, "kind": kind, "damage": done, "outcome": outcome, "said": said})
                print(faults[-1], flush=True)
    worker.stop()
    command = f"python benchmarks/fuzz_folders.py --num {args.num} --first {args.first}"
    result = {"command": command, "folders": args.num, "outcomes": dict(counts.most_common()), "faults": faults}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["outcomes"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
