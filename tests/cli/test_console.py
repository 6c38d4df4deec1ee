"""What is said on a terminal and in a log, by which process, and that a line never breaks a bar."""

import contextlib
import io
import os
import sys
import threading

import click
import pytest

from hellofmt_cli import console as module
from hellofmt_cli.console import Console, Level


class Terminal(io.StringIO):
    """What a terminal shows of the text written to it: rows, of which the cursor is in the last."""

    encoding = "utf-8"

    def isatty(self):
        return True

    @property
    def rows(self):
        rows, column = [""], 0
        for letter in self.getvalue():
            if letter == "\n":
                rows.append("")
                column = 0
            elif letter == "\r":
                column = 0
            else:
                rows[-1] = rows[-1][:column].ljust(column) + letter + rows[-1][column + 1 :]
                column += 1
        return [click.unstyle(row).rstrip() for row in rows]


@pytest.fixture
def attach(monkeypatch):
    """Makes a stream stderr, which pytest replaces between a fixture and its test."""

    def attached(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return attached


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves, and timers that only the test fires."""

    class Clock:
        now, timers = 0.0, []

        def monotonic(self):
            return self.now

        def timer(self, seconds, function, arguments):
            made = threading.Timer(seconds, function, arguments)
            made.start = lambda: self.timers.append(made)
            return made

        def fire(self):
            for timer in self.timers:
                if not timer.finished.is_set():
                    timer.function(*timer.args)

    clock = Clock()
    clock.timers = []
    monkeypatch.setattr(module, "time", clock)
    threading_ = type("Threads", (), {"Timer": staticmethod(clock.timer)})
    monkeypatch.setattr(module, "threading", threading_)
    return clock


def test_a_line_stands_above_the_bar(attach):
    terminal = attach(Terminal())
    console = Console()
    with console.stage("fit") as step:
        step(1, 4)
        console.say("step 1: agreement 50 %")
        assert terminal.rows[0] == "step 1: agreement 50 %"
        assert terminal.rows[1].startswith("fit:  25%")
        step(4, 4)
        console.warn("odd")
        assert terminal.rows[1] == "Warning: odd"
        assert "4/4" in terminal.rows[2]
        assert len(terminal.rows) == 3
    assert terminal.rows == ["step 1: agreement 50 %", "Warning: odd", ""]
    console.say("done")
    assert terminal.rows[2:] == ["done", ""]


def test_a_stage_without_steps_is_seen_at_once(attach):
    terminal = attach(Terminal())
    with Console().stage("loading the base"):
        assert terminal.rows == ["loading the base..."]
    assert terminal.rows == [""]


def test_of_nested_stages_the_inner_one_is_shown(attach):
    terminal = attach(Terminal())
    console = Console()
    with console.stage("outer"):
        console.step(1, 2)
        with console.stage("inner", "image"):
            console.step(2, 8)
            assert terminal.rows[-1].startswith("inner:  25%")
            assert "outer" not in terminal.rows[-1]
        assert terminal.rows[-1].startswith("outer:  50%")
    console.step(1, 1)
    assert terminal.rows == [""]


def test_a_stage_that_fails_leaves_no_bar(attach):
    terminal = attach(Terminal())
    console = Console()
    with contextlib.suppress(KeyError), console.stage("fit") as step:
        step(1, 4)
        raise KeyError
    console.say("Error")
    assert terminal.rows == ["Error", ""]


def test_a_log_names_what_takes_a_second(attach, clock):
    log = attach(io.StringIO())
    console = Console()
    with console.stage("loading the base"):
        assert log.getvalue() == ""
        clock.fire()
        assert log.getvalue() == "loading the base ...\n"
        with console.stage("inner"):
            pass
    clock.fire()
    # Neither what was short nor what was named already.
    assert log.getvalue() == "loading the base ...\n"


def test_a_terminal_without_columns_is_a_log(attach, clock, monkeypatch):
    terminal = attach(Terminal())
    monkeypatch.setattr(terminal, "fileno", lambda: 2, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    with Console().stage("fit"):
        clock.fire()
    assert terminal.getvalue() == "fit ...\n"


def test_a_log_does_not_name_what_has_just_spoken(attach, clock):
    log = attach(io.StringIO())
    console = Console()
    with console.stage("fit"):
        console.say("fit: 9 steps")
        clock.fire()
    assert log.getvalue() == "fit: 9 steps\n"


def test_a_log_counts_steps_more_and_more_rarely(attach, clock):
    log = attach(io.StringIO())
    with Console().stage("train") as step:
        for second in range(1, 301):
            clock.now = float(second)
            step(second, 300)
    steps = [int(line.split()[1]) for line in log.getvalue().splitlines()]
    assert steps == [2, 6, 14, 30, 62, 122, 182, 242]
    assert log.getvalue().startswith("train: 2 of 300 steps\n")


def test_the_timer_of_a_log_is_a_real_one(attach, monkeypatch):
    attach(io.StringIO())
    monkeypatch.setattr(module, "_NAMED_SECONDS", 0.01)
    said = threading.Event()
    console = Console()
    monkeypatch.setattr(console, "say", lambda text: said.set())
    with console.stage("slow"):
        assert said.wait(30)


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_only_rank_0_speaks(stream, attach, monkeypatch):
    shown = attach(stream())
    monkeypatch.setenv("RANK", "1")
    console = Console()
    assert not console.is_speaking
    with console.stage("fit") as step:
        step(1, 2)
        console.step(1, 2)
        console.say("hello")
        console.warn("hello")
    assert shown.getvalue() == ""
    monkeypatch.setenv("RANK", "0")
    assert console.is_speaking


def test_levels_decide_what_is_said(attach, capsys):
    log = attach(io.StringIO())
    console = Console()
    for level in Level:
        console.level = level
        console.detail(f"detail {level}")
        console.warn(f"odd {level}")
        console.write(f"result {level}")
    assert log.getvalue().splitlines() == ["Warning: odd 1", "detail 2", "Warning: odd 2"]
    assert capsys.readouterr().out.splitlines() == ["result 0", "result 1", "result 2"]
    terminal = attach(Terminal())
    console.level = Level.QUIET
    with console.stage("fit") as step:
        step(1, 2)
    assert terminal.getvalue() == ""
