"""A diagnosis of models side by side: the same prompts, seeds and disturbances for each."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from manta.diagnosis import chain_figures, flow_figures
from manta.diagnosis.common import correction_figures, disturbance_figures, quality_figures, word_figures
from manta.diagnosis.judging import Judgement, oracle_of
from manta.diagnosis.results import Measured, Settings
from manta.diagnosis.steering import Steered, choose_keyword, steer, steer_tuned
from manta.diagnosis.system import System
from manta.diagnosis.systems import system_of
from manta.diagnosis.tuning import TuningConfig, tune
from manta.errors import UsageError
from manta.families.autoregressive import AutoregressiveLM
from manta.families.events import GenerateOptions, Request
from manta.families.options import spelled

Progress = Callable[[str], None]
"""`progress(line)`: told what is being measured."""


@dataclass
class ModelDiagnosis:
    """What was found of one model."""

    name: str
    family: str
    about: dict[str, Any]
    """Space, parameters, calls: what a reader should know of the model."""
    measured: Measured = field(default_factory=Measured)
    steered: list[Steered] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """Plain values for JSON; what is absent is None."""
        return {
            "name": self.name,
            "family": self.family,
            **self.about,
            "seconds": round(self.seconds, 1),
            "figures": {name: figure.row() for name, figure in sorted(self.measured.figures.items())},
            "profiles": {name: profile.row() for name, profile in sorted(self.measured.profiles.items())},
            "ways": {kind: [list(way) for way in ways] for kind, ways in self.measured.ways.items()},
            "timelines": self.measured.timelines,
            "steering": [part.row() for part in self.steered],
        }


@dataclass
class Diagnosis:
    """What was found of all models."""

    models: list[ModelDiagnosis]
    prompts: list[str | None]
    settings: Settings
    oracle: str | None
    """Name of the oracle of faithfulness; None where the prompts have none."""
    judge: str | None
    """Name of the model that judged fluency; None: none did."""
    keyword: str | None
    """Goal of the steering; None: no word offered itself."""

    def row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "prompts": len(self.prompts),
            "settings": asdict(self.settings),
            "oracle": self.oracle,
            "judge": self.judge,
            "keyword": self.keyword,
            "models": [model.row() for model in self.models],
        }


def diagnose(
    models: Mapping[str, Any],
    prompts: Sequence[str | None],
    settings: Settings | None = None,
    *,
    judge: tuple[str, AutoregressiveLM] | None = None,
    keyword: str | None = None,
    progress: Progress = lambda line: None,
) -> Diagnosis:
    """Measure every figure of `docs/diagnostics.md` on each model.

    Args:
        models: name → model of the family manta, masked, block, aligned or ar.
        prompts: the same for all models, at least two for a spread.
        settings: how.
        judge: name and model of the judge of fluency; None takes the first autoregressive one among the models, which
            favours its own texts, or none.
        keyword: goal of the steering; None chooses one from the first model's texts.
        progress: called with a line before each part.

    Raises:
        ModelError: for a model without the needed access.
        RequestError: for a prompt that does not fit a model.
        UsageError: without models or prompts, or for a setting that means nothing to any of the models.
    """
    settings = settings or Settings()
    if not models or not prompts:
        raise UsageError(f"a diagnosis takes models and prompts, received {len(models)} and {len(prompts)}")
    _check_settings(settings, list(models.values()))
    judge = judge or next(((name, lm) for name, lm in models.items() if getattr(lm, "family", "") == "ar"), None)
    oracle = oracle_of(prompts)
    judgement = Judgement(oracle, judge[1] if judge else None)
    found = Diagnosis(
        models=[],
        prompts=list(prompts),
        settings=settings,
        oracle=oracle.__name__.strip("_") if oracle else None,
        judge=judge[0] if judge else None,
        keyword=keyword,
    )
    for name, lm in models.items():
        found.models.append(_diagnose(name, lm, found, judgement, progress))
    return found


def _check_settings(settings: Settings, models: Sequence[Any]) -> None:
    """Refuse a setting that was given and that none of the models follows; one that some follow serves those."""
    flows = [lm for lm in models if lm.family == "manta"]
    latent = [lm for lm in flows if lm.model.space.estimates]
    one_style = all(lm.family in ("ar", "aligned", "block") for lm in models)
    usual = Settings()
    moot = {
        "style": (one_style, "Manta-LM and masked models"),
        "words": (not flows, "Manta-LM"),
        "tune": (not latent, "a Manta-LM over latents"),
    }
    for name, (void, whose) in moot.items():
        if void and getattr(settings, name) != getattr(usual, name):
            raise UsageError(f"{spelled(name)} means nothing to these models; it is for {whose}; leave it out")


def _diagnose(name: str, lm: Any, found: Diagnosis, judgement: Judgement, progress: Progress) -> ModelDiagnosis:
    start, settings = time.perf_counter(), found.settings
    options = GenerateOptions(num_steps=settings.num_steps + 1, style=settings.style)  # pyright: ignore
    requests = [Request(prompt=prompt, seed=settings.seed + i) for i, prompt in enumerate(found.prompts)]
    progress(f"{name}: writing {len(requests)} texts")
    size = settings.batch_size
    systems = [
        system_of(lm, requests[at : at + size], settings.num_steps, options, settings.words)
        for at in range(0, len(requests), size)
    ]
    if found.keyword is None:
        texts = [text for system in systems for text in system.texts(system.tokens)]
        found.keyword = choose_keyword(texts, found.prompts)
    model = ModelDiagnosis(name, systems[0].family, systems[0].facts())
    for part, measure in _parts(systems[0], settings, judgement).items():
        progress(f"{name}: {part}")
        whole = Measured()
        for system in systems:
            whole.join(measure(system))
        model.measured.figures |= whole.figures
        model.measured.profiles |= whole.profiles
        model.measured.ways |= whole.ways
        model.measured.timelines += whole.timelines
    if found.keyword is not None:
        progress(f"{name}: steering toward {found.keyword!r}")
        for system in systems:
            parts = steer(system, found.keyword, settings, judgement)
            if model.steered:
                for one, other in zip(model.steered, parts, strict=True):
                    one.join(other)
            else:
                model.steered = parts
        if settings.tune and lm.family == "manta" and lm.model.space.estimates:
            progress(f"{name}: tuning toward {found.keyword!r}")
            config = TuningConfig(num_updates=settings.tune)
            tuned = tune(lm, found.prompts, found.keyword, config, seed=settings.seed)
            parts = [steer_tuned(s, tuned, config.reward_scale, found.keyword, judgement) for s in systems]  # pyright: ignore
            for other in parts[1:]:
                parts[0].join(other)
            model.steered.append(parts[0])
    model.seconds = time.perf_counter() - start
    return model


def _parts(system: System, settings: Settings, judgement: Judgement) -> dict[str, Callable[[Any], Measured]]:
    """What is measured of a family, in order."""
    parts: dict[str, Callable[[Any], Measured]] = {
        "quality": lambda s: quality_figures(s, judgement),
        "the way of the words": word_figures,
        "disturbed words": lambda s: disturbance_figures(s, settings, judgement),
        "a corrupted text": lambda s: correction_figures(s, settings, judgement),
    }
    return parts | OF_FAMILY[system.family](settings)


OF_FAMILY: dict[str, Callable[[Settings], dict[str, Callable[[Any], Measured]]]] = {
    "manta": lambda settings: {
        "the plan's way": flow_figures.path_figures,
        "strain and rotation": lambda s: flow_figures.field_figures(s, settings),
        "acceleration and pressure": flow_figures.burgers_figures,
        "the adjoint": lambda s: flow_figures.adjoint_figures(s, settings),
        "pushes": lambda s: flow_figures.push_figures(s, settings),
    },
    "masked": lambda settings: {"the adjoint": lambda s: chain_figures.adjoint_figures(s, settings)},
    "block": lambda settings: {"the adjoint": lambda s: chain_figures.adjoint_figures(s, settings)},
    "aligned": lambda settings: {"the adjoint": lambda s: chain_figures.adjoint_figures(s, settings)},
    "ar": lambda settings: {"the adjoint": lambda s: chain_figures.adjoint_figures(s, settings)},
}
"""What is measured of one family alone."""
