"""From an instruction in words to one of a model's tasks, or to none where the words do not say it surely enough.

A linear reading (`families.phrases`), learned from ways to ask for each task that are made here: for the four tasks of
`manta data make tasks` phrases of their own, for any other its name in ways to ask. What no task is asked for by is
learned beside them, so that below a stated confidence nothing is guessed. English only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from manta.families.phrases import answers_of, check_instruction, learned, likeliest

SURE: Final = 0.5
"""Least confidence at which an instruction is followed."""
WORTH: Final = 4.0
"""What a phrase that asks for a task counts beside one that does not, of which there are more."""

TEXTS: Final = ("it", "this", "this text", "the text", "that sentence", "my sentence", "the paragraph")
FRAMES: Final = (
    "{}",
    "please {}",
    "{} please",
    "can you {}?",
    "could you {} for me",
    "i want you to {}",
    "now {}",
    "just {}",
)
"""Ways to ask for an act."""
NAMED: Final = (
    "{},{} it,{} this,{} the text,the {} task,do the {} task,task {},{} task please,use {},apply {},run {},do {},"
    "please {},{} please,i want {},can you {} this?,{} this text for me,give me the {}"
)
"""Ways to ask for a task by its name."""
ACTS: Final[Mapping[str, str]] = {
    "shorten": "shorten {p},make {p} shorter,make {p} short,cut {p} down,cut {p} short,trim {p},trim {p} down,"
    "condense {p},summarise {p},summarize {p},sum {p} up,compress {p},reduce {p},abridge {p},boil {p} down,"
    "tighten {p},say {p} in fewer words,use fewer words,say {p} briefly,be brief,be more concise,make {p} concise,"
    "give me a shorter version,write a short version of {p},a summary of {p},keep {p} short,{p} is too long,"
    "less words,make {p} more compact,put {p} in a nutshell,the short version,shorter",
    "continue": "continue {p},go on,go on from here,carry on,keep going,keep writing,write on,write more,finish {p},"
    "complete {p},end {p},write the rest,write the rest of {p},what comes next,what comes after that,add the ending,"
    "extend {p},go on with {p},take {p} from here,proceed,tell me how {p} goes on,the rest of {p},"
    "pick up where {p} stops,continue writing,how does {p} end,finish what i began,add what follows,more",
    "fill": "fill {p} in,fill the blank,fill in the blank,fill in the blanks,fill the gap,fill the gaps,"
    "fill in the missing words,fill the hole in {p},what is missing,what goes in the blank,what words are missing,"
    "find the missing words,put the missing words into {p},guess the hidden words,complete the blank,infill,"
    "replace the blank,replace the underscores,insert the missing words,which words belong in the gap,"
    "restore the missing part,supply the missing span,what should stand in the gap,put words where the blank is",
    "describe": "describe {p},describe the record,describe the restaurant,describe these facts,put {p} into words,"
    "put the record into words,put the data into words,write a description,write a description of {p},"
    "write a text about {p},write a sentence from the record,turn the record into text,turn the data into a sentence,"
    "turn these fields into prose,verbalise {p},verbalize the record,say what the record says,tell me about {p},"
    "say {p} in words,make a sentence of the facts,write up the facts,make a text from the slots,"
    "explain the record in a sentence,make {p} a full sentence,data to text",
}
"""Ways to ask for the tasks of `manta data make tasks`."""
OTHERS: Final = (
    "translate {p},translate {p} into french,make {p} longer,make {p} rhyme,correct the spelling,fix the grammar,"
    "make {p} polite,make {p} funny,in german please,write a poem,tell me a joke,hello,thank you,help,who are you,"
    "what can you do,what is the weather like,delete {p},save {p},print {p},undo,stop,quit,yes,no,ok,read {p} aloud,"
    "count the words,how many words has {p},who wrote {p},is {p} true,what language is {p},do something,do it,"
    "make {p} better,improve {p},rewrite {p},paraphrase {p},say {p} differently,change {p},what do you think of {p},"
    "search the web,book a table,play music,make a table of {p},make {p} bold,colour {p},put {p} in capitals,"
    "do not {x} {p},don't {x} {p},never {x} {p},keep {p} as it is,leave {p} alone,make {p} formal,simplify {p},"
    "classify {p},rate {p},what is the sentiment of {p},ask me something,list the names,sort {p},reverse {p},"
    "good morning,good evening,good night,see you,how are you,how are you today,where are you,when were you made,"
    "why,why is that,why is it so,why is the grass green,how does it work,how is that done,how far is it,"
    "what,what is that,what is this,what is your name,who is there,where is it,when is it,which one,is it open,"
    "go away,go home,come here,write in another language,write to my boss,send {p},mail {p},copy {p},find {p},"
    "open the door,make coffee,make dinner,sing,dance,add two numbers,tell me the time,tell me a story,fill my glass,"
    "cut the grass,finish your dinner,i do not know,never mind,wait,sorry,great,nice,wow,i am tired,i am hungry"
)
"""What asks for none of them."""


@dataclass(frozen=True)
class Understood:
    """What was made of an instruction."""

    task: str | None
    """What is asked for; None where the words do not say it surely enough."""
    confidence: float
    """Of the likeliest task, in [0, 1]."""
    chances: Mapping[str, float]
    """Of each task."""

    def explain(self) -> str:
        """In words, for a person."""
        if self.task is not None:
            return f"understood: {self.task} ({self.confidence:.0%} sure)"
        likely = max(self.chances, key=lambda name: self.chances[name])
        return (
            f"not understood (at most {self.confidence:.0%} sure of {likely}); the model's tasks are "
            f"{', '.join(self.chances)}: say one of them"
        )


def lessons(tasks: Sequence[str]) -> tuple[list[str], Float[Tensor, "b k"]]:
    """Phrases, and for each the answers that it should have.

    Args:
        tasks: names of a model's tasks.
    """
    found: dict[str, str | None] = {}

    def take(phrase: str, task: str | None) -> None:
        found.setdefault(phrase.replace("{p}", TEXTS[len(found) % len(TEXTS)]), task)

    own = {word for task in tasks if task.casefold() not in ACTS for word in task.casefold().replace("_", " ").split()}
    for task in tasks:
        for frame in NAMED.split(","):
            take(frame.replace("{}", " ".join(task.replace("_", " ").replace("-", " ").split())), task)
        for frame, act in product(FRAMES, ACTS[task.casefold()].split(",") if task.casefold() in ACTS else ()):
            take(frame.replace("{}", act), task)
    for act in OTHERS.split(","):
        for word in ("shorten", "continue", "fill", "describe") if "{x}" in act else ("",):
            for frame in FRAMES:
                if not own & set(act.split()):
                    take(frame.replace("{}", act.replace("{x}", word)), None)
    for task in sorted(set(ACTS) - {task.casefold() for task in tasks}):  # what another model could be asked
        for act in ACTS[task].split(","):
            if not own & set(act.split()):
                take(act, None)
    phrases = list(found)
    return phrases, torch.tensor([[float(found[phrase] == task) for task in tasks] for phrase in phrases])


@cache
def learned_router(tasks: tuple[str, ...]) -> Float[Tensor, "k g"]:
    """Weights that read instructions for some tasks; always the same for the same names."""
    return learned(*lessons(tasks), WORTH)


def understood(instruction: str, tasks: tuple[str, ...]) -> Understood:
    """Which of some tasks an instruction asks for.

    Args:
        instruction: in English.
        tasks: their names.

    Raises:
        UsageError: the instruction is empty or too long.
    """
    check_instruction(instruction, f"say one of {', '.join(tasks)}, or ask for it in words")
    chances = answers_of([instruction], learned_router(tasks)).sigmoid()[0]
    best = likeliest(chances, SURE)
    told = {name: round(float(chance), 4) for name, chance in zip(tasks, chances, strict=True)}
    return Understood(None if best is None else tasks[best], max(told.values()), told)
