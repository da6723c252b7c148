"""Instructions in words no lesson has: followed when they name a fault, refused when they do not."""

import zlib
from collections import Counter

import pytest
import torch

from manta.errors import UsageError
from manta.families import instructions
from manta.families.instructions import TASKS, learned_router, lessons, understand
from manta.families.phrases import FEATURES, answers_of, features

ASKED = {
    "noise": (
        "my night shot is really grainy, can you help|clean up the speckles|this picture has awful iso noise|"
        "please smooth out all the grain|take out the noise from the dark areas|i would like less graininess|"
        "suppress the sensor noise|reduce noise in this photograph|so much grain! get rid of it|"
        "eliminate the speckled look|remove graininess from my portrait|denoising please"
    ),
    "blur": (
        "sharpen my picture please|the photo came out blurry|can you make this sharper|undo the camera shake|"
        "remove blur from the faces|it is out of focus, repair that|fix the soft look of this shot|"
        "deblur this one|i moved and the image is blurred|get rid of the fuzziness|reduce the motion blur|"
        "bring everything into focus"
    ),
    "rain": (
        "remove the rain|please take away the raindrops|wipe the drizzle out of my photo|it rained, clear that up|"
        "get rid of rain streaks on the street|no rain in this picture please|cancel the shower|"
        "i want the scene without rain|clean the rain off my holiday photo|erase the downpour|"
        "the rain ruins this photo|derain the image"
    ),
    "haze": (
        "remove the haze|clear the fog from the valley|this landscape is hazy, fix it|get rid of the mist|"
        "the smog is too thick, take it away|dehaze this|defog my picture|lift the fog please|"
        "i can hardly see through the fog, clear it|make the scene less foggy|take the mist out of the mountains|"
        "erase haze"
    ),
    "snow": (
        "remove the snow|take the snowflakes out of this photo|get rid of falling snow|clean the snow from the image|"
        "there is snowfall in my picture, delete it|stop the snow|no snowflakes please|erase the blizzard|"
        "it was snowing when i shot this, fix it|i do not want snow in this picture|clear away the flurries|desnow"
    ),
}
FRESH = {
    "noise": "this is terribly noisy|please get the grain out|clean away the speckle|i hate the noise in the sky|fix "
    "the grainy look|could you denoise my scan",
    "blur": "the text is blurry, sharpen it|please undo the blur|it was not in focus, correct it|make my portrait "
    "less blurry|remove the softness|unblur the number plate",
    "rain": "remove all those raindrops|it is raining in my picture, take it out|filter the rain out|we had drizzle, "
    "clean it up|i want the rain gone|less rain please",
    "haze": "can you remove this fog|the air was hazy, clear it up|take away the smog over the city|the mist spoils "
    "the view, remove it|dehaze my landscape|fog removal please",
    "snow": "please delete the snowflakes|too much snow, take it off|remove the snowfall from my video still|get the "
    "snow out of the way|i want this without flakes|snow removal",
}
"""None is a lesson; some lessons were changed after these were looked at."""
FRESH_OTHERS = (
    "sepia tone please|change the hat to blue|add a light drizzle|make the background blurry|give it a dreamy glow|"
    "merge these two photos|upscale it twice|remove the fence|translate the sign|please respond|fix the crooked tower|"
    "recolour the roof|add falling leaves|what do you see?|delete my account|turn it upside down|make me a sticker|"
    "whiten the teeth"
)
NOT_ASKED = (
    "make it look older|add a sunset|put snow on the mountains|let it rain in this picture|blur the licence plate|"
    "add some grain for a film look|rotate the image|what a lovely day|remove the man in the back|"
    "give me a black and white version|resize to 800 pixels|who is this?|make the colours pop|cut out the dog|"
    "turn day into night|good morning|write a caption for this|swap the faces|draw a moustache on him|"
    "more contrast please|remove the text at the bottom|make her smile|is this real?|straighten the horizon|"
    "convert this to a drawing|make it foggy|i would like it to snow|brighten the shadows|do your best|mirror it"
)


@pytest.fixture(scope="module")
def router():
    return learned_router()


def test_paraphrases_that_were_not_lessons_are_understood(router):
    known = set(lessons()[0])
    asked = [(task, phrase) for task, phrases in ASKED.items() for phrase in phrases.split("|")]
    new = [(task, phrase) for task, phrase in asked if phrase not in known]
    assert len(new) >= 50
    right = [understand(phrase, router).task == task for task, phrase in new]
    wrong = [p for (t, p) in new if understand(p, router).task not in (t, None)]
    assert sum(right) / len(right) >= 0.95 and not wrong


def test_further_phrases_that_are_no_lessons(router):
    asked = [(task, phrase) for task, phrases in FRESH.items() for phrase in phrases.split("|")]
    right = [understand(phrase, router).task == task for task, phrase in asked]
    refused = [understand(phrase, router).task is None for phrase in FRESH_OTHERS.split("|")]
    assert sum(right) / len(right) >= 0.9 and sum(refused) / len(refused) >= 0.9


def test_what_names_no_fault_is_refused_and_not_guessed(router):
    refused = [understand(phrase, router).task is None for phrase in NOT_ASKED.split("|")]
    assert sum(refused) / len(refused) >= 0.9


def test_an_answer_says_what_was_understood_or_asks_for_a_clearer_instruction(router):
    found = understand("take the rain away", router)
    assert found.task == "rain" and "take out the rain" in found.explain() and found.confidence == max(found.chances)
    none = understand("make it pretty", router)
    assert none.task is None and "say what should go" in none.explain() and all(t in none.explain() for t in TASKS)
    for wrong in ("", "   ", "rain " * 200):
        with pytest.raises(UsageError):
            understand(wrong, router)


def test_the_reading_is_learned_alike_every_time(router):
    assert torch.equal(router, learned_router())


def rows_of(phrases: list[str]) -> torch.Tensor:
    """Features of phrases, a sparse row each."""
    found = [(row, number, size) for row, each in enumerate(phrases) for number, size in features(each).items()]
    rows, numbers, sizes = zip(*found, strict=True)
    return torch.sparse_coo_tensor(torch.tensor([rows, numbers]), torch.tensor(sizes), (len(phrases), FEATURES))


def test_features_are_words_neighbours_the_first_word_and_parts_of_words():
    def number(name: str) -> int:
        return zlib.crc32(name.encode()) % 4096

    parts = "<no noi ois ise se> <noi nois oise ise> <nois noise oise> <go goe oes es> <goe goes oes> <goes goes>"
    names = ["w noise", "w goes", "p noise goes", "f noise", *(f"c {part}" for part in parts.split())]
    counts = Counter(map(number, names))
    found = features("Noise: 'goes'!")
    assert found == pytest.approx({each: (count / len(names)) ** 0.5 for each, count in counts.items()})
    assert sum(size**2 for size in found.values()) == pytest.approx(1) and features("…!") == {}
    assert features("don't") == features("dont") != features("don t")


def test_logits_are_sums_over_features_and_a_constant():
    weights = torch.randn(5, FEATURES + 1, generator=torch.Generator().manual_seed(0))
    phrases = ["take the rain away", "no", "less grain please"]
    expected = torch.sparse.mm(rows_of(phrases), weights[:, :-1].T) + weights[:, -1]
    torch.testing.assert_close(answers_of(phrases, weights), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(answers_of(phrases[1:2], weights), answers_of(phrases, weights)[1:2])


def test_lessons_hold_every_fault_and_all_that_sounds_like_one():
    phrases, answers = lessons()
    assert len(phrases) == len(answers) and set(answers.sum(1).tolist()) == {0.0, 1.0}
    assert not any(slot in phrase for phrase in phrases for slot in ("{}", "{p}", "{thing}", "{look}", "{made}"))
    told = dict(zip(phrases, answers.tolist(), strict=True))
    none = [0.0] * 5
    for phrase, task in {
        "take the rain streaks away": "rain", "denoise my picture": "noise", "make it less blurry": None,
        "the image is very hazy": "haze", "no flurries please": "snow", "add fog": None, "keep the snow": None,
        "remove the rainbow": None, "remove the dog": None, "draw rain": None, "crop it": None, "undo": None,
        "make it vintage": None, "turn it into a sketch": None, "brain surgery": None, "erase the snow": "snow",
    }.items():  # fmt: skip
        if phrase in told:
            assert told[phrase] == ([float(task == each) for each in TASKS] if task else none), phrase
    assert {"take the rain streaks away", "denoise my picture", "add fog", "remove the rainbow"} <= set(told)
    assert not {"remove the some noise", "erase the more grain", "delete the a blur effect"} & set(told)
    assert phrases.count("brain surgery") == 10 and phrases.count("less sharp") == 10
    by_task = answers.sum(0).tolist()
    spelled = "\n".join(f"{phrase}|{row}" for phrase, row in zip(phrases, answers.argmax(1).tolist(), strict=True))
    assert (len(phrases), by_task, zlib.crc32(spelled.encode())) == LESSONS, "models are taught by other phrases now"


LESSONS = (6991, [710, 832, 718, 736, 701], 1386209371)
"""How many, of each fault, and a digest of all."""


def test_the_reading_is_logistic_regression_by_adam():
    """Three steps by hand: weight 7 of a phrase that names its fault, a decay of 2e-6, steps of 0.1."""
    phrases, answers = lessons()
    rows = rows_of(phrases)
    table, steps = torch.zeros(FEATURES + 1, 5), []
    for step in range(1, 4):
        chance = (torch.sparse.mm(rows, table[:-1]) + table[-1]).sigmoid()
        slope = (chance * (1 - answers) - 7.0 * answers * (1 - chance)) / answers.numel()
        whole = torch.cat([torch.sparse.mm(rows.t(), slope) + 2 * 2e-6 * table[:-1], slope.sum(0, keepdim=True)])
        steps.append(whole)
        first = sum(0.1 * 0.9 ** (step - k) * each for k, each in enumerate(steps, 1)) / (1 - 0.9**step)
        second = sum(0.001 * 0.999 ** (step - k) * each**2 for k, each in enumerate(steps, 1)) / (1 - 0.999**step)
        table = table - 0.1 * first / (second**0.5 + 1e-8)
    told = whole.abs() > 1e-6  # where a slope is rounding alone, so is the step
    torch.testing.assert_close(learned_router(3).T[told], table[told], rtol=2e-3, atol=2e-3)
    assert told.float().mean() > 0.3


@pytest.mark.parametrize(
    ("chances", "task"),
    [
        ((0.5, 0.1, 0.2, 0.1, 0.1), "noise"),
        ((0.1, 0.1, 0.1, 0.1, 0.45), "snow"),
        ((0.1, 0.1, 0.35, 0.1, 0.1), None),
        ((0.1, 0.9, 0.1, 0.45, 0.1), None),
        ((0.1, 0.9, 0.1, 0.39, 0.1), "blur"),
    ],
)
def test_an_instruction_is_followed_where_one_fault_is_sure_and_no_other(chances, task):
    weights = torch.zeros(5, FEATURES + 1)
    weights[:, -1] = torch.tensor(chances).logit()
    found = understand("x" * 500, weights)
    assert found.task == task and found.chances == pytest.approx(chances) and found.confidence == max(found.chances)
    likely = TASKS[chances.index(max(chances))]
    assert f"{max(chances):.0%} sure" in found.explain() and likely in found.explain().split(";")[0]
    with pytest.raises(UsageError, match="characters"):
        understand("x" * 501, weights)
    assert all(round(chance, 4) == chance for chance in found.chances)


def test_a_phrase_without_words_has_the_constant_alone():
    weights = torch.randn(len(TASKS), FEATURES + 1, generator=torch.Generator().manual_seed(0))
    assert features("?! …") == {}
    torch.testing.assert_close(answers_of(["?! …"], weights), weights[None, :, -1])
    both = answers_of(["?!", "take the rain away"], weights)
    torch.testing.assert_close(both[1:], answers_of(["take the rain away"], weights))
    assert not torch.equal(both[0], both[1])


def test_a_reading_begins_with_steps_of_a_tenth(monkeypatch):
    """Adam's first step is its rate, whatever the slope; words that no lesson has stay as they are."""
    phrases, answers = ["rain", "snow"], torch.tensor([[0.0, 0, 1, 0, 0], [0.0, 0, 0, 0, 1]])
    monkeypatch.setattr(instructions, "lessons", lambda: (phrases, answers))
    weights = learned_router.__wrapped__(1)
    seen = torch.zeros(FEATURES + 1, dtype=torch.bool)
    seen[[*features("rain"), *features("snow"), FEATURES]] = True
    assert not weights[:, ~seen].any()
    told = weights[:, [*features("rain")]]
    torch.testing.assert_close(told, torch.tensor([[-0.1], [-0.1], [0.1], [-0.1], [-0.1]]).expand_as(told))
    assert float(weights.abs().max()) == pytest.approx(0.1)
