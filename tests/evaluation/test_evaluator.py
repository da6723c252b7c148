"""The evaluator's figures are those of the metrics, planted collapse is caught, and no perplexity stands alone."""

import random
import unicodedata
from dataclasses import replace
from functools import cache

import pytest
import torch

from manta.errors import DataError, RequestError, UsageError
from manta.evaluation import (
    Contestant,
    EvaluationSet,
    Evaluator,
    EvaluatorConfig,
    JudgeModel,
    evaluation_set,
    hashed_ngrams,
    shared_training,
    write,
)
from manta.families.events import GenerateOptions
from manta.families.serving import failed
from manta.metrics import (
    bleu,
    chrf,
    copying,
    diversity,
    judge_quality,
    mauve,
    rouge,
    slot_error_rate,
    slot_errors,
)
from manta.runtime import make_generator

from .conftest import Scripted, scripted, weather

COLLAPSE = ("diversity", "guards", "copying")


def words_judge(name: str = "judge", config: dict | None = None) -> JudgeModel:
    """Every word costs as many nats as it has letters; a text's feature is the number of its words."""

    def nats(texts):
        return (
            torch.tensor([float(sum(map(len, text.split()))) for text in texts]),
            torch.tensor([len(text.split()) for text in texts]),
        )

    return JudgeModel(
        name, nats, nats, lambda texts: torch.tensor([[float(len(t.split())), 1.0] for t in texts]), config or {}
    )


def other_humans():
    """Texts of the grammar for the same prompts that are not the references."""
    from manta.text.weather import parse_prompt, realise

    return lambda _, request: realise(parse_prompt(request.prompt), random.Random(request.seed + 1000))


def shuffled_pair(index, request):
    rng = random.Random(request.seed)
    return " ".join(rng.choice(("cold", "warm")) for _ in range(19))


@cache
def training_texts():
    return list(weather().training())


PLANTED = {
    "repetition": lambda i, request: "rain and then more of it all day long " * 3,
    "copying": lambda i, request: training_texts()[i],
    "entropy_low": shuffled_pair,
    "empty": lambda i, request: "" if i % 3 == 0 else weather().humans[i],
    "duplicates": lambda i, request: weather().humans[i % 3],
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_collapse_is_caught(data, fault):
    evaluator = Evaluator(data, EvaluatorConfig(metrics=COLLAPSE, num_seeds=1))
    found = evaluator.measure(scripted(PLANTED[fault]), GenerateOptions())
    assert any(warning.startswith(f"{fault}: ") for warning in found.warnings), found.warnings


def test_sound_texts_raise_no_guard(data):
    evaluator = Evaluator(data, EvaluatorConfig(metrics=COLLAPSE, num_seeds=1))
    assert evaluator.measure(scripted(other_humans()), GenerateOptions()).warnings == ()


def test_texts_of_another_length_are_told(data):
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=1))
    found = evaluator.measure(scripted(lambda i, request: data.humans[i].split()[0]), GenerateOptions())
    assert any(warning.startswith("lengths: 1.0 words a text") for warning in found.warnings)


def test_figures_are_those_of_the_metrics(data):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    judge = words_judge()
    evaluator = Evaluator(data, EvaluatorConfig(num_seeds=2, seed=5), judge=judge)
    model = scripted(other_humans())
    found = evaluator.measure(model, GenerateOptions(num_steps=3))
    runs = [write(model.lm, data, GenerateOptions(num_steps=3), seed=5 + s * len(data.prompts)).texts for s in (0, 1)]
    assert runs[0] != runs[1]
    for seed, texts in enumerate(runs):
        wanted = {
            **diversity(texts),
            "bleu": bleu(texts, data.references),
            "chrf": chrf(texts, data.references),
            **rouge(texts, data.references),
            "training_texts": copying(texts, data.training()).whole_share,
            "training_13_words": copying(texts, data.training()).span_share,
            "oracle_faithful": 1.0,
            "nfe": 3.0,
            "mauve": mauve(judge.features(texts), judge.features(data.humans), generator=make_generator(5)).value,
            "perplexity": judge_quality(texts, judge, judge_name="", generator=make_generator(0)).perplexity.value,
        }
        assert {name: found.figures[name].values[seed] for name in wanted} == pytest.approx(wanted)
    values = found.figures["entropy"].values
    assert found.figures["entropy"].mean == pytest.approx(sum(values) / 2)
    row = found.figures["entropy"].row()
    assert (row["seed_least"], row["seed_most"]) == (min(values), max(values))
    interval = found.figures["entropy"].interval
    assert interval is not None and interval.low < found.figures["entropy"].mean < interval.high
    assert found.likelihood is not None
    assert found.likelihood.kind == "none"
    assert evaluator.corpus["entropy"] == diversity(data.humans)["entropy"]


def test_items_are_the_figures_of_single_texts_averaged_over_seeds(tmp_path):
    from .test_dataset import split_of
    from .test_dataset import write as write_rows

    mrs = [mr for mr in (f"name[Zizzi], near[Place {i}]" for i in range(400)) if split_of(mr) == "test"][:8]
    data = evaluation_set(write_rows(tmp_path / "x.jsonl", [{"prompt": mr, "text": "Zizzi is a pub."} for mr in mrs]))

    def script(index, request):
        return "Zizzi is near " + mrs[index][17:-1] if request.seed >= len(mrs) else "A cheap pub."

    config = EvaluatorConfig(metrics=("diversity", "slots"), num_seeds=2)
    found = Evaluator(data, config).measure(scripted(script), GenerateOptions())
    errors = [
        slot_errors(mr, "A cheap pub.").errors + slot_errors(mr, script(i, _Late)).errors for i, mr in enumerate(mrs)
    ]
    assert found.items["slot_errors"].mean(0).tolist() == [error / 2 for error in errors]
    rates = [slot_error_rate([(mr, text) for mr in mrs])["slot_error_rate"] for text in ("A cheap pub.",)]
    assert found.figures["slot_error_rate"].values[0] == rates[0]


class _Late:
    seed = 10_000


def test_the_corpus_compares_one_human_text_with_the_others(tmp_path):
    pytest.importorskip("sacrebleu")
    from .test_dataset import in_split
    from .test_dataset import write as write_rows

    prompts = in_split("test", 6)
    rows = [{"prompt": p, "text": t} for p in prompts for t in (f"{p} one two three four", f"{p} one two three five")]
    rows += [{"prompt": in_split("train", 1)[0], "text": "x"}]
    data = evaluation_set(write_rows(tmp_path / "x.jsonl", rows))
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("overlap",)))
    both = [text for group in data.references for text in group]
    wanted = bleu(both, [[group[1 - at]] for group in data.references for at in (0, 1)])
    assert evaluator.corpus["bleu_one_fewer"] == pytest.approx(wanted) and wanted < 100
    assert not {"bleu", "chrf", "rouge1"} & set(evaluator.corpus), "no text of people has all references"


def test_a_model_that_writes_the_references_has_the_best_of_everything(data):
    pytest.importorskip("sacrebleu")
    config = EvaluatorConfig(metrics=("overlap", "mauve", "oracle"), num_seeds=1)
    found = Evaluator(data, config).measure(scripted(lambda i, request: data.humans[i]), GenerateOptions())
    for name, value in (("bleu", 100), ("chrf", 100), ("mauve", 1), ("oracle_faithful", 1)):
        assert found.figures[name].mean == pytest.approx(value)


def test_a_generative_perplexity_is_refused_without_its_company(data):
    with pytest.raises(UsageError, match="not shown without the entropy and the repetition"):
        EvaluatorConfig(metrics=("judge",))
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity", "judge"), num_seeds=1), judge=words_judge())
    found = evaluator.measure(scripted(other_humans()), GenerateOptions())
    assert {"perplexity", "entropy", "repeated_4"} <= set(found.figures)
    assert found.row()["judged"][0]["entropy"] > 0
    bare = replace(found, judged=(replace(found.judged[0], repetition=None),))
    with pytest.raises(UsageError, match="not shown without"):
        bare.row()


def test_a_judge_that_shares_training_text_is_told():
    contestant = scripted(other_humans(), "a")
    trained = {"tokenizer": "1", "recipe": {"data": "mine.txt"}}
    model = replace(contestant, config=trained)
    cases = {
        "both were trained on mine.txt": {"tokenizer": "2", "recipe": {"data": "mine.txt"}},
        "tokenizers": {"tokenizer": "1", "recipe": {"data": "other.txt"}},
        "not recorded": {},
    }
    for words, config in cases.items():
        (warning,) = shared_training(words_judge(config=config), model)
        assert words in warning
    assert shared_training(words_judge(config={"tokenizer": "2", "recipe": {"data": "other.txt"}}), model) == []
    halves = [{"tokenizer": "1", "recipe": {"data": "mine.txt", "split": f"train:{k}/2"}} for k in (1, 2)]
    assert shared_training(words_judge(config=halves[1]), replace(contestant, config=halves[0])) == []
    assert shared_training(words_judge(config=halves[0]), replace(contestant, config=halves[0]))
    assert shared_training(words_judge(config=trained), replace(contestant, config=halves[0]))


def test_a_judge_that_shares_training_text_warns_in_the_evaluation(data):
    judge = words_judge(config={"tokenizer": "2", "recipe": {"data": "e2e:x.zip"}})
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity", "judge"), num_seeds=1), judge=judge)
    model = replace(scripted(other_humans()), config={"tokenizer": "1", "recipe": {"data": "e2e:x.zip"}})
    warnings = evaluator.measure(model, GenerateOptions(top_p=0.9)).warnings
    for words in ("share training text", "asked without", "drawn with a cut"):
        assert any(words in warning for warning in warnings)


def test_seeds_that_change_nothing_are_told(data):
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=2))
    found = evaluator.measure(scripted(lambda i, request: data.humans[i]), GenerateOptions())
    assert any("all seeds wrote the same texts" in warning for warning in found.warnings)


def test_a_figure_that_cannot_be_had_is_a_warning_or_an_error_if_it_was_asked_for(data):
    def fails(texts):
        raise UsageError("too long")

    judge = replace(words_judge(), features=fails)
    found = Evaluator(data, EvaluatorConfig(num_seeds=1), judge=judge).measure(
        scripted(other_humans()), GenerateOptions()
    )
    assert "no mauve: too long" in found.warnings
    assert "mauve" not in found.figures
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("mauve",), num_seeds=1), judge=judge)
    with pytest.raises(UsageError, match="too long"):
        evaluator.measure(scripted(other_humans()), GenerateOptions())


def test_what_the_data_does_not_allow_is_said_before_anything_is_written(data):
    with pytest.raises(DataError, match="slot errors need meaning representations"):
        Evaluator(data, EvaluatorConfig(metrics=("slots",)))
    with pytest.raises(UsageError, match="--judge"):
        Evaluator(data, EvaluatorConfig(metrics=("judge", "diversity")))
    with pytest.raises(UsageError, match="at least 1 seed"):
        EvaluatorConfig(num_seeds=0)


def test_hashed_ngrams_count_words_and_pairs_on_every_machine():
    same, other = hashed_ngrams(["A b, a b", "a B , A b"]), hashed_ngrams(["quite another text of nothing in common"])
    assert torch.equal(same[0], same[1])
    # a, b and "a b" come twice, the comma and "b ," and ", a" once.
    assert sorted(same[0][same[0] != 0].abs().tolist()) == pytest.approx([1.0] * 3 + [2**0.5] * 3)
    assert abs(float(torch.cosine_similarity(same[0], other[0], 0))) < 0.3
    assert int(hashed_ngrams(["rain"]).abs().argmax()) == 367  # found once; the hash is the same on every machine
    with pytest.raises(UsageError):
        hashed_ngrams(["a"], most=0)


class Narrow(Scripted):
    """Has room for prompts of so many characters."""

    def __init__(self, script, room: int) -> None:
        super().__init__(script)
        self.room = room

    def generate(self, requests, options=None, observer=None, *, batch_size=64):
        if long := [request.prompt or "" for request in requests if len(request.prompt or "") > self.room]:
            return iter([failed(0, RequestError(f"the prompt takes {len(long[0])} characters"))])
        return super().generate(requests, options)


def small_set(prompts, references, **more) -> EvaluationSet:
    return EvaluationSet("x", "test", tuple(prompts), tuple(map(tuple, references)), lambda: iter(["other"]), **more)


def test_prompts_that_do_not_fit_are_left_out_for_all_and_counted():
    prompts = [f"p{'o' * at}" for at in range(20)]
    data = small_set(prompts, [[f"text {at}"] for at in range(20)])
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=1))
    wide, narrow = (
        Contestant(name, Narrow(lambda index, request: request.prompt or "", room), {})
        for name, room in (("wide", 99), ("narrow", 15))
    )
    assert evaluator.fitting([wide]) is evaluator
    found = evaluator.fitting([wide, narrow])
    assert found.data.prompts == tuple(prompts[:15]) and found.humans == [f"text {at}" for at in range(15)]
    measured = found.measure(narrow, GenerateOptions())
    assert any(warning.startswith("5 of 20 prompts do not fit") for warning in measured.warnings)
    assert isinstance(narrow.lm, Narrow) and len(narrow.lm.asked) <= 6, "half of what is left is tried each time"
    with pytest.raises(RequestError, match="the prompt takes 1 characters"):
        evaluator.fitting([Contestant("none", Narrow(lambda index, request: "", 0), {})])


@pytest.mark.parametrize(
    ("recipe", "prompts", "words"),
    [
        ({"data": "e2e:x.zip"}, [None] * 3, "learned to answer prompts"),
        ({"data": "mine.txt"}, ["a", "b", "c"], "learned texts without prompts"),
        ({"data": "e2e:x.zip"}, ["a", "b", "c"], None),
        ({"data": "tinystories:x"}, [None] * 3, None),
        ({}, ["a", "b", "c"], None),
    ],
)
def test_a_model_of_prompts_without_them_and_the_other_way_round_is_told(recipe, prompts, words):
    data = small_set(prompts, [["a text"]] * 3)
    model = replace(scripted(lambda index, request: "a text"), config={"recipe": recipe})
    warnings = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=1)).measure(model, GenerateOptions())
    said = [warning for warning in warnings.warnings if "learned" in warning]
    assert (words is None and not said) or (words is not None and words in said[0])


def test_chinese_is_measured_by_characters():
    pytest.importorskip("sacrebleu")
    texts = [
        f"北京的{first}{second}公园很漂亮，有很多游客。" for first in "春夏秋冬东西南北" for second in "山水花鸟风云"
    ]
    data = small_set([f"p{at}" for at in range(48)], [[text] for text in texts])
    config = EvaluatorConfig(metrics=("diversity", "guards", "overlap"), num_seeds=1)
    evaluator = Evaluator(data, config)
    same = evaluator.measure(scripted(lambda index, request: texts[index]), GenerateOptions())
    assert same.figures["bleu"].mean == pytest.approx(100)
    assert same.figures["mean_characters"].mean == 17 and "mean_words" not in same.figures
    assert same.figures["entropy"].mean > 2 and same.warnings == ()
    looping = evaluator.measure(scripted(lambda index, request: texts[index][3:5] * 20), GenerateOptions())
    assert looping.figures["repeated_4"].mean > 0.9
    assert {"repetition", "lengths"} <= {warning.split(":")[0] for warning in looping.warnings}


def test_one_odd_reference_is_counted_and_removes_no_table():
    pytest.importorskip("rouge_score")
    texts = [f"The country number {at} is big and green." for at in range(19)] + ["👍"]
    data = small_set([f"p{at}" for at in range(20)], [[text] for text in texts])
    found = Evaluator(data, EvaluatorConfig(metrics=("overlap",), num_seeds=1)).measure(
        scripted(lambda index, request: texts[index]), GenerateOptions()
    )
    assert {name: found.figures[name].mean for name in ("bleu", "chrf", "rouge1")} == pytest.approx(
        {"bleu": 100, "chrf": 100, "rouge1": 100}
    )
    assert any("ROUGE leaves out 1 of 20 prompts" in warning for warning in found.warnings)


def test_decomposed_texts_are_composed_and_told():
    pytest.importorskip("sacrebleu")
    texts = [f"L'été numéro {at} était très long à côté de la forêt." for at in range(12)]
    data = small_set([f"p{at}" for at in range(12)], [[unicodedata.normalize("NFD", text)] for text in texts])
    config = EvaluatorConfig(metrics=("overlap", "diversity", "guards"), num_seeds=1)
    evaluator = Evaluator(data, config)
    assert evaluator.humans == texts
    found = evaluator.measure(scripted(lambda index, request: texts[index]), GenerateOptions())
    assert found.figures["bleu"].mean == pytest.approx(100)
    assert any("0 of 12 texts and 12 of 12 human ones are not in the composed form NFC" in w for w in found.warnings)


def test_a_text_that_is_too_long_for_the_judge_is_left_out_of_its_figures_alone():
    def nats(texts):
        if any(len(text) > 20 for text in texts):
            raise RequestError("too long")
        return torch.tensor([float(len(text.split())) for text in texts]), torch.tensor([len(t.split()) for t in texts])

    judge = JudgeModel("short", nats, nats, lambda texts: torch.ones(len(texts), 2), {})
    texts = ["a b c"] * 11 + ["far too long for this judge"]
    data = small_set([None] * 12, [[text] for text in texts])
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity", "judge"), num_seeds=1), judge=judge)
    found = evaluator.measure(scripted(lambda index, request: texts[index]), GenerateOptions())
    assert found.figures["perplexity"].mean == pytest.approx(2.718281828)
    assert found.judged[0].unjudged == 1
    assert found.items["judge_nats"][0, :11].tolist() == [1.0] * 11 and found.items["judge_nats"][0, 11].isnan()
    assert any("the judge short could not read 1 of 12 texts" in warning for warning in found.warnings)


def test_few_texts_give_no_mauve_and_a_doubtful_perplexity():
    texts = [f"text number {at}" for at in range(99)]
    data = small_set([None] * 99, [[text] for text in texts])
    found = Evaluator(data, EvaluatorConfig(num_seeds=1), judge=words_judge()).measure(
        scripted(lambda index, request: texts[index]), GenerateOptions()
    )
    assert "mauve" not in found.figures
    assert any("MAUVE of fewer than 100 texts" in warning for warning in found.warnings)
    assert any("that of 99 texts, which tell little" in warning for warning in found.warnings)
