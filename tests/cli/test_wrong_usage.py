"""Whatever is wrong with a command ends with one helpful line on stderr, nothing on stdout, and the right exit code."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from manta import cli

PAIRS = "".join(json.dumps({"prompt": f"p {i}", "text": f"the text {i}"}) + "\n" for i in range(60))

ROWS = [
    # the command, its exit code, what the line has to say
    ("trian", 2, "did you mean 'train'"),
    ("generat --prompt x", 2, "did you mean 'generate'"),
    ("train", 2, "--out DIR"),
    ("train pairs.jsonl", 2, "--out DIR"),
    ("train --out new", 2, "what to train on"),
    ("train pairs.jsonl --out file", 2, "file is a file"),
    ("train pairs.jsonl --out file/deeper", 2, "file/deeper cannot be written"),
    ("train folder --out new", 1, "is a folder"),
    ("train missing.txt --out new", 1, "missing.txt"),
    ("train empty.txt --out new", 1, "is empty"),
    ("train file --out new", 1, "use .txt, .jsonl or .csv"),
    ("train builtin:wether --out new", 1, "builtin:weather"),
    ("train typo.toml --out new", 2, "did you mean 'data'"),
    ("train deep.toml --out new", 2, "did you mean 'depth'"),
    ("train broken.toml --out new", 2, "not a TOML file"),
    ("train missing.toml --out new", 2, "missing.toml"),
    ("train pairs.jsonl --out new --num-steps -5", 2, "--num-steps should be at least 4"),
    ("train pairs.jsonl --out new --num-steps 9 --time-budget 3m", 2, "not both"),
    ("train pairs.jsonl --out new --time-budget 3x", 2, "90s, 30m or 2h"),
    ("train pairs.jsonl --out new --time-budget=-3m", 2, "90s, 30m or 2h"),
    ("train pairs.jsonl --out new --size huge", 2, "one of 'auto', 'nano'"),
    ("train pairs.jsonl --out new --family mnata", 2, "did you mean 'manta'"),
    ("train pairs.jsonl --out new --device cuda:77", 2, "no device 'cuda:77'"),
    ("train pairs.jsonl --out new vocabsize=600", 2, "did you mean 'vocab_size'"),
    ("train pairs.jsonl --out new vocab_size", 2, "key=value"),
    ("train pairs.jsonl --out new vocab_size=ten", 2, "an integer"),
    ("train pairs.jsonl --out new vocab_size=10", 2, "between 512 and 32768"),
    ("train pairs.jsonl --out new split=dev", 2, "split should be train"),
    ("train pairs.jsonl --out new --prompt x", 2, "no option '--prompt'"),
    ("train --resume --out folder", 1, "nothing to resume"),
    ("train --resume --out nowhere", 1, "nothing to resume"),
    ("generate nowhere/at/all --prompt x", 1, "no model at"),
    ("generate folder --prompt x", 1, "folder"),
    ("generate pairs.jsonl --prompt x", 1, "pairs.jsonl"),
    ("generate unfinished --prompt x", 1, "has not finished"),
    ("generate --prompt", 2, "expected one argument"),
    ("generate --promt x", 2, "did you mean '--prompt'"),
    ("generate a b", 2, "one argument too many: 'b'"),
    ("generate --input missing.jsonl", 1, "missing.jsonl"),
    ("doctor folder --max-text 9", 2, "--max-text is for data"),
    ("data export pairs.jsonl --seed 3", 2, "--seed is of built-in corpora"),
    ("generate --input folder", 1, "folder"),
    ("generate --input broken.jsonl", 1, "broken.jsonl"),
    ("generate --input pairs.jsonl --prompt x", 2, "not both"),
    ("generate --num-steps 0", 2, "--num-steps"),
    ("generate --num-steps many", 2, "an integer"),
    ("generate --temperature -1", 2, "--temperature"),
    ("generate --temperature nan", 2, "--temperature"),
    ("generate --guidance-scale inf", 2, "--guidance-scale"),
    ("generate --noise-scale nan", 2, "--noise-scale"),
    ("generate --top-p 2", 2, "--top-p"),
    ("generate --rounds -1", 2, "--rounds"),
    ("generate --block-length -3", 2, "--block-length"),
    ("generate --solver rk4", 2, "one of 'euler', 'heun', 'renoise'"),
    ("generate --decoder blok", 2, "did you mean 'block'"),
    ("generate --style poetic", 2, "one of 'consensus', 'diverse'"),
    ("generate --seed 1.5", 2, "an integer"),
    ("generate --seed -1", 2, "a seed lies between"),
    ("generate --target-entropy 3", 2, "--held-out DATA"),
    ("generate --held-out pairs.jsonl", 2, "--target-entropy and --escape-scale"),
    ("evaluate", 2, "--data"),
    ("evaluate --data missing.jsonl", 1, "missing.jsonl"),
    ("evaluate --data pairs.jsonl --split tst", 2, "did you mean 'test'"),
    ("evaluate --data pairs.jsonl --metrics blue", 2, "'overlap'"),
    ("evaluate --data pairs.jsonl --metrics ,", 2, "--metrics names none"),
    ("evaluate --data pairs.jsonl --texts pairs.jsonl --num-seeds 7", 2, "--num-seeds means nothing"),
    ("evaluate --data pairs.jsonl --texts pairs.jsonl --likelihood-samples 9", 2, "--likelihood-samples means nothing"),
    ("evaluate --data pairs.jsonl --out folder", 2, "is a folder"),
    ("evaluate --data pairs.jsonl --out nowhere/o.json", 2, "no folder nowhere; make it first"),
    ("evaluate model --texts missing.jsonl --data pairs.jsonl", 2, "--texts"),
    ("compare --data pairs.jsonl", 2, "--out DIR"),
    ("compare --data pairs.jsonl --out file", 2, "is a file"),
    ("compare --data pairs.jsonl --out new --num-steps a", 2, "an integer"),
    ("diagnose", 2, "--out DIR"),
    ("diagnose --out file --data pairs.jsonl", 2, "is a file"),
    ("diagnose --json --style odd", 2, "one of 'consensus', 'diverse'"),
    ("diagnose --json --words odd", 2, "one of 'writing', 'masked'"),
    ("diagnose --json --num-prompts 1", 2, "at least 2"),
    ("diagnose --json --tune -1 --data pairs.jsonl", 2, "--tune"),
    ("bench --parts all", 2, "'writing'"),
    ("bench --caches x", 2, "one of 'none', 'prefix', 'dual'"),
    ("bench --batches 0", 2, "at least 1"),
    ("bench --out folder", 2, "is a folder"),
    ("data", 2, "export"),
    ("data exprot", 2, "'exprot'"),
    ("data export", 2, "SOURCE is missing"),
    ("data export pairs.jsonl --num -1", 2, "0 or more"),
    ("data export pairs.jsonl --out nowhere/o.jsonl", 2, "no folder nowhere; make it first"),
    ("data check builtin:weather", 2, "FILE is missing"),
    ("data check pairs.jsonl pairs.jsonl", 2, "no oracle"),
    ("data check builtin:weather missing.jsonl", 1, "missing.jsonl"),
    ("data check builtin:weather pairs.jsonl", 1, "pairs.jsonl"),
    ("doctor", 2, "TARGET is missing"),
    ("doctor missing.txt", 1, "missing.txt"),
    ("doctor folder", 1, "neither a run nor a model"),
    ("doctor pairs.jsonl --vocab-size 10", 2, "between 512 and 32768"),
    ("doctor pairs.jsonl --max-text 0", 2, "max_text"),
    ("doctor broken.toml", 2, "not a TOML file"),
    ("doctor damaged", 1, "recipe.json"),
    ("demo x", 2, "one argument too many"),
    ("demo --num-steps 0", 2, "--num-steps"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wrong")
    for name, text in (
        ("pairs.jsonl", PAIRS),
        ("broken.jsonl", "{\n"),
        ("empty.txt", ""),
        ("file", "x"),
        ("typo.toml", "dta = 'pairs.jsonl'\n"),
        ("deep.toml", "[model]\ndpeth = 3\n"),
        ("broken.toml", "data = "),
    ):
        (root / name).write_text(text)
    for name in ("folder", "unfinished", "damaged"):
        (root / name).mkdir()
    (root / "unfinished" / "recipe.json").write_text("{}")
    (root / "damaged" / "recipe.json").write_text('{"data": ')
    return root


@pytest.mark.parametrize(("command", "code", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_wrong_usage_ends_with_one_helpful_line(place, tmp_path, monkeypatch, capsys, command, code, words):
    monkeypatch.chdir(place)
    new = tmp_path / "new"
    assert cli.main([str(new) if part == "new" else part for part in command.split()]) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("reading the data", "preparing "))]
    assert out == ""
    assert len(lines) == 1 and lines[0].startswith("manta: error: ") and len(lines[0]) < 500
    assert words in lines[0]
    assert "Traceback" not in err and "--debug" not in err, "a typed error"
    assert not (new / "model").exists(), "nothing was trained"


@pytest.mark.parametrize("verb", ["evaluate", "compare", "diagnose", "bench", "doctor", "data", "demo", "generate"])
def test_an_interrupt_in_any_verb_is_one_line(monkeypatch, capsys, verb):
    def run(argv):
        raise KeyboardInterrupt

    module, _ = cli.VERBS[verb]
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(run=run))
    assert cli.main([verb]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("manta: interrupted") and err.count("\n") == 1


@pytest.mark.parametrize("verb", [*cli.VERBS, "data export", "data check"])
def test_the_help_of_every_verb_reads_well(capsys, verb):
    assert cli.main([*verb.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("usage: manta")
    assert all(len(line) <= 100 for line in out.splitlines())
    for odd in ("[default: ]", "[default: (", "None", "[TARGET]", "[SOURCE]", "__"):
        assert odd not in out.replace("___", "")


@pytest.mark.parametrize(("size", "rank", "says"), [(None, "3", True), ("2", "0", True), ("2", "1", False)])
def test_of_several_processes_the_first_says_what_all_are_told(size, rank, says, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    assert cli.main(["train", "--resume", "--out", "no-such-run"]) == 1
    assert ("nothing to resume" in capsys.readouterr().err) == says
