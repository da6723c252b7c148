"""The verbs as a person uses them: what they print, where, and with which exit code."""

import io
import json
import os
import random
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.cli import main
from manta.cli.doctor import DoctorOptions
from manta.cli.train import TrainOptions
from manta.config import field_docs
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.hub import save_model, shipped
from manta.recipes import Recipe
from manta.text import Tokenizer
from manta.text.sources import SCHEMES
from manta.text.tasks import TASKS

from ..families.conftest import WORDS, make_lm, random_weights
from ..hub import published

needs_model = pytest.mark.skipif(not (shipped() / "config.json").exists(), reason="no model ships with this copy")


def make_baseline(family: str) -> MaskedLM | AutoregressiveLM:
    """A small model of another family, with random weights."""
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    shape: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1}
    shape |= {"max_prompt": 12, "max_text": 24}
    torch.manual_seed(0)
    masked = family == "masked"
    net = MaskedModel(MaskedConfig(**shape)) if masked else AutoregressiveModel(AutoregressiveConfig(**shape))
    random_weights(net)
    return MaskedLM(net, tokenizer) if isinstance(net, MaskedModel) else AutoregressiveLM(net, tokenizer)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, make_lm(), recipe={}, card="", dtype=torch.float32)
    return str(folder)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_prints_one_object_a_sample_and_nothing_else(model, capsys):
    assert main(["generate", model, "--prompt", "the cat", "--num-samples", "3", "--num-steps", "5", "--json"]) == 0
    rows = lines(capsys.readouterr().out)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert all(set(row) == {"prompt", "text", "nfe", "seconds", "seed"} and row["nfe"] <= 5 for row in rows)


def test_a_printed_seed_replays_its_text(model, capsys):
    main(["generate", model, "--prompt", "the cat", "--num-samples", "3", "--seed", "40", "--json"])
    wanted = lines(capsys.readouterr().out)[2]
    main(["generate", model, "--prompt", "the cat", "--seed", str(wanted["seed"]), "--json"])
    assert lines(capsys.readouterr().out)[0]["text"] == wanted["text"]


def test_input_lines_keep_their_own_keys_and_seeds(model, capsys, tmp_path):
    file = tmp_path / "in.jsonl"
    rows = [{"prompt": "the cat", "id": 7}, {"prompt": "rain", "seed": 99}, {"infill": "the ___ sat", "note": "x"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["generate", model, "--input", str(file), "--json"]) == 0
    found = {row["seed"]: row for row in lines(capsys.readouterr().out)}
    assert found[0]["id"] == 7
    assert found[99]["prompt"] == "rain"
    assert found[2]["note"] == "x"
    assert found[2]["text"].startswith("the")


def test_a_line_separator_in_a_string_does_not_end_a_line_of_input(model, capsys, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"note": "a\u2028b"}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert main(["generate", model, "--input", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.rstrip("\n"))["note"] == "a\u2028b"


def test_texts_come_in_the_order_of_their_requests(capsys, tmp_path):
    """A left-to-right model writes prompts of like length together; what is printed keeps the order of the file."""
    save_model(tmp_path / "ar", make_baseline("ar"), recipe={}, card="", dtype=torch.float32)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": WORDS[0][:size]}) + "\n" for size in (6, 1, 4)))
    assert main(["generate", str(tmp_path / "ar"), "--input", str(path), "--json", "--max-tokens", "2"]) == 0
    assert [len(row["prompt"]) for row in lines(capsys.readouterr().out)] == [6, 1, 4]


def test_a_text_is_changed_whole_or_where_it_is_marked(model, capsys):
    for text, infill in (("the cat sat", "[[the cat sat]]"), ("the [[cat]] sat", "the [[cat]] sat")):
        rows = []
        for flags in (["--edit", text], ["--infill", infill]):
            assert main(["generate", model, "--prompt", "rain", *flags, "--strength", "0.4", "--json"]) == 0
            rows.append({**json.loads(capsys.readouterr().out), "seconds": 0})
        assert rows[0] == rows[1] and rows[0]["infill"] == infill
    assert rows[0]["text"].startswith("the ") and rows[0]["text"].endswith(" sat")


def test_a_line_of_input_may_ask_to_change_a_text(model, capsys, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"prompt": "rain", "edit": "the cat sat", "seed": 3}) + "\n")
    assert main(["generate", model, "--input", str(file), "--strength", "0.4", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    flags = ["--prompt", "rain", "--edit", "the cat sat", "--seed", "3", "--strength", "0.4"]
    assert main(["generate", model, *flags]) == 0
    assert capsys.readouterr().out.rstrip("\n") == row["text"] and row["infill"] == "[[the cat sat]]"
    file.write_text(json.dumps({"edit": "the cat", "infill": "the ___"}) + "\n")
    assert main(["generate", model, "--input", str(file)]) == 1
    assert "two ways to ask; give one" in capsys.readouterr().err


def test_without_json_a_pipe_gets_the_texts(model, capsys):
    assert main(["generate", model, "--prompt", "the cat"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--num-steps", "0"], 2, "1 or more"),
        (["--num-stepz", "4"], 2, "--num-steps"),
        (["--style", "odd"], 2, "style"),
        (["--num-samples", "0"], 2, "--num-samples"),
        (["--prompt", "rain fell over quiet hills " * 9], 1, "reads at most"),
        (["--infill", "no blank"], 1, "no blank"),
        (["--infill", "a ___", "--edit", "b"], 2, "give --infill or --edit"),
        (["--edit", ""], 1, "no blank"),
        (["--edit", "the cat", "--strength", "0"], 2, "--strength should lie between 0.001 and 1"),
        (["--strength", "0.3"], 1, "--strength is for words"),
        (["--num-steps", "4", "--flow-steps", "9"], 2, "does not fit a budget"),
        (["--device", "abacus"], 2, "abacus"),
        (["--seed", "-3"], 2, "seed"),
    ],
)
def test_a_bad_request_is_one_line_and_an_exit_code(model, capsys, arguments, code, words):
    assert main(["generate", model, *arguments]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> str:
    """A file of prompts; about one in twenty is held out."""
    file = tmp_path_factory.mktemp("held-out") / "pairs.jsonl"
    rows = [{"prompt": f"the cat {i}", "text": "rain fell over hills and rain fell"} for i in range(160)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("family", ["manta", "masked", "ar"])
def test_a_target_entropy_is_met_or_the_reachable_ones_are_told(held_out, capsys, tmp_path, family):
    lm = make_lm() if family == "manta" else make_baseline(family)
    save_model(tmp_path, lm, recipe={}, card="", dtype=torch.float32)
    command = ["generate", str(tmp_path), "--prompt", "the cat", "--held-out", held_out]
    command += [] if family == "ar" else ["--num-steps", "3"]
    assert main([*command, "--target-entropy", "99"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    least, most = (float(part.split()[0]) for part in re.split("from | to ", error)[1:])
    assert main([*command, "--target-entropy", str((least + most) / 2), "--json"]) == 0
    out, error = capsys.readouterr()
    assert len(lines(out)) == 1 and "human texts 1.55" in error
    met = float(re.search(r"give ([\d.]+) nats", error)[1])  # pyright: ignore
    assert abs(met - (least + most) / 2) < 0.1, "few texts: the mean moves in jumps"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target-entropy", "2"], 2, "--held-out DATA"),
        (["--escape-scale", "2"], 2, "--held-out DATA"),
        (["--escape-scale", "-1", "--held-out", "builtin:weather"], 2, "0 or more"),
        (["--target-entropy", "2", "--temperature", "1", "--held-out", "builtin:weather"], 2, "not both"),
        (["--target-entropy", "2", "--held-out", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_steering_that_cannot_be_measured_says_why(model, capsys, arguments, code, words):
    assert main(["generate", model, *arguments]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"not json\n", "in.jsonl line 1"),
        (b'{"prompt": 3}\n', "prompt"),
        (b"[1]\n", "not an object"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b'{"prompt": "a", "seed": "x"}\n', "seed"),
        (b'{"prompt": "a"}\n{"promt": "b"}\n', "line 2 has no field `prompt` but `promt`"),
        (b'{"prompt": "a", "infil": "the ___"}\n', "line 1 has no field `infill` but `infil`"),
        (b'{"prompt": "a", "Infill": "the ___"}\n', "line 1 has no field `infill` but `Infill`"),
        (b'{"prompt": "a\\ud800"}\n', "line 1: `prompt` holds half a surrogate pair"),
        (b'{"prompt": "a", "id": "\\ud800"}\n', "line 1 holds half a surrogate pair"),
        (b'{"prompt": "a\\u0000"}\n', "line 1: `prompt` holds a NUL"),
        (b'{"prompt": "a", "id": NaN}\n', "line 1 holds NaN"),
        (b'{"prompt": "a", "prompt": "b"}\n', "'prompt' stands there twice"),
        (b'{"prompt": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    ],
)
def test_a_bad_input_file_is_named(model, capsys, tmp_path, content, words):
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    assert main(["generate", model, "--input", str(file)]) == 1
    assert words in capsys.readouterr().err


def test_standard_input_is_read(model, capsys, monkeypatch):
    given = io.TextIOWrapper(io.BytesIO(b'{"prompt": "the cat", "id": 1}\r{"prompt": "rain", "id": 2}'))
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["generate", model, "--input", "-", "--json"]) == 0
    assert [(row["id"], row["seed"]) for row in lines(capsys.readouterr().out)] == [(1, 0), (2, 1)]


def test_a_pipe_is_read_once(model, capsys, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"prompt": "rain"}\n',))
    writer.start()
    assert main(["generate", model, "--input", str(pipe), "--json"]) == 0
    writer.join()
    assert len(lines(capsys.readouterr().out)) == 1


def test_more_texts_than_memory_holds_are_refused(model, capsys, tmp_path, monkeypatch):
    assert main(["generate", model, "--num-samples", "1000000000"]) == 2
    assert "more than 1,000,000 texts" in capsys.readouterr().err
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "the cat"}\n' * 5)
    monkeypatch.setattr("manta.cli.generate.MAX_INPUT", 50)
    assert main(["generate", model, "--input", str(file)]) == 1
    assert "in.jsonl line 3: --input takes at most" in capsys.readouterr().err


@pytest.mark.parametrize("prompted", [True, False, None])
def test_a_model_is_given_what_it_was_trained_on(capsys, tmp_path, prompted):
    lm = make_baseline("masked")
    lm.prompted = prompted
    save_model(tmp_path / "m", lm, recipe={}, card="", dtype=torch.float32)
    with_prompt, without, mixed = {"prompt": "the cat"}, {"question": "the cat"}, {"prompt": " "}
    codes, said = [], []
    for rows in ([with_prompt], [without, without], [with_prompt, mixed, without], [{"infill": "the ___"}]):
        file = tmp_path / "in.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        codes.append(main(["generate", str(tmp_path / "m"), "--input", str(file)]))
        said.append(capsys.readouterr().err)
    assert codes == {True: [0, 1, 0, 0], False: [1, 0, 1, 0], None: [0, 0, 0, 0]}[prompted]
    if prompted:
        assert "no line of" in said[1] and "2 of 3 texts have no `prompt`" in said[2] and not said[0] + said[3]
    elif prompted is False:
        assert "trained on texts without prompts" in said[0] and not said[1] + said[3]
    else:
        assert not "".join(said)


@pytest.mark.parametrize("name", ["nowhere/at/all", "."])
def test_a_model_that_is_not_there(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", name, "--prompt", "x"]) == 1
    assert capsys.readouterr().err.startswith("manta: error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--out"),
        (["--out", "OUT"], 2, "what to train on"),
        (["missing.txt", "--out", "OUT"], 1, "missing.txt"),
        (["builtin:wether", "--out", "OUT"], 1, "weather"),
        (["builtin:weather", "train.lernrate=1", "--out", "OUT"], 2, "learning_rate"),
        (["builtin:weather", "--time-budget", "soon", "--out", "OUT"], 2, "90s, 30m or 2h"),
        (["--resume", "--out", "OUT"], 1, "nothing to resume"),
    ],
)
def test_training_that_cannot_start_says_why(capsys, tmp_path, arguments, code, words):
    arguments = [str(tmp_path / "run") if a == "OUT" else a for a in arguments]
    assert main(["train", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("again", "code", "words"),
    [
        ([], 0, ""),
        (["builtin:weather"], 0, ""),
        (["builtin:weather", "max_text=97", "--size", "nano"], 0, ""),
        (["builtin:weather", "train.learning_rate=1e-4"], 2, "another train; leave that"),
        (["--num-steps", "900"], 2, "num_steps; leave that"),
        (["builtin:sudoku4"], 2, "another data"),
    ],
)
def test_a_resumed_run_keeps_its_recipe(capsys, tmp_path, monkeypatch, again, code, words):
    monkeypatch.setattr("manta.recipes.TrainingRun.events", lambda self: (event for event in ()))
    first = ["train", "builtin:weather", "max_text=97", "--size", "nano", "--out", str(tmp_path / "run")]
    assert main(first) == 0
    capsys.readouterr()
    assert main(["train", *again, "--resume", "--out", str(tmp_path / "run")]) == code
    assert words in capsys.readouterr().err


def test_the_flag_for_tensorboard_reaches_the_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(["train", "builtin:weather", "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "manta[log]" in error
    assert not (tmp_path / "run").exists()


def test_training_then_generating_then_the_doctor(capsys, tmp_path):
    file, out = tmp_path / "pairs.jsonl", tmp_path / "run"
    pairs = [{"prompt": f"colour {i % 7}", "text": f"the paint number {i} is rather bright today"} for i in range(80)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    small = ["size=nano", "vocab_size=512", "model.dim=32", "model.heads=2", "batch_tokens=256"]
    assert main(["train", str(file), *small, "--num-steps", "6", "--out", str(out)]) == 0
    assert main(["train", str(file), "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["generate", str(out), "--prompt", "colour 3", "--json"]) == 0
    assert "text" in lines(capsys.readouterr().out)[0]
    assert main(["doctor", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["parameters"] > 0
    assert any("steps long" in w["warning"] for w in found["warnings"])


@pytest.mark.parametrize(("prompt", "use"), [(True, "--prompt '…'"), (False, "--infill '…___{48}'")])
def test_a_run_says_how_its_model_is_used(capsys, tmp_path, prompt, use):
    """Texts that were learned without prompts go on from a beginning."""
    file, out = tmp_path / "texts.jsonl", tmp_path / "run"
    rows = [{"text": f"the paint number {i} is rather bright today"} for i in range(60)]
    if prompt:
        rows = [{"prompt": f"colour {i % 7}", **row} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--family", "ar", "size=nano", "vocab_size=512", "teacher.dim=32", "teacher.heads=2", "batch_tokens=256"]
    assert main(["train", str(file), *small, "--num-steps", "4", "--out", str(out)]) == 0
    assert f"write with it: manta generate {out} {use}" in capsys.readouterr().err
    assert f"`manta generate FOLDER {use}`" in (out / "model" / "README.md").read_text()
    if not prompt:
        assert main(["generate", str(out), "--infill", "the paint___{5}", "--json"]) == 0
        assert lines(capsys.readouterr().out)[0]["text"].startswith("the paint")
        other = [*small, "teacher.operator.kind=linear", "--num-steps", "4", "--out", str(tmp_path / "other")]
        assert main(["train", str(file), *other]) == 0
        assert "other --num-samples 3" in capsys.readouterr().err, "it fills no blanks"


def examined(capsys, *arguments: str) -> tuple[dict, dict[str, str]]:
    """Figures of the doctor, and its warnings with their advice."""
    assert main(["doctor", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return found["figures"], {w["warning"]: w["advice"] for w in found["warnings"]}


def written(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_the_doctor_warns_of_a_poor_file(capsys, tmp_path):
    file = tmp_path / "poor.txt"
    file.write_text("the same line\n" * 50 + " ".join(["word"] * 300) + "\n" + "x " * 400 + "\n")
    figures, warnings = examined(capsys, str(file), "--vocab-size", "512")
    assert any("duplicates" in warning for warning in warnings)
    assert any("examples to train on" in warning for warning in warnings)
    assert not any("dropped: their" in warning for warning in warnings), "prose is cut into windows, not dropped"
    assert figures["windowed"] == 2 and figures["long_texts"] == 0 and figures["rows"] > 6


def test_the_doctor_names_what_is_too_long(capsys, tmp_path):
    long, short = "one two three four five six seven eight nine ten " * 12, "rain fell"
    texts = written(tmp_path / "texts.jsonl", [{"prompt": f"{short} {i}", "text": long + str(i)} for i in range(60)])
    prompts = written(
        tmp_path / "prompts.jsonl", [{"prompt": long + str(i), "text": f"{short} {i}"} for i in range(60)]
    )
    for file, right, wrong in ((texts, "max_text=", "max_prompt="), (prompts, "max_prompt=", "max_text=")):
        _, warnings = examined(capsys, file, "--vocab-size", "512")
        advice = " ".join(warnings.values())
        assert right in advice and wrong not in advice
        asked = re.search(right + r"(\d+)", advice)[1]  # pyright: ignore[reportOptionalSubscript]
        figures, warnings = examined(capsys, file, "--vocab-size", "512", "--" + right[:-1].replace("_", "-"), asked)
        assert right not in " ".join(warnings.values()) and figures["rows"] > 0, "its own advice mends it"


def test_the_doctor_never_advises_a_thing_and_its_opposite(capsys, tmp_path):
    """Random characters make few pieces that return: neither a larger vocabulary nor a smaller one helps."""
    rng = random.Random(0)
    rows = [{"text": "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(9))} for _ in range(40)]
    _, warnings = examined(capsys, written(tmp_path / "noise.jsonl", rows), "--vocab-size", "2048")
    advice = [line for line in warnings.values() if "vocab_size" in line]
    assert len(advice) == 1, warnings


def test_the_doctor_tells_mixed_prompts_and_what_is_held_out(capsys, tmp_path):
    rows = [{"prompt": f"p {i}", "text": f"the text {i}"} for i in range(30)] + [{"text": "alone"}]
    figures, warnings = examined(capsys, written(tmp_path / "mixed.jsonl", rows), "--vocab-size", "512")
    assert figures["split"] == "train"
    assert figures["examples"] + figures["dev_examples"] + figures["test_examples"] == 31
    assert any("have no prompt" in warning for warning in warnings) == (figures["without_prompt"] > 0)


def test_the_doctor_takes_a_recipe(capsys, tmp_path):
    data = written(tmp_path / "pairs.jsonl", [{"prompt": f"p {i}", "text": "one two three " * 9} for i in range(40)])
    (tmp_path / "recipe.toml").write_text(f'data = "{data}"\nmax_text = 8\nvocab_size = 512\nnum_examples = 20\n')
    figures, warnings = examined(capsys, str(tmp_path / "recipe.toml"))
    assert figures["examples"] == 20 and figures["long_texts"] > 0
    assert any("longer than 8 tokens" in warning for warning in warnings)


def test_the_doctor_sees_a_run_without_a_model(capsys, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints" / "step-3").mkdir(parents=True)
    (out / "checkpoints" / "step-3" / "state.json").write_text("{}")
    (out / "recipe.json").write_text(json.dumps({"data": "mine.jsonl"}))
    row = {"stage": "teacher", "step": 1, "loss": 2.0}
    (out / "metrics.jsonl").write_text(f"{json.dumps(row)}\n" * 4 + '{"stage": "tea')
    figures, warnings = examined(capsys, str(out))
    assert figures["steps"] == 4
    (found, advice), *_ = warnings.items()
    assert "has not finished" in found and "teacher at step 4" in found
    assert "step 3" in advice and f"manta train --resume --out {out}" in advice
    assert main(["generate", str(out), "--prompt", "x"]) == 1
    error = capsys.readouterr().err
    assert "has not finished" in error and f"manta train --resume --out {out}" in error


@pytest.mark.parametrize("family", ["manta", "masked", "ar"])
def test_the_doctor_takes_a_model_folder(capsys, tmp_path, family):
    lm = make_lm() if family == "manta" else make_baseline(family)
    save_model(tmp_path, lm, recipe={}, card="", dtype=torch.float32)
    figures, _ = examined(capsys, str(tmp_path))
    assert figures["family"] == family and figures["parameters"] > 0


def test_the_doctor_takes_a_published_model(capsys, tmp_path):
    published.write(tmp_path, "llada")
    figures, _ = examined(capsys, str(tmp_path))
    assert figures["family"] == "llada" and figures["parameters"] > 0


def test_the_doctor_finds_a_good_file_healthy(capsys):
    assert main(["doctor", "builtin:weather", "--vocab-size", "512"]) == 0
    assert "nothing to warn of" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sudoku4", "countdown"])
def test_the_doctor_takes_a_structured_task_as_a_run_does(capsys, monkeypatch, name):
    from manta.text import tasks

    monkeypatch.setitem(tasks.TASKS, name, replace(tasks.TASKS[name], num_train=1500))
    assert main(["doctor", f"builtin:{name}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["bytes_per_token"] == 1, "a token a symbol"
    assert found["warnings"] == []


@pytest.mark.parametrize("text", [Recipe, TrainOptions, DoctorOptions])
def test_the_help_names_every_kind_of_data(text):
    words = " ".join(field_docs(text).values())
    kinds = [f"builtin:{name}" for name in ("weather", *TASKS)] + [f"{kind}:" for kind in SCHEMES]
    assert [kind for kind in kinds if kind not in words] == []


@needs_model
def test_the_demo_writes_sentences_in_eight_calls_and_says_how_to_train(capsys):
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    calls = [int(line.rsplit("(", 1)[1].split()[0]) for line in out.splitlines() if line.endswith("calls)")]
    assert len(calls) >= 5
    assert max(calls) <= 8
    assert "manta train" in out
