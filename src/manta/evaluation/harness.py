"""A model of any family as lm-evaluation-harness asks models; it is imported when that is installed and used.

lm_eval --model manta --model_args pretrained=FOLDER --tasks TASK          # where lm_eval reads plugins
manta evaluate FOLDER --lm-eval TASK                                       # everywhere
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from manta.errors import DataError, UsageError
from manta.evaluation.kept_answers import KeptAnswers
from manta.evaluation.questions import Answer, Question, Questioned, Reading
from manta.evaluation.replies import Ask, Replying, read_ask
from manta.evaluation.writing import Contestant, Progress, loaded
from manta.families.events import BATCH
from manta.families.options import GenerateOptions, read_options
from manta.hub.digest import digest_of

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from tqdm import tqdm
except ImportError as error:
    raise DataError("its tasks need lm-eval; install it with: pip install 'manta[lm-eval]'") from error


class HarnessModel(LM):
    """A model of any family, asked by `lm_eval`.

    Args:
        pretrained: a model folder, a run folder, a hub name, `builtin:NAME`, or a loaded model.
        device: cpu, cuda or cuda:N; the harness's command asks for cuda:0 unless told otherwise, which is the CPU where
            there is no CUDA.
        batch_size: texts written at once; it changes no answer.
        max_batch_size: changes nothing.
        task: of a model that tells tasks apart, the one that is asked.
        samples: draws a question, where only a bound can be had.
        mc_num: another name for `samples`.
        seed: question i of a task draws with `seed + i`, as text i of an evaluation does.
        context: `prompt` or `beginning`: how a context is read; left out, as the model was trained.
        cut: leave out the beginning of a context that the model has no room for.
        cache: a file that keeps answers.
        progress: told what is done; None: a bar, as the harness shows its own.
        options: how texts are written, such as `num_steps=16`; they overrule a task's.

    Raises:
        UsageError: an unknown option, or one that does not fit the model.
        RequestError: the model has no such task, or has some and none is named.
        ModelError: there is no such model.
    """

    def __init__(
        self,
        pretrained: str | Contestant = "",
        device: str | None = None,
        batch_size: int | str | None = BATCH,
        max_batch_size: int | str | None = None,
        *,
        task: str | None = None,
        samples: int | None = None,
        mc_num: int | None = None,
        seed: int = 0,
        context: Reading | None = None,
        cut: bool = False,
        cache: str | Path | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if samples is not None and mc_num is not None:
            raise UsageError("samples and mc_num are two names of one number; give one")
        if device == "cuda:0" and not torch.cuda.is_available():
            device = None
        model = pretrained if isinstance(pretrained, Contestant) else loaded(pretrained, device=device)
        model = model.of_task(task)
        draws = next((number for number in (samples, mc_num) if number is not None), 8)
        if draws < 2:
            raise UsageError(f"a bound needs 2 draws or more, received {draws}")
        self.asked = Questioned(model, reading=context, samples=draws, cut=cut, progress=progress or _Bar())
        read_options(options)  # which refuses what none can have
        self.writing, self.overruled = options, dict[str, None]()
        size = int(str(batch_size)) if str(batch_size).isdecimal() else BATCH
        self.replying, self.seed, self.task = Replying(self.asked, size), seed, task
        path = None if cache is None else Path(cache)
        self.kept = KeptAnswers(path, "" if path is None else digest_of(model.lm))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """log p(continuation | context), exact or a bound, and whether it would be written greedily.

        Of a bound that is not known, and False.
        """
        questions = [Question(*_arguments(request), seed=self._seed(request)) for request in requests]
        kind = {**self._kind, "ask": "continuation", "reading": self.asked.reading, "cut": self.asked.cut}
        found = self._ask(kind, questions, self.asked.continuations)
        return self._told("loglikelihood", requests, [(answer.value, answer.greedy) for answer in found])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p(text), exact or a bound."""
        questions = [Question("", *_arguments(request), seed=self._seed(request)) for request in requests]
        found = self._ask({**self._kind, "ask": "text"}, questions, self.asked.texts)
        return self._told("loglikelihood_rolling", requests, [answer.value for answer in found])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What is written after each context; a request asked again draws with a seed of its own."""
        before: dict[str, int] = {}
        asks: list[Ask] = []
        for request in requests:
            context, how = _arguments(request)
            ask = read_ask(context, how or {}, self.writing, 0)
            seed = self._seed(request)
            if ask.options.temperature > 0:
                again = before.setdefault(repr((context, how, seed)), 0)
                before[repr((context, how, seed))] += 1
                seed = self.seed + (seed - self.seed) * (request.repeats or 1) + again
            asks.append(replace(ask, seed=seed))
            self.overruled |= dict.fromkeys(ask.overruled)
        found = self.kept.ask(
            {"ask": "reply", "reading": self.asked.reading, "cut": self.asked.cut},
            asks,
            self.replying.replies,
            spell=_spelled,
            read=_text,
            tell=str,
        )
        return self._told("generate_until", requests, found)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation of one user's turn in the frame of an instruct model; an answer may have begun.

        Args:
            chat_history: turns with `role` and `content`.
            add_generation_prompt: the answer begins.

        Raises:
            UsageError: a model without a frame, or a conversation that it does not hold.
        """
        frame = getattr(self.asked.lm, "frame", None)
        if frame is None:
            raise UsageError(f"{self.asked.model.name} has no chat frame that manta knows; leave the chat template out")
        roles = [turn.get("role") for turn in chat_history]
        if roles not in (["user"], ["user", "assistant"]) or (len(roles) == 1) != add_generation_prompt:
            raise UsageError(
                f"the frame holds one turn of a user and the answer, received the turns {', '.join(map(str, roles))}; "
                "leave out system instructions, and examples as turns of their own (--fewshot_as_multiturn false)"
            )
        self.asked.framed = True
        said = chat_history[0]["content"]
        begun = "" if len(roles) == 1 else chat_history[1]["content"]
        return frame.before + (said.strip() if frame.trimmed else said) + frame.after + begun

    @property
    def tokenizer_name(self) -> str:
        """A name by which the tokenizer is known again."""
        return f"manta-{self.asked.tokenizer.fingerprint()}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The frame, for records; empty where there is none."""
        frame = getattr(self.asked.lm, "frame", None)
        return "" if frame is None or not chat_template else f"{frame.before}{{}}{frame.after}"

    def get_model_info(self) -> dict[str, Any]:
        """What has to be known to read the results, which `lm_eval` writes beside them."""
        asked = self.asked
        return {
            "family": asked.lm.family,
            "task": self.task,
            "likelihood": asked.kind,
            "estimator": asked.estimator or None,
            "samples": asked.samples if asked.kind == "bound" else None,
            "context": asked.reading,
            "contexts_cut": asked.cut,
            "overruled": list(self.overruled),
            "greedy_known": asked.kind == "exact",
            "closing_token": not asked.published,
        }

    @property
    def _kind(self) -> dict[str, Any]:
        drawn = {"samples": self.asked.samples} if self.asked.kind == "bound" else {}
        return {**drawn, "framed": self.asked.framed}

    def _seed(self, request: Instance) -> int:
        return self.seed + (request.doc_id or 0)

    def _ask(self, kind: Mapping[str, Any], questions: Sequence[Question], find: Any) -> list[Answer]:
        drawn = self.asked.kind == "bound"
        if not drawn:  # nothing is drawn, so questions of other seeds are the same
            questions = [Question(each.context, each.continuation) for each in questions]
        spell = lambda each: [each.context, each.continuation, each.seed]  # noqa: E731
        return self.kept.ask(kind, questions, find, spell=spell, read=_answer, tell=lambda a: [a.value, a.greedy])

    def _told(self, name: str, requests: Sequence[Instance], answers: list[Any]) -> list[Any]:
        """Answers, which a cache of the harness's own hears of, too."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(name, request.args, answer)
        return answers


class _Bar:
    """Progress as a bar on stderr, one after the other."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `manta.evaluation.writing.Progress`."""
        if self.bar is None or (self.bar.desc, self.bar.total) != (what, total):
            self.bar = tqdm(desc=what, total=total)
            self.bar.set_description_str(what)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
            self.bar = None


def _arguments(request: Instance) -> tuple[Any, ...]:
    """What a request asks."""
    return request.args


def _answer(found: Any) -> Answer:
    value, greedy = found
    if not isinstance(value, float) or not isinstance(greedy, bool):
        raise TypeError(f"{found!r:.60} is no likelihood")
    return Answer(value, greedy)


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r:.60} is no text")
    return found


def _spelled(ask: Ask) -> list[Any]:
    how = [[each.name, getattr(ask.options, each.name)] for each in fields(GenerateOptions)]
    return [ask.context, list(ask.until), ask.limit, how, ask.seed]
