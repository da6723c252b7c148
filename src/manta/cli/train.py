"""`manta train DATA|CONFIG --out DIR`: train a model on a file, a built-in corpus or a recipe."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.screen import WIPE, in_place
from manta.config import apply_overrides, from_dict, load_toml, read_toml, to_dict
from manta.errors import MantaError, TrainingError, UsageError
from manta.families import TrainedName


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a model: tokenizer, teacher, space and policy, in one run folder that can be resumed."""

    data: str = argument("")
    """A .txt, .jsonl or .csv file; builtin:weather; a structured task: builtin:sudoku4, builtin:sudoku9,
    builtin:countdown, builtin:paths, d1-countdown:PATH, sudoku17:PATH (d1-sudoku:PATH is a test set
    only); e2e:PATH, tinystories:PATH, hf:NAME; images: images:FOLDER, FILE.npz, builtin:shapes; photographs to
    learn restoration from: restore:FOLDER; or a recipe.toml."""
    overrides: tuple[str, ...] = argument((), "KEY=VALUE")
    """Fields of the recipe, such as `train.learning_rate=1e-3` or `model.space.rate=8`."""
    out: Path | None = None
    """The run folder, new or empty; the model will be in its folder `model`."""
    time_budget: str | None = None
    """Time for the whole run, such as 3m or 2h, preparing the data included; 30m without one. With --resume, a longer
    one gives the stages that are not finished more steps."""
    num_steps: int | None = None
    """Steps of all stages together, instead of a time budget."""
    drafter: Path | None = None
    """A left-to-right model to teach to draft, best on the data it was trained on: of the families `ar` and `decoder`,
    an aligned one that reads both ways, or a published one of Llama's or GPT-NeoX's layout. The run's model is a copy
    that writes the same texts in fewer calls."""
    teacher: Path | None = None
    """An autoregressive model to teach this one, instead of one that the run trains: it answers the prompts, and its
    tokenizer and weights are where the model begins."""
    inherit: Path | None = None
    """A larger model that this one begins as a part of, with its family, tokenizer and shape but for what
    `teacher.depth=3 teacher.hidden=96` say (`model.`, `aligned.`, `masked.` for the other families)."""
    from_: str | None = None
    """A model to train on, of manta or a published one (LLaDA's, Dream's, Llama's or GPT-NeoX's layout): a folder, a
    name of the hub (`hf:OWNER/NAME`) or `builtin:NAME`. Its family, tokenizer and shape stay."""
    lora: int | None = None
    """Of a published model: train adapters of this rank and nothing else (see also `lora.targets=attention`); needs the
    extra `hf`."""
    lora_alpha: float | None = None
    """What an adapter adds is weighed by alpha / rank; twice the rank without it."""
    merge: bool = False
    """With --lora: write model and adapters as one, too, into the run's folder `model`."""
    family: TrainedName | None = None
    """Which family: `aligned` writes a text in one call or a few, `masked` is masked diffusion, `ar` left to right,
    `decoder` left to right in Llama's layout, which `manta export` writes for others; `manta` without it. Of images
    with captions: `joint` draws captions and describes images."""
    tasks: Literal["none", "low_rank", "full", "film"] | None = None
    """Tell apart the tasks that the data name (`manta data make tasks`): `low_rank` gives each a small change of the
    weights, `full` a whole one, `film` a scale and a shift of what each map puts out, `none` only its heading before
    the prompt. For --family ar and masked."""
    net: Literal["dic", "udit", "dit"] | None = None
    """Of a model of images: an hourglass of convolutions, a U of downsampled attention, or attention between patches;
    `dic` without it."""
    size: Literal["auto", "nano", "tiny", "small", "base", "large"] | None = None
    """The size dial; by the time budget without it."""
    seed: int | None = None
    """All randomness of the run."""
    device: str | None = None
    """cpu, cuda or cuda:N; the first GPU if there is one."""
    shard: Literal["none", "grad", "full"] = "none"
    """What the processes of torchrun share out: `none`, each holds the whole model; `grad`, gradients, moments and
    averages; `full`, the weights too, which are gathered block by block. It may change with --resume."""
    engine: Literal["none", "ray"] = "none"
    """Who starts the processes of a run: `none`, you do, with torchrun; `ray`, this command, on a cluster; needs the
    extra `ray`."""
    workers: int | None = None
    """With --engine ray, how many; as many as there are GPUs here, or 2, without it."""
    address: str | None = None
    """With --engine ray, a cluster that runs, such as `auto` or HOST:PORT; RAY_ADDRESS, or this machine, without it."""
    tensorboard: bool = False
    """Write TensorBoard events into the run folder too; needs the extra `log` (also: `train.tensorboard=true`)."""
    resume: bool = False
    """Continue the run in --out, exactly where its last checkpoint stands, by the recipe it began with."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(TrainOptions, argv, "train")
    if "RANK" in os.environ:  # before torch reads it: its hints on speed would come once a process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if options.out is None:
        raise UsageError("say where the run goes: manta train DATA --out DIR")
    if not options.data and not options.resume:
        raise UsageError("say what to train on: manta train FILE|builtin:weather|recipe.toml --out DIR")
    moot = [name for name in ("workers", "address") if getattr(options, name) is not None]
    if options.engine == "none" and moot:
        raise UsageError(f"--{moot[0]} is for --engine ray; give that too, or leave it out")
    progress = Progress()
    try:
        if options.resume:
            _check_resumed(options)
        if options.engine == "ray":
            return _by_ray(options, progress)
        training = _begun(options, progress)
    except MantaError as error:
        from manta.training.team import several

        # All processes are told the same before they have met.
        error.told = error.told or (several() > 1 and os.environ.get("RANK", "0") != "0")
        raise
    flags = "" if options.shard == "none" else f" --shard {options.shard}"
    return follow(training, options.out, progress, flags)


def _check_resumed(options: TrainOptions) -> None:
    """Refuse what would make another run of one that goes on."""
    from manta.recipes.runfolder import refuse_changes, stored_recipe
    from manta.recipes.states import resolved

    assert options.out is not None, "checked before"
    own = stored_recipe(options.out)
    # More of a time budget is no change of the run.
    longer = options.time_budget is not None and own.num_steps is None
    given = replace(options, time_budget=own.time_budget) if longer else options
    whole = resolved(_recipe(given)) if options.data else None
    refuse_changes(options.out, _recipe(given, own), whole, "--resume")


def _begun(options: TrainOptions, progress: "Progress"):
    """The run that is asked for."""
    from manta.recipes import TrainingRun

    assert options.out is not None, "checked before"
    return TrainingRun(
        None if options.resume else _recipe(options),
        options.out,
        resume=options.resume,
        device=options.device,
        time_budget=options.time_budget if options.resume else None,
        sharding=options.shard,
        tell=progress.say,
    )


def follow(training, out: Path, progress: "Progress", flags: str = "") -> int:
    """Train to the end, or to an interruption, and say how it goes on or what it can be used for.

    Args:
        training: the run.
        out: its folder, as it was named.
        progress: shows it.
        flags: to be given again when it goes on.
    """
    from manta.recipes.runfolder import newest
    from manta.training.team import Gone

    size, first = training.team.size, training.team.first
    launcher = "" if size == 1 else f"torchrun --nproc-per-node {size} -m "
    again = f"{launcher}manta train --resume --out {shlex.quote(str(out))}{flags}"
    try:
        with closing(training.events()) as events:
            for event in events:
                if first:
                    progress.show(event, training.unit)
    except KeyboardInterrupt as error:
        at = f"saved at {training.saved}" if training.saved else "before its first step"
        with suppress(OSError):  # a terminal that has hung up
            if first:
                print(f"\nmanta: interrupted, {at}; continue with: {again}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 130)
    except TrainingError as error:
        where = f"; the newest checkpoint is {newest(out)}" if isinstance(error, Gone) else ""
        error.args = (f"{error}{where} ({again})",)
        error.told = error.told or (size > 1 and not _speaks(out))
        raise
    except Exception as error:
        if size == 1 or isinstance(error, MantaError):
            raise
        which = f"process {training.team.rank + 1} of {size}"
        raise TrainingError(f"{which}: {type(error).__name__}: {error} ({again})") from error
    finally:
        training.team.close()
    if not first:
        return 0
    print(_to_use(training.recipe.state, out), file=sys.stderr)
    return 0


def _to_use(state: str, out: Path) -> str:
    """How what was trained is used: texts that have no prompts go on from a beginning."""
    from manta.families import FAMILIES
    from manta.recipes.card import asked
    from manta.recipes.states import STATES

    told, file = STATES[state].use, out / "model" / "config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    if config.get("prompted") is False and "model" in config:
        shape = from_dict(FAMILIES[config["family"]].load().config_class, config["model"], "model")
        told = told.replace("--prompt '…'", asked(False, shape))
    return told.replace("{out}", shlex.quote(str(out)))


def _speaks(out: Path) -> bool:
    """Whether this process is the first of a run that says how it has ended; the next run sweeps the mark away."""
    try:
        (out / ".manta-ended.tmp").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _by_ray(options: TrainOptions, progress: "Progress") -> int:
    """Train with processes that Ray places."""
    import torch

    from manta.cluster.training import Placed, train_many

    assert options.out is not None, "checked before"
    gpus = options.device != "cpu" and torch.cuda.device_count() > 0
    workers = options.workers or (torch.cuda.device_count() if gpus else 2)
    out = options.out.absolute()
    placed = Placed(
        recipe=None if options.resume else _recipe(options),
        out=out,
        resume=options.resume,
        time_budget=options.time_budget if options.resume else None,
        sharding=options.shard,
        folder=os.getcwd(),
    )
    again = f"manta train --resume --engine ray --workers {workers} --out {shlex.quote(str(options.out))}"
    again += "" if options.shard == "none" else f" --shard {options.shard}"
    try:
        ended = train_many(placed, workers=workers, gpus=gpus, address=options.address, show=progress.show)
    except KeyboardInterrupt as error:
        with suppress(OSError):
            print(f"\nmanta: interrupted, with a checkpoint; continue with: {again}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 130)
    except TrainingError as error:
        error.args = (f"{error} ({again})",)
        raise
    print(_to_use(ended.state, options.out), file=sys.stderr)
    return 0


def _recipe(options: TrainOptions, own=None):
    """The recipe that the options describe, or with `own` that one with what they change."""
    from manta.recipes.origins import placed
    from manta.recipes.states import recipe_class, state_of
    from manta.recipes.unused import refuse_written

    told = read_toml(Path(options.data)) if options.data.endswith(".toml") else {}
    if own is not None and not options.data:
        recipe = own
    elif own is not None and not options.data.endswith(".toml"):
        recipe = replace(own, data=options.data)
    elif options.data.endswith(".toml"):
        begun = options.from_ or told.get("begin_from")
        state = told.get("state", state_of(str(told.get("data", "")), begin_from=begun))
        recipe = load_toml(recipe_class(state), Path(options.data))
    else:
        state = state_of(options.data, options.family, options.from_)
        recipe = from_dict(recipe_class(state), {"data": options.data})
    named = ("time_budget", "num_steps", "family", "size", "seed")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if "num_steps" in given and "time_budget" not in given:
        given["time_budget"] = None
    if "time_budget" in given and "num_steps" not in given:
        given["num_steps"] = None
    if options.net is not None and to_dict(recipe).get("model", {}).get("net", {}).get("kind") != options.net:
        given["model"] = {**to_dict(recipe).get("model", {}), "net": {"kind": options.net}}
    _refuse_other_state(recipe.state, options)
    if options.drafter is not None:
        if options.family not in (None, "ar", "decoder", "aligned"):
            raise UsageError(f"--drafter is for a model that writes left to right; leave --family {options.family} out")
        given["drafter_of"] = placed(str(options.drafter))
    if options.teacher is not None:
        given["taught_by"] = placed(str(options.teacher))
    if options.inherit is not None:
        given["inherit"] = placed(str(options.inherit))
    if options.from_ is not None:
        given["begin_from"] = placed(options.from_)
    given |= _low_rank(recipe, options)
    given |= _tasks(recipe, options, given)
    recipe = from_dict(type(recipe), {**to_dict(recipe), **given})
    overrides = ("train.tensorboard=true", *options.overrides) if options.tensorboard else options.overrides
    recipe = apply_overrides(recipe, overrides)
    if own is None:
        refuse_written(recipe, told, overrides)
    return recipe


def _low_rank(recipe, options: TrainOptions) -> dict[str, Any]:
    """What the options say of adapters.

    Raises:
        UsageError: the recipe is of no published model.
    """
    said = {"rank": options.lora, "alpha": options.lora_alpha}
    said = {name: value for name, value in said.items() if value is not None}
    if not said and not options.merge:
        return {}
    if recipe.state != "tuned":
        name = "merge" if not said else "lora"
        raise UsageError(f"--{name} is for published models, named with --from; a model of manta is trained whole")
    given: dict[str, Any] = {"lora": {**to_dict(recipe)["lora"], **said}} if said else {}
    return {**given, "merge": True} if options.merge else given


def _tasks(recipe, options: TrainOptions, given: dict[str, Any]) -> dict[str, Any]:
    """What the options say of tasks.

    Raises:
        UsageError: the family cannot tell them apart, or the model keeps its shape.
    """
    if options.tasks is None:
        return {}
    if options.from_ is not None or options.inherit is not None or options.drafter is not None:
        raise UsageError("--tasks is for a new model; one that is begun with keeps its shape and its tasks")
    from manta.recipes.prepare import telling_tasks

    return telling_tasks(recipe, given.get("family", recipe.family), options.tasks)


def _refuse_other_state(state: str, options: TrainOptions) -> None:
    """Refuse options that mean nothing to models of what the data are.

    Raises:
        UsageError: as said.
    """
    from manta.recipes.states import STATES, recipe_class

    texts, images = ("drafter", "teacher", "inherit", "family", "tasks"), ("net",)
    for name in (*texts, *images, "size"):
        if state == "tuned" and getattr(options, name) is not None:
            raise UsageError(f"--{name} says what a published model of --from has already; leave it out")
    if options.from_ is not None and not hasattr(recipe_class(state), "begin_from"):
        made = STATES[state].words
        raise UsageError(
            f"--from trains models of texts and restorers on, and {options.data} is for a model of {made}; leave it out"
        )
    unknown = (*(() if state in ("image", "photo") else images), *(() if state in ("text", "joint") else texts))
    for name in unknown:
        if getattr(options, name) is not None:
            other = "texts" if name in texts else "images without captions"
            raise UsageError(
                f"--{name} is for models of {other}, and {options.data or 'this run'} is not; leave it out"
            )


class Progress:
    """Shows a run: one line in place on a terminal, and a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.last, self.window = 0.0, _Window()

    def say(self, text: str) -> None:
        """Show something that is told once."""
        print((WIPE if self.live else "") + text, file=sys.stderr, flush=True)

    def show(self, event, unit: str) -> None:
        """Show an event of the run, whose batches have elements of a unit."""
        from manta.recipes.run import Note

        if isinstance(event, Note):
            self.say(event.text)
            return
        line = self.window.line(event, unit)
        if time.perf_counter() - self.last > (0.2 if self.live else 10) or event.step == event.num_steps:
            self.last = time.perf_counter()
            print(
                in_place(line, sys.stderr) if self.live else line,
                end="" if self.live else "\n",
                file=sys.stderr,
                flush=True,
            )
        if self.live and event.step == event.num_steps:
            print(file=sys.stderr)


class _Window:
    """Running figures of a stage for its progress line."""

    def __init__(self) -> None:
        self.stage, self.loss, self.pace, self.elements = "", math.nan, math.nan, math.nan

    def line(self, event, unit: str) -> str:
        if event.stage != self.stage:
            self.stage, self.loss, self.pace, self.elements = event.stage, event.loss, event.seconds, event.num_elements
        self.loss += 0.05 * (event.loss - self.loss)
        self.pace += 0.05 * (event.seconds - self.pace)
        self.elements += 0.05 * (event.num_elements - self.elements)
        left = (event.num_steps - event.step) * self.pace
        parts = " ".join(f"{name} {value:.3g}" for name, value in event.parts.items())
        return (
            f"{event.stage} {event.step}/{event.num_steps}  loss {self.loss:.3f}  {parts}  "
            f"{self.elements / self.pace:,.0f} {unit}/s  {int(left // 60)}:{int(left % 60):02d} left"
        )
