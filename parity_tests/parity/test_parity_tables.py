"""Tables of a port's modules are compared as they stand."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from porter.parity.run import run_parity
from porter.parity.tables import TABLES, check_tables


@pytest.fixture
def pipeline(request):
    """Makes pipelines, and models, of modules that hold what is given."""
    names = []

    def make(name, **values):
        module = ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
        names.append(name)
        return type("Pipeline", (SimpleNamespace,), {"__module__": name})()

    yield make
    for name in names:
        del sys.modules[name]


def test_equal_tables_pass(pipeline):
    table = {"SIZES": {"1.0": (1024, 1024)}, "RATIO": np.array([1.0, 4 / 3]), "TEMPLATE": "a {}", "function": len}
    result = check_tables(pipeline("original", **table), pipeline("ported", **table))
    assert result.name == TABLES and result.verdict == "parity"


def test_another_entry_is_named(pipeline):
    reference = pipeline("original", SIZES=[(1024, 768), (768, 1024)])
    result = check_tables(reference, pipeline("ported", SIZES=[(1024, 769), (768, 1024)]))
    assert result.verdict == "differs"
    assert result.first_difference.stage == "pipeline, module" and result.first_difference.part == "result.SIZES.0.1"


def test_what_only_one_side_holds_is_no_difference(pipeline):
    assert check_tables(pipeline("original", EXAMPLE="…"), pipeline("ported", LOGGED=1)) is None


def test_modules_of_models_count(pipeline):
    reference, port = pipeline("original"), pipeline("ported")
    for owner, name, width in ((reference, "model", 256), (port, "ported_model", 512)):
        model = pipeline(name, WIDTH=width)
        owner.transformer = type("Model", (torch.nn.Module,), {"__module__": type(model).__module__})()
    assert check_tables(reference, port).first_difference.stage == "transformer, module"


def test_settings_of_pipelines_count(pipeline):
    reference, port = pipeline("original"), pipeline("ported")
    for owner, size in ((reference, 128), (port, 96)):
        owner.default_sample_size, owner._of_the_last_call = size, size
    found = check_tables(reference, port).first_difference
    assert found.stage == "pipeline, settings" and found.part == "result.default_sample_size"


def test_it_is_a_case_that_can_be_asked_for():
    report = run_parity("HunyuanDiTPipeline", cases=[TABLES])
    assert report.passed and [case.name for case in report.cases] == [TABLES]
