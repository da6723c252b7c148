"""Instructions in words no lesson has: followed when they name a fault, refused when they do not."""

import pytest
import torch

from manta.errors import UsageError
from manta.families.instructions import TASKS, learned_router, lessons, understand

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
