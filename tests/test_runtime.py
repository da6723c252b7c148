import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manta import runtime
from manta.errors import ConfigError, UsageError
from manta.recipes import Recipe, TrainingRun

SOURCE = Path(__file__).parent.parent / "src"


def draw(seed: int) -> list[float]:
    return torch.rand(4, generator=runtime.make_generator(seed)).tolist()


@given(st.integers(0, runtime.MAX_SEED))
def test_a_seed_is_a_stream(seed):
    assert draw(seed) == draw(seed)


def test_small_seeds_are_torchs_own():
    expected = torch.rand(4, generator=torch.Generator().manual_seed(2**32 - 1)).tolist()
    assert draw(2**32 - 1) == expected


def test_seeds_that_share_their_low_bits_differ():
    assert len({tuple(draw(5 + k * 2**32)) for k in range(64)}) == 64


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    draw(3)
    runtime.matmul_rate(torch.float32, seconds=0.0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, runtime.MAX_SEED + 1])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(UsageError, match=f"received {seed}"):
        runtime.make_generator(seed)


def test_devices_are_resolved():
    assert runtime.resolve_device("cpu") == torch.device("cpu")
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert runtime.resolve_device() == torch.device(expected)


def test_the_first_accelerator_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.resolve_device() == torch.device("cuda:0")
    assert runtime.resolve_device("cuda:1") == torch.device("cuda:1")
    assert runtime.resolve_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match=r"no device 'cuda:2' on this machine; it has cpu, cuda:0, cuda:1"):
        runtime.resolve_device("cuda:2")


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="no device 'gpu'"):
        runtime.resolve_device("gpu")


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_autocast_sets_the_precision_of_products_only(name, dtype):
    weight = torch.ones(2, 2, requires_grad=True)
    with runtime.autocast("cpu", name):
        product = weight @ weight
    assert product.dtype == dtype
    product.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert (weight @ weight).dtype == torch.float32


def test_autocast_refuses_other_precisions():
    with pytest.raises(ConfigError, match=r"received 'float16'"):
        runtime.autocast("cpu", "float16")


def test_the_matrix_rate_counts_two_operations_a_multiply_add(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: float(next(clock)))
    # Every product takes one tick of this clock, so the largest one, 2048³, sets the rate.
    assert runtime.matmul_rate(torch.float32, seconds=0.0) == 2 * 2048**3


def test_the_matrix_rate_is_physical():
    assert 1e8 < runtime.matmul_rate(torch.float32, seconds=0.05) < 1e15


def test_peak_memory_outlives_the_allocation():
    code = """
        from manta.runtime import peak_memory_bytes
        before = peak_memory_bytes()
        block = bytearray(b"1") * 200_000_000
        during = peak_memory_bytes()
        del block
        print(during - before, peak_memory_bytes() - during)
    """
    grown, fallen = map(int, run_python(code).stdout.split())
    assert 150_000_000 < grown < 400_000_000
    assert fallen > -5_000_000


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "state.bin"
    runtime.atomic_write(path, b"old")
    runtime.atomic_write(path, lambda temporary: temporary.write_bytes(b"new, longer"))
    assert path.read_bytes() == b"new, longer"
    assert list(tmp_path.iterdir()) == [path]


def test_the_writer_works_beside_the_file_and_out_of_its_sight(tmp_path):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"old"

    runtime.atomic_write(path, write)
    assert path.read_bytes() == b"half"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        runtime.atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    code = f"""
        import os, signal
        from manta.runtime import atomic_write

        def die(temporary):
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        atomic_write({str(path)!r}, die)
    """
    assert run_python(code, check=False).returncode == -9
    assert path.read_bytes() == b"old"


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    runtime.atomic_write(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    runtime.atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    runtime.atomic_write(pipe, b"text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path):
    test_a_killed_write_leaves_the_old_file(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    runtime.atomic_write(tmp_path / "state.bin", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["state.bin"]


def test_a_folder_appears_whole_or_not_at_all_and_keeps_what_it_holds(tmp_path):
    folder = tmp_path / "made"
    with pytest.raises(OSError), runtime.atomic_folder(folder) as new:
        (new / "half").write_bytes(b"")
        raise OSError
    assert not list(tmp_path.iterdir())
    for content in (b"1", b"2"):
        with runtime.atomic_folder(folder) as new:
            (new / "ours").write_bytes(content)
        assert (folder / "ours").read_bytes() == content
        (folder / "mine").write_bytes(b"mine")
    assert (folder / "mine").exists() and [file.name for file in tmp_path.iterdir()] == ["made"]


def run_python(code: str, check: bool = True) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)


@pytest.mark.parametrize(("slow", "faster"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_faster_precision_is_the_one_whose_products_take_less(monkeypatch, slow, faster):
    """The clock runs a second for each look at it while products of the slow type are made, and stands otherwise."""
    clock = {"now": 0.0, "step": 0.0}

    def told(name: str) -> torch.dtype:
        clock["step"] = float(name == slow)
        return runtime._DTYPES[name]

    def look() -> float:
        clock["now"] += clock["step"]
        return clock["now"]

    monkeypatch.setattr(runtime, "dtype_of", told)
    monkeypatch.setattr(runtime.time, "perf_counter", look)
    threads = torch.get_num_threads()
    assert runtime.faster_precision("cpu") == faster
    assert torch.get_num_threads() == threads


def test_a_run_keeps_the_precision_of_its_device(monkeypatch, tmp_path):
    monkeypatch.setattr("manta.recipes.run.faster_precision", lambda device: "float32")
    recipe = Recipe(data="builtin:weather", num_steps=4)
    assert TrainingRun(recipe, tmp_path / "run").recipe.train.precision == "float32"
    monkeypatch.setattr("manta.recipes.run.faster_precision", lambda device: "bfloat16")
    assert TrainingRun(None, tmp_path / "run", resume=True).recipe.train.precision == "float32"
    assert TrainingRun(recipe, tmp_path / "other").recipe.train.precision == "bfloat16"


def test_a_file_that_cannot_be_written_is_named_and_left_as_it_was(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("old")

    def full(path):
        raise OSError(27, "File too large")

    with pytest.raises(OSError) as caught:
        runtime.atomic_write(file, full)
    assert caught.value.filename == str(file) and caught.value.errno == 27
    assert file.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
