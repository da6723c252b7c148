"""What the words of a text are, by its script: scores of words say nothing where no space stands between them."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Final, Literal

UNSPACED: Final = frozenset(
    (
        *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH", "BOPOMOFO"),
        *("YI", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI", "NEW"),
    )
)
"""First words of the Unicode names of letters of scripts that set no space between words."""
JAPANESE: Final = frozenset(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"))
UNSPACED_SHARE: Final = 0.2
"""Share of letters of such scripts from which a corpus is read character by character."""
KANA_SHARE: Final = 0.05
"""Share of kana among them from which it is Japanese."""
ASCII_SHARE: Final = 0.99
"""Share of letters a–z from which ROUGE's own tokens, which know no others, serve."""


@dataclass(frozen=True)
class Words:
    """How a corpus is read: made by `words_of`."""

    unit: Literal["words", "characters"]
    """What is counted: words between white space, or characters (and whole words of other scripts among them)."""
    bleu: str
    """sacreBLEU's tokenizer for BLEU."""
    ascii: bool
    """Nearly all letters are a–z, which is all that ROUGE's published tokens know."""

    @property
    def split(self) -> Callable[[str], list[str]]:
        """Splits a text into its words, or its characters."""
        return str.split if self.unit == "words" else split_words

    def row(self) -> dict[str, str]:
        """By name, for JSON."""
        rouge = "a-z 0-9" if self.ascii else "letters and digits of any script"
        return {"unit": self.unit, "bleu_tokens": self.bleu, "rouge_words": rouge}

    def first(self, text: str, count: int) -> str:
        """The text up to the end of its word, or character, number `count`; white space as it was."""
        tokens, end = self.split(text), 0
        for token in tokens[:count]:
            end = text.index(token, end) + len(token)
        return text[:end] if count <= len(tokens) else text

    def passages(self, text: str, count: int) -> list[str]:
        """Consecutive pieces of exactly so many words or characters, as they stand; a rest is left out."""
        spans, end = [], 0
        for token in self.split(text):
            begin = text.index(token, end)
            end = begin + len(token)
            spans.append((begin, end))
        return [text[spans[at][0] : spans[at + count - 1][1]] for at in range(0, len(spans) - count + 1, count)]


def words_of(texts: Iterable[str]) -> Words:
    """Choose how texts are read by the letters in them.

    | letters | counted | BLEU |
    |---|---|---|
    | Latin, Cyrillic, Arabic, Hangul, … | words between white space | `13a` |
    | Chinese | characters | `zh` |
    | Japanese | characters | `ja-mecab` where it is installed, else `char` |
    | Thai, Lao, Khmer, Burmese, Tibetan, … | characters | `char` |

    Args:
        texts: human texts of the corpus, all of them: one choice holds for it, for its models and for its people.

    Returns:
        The choice; that of English for texts without a letter.
    """
    letters = Counter(char for text in texts for char in text)
    scripts = Counter[str]()
    latin = 0
    for char, count in letters.items():
        if char.isalpha():
            scripts[_script(char)] += count
            latin += count * char.isascii()
    total, unspaced = scripts.total(), sum(scripts[name] for name in UNSPACED)
    ascii_ = latin >= ASCII_SHARE * total
    if unspaced <= UNSPACED_SHARE * total:
        return Words("words", "13a", ascii_)
    kana = sum(scripts[name] for name in JAPANESE)
    if kana > KANA_SHARE * unspaced:
        return Words("characters", "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char", ascii_)
    chinese = scripts["CJK"] + scripts["IDEOGRAPHIC"] + scripts["BOPOMOFO"]
    return Words("characters", "zh" if chinese > 0.5 * unspaced else "char", ascii_)


def split_words(text: str) -> list[str]:
    """Words of any script: runs of letters and digits with their marks; single characters of scripts that set no spaces
    between words; every other sign by itself.

    Accents, vowel signs, joiners and variation selectors stay with the character that they belong to.
    """
    found: list[str] = []
    before = "space"
    for char in text:
        kind = _kind(char)
        if kind == "joins" and before != "space":
            found[-1] += char
            continue
        if kind == "word" and before == "word":
            found[-1] += char
        elif kind != "space":
            found.append(char)
        before = "sign" if kind == "joins" else kind
    return found


def plain_words(text: str) -> list[str]:
    """`split_words` in lower case, without signs: what ROUGE compares where letters are not a–z alone."""
    return [word for word in split_words(text.lower()) if _kind(word[0]) in ("word", "character")]


def normal(text: str) -> str:
    """The text in the composed form NFC, in which equal characters are equal code points."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


@cache
def _script(char: str) -> str:
    """The first word of the character's Unicode name."""
    first, _, rest = unicodedata.name(char, "").partition(" ")
    return "HANGUL" if rest.startswith("HANGUL") else first


@cache
def _kind(char: str) -> Literal["space", "joins", "word", "character", "sign"]:
    category = unicodedata.category(char)
    if char.isspace():
        return "space"
    if category[0] == "M" or category == "Cf":
        return "joins"
    if category[0] in "LN" or char == "_":
        return "character" if _script(char) in UNSPACED else "word"
    return "sign"
