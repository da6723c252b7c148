"""The machine that a run meets: generators, devices, precision, measured limits, files that never break."""

import hashlib
import json
import math
import os
import platform
import shutil
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from manta.errors import ConfigError, ModelError, UsageError

MAX_SEED = 2**63 - 1
"""Largest seed, so that any seed fits a signed 64-bit integer of a file or of another program."""

_UNFINISHED = ".manta-"
"""What the names of files and folders begin with while they are written."""

_DTYPES = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float32": torch.float32, "fp32": torch.float32}


def make_generator(seed: int) -> torch.Generator:
    """Make a generator of random numbers on the CPU, whose stream is the same on every machine.

    torch's CPU generator starts from the low 32 bits of its seed alone, so that 5 and 5 + 2³² would give one stream.
    The high bits are folded in here; a seed below 2³² is used as it is.

    Args:
        seed: 0 … 2⁶³−1.

    Returns:
        A generator that no other code draws from.

    Raises:
        UsageError: for a seed out of range.
    """
    check_seed(seed)
    high, low = divmod(seed, 2**32)
    return torch.Generator().manual_seed(low ^ (high * 0x9E3779B1) % 2**32)


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator can be made of.

    Raises:
        UsageError: for a seed out of range, 0 … 2⁶³−1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"a seed lies between 0 and {MAX_SEED}, received {seed}")


def resolve_device(name: str | None = None) -> torch.device:
    """Choose the device to run on.

    Args:
        name: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the first CUDA device where there is one, else the CPU.

    Returns:
        A device that this machine has.

    Raises:
        UsageError: when there is no such device here.
    """
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name is None:
        return torch.device("cuda:0" if "cuda:0" in here else "cpu")
    if (name if name != "cuda" else "cuda:0") not in here:
        raise UsageError(f"no device {name!r} on this machine; it has {', '.join(here)}")
    return torch.device(name)


def autocast(device: torch.device | str, dtype_name: str) -> AbstractContextManager:
    """Run matrix products in a lower precision; parameters and reductions stay in float32.

    Args:
        device: where the products run.
        dtype_name: `bfloat16` (or `bf16`), or `float32` (or `fp32`), which changes nothing.

    Returns:
        A context to run the forward pass in; the backward pass belongs outside.

    Raises:
        ConfigError: for another name. float16 is left out on purpose: its gradients need loss scaling.
    """
    dtype = dtype_of(dtype_name)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def dtype_of(name: str) -> torch.dtype:
    """The type that the name of a precision means.

    Raises:
        ConfigError: for a name that `autocast` does not know.
    """
    if name not in _DTYPES:
        raise ConfigError(f"precision should be one of {', '.join(map(repr, _DTYPES))}, received {name!r}")
    return _DTYPES[name]


def faster_precision(device: torch.device | str = "cpu") -> str:
    """The precision in which a device multiplies matrices faster, `bfloat16` or `float32`.

    A CPU with matrix units multiplies bfloat16 several times faster than float32, one without up to a hundred times
    slower, so a few products decide.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other on a busy machine
    factors = torch.randn(2, 256, 256, generator=make_generator(0))
    fastest = dict.fromkeys(("float32", "bfloat16"), math.inf)
    for _ in range(5):  # in turns, so that a passing load meets both
        for name in fastest:
            left, right = factors.to(dtype_of(name))
            start = time.perf_counter()
            _ = left @ right, left @ right.T, left.T @ right  # as in a linear map and its gradients
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    torch.set_num_threads(threads)
    return min(fastest, key=lambda name: fastest[name])


def matmul_rate(
    dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu", *, seconds: float = 0.5
) -> float:
    """Measure the best rate of a matrix product on this machine, now: 2·n³ / time.

    It is the yardstick for the share of the machine that a training run uses. Square products of several sizes are
    tried in turn and the fastest single product counts, so that a passing load of the machine does not lower it.

    Args:
        dtype: precision of both factors.
        device: where to multiply.
        seconds: time to spend, s; each size runs at least twice, the first time unmeasured.

    Returns:
        FLOP/s, a multiply and an add counted as two.
    """
    sizes = (512, 1024, 2048) if torch.device(device).type == "cpu" else (2048, 4096, 8192)
    best = 0.0
    for n in sizes:
        left, right = torch.randn(2, n, n, generator=make_generator(0)).to(device, dtype)
        _time_product(left, right)
        deadline = time.perf_counter() + seconds / len(sizes)
        fastest = math.inf
        while fastest == math.inf or time.perf_counter() < deadline:
            fastest = min(fastest, _time_product(left, right))
        best = max(best, 2 * n**3 / fastest)
    return best


def peak_memory_bytes(device: torch.device | str = "cpu") -> int:
    """Report the most memory held so far.

    Args:
        device: on the CPU the whole process counts, Python and libraries included; on CUDA torch's tensors do.

    Returns:
        Bytes, the highest since the process began; the kernel counts to about a megabyte.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    # On Linux getrusage would count what the program that started this one held just before.
    for kibibytes in (line.split()[1] for line in lines if line.startswith("VmHWM:")):
        return int(kibibytes) * 1024
    import resource  # POSIX only, and nothing else here needs it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def atomic_write(path: str | Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file so that a reader, or a run killed half-way, finds the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and then take the name and, where a
    file had it, that file's permissions. A link stays a link to the file written; a device or a pipe is written to.

    Args:
        path: the file; its folder exists.
        content: the bytes, or a function that writes them to the path it is given (such as safetensors' `save_file`).

    Raises:
        OSError: when the folder cannot be written or the disk is full, with the file's name; the old file is
            untouched.
    """
    path = Path(os.path.realpath(path))
    write = (lambda file: file.write_bytes(content)) if isinstance(content, bytes) else content
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    temporary = _temporary(path)
    try:
        write(temporary)
        if path.exists():
            shutil.copymode(path, temporary)
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)  # the new name outlives a power cut too


def check_logits(logits: torch.Tensor, call: int, where: torch.Tensor | None = None) -> None:
    """Refuse logits that no word can be chosen from: with a NaN, with +∞, or with nothing but −∞ at a position.

    Words that must not come are at −∞, so single ones are allowed.

    Args:
        logits: "… v".
        call: network call that gave them, counted from 1, named in the error.
        where: "…", True at the positions that count; None: all do.

    Raises:
        ModelError: as said.
    """
    wrong = ~logits.amax(-1).isfinite()  # a NaN is greater than any number
    if bool((wrong if where is None else wrong & where).any()):
        raise ModelError(
            f"the logits of network call {call} are not finite, so no word can be chosen; the model's weights are "
            "damaged, or an option such as guidance_scale or noise_scale is far too large"
        )


def check_likelihood(nats: torch.Tensor) -> None:
    """Refuse likelihoods that are not finite.

    Args:
        nats: −log p of any texts.

    Raises:
        ModelError: as said; the text is counted from 0.
    """
    if not bool(nats.isfinite().all()):
        first = int((~nats.isfinite()).flatten().nonzero()[0])
        raise ModelError(f"the likelihood of text {first} is not finite; the model's weights are damaged")


def read_json(file: Path, *, most: int = 64 << 20) -> Any:
    """What a JSON file of a folder says that others may have made.

    Args:
        file: a file or a link to one.
        most: bytes of the largest file that is read.

    Returns:
        What it holds, of whatever type.

    Raises:
        ModelError: the file is missing, no plain file, too large, not UTF-8, not JSON, or names a key twice.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for, a device never ends
            raise ModelError(f"{file} is no plain file; copy it again")
        if file.stat().st_size > most:
            raise ModelError(f"{file} is larger than {most >> 20} MiB, which no such file is; copy it again")
        return json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); copy it again") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {twice[:80]!r} twice")
    return found


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Fill a folder that takes its name only when it is whole; nothing that stands there already is removed.

    Where there is no such folder, or an empty one, the new folder appears at once. Where there is one, each new file
    takes the place of the file of its name at the end, in the order of their names, and all others stay; whether that
    folder may be written to is the caller's to know.

    Args:
        folder: the folder; those above it are made.

    Yields:
        A folder beside it to write the files to; it is gone afterwards, whatever happens.

    Raises:
        OSError: when the disk is full or the folder cannot be written; what was there is untouched.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(temporary.iterdir())
        for file in files:
            _flush(file)
        _flush(temporary)
        if not folder.exists() or not any(folder.iterdir()):
            os.replace(temporary, folder)
        else:
            for file in files:
                os.replace(file, folder / file.name)
            _flush(folder)
        _flush(folder.parent)
    finally:
        _remove(temporary)


def digest_of_file(file: Path) -> str:
    """What tells a file's content from every other, a SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder and all below it; nobody else may write there now."""
    for left in [*folder.rglob(f"{_UNFINISHED}*.tmp")]:
        _remove(left)


def hidden_name(path: Path) -> Path:
    """A name beside a file or folder that `sweep` and the next writer of the same know as left unfinished."""
    # The machine is part of it, since a process can only be asked for at home.
    mine = blake2b(f"{platform.node()}/{path.name}".encode(errors="surrogateescape"), digest_size=6).hexdigest()
    return path.with_name(f"{_UNFINISHED}{mine}-{os.getpid()}-{threading.get_ident()}.tmp")


def _temporary(path: Path) -> Path:
    """`hidden_name`, after removing what dead writers of the same path have left."""
    temporary = hidden_name(path)
    mine = temporary.name.split("-")[1]
    for left in path.parent.glob(f"{_UNFINISHED}{mine}-*.tmp"):
        writer = left.name.split("-")[2]
        if writer.isdigit() and int(writer) != os.getpid() and not _lives(int(writer)):
            _remove(left)
    return temporary


def _lives(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def json_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the tensors of a state into plain JSON values that `load_json_tensors` restores exactly."""
    return {
        key: {"dtype": str(value.dtype).removeprefix("torch."), "values": value.tolist()}
        if isinstance(value, torch.Tensor)
        else value
        for key, value in state.items()
    }


def load_json_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `json_tensors`."""
    return {
        key: torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
        if isinstance(value, dict) and set(value) == {"dtype", "values"}
        else value
        for key, value in state.items()
    }


def keep_memory() -> None:
    """Ask the C library to keep freed memory for the next allocation instead of giving it back.

    A training step frees and takes the same large blocks again and again; with glibc's defaults every one of them is
    mapped, zeroed page by page and unmapped. Keeping them makes a step on CPU about 1.2 to 1.5 times as fast. Does
    nothing where the C library is another.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    for option, size in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (top_pad, 256 << 20)):
        mallopt(option, size)


def _time_product(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(left, right.T)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - start


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
