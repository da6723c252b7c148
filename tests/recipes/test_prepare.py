import pytest

from manta.errors import ConfigError
from manta.recipes import Recipe
from manta.recipes.budget import Clock, Watch
from manta.recipes.prepare import corpus_of, tokenizer_of
from manta.recipes.recipe import resolve
from manta.text import SPECIALS, Tokenizer
from manta.text.tasks import TASKS

WATCH = Watch(Clock())


def test_a_structured_task_has_a_token_a_symbol(tmp_path):
    recipe = resolve(Recipe(data="builtin:sudoku4", num_examples=50))
    tokenizer = tokenizer_of(recipe, tmp_path, WATCH)
    assert tokenizer.symbols == "01234"
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint() == tokenizer.fingerprint()
    corpus, report = corpus_of(recipe, tmp_path, tokenizer, None, WATCH)
    assert report.rows == 50
    assert len(corpus.prompt(0)) == len(corpus.text(0)) == 16
    assert min(corpus.text(0)) > len(SPECIALS), "a solution has no blank"


@pytest.mark.parametrize("name", TASKS)
def test_a_resolved_recipe_holds_every_example_of_its_task(name, tmp_path):
    recipe = resolve(Recipe(data=f"builtin:{name}", num_examples=20))
    report = corpus_of(recipe, tmp_path, tokenizer_of(recipe, tmp_path, WATCH), None, WATCH)[1]
    assert (report.rows, report.truncation_share) == (20, 0)


def test_a_model_too_short_for_its_task(tmp_path):
    recipe = resolve(Recipe(data="builtin:sudoku9", num_examples=5, max_prompt=64))
    with pytest.raises(ConfigError, match="81 tokens a prompt and 81 a text, and the recipe has max_prompt=64"):
        tokenizer_of(recipe, tmp_path, WATCH)


def test_a_changed_generator_rebuilds_the_corpus(tmp_path, monkeypatch):
    from manta.text import weather

    recipe = resolve(Recipe(data="builtin:weather", num_examples=30, vocab_size=512))
    tokenizer = tokenizer_of(recipe, tmp_path, WATCH)
    first = corpus_of(recipe, tmp_path, tokenizer, None, WATCH)[0].text(0).tolist()
    manifest = tmp_path / "corpus" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    corpus_of(recipe, tmp_path, tokenizer, None, WATCH)
    assert manifest.stat().st_mtime_ns == written, "the same data is not prepared twice"
    original = weather.examples
    monkeypatch.setattr(weather, "examples", lambda **how: original(**{**how, "seed": 5}))
    assert corpus_of(recipe, tmp_path, tokenizer, None, WATCH)[0].text(0).tolist() != first
