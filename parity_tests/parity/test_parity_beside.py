"""Work beside what a process goes on with."""

import os

import pytest

from porter.parity import beside
from porter.parity.beside import Beside


def fails():
    raise ValueError("no")


def test_it_runs_in_a_fork_where_there_is_another_core(monkeypatch):
    monkeypatch.setattr(beside, "cores", lambda: 2)
    with Beside(os.getpid) as work:
        assert work.result() != os.getpid()


@pytest.mark.parametrize(("cores", "apart"), [(1, True), (2, False)])
def test_it_runs_here_otherwise(monkeypatch, cores, apart):
    monkeypatch.setattr(beside, "cores", lambda: cores)
    with Beside(os.getpid, apart) as work:
        assert work.result() == os.getpid()


def test_what_goes_wrong_is_raised_where_the_result_is_asked_for(monkeypatch):
    monkeypatch.setattr(beside, "cores", lambda: 2)
    with Beside(fails) as work, pytest.raises(RuntimeError, match="ValueError: no"):
        work.result()
    with Beside(lambda: os._exit(3)) as work, pytest.raises(RuntimeError, match="ended without an answer"):
        work.result()
