import builtins
import csv
import math
import random
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from manta.errors import DataError, UsageError
from manta.metrics.overlap import OverlapSums, bleu, chrf, rouge
from manta.text.sources import read

pytest.importorskip("sacrebleu")

HYPOTHESES = ["The Mill is a pub near the river.", "Zizzi serves cheap Italian food in the centre.", "It is, well, OK"]
REFERENCES = [
    ["Near the river there is a pub, The Mill.", "The Mill pub is by the river."],
    ["Zizzi is a cheap Italian place in the city centre."],
    ["Well, it is OK.", "It is fine.", "This is acceptable to most people"],
]


def slow_bleu(hypotheses: list[str], references: list[list[str]]) -> float:
    """BLEU by its definition, on words."""
    matched, total = Counter(), Counter()
    hypothesis_length = reference_length = 0
    for text, group in zip(hypotheses, references, strict=True):
        words = text.split()
        hypothesis_length += len(words)
        lengths = [len(reference.split()) for reference in group]
        reference_length += min(lengths, key=lambda length: (abs(length - len(words)), length))
        for n in range(1, 5):
            grams = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
            most: Counter[tuple[str, ...]] = Counter()
            for reference in group:
                other = reference.split()
                most |= Counter(tuple(other[at : at + n]) for at in range(len(other) - n + 1))
            matched[n] += sum((grams & most).values())
            total[n] += sum(grams.values())
    precision = math.exp(sum(math.log(matched[n] / total[n]) for n in range(1, 5)) / 4)
    return 100 * min(1.0, math.exp(1 - reference_length / hypothesis_length)) * precision


def test_unequal_numbers_of_references_follow_the_definition() -> None:
    rng = random.Random(0)
    words = ["a", "b", "c", "d", "e", "f"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(6, 14)))

    hypotheses = [text() for _ in range(30)]
    references = [[text() for _ in range(1 + index % 5)] for index in range(30)]
    references[0][0] = hypotheses[0]
    assert bleu(hypotheses, references) == pytest.approx(slow_bleu(hypotheses, references), abs=1e-6)


def test_a_missing_reference_is_no_empty_reference() -> None:
    # An empty one would be nearest in length to the first text and lift the brevity penalty.
    hypotheses, references = ["a b c d", "a b c d e f"], [["a b c d e f g h i j"], ["a b c d e f", "z"]]
    assert bleu(hypotheses, references) == pytest.approx(slow_bleu(hypotheses, references), abs=1e-6)


def test_an_identical_text_scores_100_whichever_reference_it_is() -> None:
    texts = ["The Mill is a pub near the river.", "Zizzi serves Italian food in the city centre."]
    assert bleu(texts, [["Nothing at all.", texts[0]], [texts[1]]]) == pytest.approx(100)


def test_case_counts_only_if_asked() -> None:
    text, reference = "the mill is a pub near the river .", "The Mill is a Pub near the River ."
    assert bleu([text], [[reference]]) == pytest.approx(100)
    assert bleu([text], [[reference]], lowercase=False) < 60


def test_more_references_cannot_lower_the_matches() -> None:
    text, first, second = "a b c d e f g", "a b c d x y z", "u v w d e f g"
    assert bleu([text], [[first, second]]) > bleu([text], [[first]])


@pytest.mark.parametrize(
    ("system", "published"), [("tgen/test-output.tsv", 65.93), ("slug/slug2slug.tsv", 66.19)], ids=["tgen", "slug"]
)
def test_published_scores_of_the_e2e_challenge(data_dir: Path, system: str, published: float) -> None:
    """Dušek, Novikova and Rieser (2020), table 5: the challenge's baseline and its best primary system."""
    found = sorted(data_dir.rglob(f"system_outputs/**/{system}"))
    if not found or not (data_dir / "e2e-dataset.zip").exists():
        pytest.skip(f"needs e2e-dataset.zip and system_outputs (of github.com/tuetschek/e2e-eval) in {data_dir}")
    references: dict[str, list[str]] = defaultdict(list)
    for example in read(f"e2e:{data_dir / 'e2e-dataset.zip'}", "test"):
        references[example.prompt or ""].append(example.text)
    with found[0].open(encoding="utf-8", newline="") as stream:
        written = {row[0]: row[1] for row in csv.reader(stream, delimiter="\t")}
    assert bleu([written[mr] for mr in references], list(references.values())) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_that_of_sacrebleu(word_order: int, lowercase: bool) -> None:
    import sacrebleu

    def case(text: str) -> str:
        return text.lower() if lowercase else text

    streams = [[case(group[0]) for group in REFERENCES], [case(group[-1]) for group in REFERENCES]]
    theirs = sacrebleu.corpus_chrf([case(text) for text in HYPOTHESES], streams, word_order=word_order)
    ours = [[group[0], group[-1]] for group in REFERENCES]
    assert chrf(HYPOTHESES, ours, word_order=word_order, lowercase=lowercase) == theirs.score


def test_chrf_takes_the_best_of_any_number_of_references() -> None:
    best = [
        [max(group, key=lambda one: chrf([text], [[one]]))] for text, group in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    assert chrf(HYPOTHESES, REFERENCES) == pytest.approx(chrf(HYPOTHESES, best))
    assert chrf(HYPOTHESES, [[text] for text in HYPOTHESES]) == pytest.approx(100)
    assert chrf(["abc"], [["xyz"]]) == 0


def test_chrf_of_one_letter_by_hand() -> None:
    # Unigrams: 1 of 2 found, 1 of 3 wanted; bigrams: none of 1, none of 2; longer ones exist on one side only.
    precision, recall = (1 / 2 + 0) / 2, (1 / 3 + 0) / 2
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert chrf(["a b"], [["a c d"]]) == pytest.approx(expected)


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_that_of_rouge_score(stem: bool) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    found = rouge(HYPOTHESES, REFERENCES, kinds=kinds, stem=stem)
    assert set(found) == set(kinds)
    for kind in kinds:
        one = scorer.RougeScorer([kind], use_stemmer=stem)
        best = [
            max(one.score(reference, text)[kind].fmeasure for reference in group)
            for text, group in zip(HYPOTHESES, REFERENCES, strict=True)
        ]
        assert found[kind] == pytest.approx(100 * sum(best) / len(best), abs=1e-12)


def test_rouge_by_hand() -> None:
    pytest.importorskip("rouge_score")
    # a b d are common in order, so P = 3/4 and R = 3/5; of the bigrams ab alone: P = 1/3, R = 1/4.
    found = rouge(["a b c d"], [["a b x d y"]])
    assert found == pytest.approx({"rouge1": 200 / 3, "rouge2": 200 / 7, "rougeL": 200 / 3})
    assert rouge(["The Mill!"], [["the mill"]])["rouge1"] == 100


def test_rouge_refuses_what_it_cannot_read() -> None:
    with pytest.raises(DataError, match="chrF"):
        rouge(["👍"], [["👍"]])
    with pytest.raises(UsageError, match="rougeX"):
        rouge(["a"], [["a"]], kinds=["rougeX"])
    with pytest.raises(UsageError, match="word_order"):
        chrf(["a"], [["a"]], word_order=-1)


@pytest.mark.parametrize("score", [bleu, chrf, rouge])
@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], []), (["a", "b"], [["a"], []])])
def test_wrong_input(score, hypotheses: list[str], references: list[list[str]]) -> None:
    with pytest.raises(DataError):
        score(hypotheses, references)


@pytest.mark.parametrize(("score", "package"), [(bleu, "sacrebleu"), (chrf, "sacrebleu"), (rouge, "rouge-score")])
def test_absent_package_is_named_with_its_command(score, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith(package.replace("-", "_")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=rf"needs {package}.*pip install"):
        score(["a b c d"], [["a b c d"]])


CHINESE = ["北京的春天公园很漂亮，每天都有很多游客来参观。", "上海的秋水公园很大，周末有很多孩子来玩。"]


def test_chinese_is_read_by_characters() -> None:
    assert bleu(CHINESE, [[text] for text in CHINESE]) == pytest.approx(100)
    half = bleu(CHINESE, [["北京的春天公园很小，每天都有一些游客来参观。"], [CHINESE[1]]])
    assert 30 < half < 95
    with pytest.raises(DataError, match="sequences of 4 words"):  # what those words make of it
        bleu(CHINESE, [[text] for text in CHINESE], tokenize="13a")


@pytest.mark.parametrize("score", [bleu, chrf, lambda *given: rouge(*given)["rougeL"]])
def test_composed_and_decomposed_texts_are_equal(score) -> None:
    texts = ["L'été où j'étais près de la forêt était très long.", "La fenêtre à côté était fermée."]
    decomposed = [[unicodedata.normalize("NFD", text)] for text in texts]
    assert score(texts, decomposed) == pytest.approx(100)


def test_rouge_of_letters_outside_a_to_z() -> None:
    pytest.importorskip("rouge_score")
    # 3 of the 6 words of the one are among the 4 of the other: P = 3/4, R = 3/6.
    found = rouge(["Кошка съела 3 рыбы"], [["Кошка номер 3: съела вчера хлеб!"]])
    assert found["rouge1"] == pytest.approx(100 * 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert rouge(["Кошка съела 3 рыбы"], [["Это страна 3"]])["rouge1"] < 30, "one digit in common is no 100"
    assert rouge([CHINESE[0]], [[CHINESE[0]]])["rouge2"] == 100
    with pytest.raises(UsageError, match="stems"):
        rouge(["река"], [["река"]], stem=True)


def test_bleu_is_withheld_where_no_reference_has_four_words() -> None:
    texts, references = ["yes", "it may be"], [["yes"], ["it may be", "no"]]
    with pytest.raises(DataError, match="sequences of 4 words"):
        bleu(texts, references)
    sums = OverlapSums(references)
    assert not sums.phrases and sums.bleu_of_model(texts) == {}
    assert [name for name in sums.of_model(texts) if name.startswith("bleu")] == []
    assert sums.of_model(texts)["chrf"].value == pytest.approx(100)
    assert OverlapSums([["yes"], ["it may be so"]]).phrases


@pytest.mark.parametrize("score", [bleu, chrf, rouge])
def test_a_text_is_no_list_of_references(score) -> None:
    text = "the mill is a pub near the river"
    for hypotheses, references in (([text], [text]), (text, [[text]] * len(text))):
        with pytest.raises(UsageError, match="a text stands for a list"):
            score(hypotheses, references)


def test_one_reference_without_a_word_takes_nothing_from_the_others() -> None:
    pytest.importorskip("rouge_score")
    texts = ["The Mill is a pub.", "👍", "Zizzi serves food."]
    assert rouge(texts, [[text] for text in texts])["rouge1"] == 100
    assert rouge(texts, [["The Mill is a pub."], ["A thumb.", "👍"], ["👍"]])["rouge1"] == 50


def random_groups(seed: int, size: int = 12) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)
    words = ["the", "mill", "pub", "is", "a", "near", "river", "cheap", "food", ",", "zizzi"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(4, 12)))

    return [text() for _ in range(size)], [[text() for _ in range(1 + i % 4)] for i in range(size)]


@pytest.mark.parametrize("seed", range(3))
def test_sums_over_prompts_give_the_corpus_scores(seed: int) -> None:
    pytest.importorskip("rouge_score")
    texts, references = random_groups(seed)
    found = {name: sums.value for name, sums in OverlapSums(references).of_model(texts).items()}
    wanted = {"bleu": bleu(texts, references), "chrf": chrf(texts, references), **rouge(texts, references)}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert OverlapSums(references).bleu_of_model(texts)["bleu_one_fewer"].value == found["bleu_one_fewer"]
    short, long = ["abcdefgh", "the mill"], [["abc"], ["the mill is"]]  # some n-grams are on one side only
    assert OverlapSums(long).of_model(short)["chrf"].value == pytest.approx(chrf(short, long))
    # No words in common at all, and n-grams of some orders only, as sacreBLEU smooths them.
    for one, other in (("x y z w v", "a b c d e"), ("a b x d y", "a b c d e"), ("a x", "a b")):
        other_words = [f"{other} and so on"]
        assert OverlapSums([other_words]).of_model([one])["bleu"].value == pytest.approx(bleu([one], [other_words]))


@pytest.mark.parametrize("seed", range(2))
def test_a_reference_fewer_is_each_left_out_in_turn(seed: int) -> None:
    """Of prompts with equally many references it is the score of all trials put together."""
    pytest.importorskip("rouge_score")
    rng = random.Random(seed)
    texts, references = random_groups(seed)
    # Four words in common at least, since counts of none are smoothed, and how much depends on the number of trials.
    texts = [f"the mill is a pub {text}" for text in texts]
    references = [[f"the mill is a pub {rng.choice(texts)}" for _ in range(3)] for _ in references]
    sums = OverlapSums(references)
    trials = [(i, j) for i in range(len(texts)) for j in range(3)]
    rest = [[text for at, text in enumerate(references[i]) if at != j] for i, j in trials]
    for whole, found in (
        ([texts[i] for i, _ in trials], sums.of_model(texts)),
        ([references[i][j] for i, j in trials], sums.of_people),
    ):
        wanted = {"bleu": bleu(whole, rest), "chrf": chrf(whole, rest), **rouge(whole, rest)}
        assert {name: found[f"{name}_one_fewer"].value for name in wanted} == pytest.approx(wanted)


def test_people_and_model_are_compared_with_as_many_references() -> None:
    """A model that writes as people do scores as they do, which against all references it would not."""
    rng = random.Random(0)
    groups = [[" ".join(rng.choices("abcdef", k=8)) for _ in range(5)] for _ in range(200)]
    texts, references = [group[0] for group in groups], [group[1:] for group in groups]
    sums = OverlapSums(references)
    model, people = sums.of_model(texts), sums.of_people
    assert model["bleu_one_fewer"].value == pytest.approx(people["bleu_one_fewer"].value, abs=2)
    assert model["bleu"].value > people["bleu_one_fewer"].value + 1.5
    assert not OverlapSums([[text] for text in texts]).of_people, "one reference a prompt is compared with nothing"
