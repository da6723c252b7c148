import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.config import apply_overrides, describe, field_docs, from_dict, load_toml, nearest, parse_value, to_dict
from manta.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Attention:
    kind: Literal["attention"] = "attention"
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class Fourier:
    kind: Literal["fourier"] = "fourier"
    modes: int = 16


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long and how fast."""

    lr: float = 1e-3
    """Peak learning rate,
    per step."""
    steps: int = 100
    warmup: int = 10
    """Steps of warm-up."""
    clip: float | None = 1.0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.warmup > self.steps:
            raise ConfigError(f"warmup should not exceed steps, received {self.warmup} > {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    data: str
    size: Literal["tiny", "small"] = "tiny"
    rates: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.99)
    out: Path | None = None
    train: Train = field(default_factory=Train)
    distill: Train | None = None
    operator: Attention | Fourier = field(default_factory=Attention)
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LongTrain(Train):
    steps: int = 10_000
    """Updates of the weights."""
    warmup: int = 100


FULL = Recipe(
    data="a.txt",
    size="small",
    rates=(4,),
    out=Path("runs/a"),
    train=Train(lr=0.5, clip=None, resume=True),
    distill=Train(steps=20),
    operator=Fourier(modes=3),
    notes={"seed": 1},
)


@pytest.mark.parametrize("cfg", [Recipe(data="x"), FULL])
def test_a_recipe_survives_json(cfg):
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(cfg)))) == cfg


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(min_value=0),
    st.none() | st.floats(0, 1),
    st.booleans(),
)
def test_any_values_survive_json(lr, extra, clip, resume):
    cfg = Train(lr=lr, steps=10 + extra, clip=clip, resume=resume)
    assert from_dict(Train, json.loads(json.dumps(to_dict(cfg)))) == cfg


def test_an_integer_is_a_number_but_a_truth_value_is_neither():
    lr = from_dict(Train, {"lr": 1}).lr
    assert lr == 1.0 and type(lr) is float
    with pytest.raises(ConfigError, match=r"lr should be a number, received True"):
        from_dict(Train, {"lr": True})
    with pytest.raises(ConfigError, match=r"steps should be an integer, received True"):
        from_dict(Train, {"steps": True})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, r"missing key 'data': give it as text"),
        ({"data": 3}, r"^data should be text, received 3$"),
        ({"data": "x", "szie": "tiny"}, r"unknown key 'szie'; did you mean 'size'\?"),
        (
            {"data": "x", "size": "smal"},
            r"size should be one of 'tiny', 'small', received 'smal'; did you mean",
        ),
        ({"data": "x", "train": {"learning": 1}}, r"unknown key 'train.learning'"),
        ({"data": "x", "train": {"lr": "fast"}}, r"train.lr should be a number, received 'fast'"),
        ({"data": "x", "train": {"steps": 1.5}}, r"train.steps should be an integer, received 1.5"),
        ({"data": "x", "train": {"resume": "yes"}}, r"train.resume should be true or false, received 'yes'"),
        ({"data": "x", "train": {"clip": "big"}}, r"train.clip should be a number or none, received 'big'"),
        ({"data": "x", "train": 3}, r"train should be a group of keys, received 3"),
        ({"data": "x", "train": {"warmup": 200}}, r"^train: warmup should not exceed steps, received 200 > 100$"),
        ({"data": "x", "distill": {"warmpu": 1}}, r"unknown key 'distill.warmpu'; did you mean 'warmup'"),
        ({"data": "x", "rates": [1, "2"]}, r"rates\[1\] should be an integer, received '2'"),
        ({"data": "x", "rates": 1}, r"rates should be a list of integer, received 1"),
        ({"data": "x", "betas": [0.9]}, r"betas should be a list of 2 \(number, number\), received 1"),
        ({"data": "x", "operator": {"kind": "fuorier"}}, r"operator.kind should be one of .*did you mean 'fourier'"),
        ({"data": "x", "operator": {"kind": "fourier", "heads": 2}}, r"unknown key 'operator.heads'"),
        ({"data": "x", "notes": {"seed": "one"}}, r"notes.seed should be an integer"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(mapping, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Recipe, mapping)


def test_the_top_group_is_named_by_its_class():
    with pytest.raises(ConfigError, match="Recipe should be a group of keys"):
        from_dict(Recipe, ["data"])


def test_where_prefixes_every_place():
    with pytest.raises(ConfigError, match=r"unknown key 'model.train.lrr'"):
        from_dict(Train, {"lrr": 1}, where="model.train")


def test_overrides_are_typed_from_the_annotations():
    cfg = apply_overrides(
        FULL,
        [
            "train.lr=3e-4",
            "train.clip=none",
            "train.resume=false",
            "rates=1, 4,8",
            "betas=0.5,1",
            "size=tiny",
            "out=runs/b=c",
            "operator.modes=7",
            "train.lr=1e-5",
        ],
    )
    expected = dataclasses.replace(
        FULL,
        train=dataclasses.replace(FULL.train, lr=1e-5, clip=None, resume=False),
        rates=(1, 4, 8),
        betas=(0.5, 1.0),
        size="tiny",
        out=Path("runs/b=c"),
        operator=Fourier(modes=7),
    )
    assert cfg == expected


def test_overrides_apply_together_before_validation():
    assert apply_overrides(Train(), ["warmup=500", "steps=1000"]).warmup == 500


def test_an_override_fills_a_group_that_was_none():
    assert apply_overrides(Recipe(data="x"), ["distill.steps=50"]).distill == Train(steps=50)
    assert apply_overrides(FULL, ["distill=none"]).distill is None


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["operator.kind=fourier"], Fourier()),
        (["operator.kind=attention"], Attention(heads=8)),
        (["operator.modes=3", "operator.kind=fourier"], Fourier(modes=3)),
        (["operator.kind=fourier", "operator.kind=attention", "operator.heads=2"], Attention(heads=2)),
    ],
)
def test_a_kind_chooses_another_group_with_keys_of_its_own(entries, expected):
    assert apply_overrides(Recipe(data="x", operator=Attention(heads=8)), entries).operator == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["operator.kind=fuorier"], "operator.kind should be one of .*did you mean 'fourier'"),
        (["operator.kind=fourier", "operator.heads=2"], "unknown key 'operator.heads'"),
    ],
)
def test_a_kind_or_a_key_that_does_not_fit_is_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Recipe(data="x"), entries)


def test_overrides_leave_the_original_alone():
    before = to_dict(FULL)
    apply_overrides(FULL, ["train.steps=11", "rates="])
    assert to_dict(FULL) == before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train.lr", "written key=value, received 'train.lr'"),
        ("=3", "written key=value"),
        ("train.lrr=1", "unknown key 'train.lrr'; did you mean 'lr'"),
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'"),
        ("train.lr=fast", "train.lr should be a number, received 'fast'"),
        ("train.steps=1e3", "train.steps should be an integer, received '1e3'"),
        ("train.resume=1", "train.resume should be true or false, received '1'"),
        ("train=3", "train is a group and cannot be set as a whole"),
        ("size.big=1", "'size' has no keys of its own, received 'size.big'"),
        ("betas=1,2,3", "betas should be a list of 2"),
        ("size=tinny", "did you mean 'tiny'"),
    ],
)
def test_a_wrong_override_is_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(FULL, [entry])


def test_the_first_member_of_a_union_that_fits_is_taken():
    assert parse_value(int | str, "3", "x") == 3
    assert parse_value(int | str, "three", "x") == "three"
    assert parse_value(int | None, "None", "x") is None
    assert parse_value(tuple[str, ...], "", "x") == ()
    assert parse_value(Literal[1, 2, "auto"], "2", "x") == 2


def test_toml_is_read_and_its_errors_name_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = "é.txt"\nrates = [8]\n[train]\nlr = 3e-4\nclip = 2\n', encoding="utf-8")
    assert load_toml(Recipe, path) == Recipe(data="é.txt", rates=(8,), train=Train(lr=3e-4, clip=2.0))

    path.write_text("data = x")
    with pytest.raises(ConfigError, match=r"recipe.toml' is not a TOML file: .*line 1"):
        load_toml(Recipe, path)
    path.write_bytes(b"data = '\xff'")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        load_toml(Recipe, path)
    path.write_text("data = 'x'\ntrian = 1")
    with pytest.raises(ConfigError, match=r"recipe.toml: unknown key 'trian'; did you mean 'train'"):
        load_toml(Recipe, path)
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*gone.toml': No such file"):
        load_toml(Recipe, tmp_path / "gone.toml")


def test_toml_and_overrides_agree():
    typed = from_dict(Train, tomllib.loads("lr = 3e-4\nsteps = 1_000"))
    assert apply_overrides(Train(), ["lr=3e-4", "steps=1_000"]) == typed


def test_field_docs_are_the_strings_under_the_fields():
    assert field_docs(Train) == {"lr": "Peak learning rate, per step.", "warmup": "Steps of warm-up."}


def test_field_docs_are_inherited_and_can_be_replaced():
    assert field_docs(LongTrain) == {**field_docs(Train), "steps": "Updates of the weights."}


def test_nearest_lists_everything_when_nothing_is_near():
    assert nearest("xyzzy", ["train", "data"]) == "; known: train, data"
    assert nearest("trian", ["train", "data"]) == "; did you mean 'train'?"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float | None, "number or none"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (tuple[str, ...], "list of text"),
        (Train, "group of keys"),
        (Any, "typing.Any"),
    ],
)
def test_annotations_are_described_in_words(annotation, words):
    assert describe(annotation) == words


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_number_that_is_not_finite_is_refused(value):
    with pytest.raises(ConfigError, match="finite number"):
        from_dict(Train, {"lr": value})


@pytest.mark.parametrize("text", ["nan", "inf", "1e999"])
def test_text_that_is_no_finite_number_is_refused(text):
    with pytest.raises(ConfigError, match="finite number"):
        parse_value(float, text, "lr")


def test_an_error_shows_a_line_of_what_was_received():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 10**6, [0] * 10**6, deep):
        with pytest.raises(ConfigError) as caught:
            from_dict(Train, {"lr": value})
        assert len(str(caught.value)) < 300
