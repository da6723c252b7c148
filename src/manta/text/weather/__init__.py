"""A corpus that needs no file: weather records, forecasts drawn from a grammar, and an oracle that judges any text."""

from manta.text.weather.judge import judge
from manta.text.weather.oracle import SIZES, Verdict, check, entropy, examples, log_probability, realise
from manta.text.weather.records import WeatherRecord, parse_prompt, record_log_probability, sample_record

__all__ = [
    "SIZES",
    "Verdict",
    "WeatherRecord",
    "check",
    "entropy",
    "examples",
    "judge",
    "log_probability",
    "parse_prompt",
    "realise",
    "record_log_probability",
    "sample_record",
]
