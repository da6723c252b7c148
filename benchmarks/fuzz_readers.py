"""Damaged and hostile inputs to everything that reads: each must be read, or refused by name, soon and in bounds.

python benchmarks/fuzz_readers.py --num 20000 --out benchmarks/results/fuzz_readers.json

Inputs are made and then mutated: text, JSON lines and CSV as they are and packed; E2E zips; names of sources and
splits; texts to fill and prompts of a tiny model; option values of the command line; lines of `manta generate --input`.
They are tried in a worker process, which is started anew when it dies or takes more than 20 s over one of them. Counted
are inputs that were read, refused by a typed error, refused by another one, hung, and crashed the worker; and the most
memory that a worker held over what it held before its first input.
"""

import argparse
import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import random
import resource
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LIMIT = 20.0
"""Seconds that one input may take."""
SHOWN = 20
"""Inputs without a typed end that are kept in the results."""
WORDS = (
    "the cat",
    "sat",
    "on é",
    "日本",
    "a" * 300,
    "",
    " ",
    "\u2028",
    "\ufeff",
    "x_y",
    "___",
    "🙂",
    "\r",
    "\t",
    "0",
    "NaN",
)
STRANGE = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b'"',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"{",
    b"[" * 5000,
    b"9" * 5000,
)
VALUES: tuple[Any, ...] = (
    "t",
    "",
    " ",
    None,
    3,
    10**400,
    1.5,
    float("nan"),
    True,
    [],
    {"a": {}},
    "\ud800",
    "a\0b",
    ["t"],
)
NAMES = (
    "builtin:weather",
    "builtin:sudoku4",
    "builtin:x",
    "hf:",
    "e2e:",
    "tinystories:",
    "d1-sudoku:",
    "a.txt",
    "~x/a.csv",
)
SPLITS = (
    "train",
    "dev",
    "test",
    "train:1/2",
    "train:0/9",
    "train:9/1",
    "train:1/" + "9" * 5000,
    "valid",
    "",
    "test:٣/٤",
)
OPTIONS = (
    "--num-steps",
    "--seed",
    "--num-samples",
    "--temperature",
    "--top-p",
    "--style",
    "--infill",
    "--prompt",
    "--rounds",
)


def texts(rng: random.Random) -> str:
    """A few strange words."""
    return "".join(rng.choice((*WORDS, "\n", ",", ";", "{", "}")) for _ in range(rng.randrange(12)))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some bytes, changed at up to four places or not at all."""
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(content) + 1)
        content = rng.choice(
            [
                content[:at],
                content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
                content[:at] + rng.choice(STRANGE) + content[at:],
                content + content[:at],
                content[at:],
            ]
        )
    return content


def file_of(rng: random.Random, folder: Path) -> Path:
    """A data file, its name as strange as its content."""
    kind = rng.choice(("txt", "jsonl", "csv", "zip", "pdf"))
    if kind == "txt":
        content = "\n".join(texts(rng) for _ in range(rng.randrange(30))).encode()
    elif kind == "jsonl":
        strange = 0.3 * rng.random()
        rows: list[dict[str, Any]] = [{"prompt": texts(rng), "text": texts(rng)} for _ in range(rng.randrange(9))]
        for row in rows:
            if rng.random() < strange:
                row[rng.choice(("text", "prompt", "promt", "id", "seed", "infill"))] = rng.choice(VALUES)
        content = rng.choice(("\n", "\r", "\r\n")).join(map(json.dumps, rows)).encode()
    else:
        mark, ends = rng.choice((",", ";", "\t")), rng.choice(("\n", "\r", "\r\n"))
        table = [["mr", "ref"] if kind == "zip" else ["prompt", "text"], *([texts(rng), texts(rng)] for _ in range(9))]
        content = ends.join(mark.join(json.dumps(field) for field in row) for row in table).encode()
    if rng.random() < 0.3:
        content = damaged(content, rng)
    if kind == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(
            packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
        ) as out:
            for name in rng.sample(
                ("trainset.csv", "x/trainset.csv", "../devset.csv", "testset_w_refs.csv"), rng.randrange(4)
            ):
                out.writestr(name, content)
        content = packed.getvalue()
    ending = rng.choice(("", "", "", ".xz", ".gz", ".bz2")) if kind != "zip" else ""
    content = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}.get(ending, bytes)(content)
    path = folder / f"a.{kind}{ending}"
    path.write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)
    return path


def read_file(rng: random.Random, folder: Path, _: Any) -> None:
    """A file by a scheme of its own or another."""
    from manta.text import read

    path = file_of(rng, folder)
    scheme = rng.choice(("", "", "", "", "", "", "tinystories:", "e2e:", "d1-sudoku:", "d1-countdown:", "sudoku17:"))
    scheme = "e2e:" if path.suffix == ".zip" and rng.random() < 0.8 else scheme
    for _example in read(f"{scheme}{path}", rng.choice(("train", "dev", "test"))):
        pass


def read_name(rng: random.Random, folder: Path, _: Any) -> None:
    """A name of a source and of a split."""
    from manta.text import read

    name = rng.choice(NAMES) + rng.choice(
        ("", "", "/", ":", "a\0b", "\udc80", "x" * 5000, "..", "/dev/zero", "/dev/stdin")
    )
    if name.startswith("hf:"):
        name = "hf:"  # no network
    list(islice(read(name, rng.choice(SPLITS), rng.choice((None, 3, 0, -1))), 20))


def write_canvas(rng: random.Random, folder: Path, lm: Any) -> None:
    """A text to fill or a prompt, up to twelve million characters long."""
    from manta.families.events import GenerateOptions, Request

    blanks = ("___", "___{2}", "_" * 50, "___{0}", "___{" + "9" * 5000 + "}", "___{-1}", "__", "")
    strange = rng.choice((*WORDS, "\ud800", "\0", "<mask>")) * rng.choice((1, 1, 1, 3, 1000, 40_000))
    text = "".join(rng.choice((" ", "  ", "\n", strange, rng.choice(blanks))) for _ in range(rng.randrange(8)))
    text = text * (12_000_000 // max(1000, len(text))) if rng.random() < 0.02 else text
    fills = rng.random() < 0.7
    request = Request(prompt=None if fills else text, infill=text if fills else None, seed=rng.randrange(99))
    list(lm.generate([request], GenerateOptions(num_steps=rng.choice((1, 2, 4)))))


def parse_line(rng: random.Random, folder: Path, _: Any) -> None:
    """Option values of `manta generate`."""
    from manta.cli.generate import GenerateVerbOptions, _requests, _settings
    from manta.cli.options import parse_options

    values = (
        "1",
        "-1",
        "0",
        "9" * 5000,
        "1e999",
        "nan",
        "inf",
        "0x10",
        "",
        " ",
        "٣",
        "\udc80",
        "--",
        "a=b",
        "1_0",
        "true",
    )
    argv = [part for _ in range(rng.randrange(4)) for part in (rng.choice(OPTIONS), rng.choice(values))]
    with redirect_stdout(io.StringIO()):
        options = parse_options(GenerateVerbOptions, argv, "generate")
    _settings(options)
    list(islice(_requests(options), 5))


def read_input(rng: random.Random, folder: Path, _: Any) -> None:
    """A file for `--input`."""
    from manta.cli.generate import read_lines

    for _row in read_lines(file_of(rng, folder)):
        pass


KINDS: tuple[Callable[..., None], ...] = (
    read_file,
    read_file,
    read_file,
    read_name,
    write_canvas,
    parse_line,
    read_input,
)


def tiny() -> Any:
    """A masked model of random weights, the smallest there is."""
    import torch

    from manta.families.masked import MaskedLM
    from manta.families.masked_model import MaskedConfig, MaskedModel
    from manta.text import Tokenizer

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the cat sat on a mat while rain fell"] * 3, 512)
    config = MaskedConfig(
        vocab_size=tokenizer.vocab_size, dim=32, heads=2, prompt_depth=1, depth=1, max_prompt=12, max_text=24
    )
    return MaskedLM(MaskedModel(config), tokenizer)


def work(pipe: Connection) -> None:
    """Try inputs by their numbers; answers with what became of each and the memory held."""
    from manta.errors import MantaError

    lm, start = tiny(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        while (number := pipe.recv()) is not None:
            rng = random.Random(number)
            attempt = rng.choice(KINDS)
            try:
                attempt(rng, Path(folder), lm)
                end, told = "read", ""
            except MantaError as error:
                end, told = "typed", str(error)
                if "\n" in told:
                    end = "untyped"
            except SystemExit:
                end, told = "read", ""
            except BaseException:
                end, told = "untyped", traceback.format_exc(limit=-3)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
            pipe.send((attempt.__name__, end, told, grown))


def main(argv: list[str] | None = None) -> None:
    """Try inputs, and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2000, help="inputs to try")
    parser.add_argument("--first", type=int, default=0, help="number of the first one: each is drawn by its own number")
    parser.add_argument("--out", type=Path, help="file for the results; stdout without it")
    options = parser.parse_args(argv)
    ends: dict[str, Counter[str]] = {}
    wrong, most = [], 0
    context = multiprocessing.get_context("spawn")
    worker: Any = None
    for number in range(options.first, options.first + options.num):
        if worker is None:
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(theirs,), daemon=True)
            worker.start()
            theirs.close()
            fresh = True
        ours.send(number)
        try:
            # A fresh worker imports and builds its model first.
            answered = ours.poll(LIMIT + (120 if fresh else 0))
            kind, end, told, grown = ours.recv() if answered else ("", "hung", "", 0)
        except (EOFError, ConnectionError):
            kind, end, told, grown = "", "crashed", "", 0
        fresh = False
        kind = kind or random.Random(number).choice(KINDS).__name__
        ends.setdefault(kind, Counter())[end] += 1
        most = max(most, grown)
        if end not in ("read", "typed"):
            wrong.append({"number": number, "kind": kind, "end": end, "told": told})
        if end in ("hung", "crashed"):
            worker.kill()
            worker.join()
            worker = None
    if worker is not None:
        ours.send(None)
        worker.join()
    total = sum(ends.values(), Counter())
    result = {
        "command": f"benchmarks/fuzz_readers.py --num {options.num} --first {options.first}",
        "inputs": options.num,
        **{end: total[end] for end in ("read", "typed", "untyped", "hung", "crashed")},
        "kinds": {kind: dict(found) for kind, found in sorted(ends.items())},
        "most_memory_mib": round(most / 1024, 1),
        "wrong": wrong[:SHOWN],
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
