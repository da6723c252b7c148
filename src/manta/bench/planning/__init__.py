"""What a recipe would need on one GPU or many: memory, computing, sending, hours and cost."""

from manta.bench.planning.counting import Count, StageCount, counted
from manta.bench.planning.devices import SHEETS, Device, device_of
from manta.bench.planning.page import plan_as_json, plan_as_text, planned
from manta.bench.planning.spreading import Row, Shard, predicted, spread

__all__ = [
    "SHEETS",
    "Count",
    "Device",
    "Row",
    "Shard",
    "StageCount",
    "counted",
    "device_of",
    "plan_as_json",
    "plan_as_text",
    "planned",
    "predicted",
    "spread",
]
