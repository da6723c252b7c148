"""Instructions in words that no lesson has: followed when they ask for a task, refused when they do not."""

import pytest
import torch

from manta.errors import UsageError
from manta.families.routing import SURE, learned_router, lessons, understood

TASKS = ("continue", "describe", "fill", "shorten")
ASKED = {
    "shorten": "could this be a bit shorter?|cut it to one short line|i need a briefer text|trim my text please|"
    "sum this up for me|too long, shorten|condense that paragraph|make a short version|give the gist in fewer words|"
    "summarise the review|please be more brief|reduce this to the essentials",
    "continue": "keep on writing|please finish the sentence i started|go on with the story|what happens next|"
    "write what follows|complete my sentence|carry on from there|continue where it stops|add the rest|"
    "extend this text|and then? go on|please write on",
    "fill": "fill in what is missing|fill this gap|which words are missing here|complete the blanks|"
    "put words into the blank|what belongs into the hole|insert what is missing|guess the missing words|"
    "replace the gap with words|fill the blanks please|supply the missing words|find out what the blank says",
    "describe": "describe this record please|put these data into a sentence|write about the restaurant|"
    "turn this record into a text|say the facts in words|make a description|verbalise the data|"
    "write a sentence about these facts|give me a description of the place|data into text please|"
    "express the record in words|describe the pub",
}
"""Lessons were changed once after these were looked at: 46 of 48 were understood before and none wrongly."""
FRESH = {
    "shorten": "this is wordy, tighten it|a shorter one please|squeeze it into fewer words|abbreviate the text|"
    "make a summary|can you be briefer|cut the length|shorten my review",
    "continue": "continue from here please|finish it off|how does the text end|go ahead and write the rest|"
    "keep the text going|write the next words|complete the sentence please|carry on writing",
    "fill": "fill the empty spot|what should be in the blank|complete the missing part|insert words at the gap|"
    "fill in the empty places|which word is missing|the blank should be filled|recover the missing words",
    "describe": "describe the venue|write the record out as a sentence|put the slots in words|"
    "turn the fields into a text|make prose of this record|write a description for the record|"
    "tell me about the restaurant|a sentence from these data please",
}
"""None was looked at before the lessons were as they are."""
NOT_ASKED = (
    "what day is it|play some jazz|translate it to italian|make the tone friendlier|check my spelling|"
    "do not shorten it|please don't continue|who are you talking to|print the page|delete the last line|"
    "use british spelling|are you a robot|capitalise the names|what a lovely day|open a new file|"
    "write it as a poem|make it twice as long|remove the swear words|what is two plus two|leave it as it is"
)


@pytest.mark.parametrize("phrases", [ASKED, FRESH], ids=["asked", "fresh"])
def test_an_instruction_that_asks_for_a_task_is_followed_and_none_wrongly(phrases):
    asked = [(task, phrase) for task, row in phrases.items() for phrase in row.split("|")]
    known = set(lessons(TASKS)[0])
    fresh = [(task, phrase) for task, phrase in asked if phrase not in known]
    assert len(fresh) >= 0.7 * len(asked)
    found = [(task, understood(phrase, TASKS).task) for task, phrase in fresh]
    assert sum(task == answer for task, answer in found) / len(found) >= 0.8
    assert sum(answer is not None and task != answer for task, answer in found) <= 1


def test_what_asks_for_no_task_is_refused_and_not_guessed():
    refused = [understood(phrase, TASKS).task is None for phrase in NOT_ASKED.split("|")]
    assert sum(refused) / len(refused) >= 0.8


def test_tasks_of_ones_own_are_asked_for_by_their_names():
    names = ("make_formal", "shorten", "pirate talk")
    for words, task in (("make formal", names[0]), ("please pirate talk", names[2]), ("shorten it", "shorten")):
        assert understood(words, names).task == task
    assert understood("describe the record", names).task is None  # no task of this model


def test_an_answer_says_what_was_understood_or_names_the_tasks():
    found = understood("make it shorter", TASKS)
    assert found.task == "shorten" and "understood: shorten" in found.explain()
    assert found.confidence == max(found.chances.values()) >= SURE and set(found.chances) == set(TASKS)
    none = understood("what day is it", TASKS)
    assert none.task is None and all(task in none.explain() for task in TASKS)
    for wrong in ("", "   ", "shorten " * 100):
        with pytest.raises(UsageError):
            understood(wrong, TASKS)


def test_tasks_of_ones_own_are_not_taught_against():
    for tasks, instruction, wanted in (
        (("translate", "simplify"), "please translate this sentence", "translate"),
        (("Shorten", "sing"), "make it shorter", "Shorten"),
    ):
        assert understood(instruction, tasks).task == wanted
    learned_router.cache_clear()
    with torch.no_grad():
        assert understood("please simplify it", ("translate", "simplify")).task == "simplify"
