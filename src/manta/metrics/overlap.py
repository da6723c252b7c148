"""How far texts agree with human references: BLEU as the E2E challenge reports it, chrF and ROUGE.

The scores are those of sacrebleu and rouge-score, so that they compare with published ones. Texts are compared in the
composed form NFC. `OverlapSums` gives the same scores prompt by prompt, for intervals, and people a fair place: a human
text has one reference fewer than a model's, since it is none of its own, and every score that takes the best of several
references rises with their number. So people are scored with each reference against the others, and a model once more
with each reference left out in turn.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import DataError, UsageError
from manta.metrics.extra import missing
from manta.metrics.measured import Sums
from manta.metrics.spread import Spread, in_turn, shards_of
from manta.metrics.words import Words, normal, plain_words, words_of

ONE_FEWER: Final = "_one_fewer"
"""Ends the names of scores against all references but one, each left out in turn."""
KINDS: Final = ("rouge1", "rouge2", "rougeL")
_WORDS: Final = 4
"""Longest n-gram of words of BLEU."""
_ORDERS: Final = 6
"""Longest n-gram of characters of chrF."""


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    lowercase: bool = True,
    *,
    tokenize: str | None = None,
) -> float:
    """Corpus BLEU-4 with any number of references a text, by sacreBLEU.

        BLEU = 100 · min(1, e^(1 − r/h)) · (p₁ p₂ p₃ p₄)^(1/4)

    where pₙ is the share of n-grams of the hypotheses that a reference of theirs has, each counted at most as often as
    in one reference; h the length of the hypotheses, r that of the references nearest in length. Lower-cased, with the
    tokens `13a`, this is the figure of the E2E NLG challenge; with case it is some four points lower. Not to be
    confused with the mean of sentence scores.

    Args:
        hypotheses: n texts, one for each prompt.
        references: for each of them its references, at least one; their numbers may differ.
        lowercase: ignore case.
        tokenize: sacreBLEU's name of a tokenizer; None: by the script of the references (`words.words_of`), `13a` where
            white space stands between words. Scores of several tokenizers do not compare.

    Returns:
        A score in [0, 100].

    Raises:
        DataError: the counts do not fit, a text has no reference, no reference has four words, or sacrebleu is not
            installed.

    Source: Papineni et al., "BLEU" (ACL 2002); Post, "A Call for Clarity in Reporting BLEU Scores" (WMT 2018).
    """
    _check("BLEU", hypotheses, references)
    texts, groups = _normal(hypotheses, references)
    scorer = _bleu(tokenize or _words_of(groups).bleu, lowercase)
    if all(len(scorer.tokenizer(text).split()) < _WORDS for group in groups for text in group):
        raise DataError(
            f"BLEU counts sequences of {_WORDS} words, and no reference of {len(groups)} texts has one, so that it is "
            "0 whatever is written; use chrF instead"
        )
    return scorer.corpus_score(texts, _streams(groups)).score


def chrf(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, word_order: int = 0, lowercase: bool = False
) -> float:
    """Corpus chrF, agreement in n-grams of characters, by sacreBLEU.

        chrF = 100 · (1 + β²) P R / (β² P + R),   β = 2

    where P and R are precision and recall of n-grams of characters without white space, averaged over n = 1 … 6 (and
    over n-grams of words up to `word_order`). Where a text has several references, its best one counts. It needs no
    words, so it suits languages that BLEU's tokenizer does not. Not to be confused with chrF++, which has
    `word_order=2`.

    Args:
        hypotheses: n texts, one for each prompt.
        references: for each of them its references, at least one; their numbers may differ.
        word_order: longest n-gram of words, 0 or more; 0 for none, 2 for chrF++.
        lowercase: ignore case.

    Returns:
        A score in [0, 100].

    Raises:
        DataError: the counts do not fit, a text has no reference, or sacrebleu is not installed.
        UsageError: a negative `word_order`.

    Source: Popović, "chrF: character n-gram F-score for automatic MT evaluation" (WMT 2015); "chrF++" (WMT 2017).
    """
    _check("chrF", hypotheses, references)
    if word_order < 0:
        raise UsageError(f"word_order should be 0 (chrF) or more (2 is chrF++), received {word_order}")
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise missing("chrF", "sacrebleu") from error
    texts, groups = _normal(hypotheses, references)
    return CHRF(word_order=word_order, lowercase=lowercase).corpus_score(texts, _streams(groups)).score


def rouge(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    kinds: Sequence[str] = KINDS,
    stem: bool = False,
) -> dict[str, float]:
    """Mean ROUGE F₁ of the texts, by the package rouge-score.

        F₁ = 2 P R / (P + R),   P = m / |hypothesis|,   R = m / |reference|

    where m is the number of common n-grams (`rouge1`, `rouge2`, …, each counted at most as often as in both) or the
    length of the longest common subsequence of words (`rougeL`), and |·| counts n-grams or words. For each kind the
    reference with the highest F₁ counts. Case and signs are ignored. Where nearly all letters of the references are
    a–z, words are those of published scores, which know a–z and 0–9 only; else words of any script, and single
    characters where no space stands between words (`words.plain_words`). References without a word are left out, and
    texts that have no other. Not to be confused with the ROUGE-L of the E2E challenge's script, which weighs recall by
    β = 1.2 and takes the best P and the best R of different references.

    Args:
        hypotheses: n texts, one for each prompt.
        references: for each of them its references, at least one; their numbers may differ.
        kinds: `rouge1` to `rouge9`, `rougeL`, or `rougeLsum`, which joins the subsequences of lines.
        stem: compare stems (Porter) instead of words; for English.

    Returns:
        For each kind a score in [0, 100].

    Raises:
        DataError: the counts do not fit, a text has no reference, no reference has a word, or rouge-score is not
            installed.
        UsageError: an unknown kind, or stems of a language that is not written in a–z.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004).
    """
    _check("ROUGE", hypotheses, references)
    if unknown := [kind for kind in kinds if not re.fullmatch(r"rouge([1-9]|L|Lsum)", kind)]:
        raise UsageError(f"unknown kind {unknown[0]!r}; there are rouge1 to rouge9, rougeL and rougeLsum")
    texts, groups = _normal(hypotheses, references)
    ascii_ = _words_of(groups).ascii
    if stem and not ascii_:
        raise UsageError("stems are those of English, and the references have letters other than a–z; leave stem out")
    scorer = _rouge(tuple(kinds), ascii_, stem)
    said = [[reference for reference in group if _has_word(reference, ascii_)] for group in groups]
    found = [scorer.score_multi(group, text) for text, group in zip(texts, said, strict=True) if group]
    if not found:
        raise DataError(f"ROUGE compares words, and no reference of {len(groups)} texts has any; use chrF instead")
    return {kind: 100 * sum(scores[kind].fmeasure for scores in found) / len(found) for kind in kinds}


Trial = tuple[str, Sequence[str]]
"""A text and what it is compared with."""


class OverlapSums:
    """BLEU, chrF and ROUGE of sets of texts that answer the same prompts, prompt by prompt.

    Args:
        references: of each prompt, at least one.
        words: how they are read; None: by their script.
        lowercase: ignore case in BLEU.
        spread: counts shards of the prompts; it changes no figure.

    Raises:
        DataError: a prompt has no reference, or sacrebleu is not installed.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        *,
        words: Words | None = None,
        lowercase: bool = True,
        spread: Spread = in_turn,
    ) -> None:
        _check("overlap", references, references)
        self.references = [[normal(text) for text in group] for group in references]
        self.words = words or _words_of(self.references)
        self.several = sum(len(group) > 1 for group in self.references)
        """Prompts with more than one reference; the others have no score against one fewer."""
        self._spread, self._counts = spread, _Counts(self.words, lowercase)

    @cached_property
    def wordless(self) -> int:
        """Prompts of whose references ROUGE reads no word; they are in no ROUGE."""
        return sum(not any(_has_word(text, self.words.ascii) for text in group) for group in self.references)

    @cached_property
    def phrases(self) -> bool:
        """Some reference has four words, BLEU's longest sequence; without one BLEU is 0 whatever is written."""
        return any(self._counts.word_grams(text)[-1] for group in self.references for text in group)

    def of_model(self, texts: Sequence[str]) -> dict[str, Sums]:
        """The scores of one text a prompt: against all references, and like for like with people's.

        Args:
            texts: in the order of the prompts.

        Returns:
            `bleu`, `chrf`, `rouge1`, `rouge2` and `rougeL`; and each ending in `_one_fewer`: the mean over the
            references of a prompt of what the text adds where that reference is left out, over the prompts that have
            several. ROUGE is missing where rouge-score is not installed, or no reference has a word; BLEU where none
            has four.

        Raises:
            DataError: another number of texts.
        """
        _check("overlap", texts, self.references)
        pairs = list(zip(map(normal, texts), self.references, strict=True))
        whole = self._scores([[(text, group)] for text, group in pairs])
        fewer = self._scores([[(text, rest) for _, rest in _left_out(group)] for text, group in pairs])
        found: dict[str, Sums] = {}
        for name, sums in whole.items():
            found[name] = sums
            if name in fewer:
                found[name + ONE_FEWER] = fewer[name]
        return found

    @cached_property
    def of_people(self) -> dict[str, Sums]:
        """People's own scores, each reference against the others of its prompt: all end in `_one_fewer`."""
        return {name + ONE_FEWER: sums for name, sums in self._scores(list(map(_left_out, self.references))).items()}

    def bleu_of_model(self, texts: Sequence[str]) -> dict[str, Sums]:
        """BLEU alone of `of_model`, which costs a tenth of it.

        Raises:
            DataError: another number of texts.
        """
        _check("BLEU", texts, self.references)
        pairs = list(zip(map(normal, texts), self.references, strict=True))
        fewer = [[(text, rest) for _, rest in _left_out(group)] for text, group in pairs]
        if not self.phrases:
            return {}
        whole = {"bleu": self._bleu_sums([[pair] for pair in pairs])}
        return whole | ({f"bleu{ONE_FEWER}": self._bleu_sums(fewer)} if any(fewer) else {})

    def bleu_of_people(self) -> dict[str, Sums]:
        """BLEU alone of `of_people`; nothing where every prompt has one reference."""
        trials = list(map(_left_out, self.references))
        return {f"bleu{ONE_FEWER}": self._bleu_sums(trials)} if any(trials) else {}

    def _bleu_sums(self, trials: Sequence[Sequence[Trial]]) -> Sums:
        return Sums(_rows(trials, self._counts.bleu, 10), bleu_of_counts)

    def _scores(self, trials: Sequence[Sequence[Trial]]) -> dict[str, Sums]:
        """A row a prompt: the mean over its trials of what each adds to the sums."""
        if not any(trials):
            return {}
        shards = self._spread(self._counts.rows, shards_of(trials))
        rows = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        found = {"bleu": Sums(rows["bleu"], bleu_of_counts)} if self.phrases else {}
        found["chrf"] = Sums(rows["chrf"], chrf_of_counts)
        for at, kind in enumerate(KINDS if "rouge" in rows else ()):
            if bool(rows["rouge"][:, 2 * at + 1].any()):
                found[kind] = Sums.ratio(rows["rouge"][:, 2 * at], rows["rouge"][:, 2 * at + 1])
        return found


class _Counts:
    """What a text adds to the sums of each score.

    Args:
        words: how texts are read.
        lowercase: ignore case in BLEU.
    """

    def __init__(self, words: Words, lowercase: bool) -> None:
        self.words, self.lowercase = words, lowercase
        self._bleu = _bleu(words.bleu, lowercase)
        self._grams: dict[str, list[Counter[tuple[str, ...]]]] = {}

    def __reduce__(self) -> tuple[type["_Counts"], tuple[Words, bool]]:
        """What it has read so far stays where it was read."""
        return _Counts, (self.words, self.lowercase)

    def rows(self, trials: Sequence[Sequence[Trial]]) -> dict[str, Tensor]:
        """A row a prompt of each score; without ROUGE's where rouge-score is not installed."""
        found = {"bleu": _rows(trials, self.bleu, 10), "chrf": _rows(trials, _chrf_counts, 3 * _ORDERS)}
        try:
            _rouge(KINDS, self.words.ascii, False)
        except DataError:
            return found
        return {**found, "rouge": _rows(trials, self.rouge, 2 * len(KINDS))}

    def bleu(self, text: str, group: Sequence[str]) -> Sequence[float | int]:
        """See `bleu_of_counts`."""
        ours, theirs = self.word_grams(text), [self.word_grams(reference) for reference in group]
        length = ours[0].total()
        common = [
            sum(min(count, max(one[n].get(gram, 0) for one in theirs)) for gram, count in grams.items())
            for n, grams in enumerate(ours)
        ]
        nearest = min((one[0].total() for one in theirs), key=lambda other: (abs(other - length), other))
        return [length, nearest, *common, *(grams.total() for grams in ours)]

    def word_grams(self, text: str) -> list[Counter[tuple[str, ...]]]:
        """Its n-grams of 1 … 4 of sacreBLEU's tokens."""
        if text not in self._grams:
            words = self._bleu.tokenizer(text.lower() if self._bleu.lowercase else text).split()
            self._grams[text] = [
                Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1)) for n in range(1, _WORDS + 1)
            ]
        return self._grams[text]

    def rouge(self, text: str, group: Sequence[str]) -> Sequence[float | int]:
        """Of each kind the best F₁, and 1; zeros where no reference has a word."""
        said = [reference for reference in group if _has_word(reference, self.words.ascii)]
        each = (_rouge_of(*sorted((text, one)), self.words.ascii) for one in said)  # F₁ is the same either way
        best = [max(scores) for scores in zip(*each, strict=True)]
        return [part for score in best for part in (score, 1.0)] if best else [0.0] * (2 * len(KINDS))


def bleu_of_counts(sums: Float[Tensor, "... 10"]) -> Float[Tensor, "..."]:
    """BLEU of summed counts: lengths of texts and of references, common n-grams and n-grams of 1 … 4 words.

    As sacreBLEU has it: where texts have n-grams and none in common, their share counts as 1/2 of one n-gram, then 1/4.
    """
    texts, references, common, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    none = (common <= 0).double().cumsum(-1)
    share = torch.where(common > 0, common, 0.5**none) / total
    score = 100 * share.log().mean(-1).exp() * (1 - references / texts).clamp(max=0).exp()
    return torch.where((common > 0).any(-1) & (total > 0).all(-1), score, 0.0)


def chrf_of_counts(sums: Float[Tensor, "... 18"]) -> Float[Tensor, "..."]:
    """chrF of summed counts: of each order the n-grams of the texts, of the references, and the common ones."""
    ours, theirs, common = sums.unflatten(-1, (_ORDERS, 3)).unbind(-1)
    known = (ours > 0) & (theirs > 0)
    orders = known.sum(-1).clamp(min=1)
    precision, recall = (
        torch.where(known, common / count.clamp(min=1e-9), 0.0).sum(-1) / orders for count in (ours, theirs)
    )
    return torch.where(precision + recall > 0, 100 * 5 * precision * recall / (4 * precision + recall), 0.0)


def _left_out(group: Sequence[str]) -> list[Trial]:
    """Each reference with the others; none where it is the only one."""
    return [(text, [*group[:at], *group[at + 1 :]]) for at, text in enumerate(group)] if len(group) > 1 else []


def _rows(
    trials: Sequence[Sequence[Trial]], counts: Callable[[str, Sequence[str]], Sequence[float | int]], width: int
) -> Float[Tensor, "n k"]:
    rows = torch.zeros(len(trials), width, dtype=torch.float64)
    for row, tried in zip(rows, trials, strict=True):
        if tried:
            row += torch.tensor([counts(*trial) for trial in tried], dtype=torch.float64).mean(0)
    return rows


def _chrf_counts(text: str, group: Sequence[str]) -> Sequence[float | int]:
    """Of the reference with the highest chrF."""
    every = torch.tensor([_pair_counts(text, reference) for reference in group], dtype=torch.float64)
    return every[int(chrf_of_counts(every).argmax())].tolist()


def _pair_counts(text: str, reference: str) -> list[int]:
    counts: list[int] = []
    ours, theirs = _character_grams(text), _character_grams(reference)
    for one, other, common in zip(ours, theirs, _common(*sorted((text, reference))), strict=True):
        counts += [one.total() if other else 0, other.total(), common]
    return counts


@lru_cache(2**16)
def _common(first: str, second: str) -> list[int]:
    return [
        sum(min(one[gram], other[gram]) for gram in one.keys() & other.keys())
        for one, other in zip(_character_grams(first), _character_grams(second), strict=True)
    ]


@lru_cache(2**16)
def _has_word(text: str, ascii_: bool) -> bool:
    """ROUGE reads a word in it."""
    return bool(re.search("[a-z0-9]", text.lower())) if ascii_ else bool(plain_words(text))


@lru_cache(2**14)
def _character_grams(text: str) -> list[Counter[str]]:
    joined = "".join(text.split())
    return [Counter(joined[at : at + n] for at in range(len(joined) - n + 1)) for n in range(1, _ORDERS + 1)]


@lru_cache(2**16)
def _rouge_of(first: str, second: str, ascii_: bool) -> tuple[float, ...]:
    found = _rouge(KINDS, ascii_, False).score(first, second)
    return tuple(100 * float(found[kind].fmeasure) for kind in KINDS)


def _words_of(references: Sequence[Sequence[str]]) -> Words:
    return words_of(text for group in references for text in group)


def _normal(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    return [normal(text) for text in hypotheses], [[normal(text) for text in group] for group in references]


def _check(score: str, hypotheses: Sequence[Any], references: Sequence[Sequence[str]]) -> None:
    if isinstance(hypotheses, str) or any(isinstance(group, str) for group in references):
        raise UsageError(
            f"{score} takes a list of texts and a list of references of each, and a text stands for a list"
        )
    if len(hypotheses) != len(references) or not hypotheses:
        raise DataError(
            f"{score} compares texts with their references: {len(hypotheses)} texts, {len(references)} sets"
        )
    if bare := [index for index, group in enumerate(references) if not group]:
        raise DataError(f"text {bare[0]} of {len(hypotheses)} has no reference; leave such texts out")


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """One stream a reference number, as sacreBLEU takes them; None marks a text without a reference of that number."""
    most = max(map(len, references))
    return [[group[number] if number < len(group) else None for group in references] for number in range(most)]


def _bleu(tokenize: str, lowercase: bool) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise missing("BLEU", "sacrebleu") from error
    return BLEU(lowercase=lowercase, tokenize=tokenize)


def _rouge(kinds: tuple[str, ...], ascii_: bool, stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing("ROUGE", "rouge-score") from error
    return RougeScorer(list(kinds), use_stemmer=stem, tokenizer=None if ascii_ else _AnyScript())


class _AnyScript:
    """What rouge-score splits texts with, for letters that its own tokens do not know."""

    def tokenize(self, text: str) -> list[str]:
        """Words without signs, in lower case."""
        return plain_words(text)
