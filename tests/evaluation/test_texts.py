"""Texts of a file are measured as those of a model are."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from manta.cli import main
from manta.errors import DataError, UsageError
from manta.evaluation import EvaluationSet, Evaluator, EvaluatorConfig, RecordedTexts, evaluation_set, recorded_texts
from manta.evaluation.comparison import Sweep, compare
from manta.families.events import GenerateOptions
from manta.metrics import OverlapSums, Sums, bleu
from manta.metrics.spread import SHARD
from manta.text.tables import write_table
from tests.evaluation.conftest import weather


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_corpus_own_texts_are_faithful_and_cost_no_calls(tmp_path):
    data = weather()
    rows = [{"prompt": p, "text": t} for p, t in zip(data.prompts, data.humans, strict=True)]
    file = write_lines(tmp_path / "texts.jsonl", *reversed(rows))
    found = Evaluator(data, EvaluatorConfig(num_seeds=1)).measure(
        recorded_texts(file), GenerateOptions(), with_likelihood=False
    )
    assert found.texts == tuple(data.humans), "each prompt has its own text, whatever the order of the file"
    assert found.figures["oracle_faithful"].mean == 1
    assert "nfe" not in found.figures and "seconds" not in found.figures


def test_the_files_of_the_e2e_challenge_are_read(tmp_path):
    file = tmp_path / "system.tsv"
    file.write_text('MR\toutput\n"name[A], area[b]"\tA is in b.\n"name[C], area[d]"\t"C is ""in"" d."\n')
    lm = recorded_texts(file).lm
    assert lm.write(["name[C], area[d]", "name[A], area[b]"]) == ['C is "in" d.', "A is in b."]


def test_single_quotes_around_whole_fields_are_those_of_two_systems_of_the_challenge(tmp_path):
    file = tmp_path / "system.tsv"
    file.write_text("MR\toutput\n'name[A], area[b]'\t'A''s place is in \"b\".'\n")
    assert recorded_texts(file).lm.write(["name[A], area[b]"]) == ['A\'s place is in "b".']


def test_a_prompt_asked_again_takes_the_next_text_and_then_says_that_there_is_none(tmp_path):
    lines = [{"prompt": "a", "text": "1"}, {"prompt": "b", "text": "2"}, {"prompt": "a", "text": "3"}, {"text": "4"}]
    lm = recorded_texts(write_lines(tmp_path / "texts.jsonl", *lines)).lm
    assert lm.write(["a", None, "a", "b"]) == ["1", "4", "3", "2"]
    for prompts in (["b", "b"], ["c"], [None, None]):
        with pytest.raises(DataError, match=r"texts\.jsonl holds"):
            lm.write(prompts)


def test_prompts_are_the_same_however_their_accents_are_written(tmp_path):
    lines = [{"prompt": "Cafe\u0301", "text": "1"}, {"prompt": "Caf\u00e9", "text": "2"}, {"prompt": " ", "text": "3"}]
    lm = recorded_texts(write_lines(tmp_path / "texts.jsonl", *lines)).lm
    assert lm.write(["Caf\u00e9", None, "Cafe\u0301"]) == ["1", "3", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a text\n", "no .jsonl, .csv or .tsv file"),
        ("a.jsonl", "", "empty"),
        ("a.jsonl", "\n", "no texts"),
        ("a.jsonl", '{"prompt": "a"}\n', "neither `text` nor `output`"),
        ("a.jsonl", '{"prompt": 3, "text": "a"}\n', "should be strings"),
        ("a.jsonl", '{"prompt": "a", "text": 3}\n', "should be strings"),
        ("a.csv", "prompt,text\na\n", "1 fields where the header has 2"),
        ("missing.tsv", None, "does not exist"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        recorded_texts(file)


def test_recorded_texts_have_no_settings_to_compare(tmp_path):
    texts = recorded_texts(write_lines(tmp_path / "texts.jsonl", {"prompt": "a", "text": "b"}))
    with pytest.raises(UsageError, match="no settings to sweep"):
        compare(Evaluator(weather(), EvaluatorConfig(num_seeds=1)), [texts], Sweep(), GenerateOptions())


def test_the_command_line_measures_texts_of_a_file(tmp_path, capsys):
    data = weather()
    rows = [{"prompt": p, "text": t} for p, t in zip(data.prompts, data.humans, strict=True)]
    file = write_lines(tmp_path / "texts.jsonl", *rows)
    command = ["evaluate", "--texts", str(file), "--data", "builtin:weather", "--num", str(len(rows)), "--json"]
    assert main([*command, "--metrics", "oracle,diversity"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["family"], report["seeds"], report["likelihood"]) == ("texts", 1, None)
    assert report["figures"]["oracle_faithful"]["mean"] == 1
    assert main([*command, "--metrics", "likelihood"]) == 2
    assert main([*command, "--temperature", "0.7"]) == 2
    assert "--temperature means nothing" in capsys.readouterr().err
    assert main(["evaluate", "runs/a", *command[1:]]) == 2
    assert "stands in the place of a model" in capsys.readouterr().err


def test_bleu_of_answers_of_a_word_is_left_out_and_said_to_be(tmp_path, capsys):
    rows = [{"prompt": f"is {i} even", "text": ("yes", "no")[i % 2]} for i in range(8)]
    data, file = (write_lines(tmp_path / name, *rows) for name in ("data.jsonl", "texts.jsonl"))
    assert (
        main(["evaluate", "--texts", str(file), "--data", str(data), "--metrics", "overlap", "--num-seeds", "1"]) == 0
    )
    told = capsys.readouterr()
    assert "BLEU is left out" in told.err
    assert "\nbleu " not in told.out and "\nBLEU" not in told.out and "every prompt has one reference" in told.out


def test_the_scorer_reproduces_the_published_bleu_of_the_challenge_baseline(data_dir):
    outputs = os.environ.get("MANTA_E2E_OUTPUTS")
    if outputs is None:
        pytest.skip("MANTA_E2E_OUTPUTS names the folder of the E2E challenge's published outputs, with tgen.tsv")
    data = evaluation_set(f"e2e:{data_dir}/e2e-dataset.zip", "test")
    evaluator = Evaluator(data, EvaluatorConfig(num_seeds=1, metrics=("overlap",)))
    found = evaluator.measure(recorded_texts(Path(outputs) / "tgen.tsv"), GenerateOptions())
    assert round(found.figures["bleu"].mean, 2) == 65.93


def test_several_files_a_folder_and_a_table_are_one_file_after_the_other(tmp_path):
    pytest.importorskip("pyarrow")
    first = [{"prompt": "a", "text": "1"}, {"prompt": "b", "text": "2"}]
    rest = [{"prompt": "a", "text": "3"}, {"prompt": "c", "error": "the prompt is too long"}]
    (tmp_path / "in" / "_failures").mkdir(parents=True)
    write_lines(tmp_path / "in" / "part-0.jsonl", *first)
    columns = {"prompt": "string", "text": "string", "error": "string"}
    write_table(rest, columns, tmp_path / "in" / "part-1.parquet")
    write_lines(tmp_path / "in" / "_failures" / "part-1.jsonl", {"prompt": "d", "text": "none of the texts"})
    files = [tmp_path / "in" / "part-0.jsonl", tmp_path / "in" / "part-1.parquet"]
    for source in (tmp_path / "in", f"file://{tmp_path}/in", files):
        lm = recorded_texts(source).lm
        assert isinstance(lm, RecordedTexts) and (len(lm), lm.failed) == (3, 1)
        assert lm.write(["a", "b", "a"]) == ["1", "2", "3"]
        with pytest.raises(DataError, match=r"holds 0 texts for 'c' \(1 of its lines tell of a failure\)"):
            lm.write("c")


def test_only_texts_that_are_asked_for_are_held(tmp_path):
    rows = [{"prompt": p, "text": f"{p}{i}"} for i in range(3) for p in ("a", "Cafe\u0301", "b")]
    file = write_lines(tmp_path / "texts.jsonl", *rows, {"text": "bare"})
    lm = recorded_texts(file, ["a", "Caf\u00e9", "a", None]).lm
    assert isinstance(lm, RecordedTexts) and len(lm) == 10
    assert sum(map(len, lm.texts.values())) == 4
    assert lm.write(["a", "Caf\u00e9", "a", None]) == ["a0", "Cafe\u03010", "a1", "bare"]
    bare = recorded_texts(write_lines(tmp_path / "bare.jsonl", {"text": "x"}), ["a"]).lm
    with pytest.raises(DataError, match="holds texts without prompts, and the data asks for 'a'"):
        bare.write("a")


def test_shards_measured_elsewhere_change_no_figure(tmp_path):
    """Of a set whose last shard has no reference with four words, and one whose prompts have one reference."""
    pytest.importorskip("rouge_score")
    prompts = tuple(f"name[Aromi], eatType[pub], area[city centre], near[{i}]" for i in range(SHARD + 7))
    long = ("Aromi is a pub in the city centre.", "A pub: Aromi.")
    references = tuple(long if i < SHARD else ("yes",) for i in range(SHARD + 7))
    data = EvaluationSet("e2e:x", "test", prompts, references, lambda: iter(()), slots=True)
    texts = [f"Aromi is a pub in the city centre near {i}." if i % 3 else "A restaurant." for i in range(SHARD + 7)]
    file = write_lines(tmp_path / "t.jsonl", *({"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)))
    config = EvaluatorConfig(num_seeds=1, metrics=("overlap", "slots"))
    sizes: list[int] = []

    def elsewhere(function, shards):
        """As another process has it: what it is given and what it answers has travelled."""
        sizes.append(len(shards))
        return [pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(function))(shard))) for shard in shards]

    here, there = (
        each.measure(recorded_texts(file), GenerateOptions(), with_likelihood=False)
        for each in (Evaluator(data, config), Evaluator(data, config, spread=elsewhere))
    )
    assert here.figures == there.figures and {"bleu", "rougeL_one_fewer", "slot_error_rate"} <= set(here.figures)
    last = OverlapSums(references[-1:]).of_model(texts[-1:])["chrf"]
    row = there.measured["chrf"][0]
    assert isinstance(row, Sums) and torch.equal(row.rows[-1], last.rows[0]), "each row is its own prompt's"
    assert set(sizes) == {2} and len(sizes) >= 3
    whole = OverlapSums(references).of_model(texts)["bleu"].value
    assert there.figures["bleu"].mean == whole == pytest.approx(bleu(texts, references))
