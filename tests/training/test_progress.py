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
