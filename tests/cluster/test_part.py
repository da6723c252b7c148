"""A part without Ray: its lines in their order, each with its seed, and one that fails alone."""

import json

import pytest

from manta.cluster import Progress
from manta.cluster.folder import COLUMNS, JobFolder
from manta.cluster.part import DEATHS, FEW, answers, count_try, write_part
from manta.cluster.rows import KINDS, copy_of, stage, staged
from manta.cluster.writing import _run
from manta.errors import DataError, ModelError, UsageError
from manta.families.events import Request, Writer, finished
from manta.families.options import GenerateOptions
from manta.text.places import find_places, records_of
from tests.cluster.conftest import SETTINGS, how, some_lines, texts_of, without_seconds, write_lines
from tests.families.conftest import make_ar, make_lm


def begin(tmp_path, source, **more):
    told = how(tmp_path / "out", **more)
    found = stage(find_places(source, KINDS), tmp_path / "out" / "_lines", told.part_rows, set())
    return told, found


class Poisoned(Writer):
    """A model that cannot stand some texts: writing any batch with one raises."""

    family = "ar"

    def __init__(self, lm, seeds):
        self.lm, self.seeds, self.calls = lm, seeds, 0

    def generate(self, requests, options=None, observer=None, *, batch_size=64):
        for at in range(0, len(requests), batch_size):
            batch = requests[at : at + batch_size]
            self.calls += 1
            if any(request.seed in self.seeds for request in batch):
                raise FloatingPointError("a weight that  is\nnone")
            for event in self.lm.generate(batch, options, batch_size=batch_size):
                if event.kind == "done":
                    object.__setattr__(event, "index", at + event.index)
                yield event


def test_parts_written_in_any_order_are_the_plain_run(tmp_path):
    lm, rows = make_ar(), some_lines(10)
    rows[3]["seed"], rows[5]["options"] = 70, {"max_tokens": 2}
    told, found = begin(tmp_path, write_lines(tmp_path / "in.jsonl", rows), num_samples=2, seed=5)
    assert (found.rows, found.answered, found.bare) == (10, 10, 0)
    assert [write_part(lm, told, part) for part in (2, 0, 1)] == [(2, 0), (4, 0), (4, 0)]
    seeds = [70 + j if i == 3 else 5 + 2 * i + j for i in range(10) for j in range(2)]
    written = texts_of(tmp_path / "out")
    assert [row["seed"] for row in written] == seeds
    assert [row["id"] for row in written] == [i for i in range(10) for _ in range(2)]
    requests = [
        Request(
            prompt=rows[k // 2]["prompt"],
            seed=seed,
            options=GenerateOptions(max_tokens=2, temperature=1.0) if k // 2 == 5 else None,
        )
        for k, seed in enumerate(seeds)
    ]
    alone = sorted(finished(lm.generate(requests, SETTINGS)), key=lambda event: event.index)
    assert [row["text"] for row in written] == [event.text for event in alone]
    assert [row["nfe"] for row in written] == [event.nfe for event in alone]


def test_a_line_that_is_none_fails_alone_and_is_recorded(tmp_path):
    good = some_lines(9)
    broken = {1: b'{"prompt": "x"', 3: b'{"prompt": "\xff"}', 4: b'{"prompt": 3}', 6: b'{"prompt":"x","seed":1.5}'}
    broken |= {
        0: rb'{"prompt": "x", "options": "\ud800"}',
        7: b'{"prompt": "x", "options": {"num_stepz": 1}}',
        8: b'{"promt": "x"}',
    }
    lines = [broken.get(i, json.dumps(row).encode()) for i, row in enumerate(good)]
    (tmp_path / "in.jsonl").write_bytes(b"\n\n".join(lines))
    told, found = begin(tmp_path, tmp_path / "in.jsonl", part_rows=20)
    assert found.rows == 9, "blank lines are none"
    assert write_part(make_ar(), told, 0) == (9, len(broken))
    written = texts_of(tmp_path / "out")
    assert [at for at, row in enumerate(written) if "error" in row] == sorted(broken)
    assert [row["seed"] for row in written] == list(range(9))
    whole, _ = begin(tmp_path / "out", write_lines(tmp_path / "good.jsonl", good), part_rows=20)
    write_part(make_ar(), whole, 0)
    same = texts_of(tmp_path / "out" / "out")
    assert [row for row in written if "text" in row] == [same[at] for at in (2, 5)], "what failed moved no seed"
    failures = list(JobFolder(tmp_path / "out", ".jsonl").failures())
    assert [row["row"] for row in failures] == sorted(broken)
    assert "\ud800" in failures[0]["error"], "half a surrogate pair that is quoted stands there escaped"
    assert failures[1]["at"].endswith("in.jsonl line 3") and "is not JSON" in failures[1]["error"]
    assert "is not UTF-8" in failures[2]["error"] and failures[1]["input"] == '{"prompt": "x"'


def test_a_text_that_cannot_be_written_costs_itself(tmp_path):
    rows = some_lines(12)
    told, _ = begin(tmp_path, write_lines(tmp_path / "in.jsonl", rows), part_rows=12)
    lm = Poisoned(make_ar(), {4})
    assert write_part(lm, told, 0) == (12, 1)
    assert lm.calls == 9, "by halves, not one by one, which would be 11"
    written = texts_of(tmp_path / "out")
    assert written[4]["error"] == "writing it raised FloatingPointError: a weight that is none"
    [failure] = JobFolder(tmp_path / "out", ".jsonl").failures()
    assert (failure["row"], failure["input"]) == (4, rows[4])
    write_part(make_ar(), told, 0)
    clean = texts_of(tmp_path / "out")
    assert [row for at, row in enumerate(clean) if at != 4] == [row for at, row in enumerate(written) if at != 4]
    assert not list(JobFolder(tmp_path / "out", ".jsonl").failures()), "the part's record is replaced with the part"


def test_a_model_that_can_write_nothing_stops_the_job():
    requests = [Request(prompt="rain", seed=seed) for seed in range(FEW + 1)]
    lm = Poisoned(make_ar(), range(FEW + 1))
    with pytest.raises(ModelError, match=f"none of {FEW + 1} texts in a row"):
        answers(lm, requests, SETTINGS, 4)
    assert len(answers(lm, requests[:FEW], SETTINGS, 4)) == FEW


def test_a_prompt_too_long_and_options_of_another_family_fail_alone(tmp_path):
    rows = [
        *some_lines(2),
        {"prompt": "rain fell over quiet hills " * 9},
        {"prompt": "x", "options": {"solver": "heun"}},
    ]
    told, _ = begin(tmp_path, write_lines(tmp_path / "in.jsonl", rows))
    assert write_part(make_ar(), told, 0) == (4, 2)
    written = texts_of(tmp_path / "out")
    assert "reads at most" in written[2]["error"] and "means nothing to autoregressive" in written[3]["error"]
    foreign, _ = begin(tmp_path, tmp_path / "in.jsonl", settings=GenerateOptions(solver="heun"))
    with pytest.raises(UsageError, match="means nothing"):
        write_part(make_ar(), foreign, 0)


def test_a_prompt_for_a_model_without_prompts_costs_its_line(tmp_path):
    lm = make_lm()
    lm.prompted = False
    rows = [{"infill": "the ___ sat"}, {"prompt": "rain"}]
    told, found = begin(tmp_path, write_lines(tmp_path / "in.jsonl", rows), settings=GenerateOptions(num_steps=2))
    assert (found.answered, found.bare) == (1, 0)
    assert write_part(lm, told, 0) == (2, 1)
    assert "without prompts" in texts_of(tmp_path / "out")[1]["error"]


def test_a_worker_of_an_earlier_job_publishes_nothing(tmp_path):
    told, _ = begin(tmp_path, write_lines(tmp_path / "in.jsonl", some_lines(4)))
    folder = JobFolder(tmp_path / "out", ".jsonl")
    folder.begin({"name": "another"})
    with pytest.raises(ModelError, match="belongs to another job"):
        write_part(make_ar(), told, 0)
    assert not folder.finished()


def test_a_part_that_kills_its_workers_is_not_begun_for_ever(tmp_path):
    begin(tmp_path, write_lines(tmp_path / "in.jsonl", some_lines(4)))
    for _ in range(DEATHS):
        count_try(tmp_path / "out", 0)
    with pytest.raises(ModelError, match="its worker died each time"):
        count_try(tmp_path / "out", 0)


def test_only_missing_parts_are_copied_and_the_digest_is_of_all(tmp_path):
    places = find_places(write_lines(tmp_path / "in.jsonl", some_lines(10)), KINDS)
    whole = stage(places, tmp_path / "lines", 4, set())
    assert [len(staged(tmp_path / "lines", part)) for part in range(3)] == [4, 4, 2]
    again = stage(places, tmp_path / "lines", 4, {0, 2})
    assert again.digest == whole.digest and again.rows == 10
    assert [copy_of(tmp_path / "lines", part).exists() for part in range(3)] == [False, True, False]
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        stage(find_places(tmp_path / "empty.jsonl", KINDS), tmp_path / "lines", 4, set())


def test_a_table_holds_what_lines_do(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [*some_lines(3), {"prompt": "rain fell over quiet hills " * 9}]
    told, _ = begin(tmp_path, write_lines(tmp_path / "in.jsonl", rows))
    write_part(make_ar(), told, 0)
    table, _ = begin(tmp_path, tmp_path / "in.jsonl", kind=".parquet")
    write_part(make_ar(), table, 0)
    [place] = [place for place in find_places(tmp_path / "out", KINDS) if place.kind == ".parquet"]
    found = [row for _, row in records_of(place)]
    assert [set(row) for row in found] == [set(COLUMNS)] * 4
    whole = [
        {**json.loads(row.pop("extra")), **{name: each for name, each in row.items() if each is not None}}
        for row in found
    ]
    assert [without_seconds(row) for row in whole] == texts_of(tmp_path / "out")


def test_progress_counts_what_was_there_and_a_worker_that_cannot_go_on_stops_the_job():
    told: list[Progress] = []
    done = {"stopped": "", "why": "", "failed": 1}
    outcomes = [{"part": 3, "rows": 2, **done}, {"part": 1, "rows": 4, **done}]
    _, written = _run(iter(outcomes), [1, 3], 14, 4, told.append)
    assert written == 6
    assert [(each.done, each.failed) for each in told] == [(8, 0), (10, 1), (14, 2)]
    assert told[0].left is None and told[1].left == pytest.approx(4 / told[1].rate) and told[2].left == 0
    stopped = {"part": 3, "rows": 0, "failed": 0, "stopped": "UsageError", "why": "no room"}
    with pytest.raises(UsageError, match=r"no room \(12 of 14 lines"):
        _run(iter([outcomes[1], stopped]), [1, 3], 14, 4, told.append)
