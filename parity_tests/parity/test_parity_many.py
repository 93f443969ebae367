"""Many pipelines side by side."""

import os
import subprocess
import sys

import pytest

from porter.parity.beside import LOST
from porter.parity.many import compare_many, each


def _measure(name):
    if name == "bad":
        raise ValueError(f"no {name}")
    return len(name)


def _die(name):
    return os._exit(3) if name == "bad" else name


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_one_raises_keeps_no_other_from_being_done(jobs):
    found = dict(each(_measure, ["good", "bad", "best"], jobs))
    assert (found["good"], found["best"]) == (4, 4)
    assert isinstance(found["bad"], ValueError) and str(found["bad"]) == "no bad"


def test_a_process_that_dies_takes_only_its_own_with_it():
    names = ["one", "bad", "two", "three"]
    found = dict(each(_die, names, 2))
    assert str(found.pop("bad")) == LOST
    assert found == {name: name for name in names if name != "bad"}


def test_reports_come_in_the_order_of_the_names():
    seen = []
    names = ["SanaPipeline", "NoSuchPipeline", "FluxPipeline"]
    first, none, last = compare_many(names, 1, seen.append, cases=["plain"])
    assert sorted(report.pipeline for report in seen) == sorted(names)
    assert (first.pipeline, first.verdict, last.pipeline, last.verdict) == (
        "SanaPipeline",
        "parity",
        "FluxPipeline",
        "parity",
    )
    assert none.verdict == "not tested (no checkpoint)"


def test_a_comparison_that_cannot_be_made_is_a_verdict():
    [report] = compare_many(["FluxPipeline"], cases=["no such"])
    assert report.verdict == "does not run" and report.reason.startswith("SpecError: no such case")
    assert report.exit_code == 1


WORKER = """
import multiprocessing, time
from porter.workers import end_with_parent

def work():
    end_with_parent()
    print("begun", flush=True)
    time.sleep(30)
    print("gone on", flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    running = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert running.stdout is not None and running.stdout.readline() == "begun\n"
    running.kill()
    assert running.stdout.read() == ""  # what the worker wrote to is closed
    running.wait()
