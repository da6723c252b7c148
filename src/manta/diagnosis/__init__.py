"""Real models before the diagnostics of `manta.control`: adapters, figures with their spread, verdicts, the report."""

from manta.diagnosis.canvas_systems import AlignedSystem, MaskedSystem
from manta.diagnosis.page import render
from manta.diagnosis.results import Figure, Measured, Profile, Settings
from manta.diagnosis.run import Diagnosis, ModelDiagnosis, diagnose
from manta.diagnosis.system import System
from manta.diagnosis.systems import AutoregressiveSystem, FlowSystem, system_of
from manta.diagnosis.tuning import TuningConfig, tune
from manta.diagnosis.verdicts import Verdict, verdicts

__all__ = [
    "AlignedSystem",
    "AutoregressiveSystem",
    "Diagnosis",
    "Figure",
    "FlowSystem",
    "MaskedSystem",
    "Measured",
    "ModelDiagnosis",
    "Profile",
    "Settings",
    "System",
    "TuningConfig",
    "Verdict",
    "diagnose",
    "render",
    "system_of",
    "tune",
    "verdicts",
]
