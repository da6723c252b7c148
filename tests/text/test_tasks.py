"""Sudoku and countdown against slow readings of their rules: all grids counted, all expressions tried."""

import itertools
import json
import lzma
import random
import tarfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.errors import DataError, UsageError
from manta.text import Example, Tokenizer, fingerprint, read, task_of
from manta.text.hashing import split_of
from manta.text.tasks import COUNTDOWN, PATHS, SUDOKU4, SUDOKU9, TASKS, Countdown, overlap, published
from manta.text.tasks.countdown import parse_prompt, solutions
from manta.text.tasks.paths import parse_prompt as parse_graph
from manta.text.tasks.solver import solutions as sudoku_solutions
from manta.text.tasks.sudoku import GRIDS4, grids4, image9, is_unique

SPLITS = ("train", "dev", "test")


# Sudoku: the rules, read slowly


def obeys(grid: str) -> bool:
    """Whether no row, column or box of a full grid holds a digit twice."""
    side = {16: 4, 81: 9}[len(grid)]
    box = {4: 2, 9: 3}[side]
    cells = [(i // side, i % side, digit) for i, digit in enumerate(grid)]
    places = [
        (kind, place, digit)
        for row, column, digit in cells
        for kind, place in (("r", row), ("c", column), ("b", (row // box, column // box)))
    ]
    return len(set(places)) == len(places)


ROWS4 = list(map("".join, itertools.permutations("1234")))
BANDS4 = [a + b for a in ROWS4 for b in ROWS4 if len({*a[:2], *b[:2]}) == len({*a[2:], *b[2:]}) == 4]
ALL4 = [upper + lower for upper in BANDS4 for lower in BANDS4 if obeys(upper + lower)]
"""Every 4×4 grid, found by trying all rows, two to a band."""

PUZZLE17 = "000900000600000500000204007000010000000000092360080000100060300000000000002700000"
"""A puzzle of 17 clues, the fewest that can determine a grid (McGuire et al. 2014), so that no clue can be spared."""


def fits(prompt: str, grid: str) -> bool:
    return all(clue in ("0", digit) for clue, digit in zip(prompt, grid, strict=True))


def pairs(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """Prompts and texts."""
    return [(example.prompt or "", example.text) for example in examples]


def blanked(grid: str, cells) -> str:
    return "".join("0" if i in cells else digit for i, digit in enumerate(grid))


def test_there_are_288_grids():
    assert len(ALL4) == 288
    assert sorted(grids4()) == sorted(ALL4)
    assert sum(GRIDS4.values()) == 288


@st.composite
def filled_puzzles(draw):
    """A 4×4 puzzle with blanks, and its grid with some cells changed."""
    grid = draw(st.sampled_from(ALL4))
    prompt = blanked(grid, draw(st.sets(st.integers(0, 15), max_size=13)))
    changed = draw(st.dictionaries(st.integers(0, 15), st.sampled_from("1234"), max_size=5))
    return prompt, "".join(changed.get(i, digit) for i, digit in enumerate(grid))


@settings(max_examples=300, deadline=None)
@given(filled_puzzles())
def test_the_oracle_agrees_with_trying_all_grids(puzzle):
    prompt, text = puzzle
    verdict = SUDOKU4.check(prompt, text)
    assert verdict.well_formed
    assert verdict.solved == (text in ALL4 and fits(prompt, text)) == (not verdict.errors)
    assert ("clues" in verdict.errors) == (not fits(prompt, text))
    blanks = [i for i, clue in enumerate(prompt) if clue == "0"]
    if not blanks:
        assert verdict.cell_accuracy is None
        return
    nearest = max(sum(text[i] == grid[i] for i in blanks) for grid in ALL4 if fits(prompt, grid))
    assert verdict.cell_accuracy == nearest / len(blanks)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.dictionaries(st.integers(0, 80), st.sampled_from("123456789"), max_size=3))
def test_the_oracle_of_9x9_reads_the_rules(seed, changed):
    [(prompt, grid)] = pairs(SUDOKU9.examples("train", 1, seed))
    text = "".join(changed.get(i, digit) for i, digit in enumerate(grid))
    verdict = SUDOKU9.check(prompt, text)
    assert verdict.solved == (obeys(text) and fits(prompt, text))
    blanks = [i for i, clue in enumerate(prompt) if clue == "0"]
    assert verdict.cell_accuracy == sum(text[i] == grid[i] for i in blanks) / len(blanks)


def test_each_broken_rule_is_named():
    grid, prompt = "1234341221434321", "1234341221430000"
    assert SUDOKU4.check(prompt, grid).errors == ()
    assert SUDOKU4.check("1000" * 4, grid).errors == ("clues",)
    assert SUDOKU4.check("0" * 16, "1234" * 4).errors == ("columns", "boxes")
    assert SUDOKU4.check("0" * 16, "1234234134124123").errors == ("boxes",)
    assert SUDOKU4.check("0" * 16, "".join(d * 4 for d in "1234")).errors == ("rows", "boxes")
    for text in ("", grid[:-1], grid + "1", grid[:-1] + "0", grid[:-1] + "5", grid[:-1] + "١", grid[:-1] + "\n"):
        verdict = SUDOKU4.check(prompt, text)
        assert (verdict.well_formed, verdict.solved, verdict.errors) == (False, False, ("form",))
        assert verdict.cell_accuracy == 0


def test_a_second_solution_counts_as_well():
    """The key would call all four blanks of the other solution wrong."""
    grid = "1234341221434321"
    swapped = "1243342121344312"
    assert swapped in ALL4
    prompt = blanked(grid, {i for i in range(16) if grid[i] != swapped[i]})
    for text in (grid, swapped):
        assert SUDOKU4.check(prompt, text).solved
        assert SUDOKU4.check(prompt, text).cell_accuracy == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from("1234")), max_size=8))
@example([(0, "1"), (1, "1")])
def test_the_solver_finds_every_solution_once(clues):
    """Also of puzzles that contradict themselves."""
    prompt = "".join(dict(clues).get(i, "0") for i in range(16))
    assert sorted(sudoku_solutions(prompt)) == sorted(grid for grid in ALL4 if fits(prompt, grid))


def test_seventeen_clues_determine_a_grid_and_none_can_be_spared():
    (grid,) = sudoku_solutions(PUZZLE17)
    assert obeys(grid) and fits(PUZZLE17, grid)
    clues = [i for i, clue in enumerate(PUZZLE17) if clue != "0"]
    assert len(clues) == 17
    assert not any(is_unique(blanked(PUZZLE17, {cell})) for cell in clues)


def test_symmetries_keep_the_number_of_solutions():
    rng = random.Random(0)
    images = {image9(PUZZLE17, rng) for _ in range(20)}
    assert len(images) == 20
    assert all(is_unique(image) for image in images)
    first = next(sudoku_solutions("0" * 81, rng))
    assert obeys(first) and obeys(image9(first, rng))


# Sudoku: the puzzles


@pytest.mark.parametrize("seed", [0, 1])
def test_4x4_puzzles_keep_all_their_solutions_in_their_split(seed):
    grids = {}
    for split in SPLITS:
        drawn = pairs(SUDOKU4.examples(split, 400, seed))
        assert {prompt.count("0") for prompt, _ in drawn} == set(range(6, 13))
        grids[split] = {grid for prompt, _ in drawn for grid in ALL4 if fits(prompt, grid)}
        assert {text for _, text in drawn} <= grids[split]
        assert len(grids[split]) <= GRIDS4[split]
    assert len(grids["train"]) > 150
    assert not grids["train"] & grids["dev"] and not grids["dev"] & grids["test"] and not grids["train"] & grids["test"]
    known = overlap(prompt for prompt, _ in pairs(SUDOKU4.examples("test", 400, seed)))
    assert (known.puzzles, known.known, known.all_known) == (400, 0, 0)


def test_overlap_is_counted_over_all_solutions():
    train = set(grids4()[: GRIDS4["train"]])
    prompts = ["0" * 16, grids4()[0], grids4()[-1]] + [blanked(grid, range(0, 16, 2)) for grid in ALL4]
    solved_by = [{grid for grid in ALL4 if fits(prompt, grid)} for prompt in prompts]
    found = overlap(prompts)
    assert found.puzzles == 291
    assert found.ambiguous == sum(len(grids) > 1 for grids in solved_by)
    assert found.known == sum(bool(grids & train) for grids in solved_by)
    assert found.all_known == sum(grids <= train for grids in solved_by)
    with pytest.raises(DataError, match="has 16 symbols"):
        overlap([PUZZLE17])


def test_9x9_puzzles_have_one_solution_each_in_one_split():
    owners = {}
    for split, num in (("train", 60), ("dev", 20), ("test", 20)):
        for seed in (0, 1):
            for prompt, text in pairs(SUDOKU9.examples(split, num, seed)):
                assert obeys(text) and fits(prompt, text)
                assert 50 <= 81 - prompt.count("0") <= 60
                assert list(sudoku_solutions(prompt)) == [text]
                assert split_of(text) == split, "the grid decides, whatever the seed"
                owners[text] = split
    assert len(owners) == 200


# Countdown


def tried(numbers) -> dict[Fraction, list[str]]:
    """Every value of three numbers with every operation in every order, and the texts, the slow way."""
    found: dict[Fraction, list[str]] = {}
    for a, b, c in itertools.permutations(numbers):
        for first, second in itertools.product("+-*/", repeat=2):
            for text, inner in ((f"({a}{first}{b}){second}{c}", (a, b)), (f"{a}{first}({b}{second}{c})", (b, c))):
                operator = first if inner == (a, b) and text.startswith("(") else second
                inside = computed(f"{inner[0]}{operator}{inner[1]}")
                value = computed(text)
                if value is not None and inside is not None and is_positive(inside) and is_positive(value):
                    found.setdefault(value, []).append(text)
    return found


def is_positive(value: Fraction) -> bool:
    """Whether a value is a positive integer."""
    return value > 0 and value.denominator == 1


def computed(expression: str) -> Fraction | None:
    """The value of a trusted expression of non-negative integers, by Python itself."""
    exact = "".join(f"F({part})" if part.isdigit() else part for part in split_numbers(expression))
    try:
        return eval(exact, {"F": Fraction})
    except ZeroDivisionError:
        return None


def split_numbers(expression: str) -> list[str]:
    return ["".join(group) for _, group in itertools.groupby(expression, lambda c: c if not c.isdigit() else "0")]


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 100)] * 3), st.integers(1, 100))
@example((5, 5, 5), 30)
@example((100, 1, 1), 50)
def test_solutions_are_found_exactly_where_trying_all_finds_one(numbers, unlikely):
    reachable = tried(numbers)
    for target in {unlikely, *(int(value) for value in list(reachable)[:5])}:
        found = solutions(Countdown(numbers, target))
        assert bool(found) == (target in reachable)
        prompt = Countdown(numbers, target).prompt
        assert all(COUNTDOWN.check(prompt, text).solved for text in found)
        assert all(COUNTDOWN.check(prompt, f"{text}={target}").solved for text in reachable.get(Fraction(target), []))
        assert found == sorted(set(found), key=lambda text: (len(text), text))


expressions = st.recursive(
    st.integers(0, 100).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.booleans()).map(
        lambda parts: f"({parts[0]}{parts[1]}{parts[2]})" if parts[3] else f"{parts[0]}{parts[1]}{parts[2]}"
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(expressions, st.integers(0, 100))
@example("3*7+25", 46)
@example("(((1)))/0", 1)
@example("1/3+2/3", 1)
@example("8-4-2", 2)
@example("8/4/2", 1)
def test_the_oracle_computes_as_python_does(expression, target):
    verdict = COUNTDOWN.check(f"1 2 3 = {target}", f"{expression}={target}")
    if len(expression) < 90:
        assert verdict.well_formed
        assert ("value" in verdict.errors) == (computed(expression) != target)
        used = sorted(int(part) for part in split_numbers(expression) if part.isdigit())
        assert ("numbers" in verdict.errors) == (used != [1, 2, 3])


def test_generated_puzzles_are_solved_and_mutations_rejected():
    rng = random.Random(0)
    for prompt, text in pairs(COUNTDOWN.examples("train", 300)):
        assert COUNTDOWN.check(prompt, text).solved
        expression, _, target = text.rpartition("=")
        at = rng.randrange(len(text))
        other = rng.choice([c for c in COUNTDOWN.symbols if c != text[at]])
        mutated = text[:at] + other + text[at + 1 :]
        verdict = COUNTDOWN.check(prompt, mutated)
        if text[at] in "+-*/" and other in "+-*/":
            value = computed(mutated.rpartition("=")[0])
            assert verdict.well_formed and verdict.solved == (value == int(target))
        else:
            assert not verdict.solved
        assert not COUNTDOWN.check(prompt, expression).well_formed
        wrong = Countdown(parse_prompt(prompt).numbers, int(target) + 1).prompt
        assert COUNTDOWN.check(wrong, text).errors == ("value", "target")


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("3*7+25=46", ()),
        ("25+(7*3)=46", ()),
        ("25+7*3=45", ("target",)),
        ("25+7+3=46", ("value",)),
        ("25+21=46", ("numbers",)),
        ("25+7*3+3-3=46", ("numbers",)),
        ("25/(7-7)*3=46", ("numbers", "value")),
        *[(text, ("form",)) for text in ("", "=", "46", "=46", "25+7*3", "25+7*3=", "25 + 7*3=46", "+25+7*3=46")],
        *[(text, ("form",)) for text in ("25+7**3=46", "25+-7*3=46", "025+7*3=46", "(25+7*3=46", "25+7*3)=46")],
        *[(text, ("form",)) for text in ("25+()7*3=46", "25+7(3)=46", "25+7*3=46=46", "25+7*3=46\n", "25+7*3=4٦")],
        ("(" * 50 + "25+7*3" + ")" * 50 + "=46", ("form",)),
        ("a", ("form",)),
    ],
)
def test_texts_of_countdown(text, errors):
    verdict = COUNTDOWN.check("3 7 25 = 46", text)
    assert verdict.errors == errors
    assert verdict.well_formed == (errors != ("form",))
    assert verdict.solved == (not errors)


def test_countdown_splits_share_no_puzzle_in_any_order_of_its_numbers():
    owners = {}
    for split in SPLITS:
        for seed in (0, 1):
            for prompt, _ in pairs(COUNTDOWN.examples(split, 300, seed)):
                puzzle = parse_prompt(prompt)
                key = puzzle.key
                assert key == Countdown(puzzle.numbers[::-1], puzzle.target).key
                assert owners.setdefault(key, split) == split_of(key) == split
    assert len(owners) > 1500


# What all tasks share


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_examples_follow_the_seed_and_their_own_judge(task):
    name = f"builtin:{task.name}"
    drawn = list(read(name, "train", 40, seed=3))
    assert drawn == list(task.examples("train", 40, 3)) != list(read(name, "train", 40, seed=4))
    solved = pairs(drawn)
    report = task.judge(solved)
    assert (report["num"], report["well_formed"], report["solved"], report["errors"]) == (40, 1, 1, {})
    shifted = task.judge([(prompt, solved[i - 1][1]) for i, (prompt, _) in enumerate(solved)])
    assert shifted["solved"] == 0 < shifted["well_formed"] == 1
    if task in (COUNTDOWN, PATHS):
        assert report["cell_accuracy"] is None
    else:
        assert report["cell_accuracy"] == 1 > shifted["cell_accuracy"] > 0 < shifted["cell_accuracy_stderr"]
    half = task.judge(solved[:20] + [(prompt, "") for prompt, _ in solved[20:]])
    assert half["solved"] == half["well_formed"] == 0.5
    assert half["solved_stderr"] == pytest.approx((0.25 / 40) ** 0.5)
    assert half["errors"] == {"form": 20}


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_symbol_is_a_token(task):
    tokenizer = Tokenizer.of_symbols(task.symbols)
    for prompt, text in pairs(task.examples("dev", 30)):
        for line in (prompt, text):
            assert tokenizer.decode(tokenizer.encode(line)) == line
            assert len(tokenizer.encode(line)) == len(line)
        assert len(prompt) <= task.prompt_length and len(text) <= task.text_length


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_wrong_requests(task):
    with pytest.raises(UsageError, match="choose one of train, dev, test"):
        task.examples("valid")
    with pytest.raises(UsageError, match="give 0 or more"):
        task.examples("test", -1)
    for prompt in ("", "0" * 15, "5" * 16 if task is SUDOKU4 else "x" * 81, "1 2 = 3", "1 2 3 4 = 5", "3 7 25 = 46 "):
        with pytest.raises(DataError):
            task.judge([(prompt, "1")])


def test_a_source_knows_its_task():
    assert task_of("builtin:countdown") is task_of("d1-countdown:x.jsonl") is COUNTDOWN
    assert task_of("builtin:sudoku4") is task_of("d1-sudoku:x.csv") is SUDOKU4
    assert task_of("builtin:sudoku9") is task_of("sudoku17:x.txt") is SUDOKU9
    assert task_of("builtin:weather") is task_of("e2e:x.zip") is task_of("sudoku4") is None


# Published puzzles


@pytest.fixture
def d1(tmp_path: Path) -> Path:
    """A folder such as d1's, with two puzzles a file."""
    folder = tmp_path / "d1"
    (folder / "inside").mkdir(parents=True)
    rows = ["Puzzle,Solution", "3102200002100320,3142243142131324", "0140432014020000,2143432114323214"]
    (folder / "inside" / "4x4_test_sudoku.csv").write_text("\n".join(rows) + "\n")
    lines = [{"input": "30,100,93", "output": "23"}, {"input": "83,18,75", "output": "10"}]
    (folder / "inside" / "countdown_cd3_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_d1_from_a_folder_an_archive_and_a_file(d1, tmp_path):
    with tarfile.open(tmp_path / "d1.tar", "w") as archive:
        archive.add(d1, "data")
    (tmp_path / "d1.tar.xz").write_bytes(lzma.compress((tmp_path / "d1.tar").read_bytes()))
    places = [d1, tmp_path / "d1.tar", tmp_path / "d1.tar.xz"]
    for place in [*places, d1 / "inside" / "4x4_test_sudoku.csv"]:
        puzzles = pairs(read(f"d1-sudoku:{place}", "test"))
        assert [prompt for prompt, _ in puzzles] == ["3102200002100320", "0140432014020000"]
        assert all(SUDOKU4.check(*puzzle).solved for puzzle in puzzles)
    for place in [*places, d1 / "inside" / "countdown_cd3_test.jsonl"]:
        puzzles = pairs(read(f"d1-countdown:{place}", "test"))
        assert [prompt for prompt, _ in puzzles] == ["30 100 93 = 23", "83 18 75 = 10"]
        assert all(COUNTDOWN.check(*puzzle).solved for puzzle in puzzles)
    assert len(list(read(f"d1-sudoku:{d1}", "test", 1))) == 1
    before = fingerprint(f"d1-countdown:{d1}")
    assert before != fingerprint(f"d1-countdown:{d1}", seed=1)
    (d1 / "inside" / "countdown_cd3_test.jsonl").write_text('{"input": "1,1,1", "output": "3"}\n')
    assert before != fingerprint(f"d1-countdown:{d1}")


def test_d1_countdown_trains_on_nothing_that_it_tests(d1):
    """The test file holds the first puzzles of the built-in training, so that they are left out of it."""
    first = [parse_prompt(prompt) for prompt, _ in pairs(COUNTDOWN.examples("train", 20))]
    lines = ({"input": ",".join(map(str, p.numbers[::-1])), "output": str(p.target)} for p in first)
    (d1 / "inside" / "countdown_cd3_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = list(read(f"d1-countdown:{d1}", "train", 100))
    assert train == [p for p in COUNTDOWN.examples("train", 200) if parse_prompt(p.prompt or "") not in first][:100]
    assert list(read(f"d1-countdown:{d1}", "dev", 20)) == list(COUNTDOWN.examples("dev", 20))


def test_d1_sudoku_is_a_test_set(d1):
    with pytest.raises(DataError, match="train on builtin:sudoku4"):
        list(read(f"d1-sudoku:{d1}"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("4x4_test_sudoku.csv", "a,b\n1,2\n", r"line 2: no columns `Puzzle` and `Solution` but a, b"),
        ("4x4_test_sudoku.csv", "Puzzle,Solution\n310,3142\n", r"line 2: a sudoku has 16 symbols"),
        ("4x4_test_sudoku.csv", "Puzzle,Solution\n3102200002100320,3142243142131325\n", "line 2: .* does not solve"),
        ("countdown_cd3_test.jsonl", '{"input": [1, 2], "output": "3"}\n', "line 1 is no puzzle of the form"),
        ("countdown_cd3_test.jsonl", '{"input": "1,1,1", "output": "99"}\n', "line 1: no solution"),
    ],
)
def test_broken_d1_files_name_the_line(d1, name, content, message):
    (d1 / "inside" / name).write_text(content)
    scheme = "d1-sudoku" if name.endswith("csv") else "d1-countdown"
    with pytest.raises(DataError, match=rf"{name} {message}"):
        list(read(f"{scheme}:{d1}", "test"))


def test_a_test_set_without_puzzles_holds_nothing_out_and_is_refused(d1):
    (d1 / "inside" / "countdown_cd3_test.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no puzzle"):
        next(iter(read(f"d1-countdown:{d1}", "train")))


def test_missing_d1_files(d1, tmp_path):
    (d1 / "inside" / "4x4_test_sudoku.csv").unlink()
    with pytest.raises(DataError, match=r"holds no 4x4_test_sudoku\.csv"):
        list(read(f"d1-sudoku:{d1}", "test"))
    with tarfile.open(tmp_path / "d1.tar", "w") as archive:
        archive.add(d1, "data")
    with pytest.raises(DataError, match=r"holds no 4x4_test_sudoku\.csv"):
        list(read(f"d1-sudoku:{tmp_path / 'd1.tar'}", "test"))
    (tmp_path / "no.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match="is no whole tar archive"):
        list(read(f"d1-sudoku:{tmp_path / 'no.tar'}", "test"))
    with pytest.raises(DataError, match="does not exist"):
        list(read("d1-countdown:none.tar", "test"))


def test_sudoku17_reveals_cells_and_splits_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "BLOCK", 2)
    rng = random.Random(0)
    puzzles = [image9(PUZZLE17, rng) for _ in range(44)]
    path = tmp_path / "sudoku17.txt.xz"
    path.write_bytes(lzma.compress("\n".join(p.replace("0", "*") for p in puzzles).encode()))
    taken = []
    for split, rows in (("train", [*range(36), *range(40, 44)]), ("dev", [36, 37]), ("test", [38, 39])):
        found = pairs(read(f"sudoku17:{path}", split))
        for (prompt, text), row in zip(found, rows, strict=True):
            assert fits(puzzles[row], prompt), "no clue is lost or changed"
            assert 30 <= 81 - prompt.count("0") <= 40
            assert list(sudoku_solutions(prompt)) == [text]
        taken += found
    assert len({prompt.count("0") for prompt, _ in taken}) > 5
    assert taken[:3] == pairs(read(f"sudoku17:{path}", "train", 3, seed=5))


def test_broken_sudoku17(tmp_path):
    path = tmp_path / "sudoku17.txt"
    cases = {
        "12": "line 2: a sudoku has 81 symbols",
        PUZZLE17[:-1] + "x": "line 2: .* holds 'x'",
        "1" * 81: "line 2: the puzzle has no solution",
        blanked(PUZZLE17, {3}): "line 2: the puzzle has more than one solution",
    }
    for line, message in cases.items():
        path.write_text(f"{PUZZLE17}\n{line}\n")
        with pytest.raises(DataError, match=message):
            list(read(f"sudoku17:{path}"))


def public(data_dir: Path, name: str) -> Path:
    if not (data_dir / name).exists():
        pytest.skip(f"no {name} in {data_dir}; MANTA_DATA names the folder of public data")
    return data_dir / name


def test_the_test_sets_of_d1(data_dir):
    path = public(data_dir, "d1_sudoku_countdown.tar.xz")
    prompts = [prompt for prompt, _ in pairs(read(f"d1-sudoku:{path}", "test"))]
    assert len(prompts) == 500
    assert {prompt.count("0") for prompt in prompts} == {8}
    found = overlap(prompts)
    assert (found.ambiguous, found.known, found.all_known) == (124, 369, 311)
    sums = pairs(read(f"d1-countdown:{path}", "test"))
    assert len(sums) == 256
    assert all(COUNTDOWN.check(*puzzle).solved for puzzle in sums)
    keys = {parse_prompt(prompt).key for prompt, _ in sums}
    train = {parse_prompt(prompt).key for prompt, _ in pairs(read(f"d1-countdown:{path}", "train", 1000))}
    assert len(keys) == 256 and not keys & train


def test_the_list_of_17_clues(data_dir):
    path = public(data_dir, "sudoku17.txt.xz")
    for prompt, text in pairs(read(f"sudoku17:{path}", "test", 20)):
        assert obeys(text) and fits(prompt, text) and is_unique(prompt)


# Paths


def walks(edges: list[str], start: str, most: int) -> list[str]:
    """Every walk from a node, of up to so many steps, by trying all edges."""
    found, last = [start], [start]
    for _ in range(most):
        steps = [*edges, *(edge[::-1] for edge in edges)]
        last = [walk + step[1] for walk in last for step in steps if step[0] == walk[-1]]
        found += last
    return found


def test_paths_are_the_shortest_of_all_walks():
    for prompt, text in pairs(PATHS.examples("train", 40)):
        *edges, ends = prompt.split()
        reaching = [walk for walk in walks(edges, ends[0], len(text) - 1) if walk[-1] == ends[2]]
        shortest = min(map(len, reaching))
        assert text == min(walk for walk in reaching if len(walk) == shortest)
        for walk in reaching:
            verdict = PATHS.check(prompt, walk)
            assert verdict.solved == (len(walk) == shortest)
            assert verdict.errors == (() if verdict.solved else ("length",))


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("abde", ()),
        ("acde", ()),
        ("abdcde", ("length",)),
        ("ade", ("edges",)),
        ("abd", ("ends",)),
        ("bde", ("ends",)),
        ("abdedededede"[:8], ("length",)),
        ("", ("form",)),
        ("e", ("form",)),
        ("axe", ("form",)),
        ("ab de", ("form",)),
        ("abdededededede", ("form",)),
    ],
)
def test_texts_of_paths(text, errors):
    verdict = PATHS.check("ab bd ac dc de a>e", text)
    assert (verdict.errors, verdict.solved) == (errors, not errors)
    assert verdict.well_formed == (errors != ("form",))


@pytest.mark.parametrize(
    "prompt",
    ["ab ba a>b", "aa ab a>b", "ab cd a>d", "ab a>a", "ab a-b", "ab", "a>b", "ab  a>b", "ab a>b ", "ab xy a>b"],
)
def test_wrong_graphs_are_refused(prompt):
    with pytest.raises(DataError):
        PATHS.parse(prompt)


def test_splits_of_paths_share_no_puzzle_whatever_the_order_of_its_edges():
    keys = {}
    for split in ("train", "dev", "test"):
        for prompt, _ in pairs(PATHS.examples(split, 300)):
            assert keys.setdefault(parse_graph(prompt).key, split) == split
