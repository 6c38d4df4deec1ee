import sys

import pytest

from hellofmt_cli.entry import run


class Interrupted:
    def __getattr__(self, name):
        raise KeyboardInterrupt


def test_an_interrupt_during_the_first_imports_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hellofmt_cli.main", Interrupted())
    with pytest.raises(SystemExit) as caught:
        run()
    assert (caught.value.code, capsys.readouterr().err) == (130, "Interrupted.\n")
