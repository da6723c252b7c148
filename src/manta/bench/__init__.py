"""What things cost on this machine: writing, training, starting up, operators, and an outside reference beside them."""

from manta.bench.operators import crossings, growth, operator_costs, operators_page, randomised
from manta.bench.outside import generate, gpt2_like, has_transformers, outside_rates
from manta.bench.startup import cold_start
from manta.bench.timing import interleaved, machine, rows_as_table
from manta.bench.training import training_rates
from manta.bench.writing import Setting, settings_of, writing_rates

__all__ = [
    "Setting",
    "cold_start",
    "crossings",
    "generate",
    "gpt2_like",
    "growth",
    "has_transformers",
    "interleaved",
    "machine",
    "operator_costs",
    "operators_page",
    "outside_rates",
    "randomised",
    "rows_as_table",
    "settings_of",
    "training_rates",
    "writing_rates",
]
