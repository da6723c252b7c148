"""The templates for clusters are read as their programs would read them, and their commands by our own parser."""

import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from manta.cli import VERBS, main

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
CLUSTERS = ROOT / "examples" / "clusters"
PAGE = ROOT / "docs" / "many-machines.md"
FILES = sorted(CLUSTERS.iterdir())
RAY = [file for file in FILES if file.name.startswith("ray-")]
FOLLOWED = re.compile(r"(?<![\w/.-])manta ((?:train|generate|plan) [^\n)`]*)")
LAUNCHED = re.compile(r"torchrun ((?:[^\n]|(?<=\\)\n)*)")


def plain(text: str) -> str:
    """A file without comments, its continued lines joined."""
    return re.sub(r"\\\n\s*", "", re.sub(r"^\s*#(?!SBATCH).*$", "", text, flags=re.M))


def commands() -> list[tuple[str, str]]:
    found = []
    for file in (*FILES, PAGE):
        text = plain(file.read_text(encoding="utf-8"))
        if file == PAGE:
            text = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
        found += [(file.name, command) for command in FOLLOWED.findall(text)]
    return found


def words_of(command: str) -> list[str]:
    """What our parser is given, with something for each variable of the shell."""
    command = command.split(" > ")[0].replace('"$@"', "--family masked train.accumulate=8")
    return shlex.split(re.sub(r"\$\{?\w+\}?", "named", command))


@pytest.mark.parametrize(("file", "command"), commands())
def test_a_command_is_one_that_there_is(file, command, monkeypatch, capsys):
    words = words_of(command)
    module = import_module(VERBS[words[0]][0])
    name = "parse_writing" if hasattr(module, "parse_writing") else "parse_options"
    read, options = getattr(module, name), []

    def seen(*given: Any, **named: Any) -> Any:
        options.append(read(*given, **named))
        raise SystemExit(0)

    monkeypatch.setattr(module, name, seen)
    assert main(words) == 0, capsys.readouterr().err
    assert len(options) == 1


def test_every_file_and_the_page_hold_commands():
    assert {file for file, _ in commands()} == {file.name for file in FILES if "cluster" not in file.name} | {PAGE.name}
    assert len(commands()) > 10 and all(file.name in PAGE.read_text(encoding="utf-8") for file in FILES)


@pytest.mark.parametrize("file", [CLUSTERS / "train.sbatch", CLUSTERS / "sky.yaml", PAGE], ids=lambda file: file.name)
def test_launchers_are_called_as_they_can_be(file):
    from torch.distributed.run import get_args_parser

    parser, text = get_args_parser(), plain(file.read_text(encoding="utf-8"))
    text = text.replace('_PER_NODE"', "_PER_NODE -m manta").replace('"${WORK[@]}"', "manta")
    found = [line for line in LAUNCHED.findall(text) if "--n" in line]
    assert found
    for line in found:
        line = re.sub(r"\$\w*(NODES|NNODES|GPUS\w*|RANK)\b", "2", re.sub(r'"', "", line)).rstrip("& ")
        given, rest = parser.parse_known_args(shlex.split(re.sub(r"\$\w+", "head", line)))
        assert given.module and given.training_script == "manta" and not rest, line


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_script_of_slurm_is_one():
    file = CLUSTERS / "train.sbatch"
    subprocess.run(["bash", "-n", file], check=True)
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    body = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[0] == "#!/bin/bash" and "#SBATCH" not in "\n".join(lines[body:]), "Slurm reads none after a command"
    told = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M))
    assert len(told) == text.count("#SBATCH") and {"requeue", "nodes", "time", "gpus-per-node"} <= set(told)
    assert told["ntasks-per-node"] == "1", "torchrun starts the processes of a machine"
    name, seconds = re.fullmatch(r"B:(\w+)@(\d+)", told["signal"]).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert f"trap again {name}" in text and int(seconds) >= 60
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", told["time"]) and told["open-mode"] == "append"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_before_its_time_limit_the_job_stops_its_work_and_returns_to_the_queue(tmp_path):
    """Slurm's programs are stood in for by scripts that write down how they are called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "scontrol": 'echo "scontrol $*" >> "$CALLS"; echo head',
        "srun": 'echo "srun $*" >> "$CALLS"; echo $$ > "$WORKER"; trap "exit 143" TERM; while :; do sleep 0.05; done',
        "scancel": 'echo "scancel $*" >> "$CALLS"; kill -TERM "$(cat "$WORKER")"',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    calls, worker, run = tmp_path / "calls", tmp_path / "worker", tmp_path / "run"
    slurm = {"SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    around = {"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(calls), "WORKER": str(worker), **slurm}

    def job(*given: str) -> list[str]:
        calls.unlink(missing_ok=True)
        worker.unlink(missing_ok=True)
        signal = 'bash "$0" "$@" & job=$!; until [ -s "$WORKER" ]; do sleep 0.05; done; kill -USR1 $job; wait $job'
        command = ["bash", "-c", signal, str(CLUSTERS / "train.sbatch"), *given]
        subprocess.run(command, env=around, check=True, timeout=60)
        return calls.read_text().splitlines()

    began = job("mine.jsonl", str(run), "--size", "large")
    assert began[2:] == ["scancel --signal=TERM 7.0", "scontrol requeue 7"]
    assert began[1].endswith(f"-m manta train mine.jsonl --size large --out {run} --shard full")
    assert "--nnodes 2 --nproc-per-node 8" in began[1] and "--rdzv-endpoint head:29500" in began[1]
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    again = job("mine.jsonl", str(run), "--size", "large")
    assert again[1].endswith(f"-m manta train --resume --out {run} --shard full")


QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


@pytest.mark.parametrize("file", RAY, ids=lambda file: file.name)
def test_what_kuberay_is_given_has_its_fields(file):
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"} and found["apiVersion"] == "ray.io/v1"
    spec = found["spec"]
    if found["kind"] == "RayJob":
        assert isinstance(spec["entrypoint"], str) and "\n" not in spec["entrypoint"]
        assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
        assert spec["shutdownAfterJobFinishes"] is True and type(spec["ttlSecondsAfterFinished"]) is int
        kept = {"entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"}
        assert set(spec) == kept | {"rayClusterSpec"}
        spec = spec["rayClusterSpec"]
    else:
        assert found["kind"] == "RayCluster" and found["metadata"]["name"]
    assert set(spec) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"} and isinstance(spec["rayVersion"], str)
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] and group["groupName"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["name"] and container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            for kind in ("limits", "requests"):
                amounts = container["resources"][kind].values()
                assert all(isinstance(amount, str) and QUANTITY.fullmatch(amount) for amount in amounts)


@pytest.mark.parametrize("file", ["ray-train.yaml", "ray-generate.yaml"])
def test_a_job_asks_for_as_many_workers_as_there_are_gpus(file):
    spec = yaml.safe_load((CLUSTERS / file).read_text(encoding="utf-8"))["spec"]
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    gpus = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in groups
    )
    assert f"--workers {gpus}" in spec["entrypoint"]


def test_the_task_of_skypilot_has_its_fields(tmp_path):
    found = yaml.safe_load((CLUSTERS / "sky.yaml").read_text(encoding="utf-8"))
    known = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "volumes"}
    assert set(found) <= known and type(found["num_nodes"]) is int and found["num_nodes"] >= 1
    assert re.fullmatch(r"[A-Za-z0-9-]+:\d+", found["resources"]["accelerators"])
    assert type(found["resources"]["use_spot"]) is bool and type(found["resources"]["disk_size"]) is int
    for place, bucket in found["file_mounts"].items():
        assert place.startswith("/") and bucket["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED") and bucket["name"]
        assert bucket["store"] in ("s3", "gcs", "azure", "r2", "ibm", "oci", "nebius")
    for part in ("setup", "run"):
        (tmp_path / part).write_text(found[part])
        if shutil.which("bash"):
            subprocess.run(["bash", "-n", tmp_path / part], check=True)
    variables = set(re.findall(r"\$(SKYPILOT_\w+)", found["run"]))
    assert variables <= {f"SKYPILOT_{name}" for name in ("NODE_IPS", "NUM_NODES", "NUM_GPUS_PER_NODE", "NODE_RANK")}
    assert found["num_nodes"] == 1, "a bucket is no file system that several machines see at once"
