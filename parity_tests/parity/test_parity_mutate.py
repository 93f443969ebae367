"""Faults planted into a port, in memory, and seen."""

import dataclasses
import sys

import pytest

from porter.parity import checkpoint
from porter.parity import spec as specs
from porter.parity.mutants import Edit, find_mutants
from porter.parity.mutate import Bench, choose

NAME = "QwenImagePipeline"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = checkpoint.build(NAME, tmp_path_factory.mktemp("checkpoint"))
    return Bench(folder, specs.read(NAME), None, "float32")


@pytest.fixture(scope="module")
def mutants(bench):
    return bench.sites()[0]


def one(mutants, mutator, text=""):
    return next(mutant for mutant in mutants if mutant.mutator == mutator and text in mutant.before)


@pytest.mark.parametrize(
    ("mutator", "stage"),
    [
        ("schedule-off-by-one", "transformer["),
        ("unshifted-sigmas", "scheduler.timesteps["),
        ("unpatched-length", "scheduler.timesteps["),
        ("packed-axes", "prepare_latents["),
        ("residual-dtype", "transformer["),
        ("second-attention", "weights: "),
        ("skip-weight", "weights: "),
        ("rescale-missing", "scheduler.step["),
        ("negative-prompt-ignored", "text_encoder["),
    ],
)
def test_a_known_bug_is_seen_where_it_is(bench, mutants, mutator, stage):
    result = bench.attempt(one(mutants, mutator))
    assert result.verdict == "killed" and result.stage.startswith(stage)


def test_a_shared_scheduler_shows_when_requests_take_turns(bench, mutants):
    mutant = one(mutants, "shared-scheduler")
    result = bench.attempt(mutant)
    assert result.verdict == "killed" and result.case == "requests in turns"


def test_a_fault_leaves_nothing_behind(bench, mutants):
    module = f"{bench.workshop.package}.{mutants[-1].module}"
    before = sys.modules[module]
    bench.attempt(mutants[-1])
    assert sys.modules[module] is before and bench._still_passes()


def test_a_change_that_changes_nothing_survives_and_one_that_nothing_uses_is_told_apart(bench, mutants):
    mutant = one(mutants, "unpatched-length")
    edit = mutant.edits[0]
    same = dataclasses.replace(mutant, edits=(Edit(edit.start, edit.end, "(image_seq_len + 0)"),))
    result = bench.attempt(same)
    assert result.verdict == "survived" and bench.explain(same, result).verdict == "equivalent"
    unused = one(mutants, "sentinel-default", 'given.pop("guidance_scale"')
    assert bench.explain(unused, bench.attempt(unused)).verdict == "unreached"


def test_the_choice_follows_from_the_seed_and_takes_every_mutator(bench, mutants):
    chosen = choose(mutants, 20, "0:x")
    assert chosen == choose(mutants, 20, "0:x") != choose(mutants, 20, "1:x")
    generic = [mutant for mutant in chosen if not mutant.bug]
    every = {mutant.mutator for mutant in mutants if not mutant.bug}
    assert len(generic) == 20 and {mutant.mutator for mutant in generic} == every
    assert {mutant.bug for mutant in find_mutants(bench.workshop.source("stepwise"), "stepwise")} == {0, 12}
