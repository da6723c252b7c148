"""From an instruction in words to what is to be taken out of a photograph, or to none where the words name nothing.

A linear reading of words, pairs of words and parts of words, one answer a fault, learned from phrases that are made
here: ways to ask for each fault's removal, and ways to ask for all else. Below a stated confidence it does not guess.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from manta.families.phrases import answers_of, check_instruction, learned, likeliest
from manta.runtime import make_generator

TASKS: Final = ("noise", "blur", "rain", "haze", "snow")
"""What can be asked for, in the order of the answers."""
WORTH: Final = 7.0
"""What a phrase that names a fault counts beside one that names none, of which there are more."""
SURE = 0.4
"""Least confidence at which an instruction is followed."""

NAMES: Final = {
    "noise": "noise,grain,graininess,speckle,speckles,sensor noise,iso noise,film grain,colour noise,static",
    "blur": "blur,blurriness,motion blur,camera shake,softness,fuzziness,defocus,lens blur,smear,unsharpness",
    "rain": "rain,raindrops,rain streaks,drizzle,downpour,shower,streaks of rain,rainfall,rain drops,wet weather",
    "haze": "haze,fog,mist,smog,haziness,fogginess,murk,smoke in the air,low cloud,veil of fog",
    "snow": "snow,snowflakes,snowfall,falling snow,flurries,blizzard,flakes,sleet and snow,snow flakes,snowstorm",
}
LOOKS: Final = {
    "noise": "noisy,grainy,speckled,full of noise,super noisy",
    "blur": "blurry,fuzzy,out of focus,unsharp,soft,shaky,blurred,smeared,not sharp",
    "rain": "rainy,rained on,full of rain,taken in the rain,raining,pouring",
    "haze": "hazy,foggy,misty,smoggy,washed out by fog,hazed over",
    "snow": "snowy,covered by falling snow,full of snowflakes,taken in a snowstorm,snowing",
}
ACTS: Final = {
    "noise": "denoise,de-noise,smooth out the noise in,clean the grain from,denoising of",
    "blur": "deblur,de-blur,sharpen,sharpen up,make sharper,make crisp and sharp,unblur,un-blur,bring into focus,"
    "refocus,make crisp",
    "rain": "derain,de-rain,dry up,stop the rain in",
    "haze": "dehaze,de-haze,defog,de-fog,see through the fog in,clear the air in",
    "snow": "desnow,de-snow,stop the snow in,clear the snow from",
}
PHOTOS: Final = ("this photo", "the picture", "my image", "it", "this shot")
VERBS: Final = (
    "remove,take out,take away,get rid of,erase,delete,clear,clear up,clean,clean up,strip,lift,wipe off,cut,reduce,"
    "eliminate,filter out,cancel,stop,lose,kill,undo,fix,cut through,tone down,suppress,correct,free {p} from"
)
WHERE: Final = (
    "",
    " please",
    " from {p}",
    " in {p}",
    " over the city",
    " everywhere",
    " here",
    " for me",
    " completely",
)
WITH_NAME: Final = (
    "take the {} away",
    "take that {} out of {p}",
    "get all that ugly {} out",
    "no more {}",
    "no {} please",
    "without the {} please",
    "{p} without {}",
    "i want {p} without the {}",
    "i don't want any {} in {p}",
    "i do not want the {} here",
    "there is too much {} in {p}",
    "too much {} in {p}",
    "less {}",
    "{p} has {}, clear it",
    "{p} has lots of {}, clean it",
    "{p} is full of {}",
    "{p} was ruined by {}",
    "the {} ruins {p}, take it out",
    "the {} hides everything, remove it",
    "there was {} when i took {p}",
    "i shot {p} in {} and it shows",
    "could you make the {} disappear",
    "make the {} vanish",
    "make the {} go away",
    "can we get rid of the {}?",
    "{} removal",
    "fix {p}, it has {} everywhere",
    "high {}, clean it",
    "i would like less {}",
    "{} gone please",
)
WITH_LOOK: Final = (
    "{p} is {}",
    "{p} looks {}, fix that",
    "{p} is too {}",
    "make {p} less {}",
    "why is {p} so {}? repair it",
    "it came out {}",
    "{p} should not be {}",
    "i hate how {} it is",
    "the image is very {}",
    "way too {} for printing",
    "it is a bit {}, make it better",
    "clear up the {} scene",
    "it was {}, remove that",
    "it is {}, repair that",
    "my shot is really {}, can you help",
    "i would like it less {}",
    "{p} was taken when it was {}",
)
WITH_ACT: Final = (
    "{} my picture",
    "{} the whole image",
    "{} these photos",
    "just {} {p}",
    "{} {p}",
    "please {} {p}",
    "can you {} {p}",
    "{} {p} for me",
    "i want you to {} {p}",
)
OTHERS: Final = (
    "make it {look},turn {p} into {made},add {thing},add {thing} to {p},put {thing} into {p},draw {thing},"
    "remove the {thing},take the {thing} away,get rid of the {thing},erase the {thing},delete the {thing},"
    "change the {thing},replace the {thing},where is the {thing}?,is there {thing} in {p}?,what is in {p}?,"
    "crop {p},rotate {p} by 90 degrees,resize {p},flip {p},zoom in,zoom out,save {p},open {p},undo,start again,"
    "hello,thank you,help,who are you?,tell me a joke,write a poem about {thing},make {p} bigger,make {p} smaller,"
    "describe {p},what can you do?,i like {p},nice picture,please fix {p},improve {p},enhance {p},make {p} better,"
    "repair {p},clean {p},do something,edit {p},restore {p},colour {p},paint {p},blur {p},"
    "blur the background,blur the faces,blur the plate,blur the text,fog {p},let it rain,let it snow,"
    "let it rain in {p},let it snow over {p},i would like it to rain,i want it to snow,what is the weather like?"
)
THINGS: Final = (
    "car,dog,person on the left,logo,watermark,text,background,scratches,red eyes,tree,house,moustache,hat,sky,sun,"
    "colours,shadow,frame,cat,people behind me,wires,sign,some noise,rain,snow,fog,blur,more grain,snowflakes,haze,"
    "a blur effect,mist,grain"
)
LOOKED: Final = (
    "brighter,darker,pretty,larger,black and white,warmer,more colourful,vintage,funny,square,transparent,greener,"
    "rainy,snowy,foggy,blurry,grainy,look like winter,rain,snow,contrast stronger"
)
MADE: Final = "a painting,a cartoon,a sketch,a poster,a video,an oil painting,a winter scene,a rainy day,a night scene"
MORE: Final = (
    "less sharp,make it less sharp,make it softer,i want it blurrier,more blurry please,make it more hazy,"
    "undo the denoising,undo the sharpening,brain surgery,take the train,make it noisier,make it grainier,"
    "it should rain,it should snow,let it rain over {p},i would like it to rain,i would like it to snow now,rotate it,"
    "rotate {p} to the left,turn {p} round,blur the number,blur the sign,blur his face,blur the house behind me"
)
ADDING: Final = ("add {}", "add some {} to {p}", "put {} into {p}", "make it {}", "i want more {}", "draw {}")
KEEPING: Final = (
    "keep the {}",
    "don't touch the {}",
    "i like the {}",
    "i love {}",
    "leave the {} as it is",
    "is that {}?",
    "is it {}?",
    "is there {}?",
    "what is {}?",
    "why is there {}?",
    "don't remove the {}",
    "do not remove the {}",
    "please do not take out the {}",
    "never take the {} away",
    "remove everything except the {}",
    "everything but the {} should go",
    "the {} is lovely, keep it",
    "undo the removal of {}",
    "remove the man in the {}",
    "delete the umbrella in the {}",
    "i want it with {}",
)
NOT_ACT: Final = ("do not {} {p}", "please don't {} {p}", "don't {} it", "never {} {p}")
NEAR: Final = (
    "rainbow,rain coat,raincoat,umbrella,snowman,snow plough,snowboard,noise barrier,noise level sign,fog lamp,"
    "fog horn,train,brain,drain,grain field,blurred man,misty eyes,smoke detector,snowy owl,rain barrel,"
    "haze brand name,trainers"
)
"""Things that sound like faults, and are none."""


@dataclass(frozen=True)
class Understood:
    """What was made of an instruction."""

    task: str | None
    """What is to be taken out; None where the words do not say it surely enough."""
    confidence: float
    """Of the likeliest answer, in [0, 1]."""
    chances: tuple[float, ...]
    """Of each answer, in the order of `TASKS`."""

    def explain(self) -> str:
        """In words, for a person."""
        if self.task is not None:
            return f"understood: take out the {self.task} ({self.confidence:.0%} sure)"
        likely = max(range(len(TASKS)), key=lambda i: self.chances[i])
        return (
            f"not understood (at most {self.confidence:.0%} sure of {TASKS[likely]}); say what should go, such as "
            f"'take the rain away': {', '.join(TASKS)}, one at a time"
        )


def lessons() -> tuple[list[str], Float[Tensor, "b k"]]:
    """Phrases, and for each the answers that it should have."""
    generator = make_generator(0)
    phrases: list[str] = []
    answers: list[list[float]] = []

    def take(phrase: str, task: str | None) -> None:
        photo = PHOTOS[int(torch.randint(len(PHOTOS), (), generator=generator))]
        phrases.append(phrase.replace("{p}", photo))
        answers.append([float(task == each) for each in TASKS])

    for task in TASKS:
        names = NAMES[task].split(",")
        for frame, name in product(WITH_NAME, names):
            take(frame.replace("{}", name), task)
        for verb, name in product(VERBS.split(","), names):
            place = WHERE[int(torch.randint(len(WHERE), (), generator=generator))]
            take(f"{verb} the {name}{place}", task)
        for frame, look in product(WITH_LOOK, LOOKS[task].split(",")):
            take(frame.replace("{}", look), task)
        for frame, act in product(WITH_ACT, ACTS[task].split(",")):
            take(frame.replace("{}", act), task)
        for frame, act in product(NOT_ACT, ACTS[task].split(",")):
            take(frame.replace("{}", act), None)
        for frame, name in product((*ADDING, *KEEPING), (*names, *LOOKS[task].split(","))):
            take(frame.replace("{}", name), None)
    for verb, thing in product(VERBS.split(",")[:12], NEAR.split(",")):
        take(f"{verb} the {thing}", None)
    for frame in MORE.split(",") * 10:
        take(frame, None)
    for frame in OTHERS.split(","):
        for slot, words in (("{thing}", THINGS), ("{look}", LOOKED), ("{made}", MADE)):
            if slot in frame:
                asked = frame.startswith(("remove", "take", "get rid", "erase", "delete"))
                for word in words.split(","):
                    fault = next((task for task in TASKS if word in NAMES[task].split(",")), None)
                    if not (asked and (fault or any(name in word for name in ("noise", "grain", "blur")))):
                        take(frame.replace(slot, word), None)
                break
        else:
            take(frame, None)
    return phrases, torch.tensor(answers)


@cache
def learned_router(steps: int = 300) -> Float[Tensor, "k g"]:
    """Weights of the reading, with a constant last, by logistic regression on `lessons`; always the same."""
    return learned(*lessons(), WORTH, steps)


def understand(instruction: str, weights: Float[Tensor, "k g"]) -> Understood:
    """What an instruction asks for.

    Args:
        instruction: in English.
        weights: from `learned_router`.

    Raises:
        UsageError: it is empty or too long.
    """
    check_instruction(instruction, "say what should go, such as 'take the rain away'")
    chances = answers_of([instruction], weights).sigmoid()[0]
    best = likeliest(chances, SURE)
    told = tuple(round(float(chance), 4) for chance in chances)
    return Understood(None if best is None else TASKS[best], max(told), told)
