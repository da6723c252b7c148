"""Progress is on stderr, on a terminal or when asked, and says what a note says."""

from types import SimpleNamespace

import pytest

from manta.training import Progress, show_progress


def events(seen: list | None = None):
    yield SimpleNamespace(text="3 rows; name[Blue Spice] -> [bold]as it stands[/bold]")
    for stage in ("teacher", "policy"):
        for step in range(1, 4):
            yield Progress(stage, step, 3, 1.5, {}, 10, 0.1, 1e-3, 1.0)
    if seen is not None:
        seen.append("the end")


@pytest.mark.parametrize(("shown", "terminal", "expected"), [(None, "0", 0), (True, "0", 1), (False, "1", 0)])
def test_it_is_shown_when_asked_for_and_never_on_stdout(capsys, monkeypatch, shown, terminal, expected):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    seen: list[str] = []
    show_progress(events(seen), shown)
    out, err = capsys.readouterr()
    assert out == "" and seen == ["the end"], "a quiet run is run all the same"
    assert bool(err) == expected
    if expected:
        assert "[bold]as it stands[/bold]" in err and "teacher 3/3  loss 1.500" in err and "policy 3/3" in err


def test_a_terminal_shows_a_bar_a_stage(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    show_progress(events())
    out, err = capsys.readouterr()
    assert out == ""
    assert all(words in err for words in ("name[Blue Spice]", "teacher", "policy", "3/3", "loss 1.500"))


def test_lines_come_at_their_distance_and_at_the_end_of_a_stage(capsys, monkeypatch):
    """Steps of 4 seconds: a line at 12 and 24 (more than 10 after the one before), and at the last step."""
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    clock = iter(range(0, 1000, 4))
    now = [0]

    def perf_counter():
        return now[0]

    def steps():
        for step in range(1, 9):
            now[0] = next(clock) + 4
            yield Progress("policy", step, 8, 1.5, {}, 10, 0.1, 1e-3, 1.0)

    monkeypatch.setattr("manta.training.progress.time.perf_counter", perf_counter)
    show_progress(steps(), True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"policy {step}/8  loss 1.500" for step in (3, 6, 8)]
