"""One frozen evaluator for every family of models, and the comparison of several of them."""

from manta.evaluation.choice import Choice, choose
from manta.evaluation.dataset import EvaluationSet, Metric, Oracle, evaluation_set
from manta.evaluation.evaluator import Evaluator
from manta.evaluation.features import hashed_ngrams
from manta.evaluation.harness_tasks import TaskResults, run_tasks
from manta.evaluation.judges import JudgeModel, load_judge, shared_training
from manta.evaluation.likelihood import Likelihood, likelihood
from manta.evaluation.results import METRICS, Evaluation, EvaluatorConfig, Figure
from manta.evaluation.texts import RecordedTexts, recorded_texts
from manta.evaluation.writing import Contestant, Written, contestant, write

__all__ = [
    "METRICS",
    "Choice",
    "Contestant",
    "Evaluation",
    "EvaluationSet",
    "Evaluator",
    "EvaluatorConfig",
    "Figure",
    "JudgeModel",
    "Likelihood",
    "Metric",
    "Oracle",
    "RecordedTexts",
    "TaskResults",
    "Written",
    "choose",
    "contestant",
    "evaluation_set",
    "hashed_ngrams",
    "likelihood",
    "load_judge",
    "recorded_texts",
    "run_tasks",
    "shared_training",
    "write",
]
