"""Tables of what diagnosis says of models; `benchmarks/tables.py` puts them into the pages."""

from typing import Any


def diagnose_table(result: dict[str, Any]) -> str:
    """Every figure of every model, its mean and in brackets its standard deviation over prompts; absent is not 0."""
    models = result["models"]
    lines = ["| figure | " + " | ".join(model["name"] for model in models) + " |", "|---|" + "---|" * len(models)]
    for name in sorted({name for model in models for name in model["figures"]}):
        cells = []
        for model in models:
            figure = model["figures"].get(name)
            if figure is None:
                cells.append("–")
            else:
                cells.append(
                    "absent" if figure["mean"] is None else f"{figure['mean']:.3g} (sd {figure['spread'] or 0:.2g})"
                )
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts_table(result: dict[str, Any]) -> str:
    """What the figures say of the claims."""
    lines = ["| claim | models | here | evidence |", "|---|---|---|---|"]
    for verdict in result["verdicts"]:
        lines.append(f"| {verdict['claim']} | {verdict['subject']} | **{verdict['status']}** | {verdict['evidence']} |")
    return "\n".join(lines)


def steering_table(result: dict[str, Any]) -> str:
    """How far a keyword goal moves each model, and what it costs."""
    lines = [
        f"| toward the word `{result['keyword']}` | way | strength | texts with it | words edited | likelihood lost "
        "| faithfulness lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        for part in model["steering"]:
            shares = [_mean_of(part["figures"], name, "{:.0%}") for name in ("met", "edited")]
            shares += [_mean_of(part["figures"], name, "{:.2f}") for name in ("likelihood_lost", "faithfulness_lost")]
            lines.append(f"| {model['name']} | {part['way']} | {part['strength']:g} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _mean_of(figures: dict[str, Any], name: str, form: str) -> str:
    value = figures.get(name, {}).get("mean")
    return "–" if value is None else form.format(value)


def feedback_table(result: list[dict[str, Any]]) -> str:
    """Where a pushed plan ends, with feedback and with recorded controls."""
    lines = [
        "| style | push (of the noise) | at t | distance at the end over the push: feedback | replay | "
        "words told otherwise: feedback | replay |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result:
        gains = [f"{row[name][0]:.2f} (sd {row[name][1]:.2f})" for name in ("feedback_gain", "replay_gain")]
        flips = [f"{row[name][0]:.1%}" for name in ("feedback_flips", "replay_flips")]
        lines.append(f"| {row['style']} | {row['push']:g} | {row['t']:g} | " + " | ".join(gains + flips) + " |")
    return "\n".join(lines)


def prediction_table(result: dict[str, Any], most: int = 8) -> str:
    """The figures that go best with quality, by budget."""
    lines = ["| calls | figure | ρ | p | variants |", "|---|---|---|---|---|"]
    for budget, figures in result["correlations"].items():
        for name, link in list(figures.items())[:most]:
            lines.append(f"| {budget} | `{name}` | {link['rho']:+.2f} | {link['p']:.4f} | {link['n']} |")
    return "\n".join(lines)
