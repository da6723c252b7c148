"""`manta doctor` of images: a folder or an archive before it is trained on, a run, or a model."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FEW = 1_000
"""Images below which a model is expected to repeat them."""
FEW_OF_CLASS = 20
"""Images of a class that teach it little."""
UNEVEN = 20
"""How many times as many images the largest class may have as the smallest."""
MOST_NAMED = 5
"""Files that are named of those that cannot be read."""


def examine_images(name: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Figures of images as `manta train` would read them, and warnings with advice.

    Raises:
        DataError: there are none.
    """
    from manta.image import read_images

    broken: list[str] = []
    figures: dict[str, Any] = {}
    labels, sizes, seen, repeated, captions, channels = Counter(), Counter(), set(), 0, 0, Counter()
    for split in ("train", "dev", "test"):
        number = 0
        for example in read_images(name, split, skipped=broken.append):
            number += 1
            if split != "train":
                continue
            height, width, depth = example.pixels.shape
            labels[example.label] += 1
            sizes[(height, width)] += 1
            channels[depth] += 1
            captions += example.caption is not None
            key = hash(example.pixels.tobytes())
            repeated += key in seen
            seen.add(key)
        figures[f"{split}_images"] = number
    classes = [label for label in labels if label is not None]
    figures |= {"classes": len(classes), "captions": captions, "repeated": repeated}
    if classes:
        counts = [labels[label] for label in classes]
        figures |= {"images_of_the_smallest_class": min(counts), "images_of_the_largest_class": max(counts)}
    if sizes:
        (height, width), _ = sizes.most_common(1)[0]
        figures |= {"most_frequent_size": f"{height} × {width}", "sizes": len(sizes)}
        figures |= {"channels": " and ".join(map(str, sorted(channels)))}
    broken = list(dict.fromkeys(broken))
    figures["files_that_cannot_be_read"] = len(broken)
    return figures, list(_findings(figures, broken))


STAGE = {"image": "flow", "photo": "restore", "joint": "joint"}
"""Name of the last stage of a run, by its state."""


def examine_image_run(folder: Path, state: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Figures of a run on images, or on photographs, and warnings."""
    from manta.recipes.budget import undertrained
    from manta.training import read_log

    rows, _ = read_log(folder)
    tail = rows[-max(1, len(rows) // 10) :]
    figures: dict[str, Any] = {"steps": len(rows)}
    if tail:
        figures["loss_at_the_end"] = sum(row["loss"] for row in tail) / len(tail)
        unit = "tiles" if state == "photo" else "images"
        figures[f"{unit}_seen"] = sum(row.get(unit, 0) for row in rows)
    findings = []
    if not (folder / "model" / "config.json").exists():
        findings.append(("the run has not finished", f"manta train --resume --out {folder}"))
    elif short := undertrained({STAGE[state]: len(rows)}):
        findings.append((f"the model is {short}", "give the run more time"))
    return figures, findings


def examine_image_model(folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Figures of a model of images, and warnings."""
    from manta.hub import load
    from manta.nets.integers import count_parameters

    flow: Any = load(folder)
    config = flow.model.config
    figures = {
        "family": flow.family,
        "net": config.net.kind,
        "parameters": count_parameters(flow.model),
        "images": " × ".join(map(str, flow.images.shape)),
        "classes": len(flow.images.classes),
        "bits_of_a_code": config.bits,
    }
    findings = []
    if flow.codes is not None:
        used = int((flow.codes.sum(0) > 0).sum())
        figures["codes_used"] = used
        if used == 1:
            findings.append(("all images have the same code, which tells nothing", "train longer, or set model.bits=0"))
    return figures, findings


def examine_other(folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Figures of a restorer, or of a model of captions and images; there is nothing to warn of."""
    from manta.hub import load
    from manta.nets.integers import count_parameters

    model: Any = load(folder)
    config = model.model.config
    figures: dict[str, Any] = {"family": model.family}
    figures["parameters"] = count_parameters(model.model)
    if model.family == "restorer":
        figures |= {"net": config.net.kind, "takes_out": ", ".join(model.codec.names), "tile": config.tile}
        figures["weights_of_a_fault"] = config.modulation.kind
    else:
        figures |= {"images": " × ".join(map(str, model.codec.shape)), "words": len(model.codec.words)}
        figures |= {"words_of_a_caption": model.codec.places - 1, "positions": config.positions.kind}
    return figures, []


def _findings(figures: dict[str, Any], broken: list[str]) -> Iterator[tuple[str, str]]:
    for reason in broken[:MOST_NAMED]:
        yield f"left out in training: {reason}", "copy the file again, or delete it"
    if len(broken) > MOST_NAMED:
        yield f"{len(broken) - MOST_NAMED} more files cannot be read", "copy them again, or delete them"
    if 0 < figures["train_images"] < FEW:
        yield f"only {figures['train_images']} images to train on", "expect the model to repeat them"
    for split in ("dev", "test"):
        if not figures[f"{split}_images"]:
            yield f"no image falls into the split {split}, which is held out", "give more images"
    if figures.get("sizes", 1) > 1:
        yield f"images of {figures['sizes']} sizes", "they are cut to one; fit=stretch keeps all of each"
    if figures["captions"] and not figures["classes"]:
        yield "captions are learned from by --family joint alone", "choose it, or give a column `label` for classes"
    smallest, largest = (figures.get(f"images_of_the_{each}_class", 0) for each in ("smallest", "largest"))
    if figures["classes"] and smallest < FEW_OF_CLASS:
        yield f"a class has {smallest} images", f"give each {FEW_OF_CLASS} at least, or leave it out"
    elif smallest and largest > UNEVEN * smallest:
        yield f"classes of {smallest} to {largest} images", "rare ones are learned last; give more of them"
    if figures["repeated"]:
        yield f"{figures['repeated']} images are there twice", "they are learned once; nothing needs to be done"
