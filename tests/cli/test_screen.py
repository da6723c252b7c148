"""On a terminal: what is redrawn in place leaves nothing of itself behind, however narrow the terminal is."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from manta.cli import main
from manta.cli.measuring import Line
from manta.cli.screen import columns_of, cut


def screen(raw: str, columns: int) -> list[str]:
    """The lines that a terminal shows in the end: it breaks what is too long, and wipes the line it is on."""
    lines, column = [""], 0
    for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[^\x1b]", raw):
        if piece == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append("")
            column = 0
        elif not piece.startswith("\x1b"):
            if column == columns:
                lines.append("")
                column = 0
            lines[-1] = lines[-1][:column] + piece + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@contextmanager
def terminal(monkeypatch, name: str, columns: int) -> Iterator[list[str]]:
    """A terminal as standard output or error; what it was sent is in the list afterwards."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    stream, sent, pieces, ended = os.fdopen(theirs, "w", encoding="utf-8"), [], [], threading.Event()

    def read() -> None:
        while True:
            over, (ready, _, _) = ended.is_set(), select.select([ours], [], [], 0.05)
            if ready:
                pieces.append(os.read(ours, 4096))
            elif over:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patched:
        patched.setattr(sys, name, stream)
        yield sent
    stream.flush()
    ended.set()
    reader.join()
    stream.close()
    os.close(ours)
    sent.append(b"".join(pieces).decode())


@pytest.mark.parametrize("columns", [30, 200])
def test_a_run_leaves_one_line_a_stage(monkeypatch, tmp_path, columns):
    out = str(tmp_path / "run")
    argv = ["train", "builtin:weather", "--family", "ar", "--size", "nano", "--num-steps", "4", "--out", out]
    with terminal(monkeypatch, "stderr", columns) as sent:
        assert main([*argv, "num_examples=20", "batch_tokens=200", "max_text=32"]) == 0
    shown = screen(sent[0], columns)
    steps = [line for line in shown if "loss" in line]
    assert len(steps) == 1 and steps[0].startswith("teacher 4/4  loss"), shown
    assert sent[0].count("\r\x1b[Kteacher") >= 2, "nothing was redrawn"


@pytest.mark.parametrize("columns", [30, 400])
def test_a_text_emerges_on_its_line(monkeypatch, capsys, columns):
    argv = ["generate", "builtin:e2e", "--prompt", "name[Blue Spice], eatType[coffee shop], area[city centre]"]
    with terminal(monkeypatch, "stdout", columns) as sent:
        assert main([*argv, "--num-steps", "4"]) == 0
    assert main([*argv, "--num-steps", "4"]) == 0
    text = capsys.readouterr().out.strip()
    told = "".join(screen(sent[0], columns))
    assert sent[0].count("\r\x1b[K") >= 3, "nothing was redrawn"
    assert re.fullmatch(re.escape(argv[3] + text) + r" *\d calls", told.replace(argv[3][-1] + " ", argv[3][-1])), told


def test_a_count_is_wiped(monkeypatch):
    with terminal(monkeypatch, "stderr", 20) as sent:
        line = Line()
        for done in range(3):
            line.last = 0.0
            line("texts that are being written", done, 3)
        line.clear()
    assert screen(sent[0], 20) == [""]


def test_a_line_is_cut_by_what_it_takes_on_the_screen():
    assert cut("abcdef", 6) == "abcdef" and cut("abcdefg", 6) == "abcde…"
    assert cut("天气很好", 8) == "天气很好" and cut("天气很好", 7) == "天气很…" and cut("天气很好", 6) == "天气…"
    assert cut("e\u0301" * 6, 6) == "e\u0301" * 6
    assert cut("a\nb\x1b[K", 9) == "a b [K"
    assert cut("abc", 1) == "…"


def test_what_is_no_terminal_has_a_usual_width(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert columns_of(file) == 80
