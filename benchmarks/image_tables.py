"""Tables of image flows; `benchmarks/tables.py` puts them into the pages."""

from collections import defaultdict
from statistics import mean
from typing import Any

BUDGETS = ("4", "8", "16", "32")


def over_seeds(values: list[float], form: str = "{:.3g}") -> str:
    """Mean over training seeds, and the least and the most of them where there are several."""
    told = form.format(mean(values))
    return f"{told} ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else told


def shapes_table(result: dict[str, Any]) -> str:
    """What the oracle says of scenes, by calls."""
    lines = ["| 3 minutes on two cores | " + " | ".join(f"{b} calls" for b in BUDGETS) + " |", "|---|" + "---|" * 4]
    rows = [row for row in result["rows"] if row["suite"] == "shapes"]
    for figure, words in (("valid", "show a scene"), ("faithful", "show the class asked for")):
        cells = [over_seeds([row["scores"][b]["figures"][figure] for row in rows], "{:.1%}") for b in BUDGETS]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def nets_table(result: dict[str, Any]) -> str:
    """Nets side by side: what a call costs, and what images it makes of how many calls."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        groups[row["name"]].append(row)
    lines = [
        "| net | seeds | parameters | operations of a call | images seen | error of the flow | Fréchet distance at "
        + " | ".join(f"{b} calls" for b in BUDGETS)
        + " | ms an image, 8 calls |",
        "|---|---|---|---|---|---|" + "---|" * (len(BUDGETS) + 1),
    ]
    for name, rows in groups.items():
        cells = [name, str(len(rows)), f"{rows[0]['parameters'] / 1e6:.2f}M", f"{rows[0]['flops'] / 1e6:.0f}M"]
        cells += [over_seeds([row["images"] for row in rows], "{:,.0f}")]
        cells += [over_seeds([row["scores"]["8"]["figures"]["flow_error"] for row in rows], "{:.3f}")]
        cells += [over_seeds([row["scores"][b]["figures"]["frechet"] for row in rows]) for b in BUDGETS]
        cells += [over_seeds([1000 * row["scores"]["8"]["figures"]["seconds_an_image"] for row in rows], "{:.1f}")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adaptive_table(result: dict[str, Any]) -> str:
    """Eight Gaussians with and without a code of the clean point."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        groups[row["kind"]].append(row)
    steps = list(result["rows"][0]["distance"])
    lines = [
        "| told | seeds | codes in use | curvature | distance after " + " | ".join(f"{n} steps" for n in steps) + " |",
        "|---|---|---|---|" + "---|" * len(steps),
    ]
    for kind, rows in groups.items():
        cells = [kind, str(len(rows)), over_seeds([row["codes"] for row in rows], "{:.0f}")]
        cells += [over_seeds([row["curvature"] for row in rows], "{:.2f}")]
        cells += [over_seeds([row["distance"][n] for row in rows], "{:.2f}") for n in steps]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def restoration_table(result: dict[str, Any]) -> str:
    """What each arm makes of every fault, beside the best of the classical methods."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        groups[row["name"]].append(row)
    tasks = list(result["rows"][0]["scores"])
    lines = [
        "| weights | seeds | parameters | " + " | ".join(f"{task}, dB (SSIM)" for task in tasks) + " | mean, dB |",
        "|---|---|---|" + "---|" * (len(tasks) + 1),
    ]
    first = result["rows"][0]["scores"]
    spoiled = [f"{first[task]['psnr_before']:.2f} ({first[task]['ssim_before']:.3f})" for task in tasks]
    before = mean(first[task]["psnr_before"] for task in tasks)
    lines.append("| as spoiled | – | – | " + " | ".join(spoiled) + f" | {before:.2f} |")
    if classical := result.get("classical"):
        cells = []
        for task in tasks:
            tried = [row["scores"][task] for row in classical if task in row["scores"]]
            best = max(tried, key=lambda score: score["psnr"][0])
            cells.append(f"{best['psnr'][0]:.2f} ({best['ssim'][0]:.3f})")
        lines.append("| best classical | – | – | " + " | ".join(cells) + " | |")
    for name, rows in groups.items():
        cells = []
        for task in tasks:
            decibels = over_seeds([row["scores"][task]["psnr"][0] for row in rows], "{:.2f}")
            cells.append(f"{decibels} ({mean(row['scores'][task]['ssim'][0] for row in rows):.3f})")
        whole = over_seeds([mean(row["scores"][task]["psnr"][0] for task in tasks) for row in rows], "{:.2f}")
        size = f"{rows[0]['parameters'] / 1e6:.2f}M"
        lines.append(f"| {name} | {len(rows)} | {size} | " + " | ".join(cells) + f" | {whole} |")
    return "\n".join(lines)


def joint_table(result: dict[str, Any]) -> str:
    """Captions drawn and images described, by the kind of places and how long each was trained."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        groups[row["name"], row["asked"]].append(row)
    lines = [
        "| places | trained | seeds | images described word for word | words right | captions drawn as they say "
        "| valid scenes |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, asked), rows in groups.items():
        cells = [name, asked, str(len(rows))]
        for figure in ("described", "words_right", "drawn", "valid"):
            told = over_seeds([row["figures"][figure] for row in rows], "{:.1%}")
            ends = rows[0]["intervals"].get(figure) if len(rows) == 1 else None
            cells.append(told if ends is None else f"{told} [{ends[0]:.1%}, {ends[1]:.1%}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def joint_bias_table(result: dict[str, Any]) -> str:
    """How uneven attention is by the turn alone, by all places and by content: means over blocks, and each block."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        if row.get("bias"):
            groups[row["name"], row["asked"]].append(row)
    told_apart = {"turn": "the turn alone", "places": "all places", "content": "content too"}
    lines = [
        "| places | trained | seeds | who looks | told apart by | spread of scores | nats below even "
        "| would have to move | block by block |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, asked), rows in groups.items():
        for looking, at in (("words", "patches"), ("patches", "words")):
            for apart, words in told_apart.items():
                found = [
                    [each for each in row["bias"] if (each["looking"], each["apart"]) == (looking, apart)]
                    for row in rows
                ]
                cells = [name, asked, str(len(rows)), f"{looking} at {at}", words]
                for figure, form in (("spread", "{:.2f}"), ("deficit", "{:.3f}"), ("variation", "{:.1%}")):
                    cells.append(over_seeds([mean(each[figure] for each in blocks) for blocks in found], form))
                moved = zip(*([each["variation"] for each in blocks] for blocks in found), strict=True)
                cells.append(", ".join(f"{mean(block):.0%}" for block in moved))
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def large_memory_table(result: dict[str, Any]) -> str:
    """What restoring a photograph takes beside what a strip of one row of tiles does."""
    lines = [
        "| model | photograph | what is run | its pixels, MB | most resident, MB | more than for the strip, MB "
        "| times its pixels | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for kind, sizes in row["memory"].items() if row["memory"]["pixels"] else ():
            strip = next(iter(sizes.values()))["peak"]
            for name, told in sizes.items():
                more = told["peak"] - strip
                cells = [row["name"], f"{name}, {row['photo']}", kind, f"{told['photo'] / 1e6:.1f}"]
                cells += [f"{told['peak'] / 1e6:.0f}", f"{more / 1e6:.0f}" if more else "–"]
                cells += [f"{more / told['photo']:.1f}" if more else "–", f"{told['seconds']:.0f}"]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seams_table(result: dict[str, Any]) -> str:
    """Steps of the error across the borders of tiles, beside those at all other distances from them."""
    lines = [
        "| model | photograph | error | steps across borders: mean, 99.99%, largest | at other distances: mean "
        "| 99.99% | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        compared = {(name, "from the photograph"): told for name, told in row.get("seams", {}).items()}
        compared["512 × 512", "from one tile"] = row["whole"]
        for (name, truth), told in compared.items():
            across, least, most = told["across"], told["least"], told["most"]
            cells = [row["name"], f"{name}, {row['photo']}", truth]
            cells.append(f"{across['mean']:.3f}, {across['high']:.0f}, {across['largest']:.0f}")
            cells.append(f"{least['mean']:.3f} to {most['mean']:.3f}")
            cells += [f"{least[figure]:.0f} to {most[figure]:.0f}" for figure in ("high", "largest")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def image_convolution_table(result: list[dict[str, Any]]) -> str:
    """Attention between patches, what was converted, and the mean alone."""
    lines = [
        "| task | seeds | near, block by block | attention | converted | mean alone | recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in result):
        rows = [row for row in result if row["task"] == task]
        near = ", ".join(f"{share:.0%}" for share in rows[0]["near"])
        figures = [
            over_seeds([row[name] for row in rows], "{:.3f}") for name in ("attention", "converted", "mean alone")
        ]
        recovered = over_seeds([row["recovered"] for row in rows], "{:.2f}")
        lines.append(f"| {task} | {len(rows)} | {near} | " + " | ".join(figures) + f" | {recovered} |")
    return "\n".join(lines)
