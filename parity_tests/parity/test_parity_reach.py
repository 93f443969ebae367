"""Every parameter of every pipeline can be reached from a request, and nothing else can."""

import pytest
import torch

from porter.facts.pipeline import PipelineFacts, pipeline_facts
from porter.listing import live_pipelines
from porter.parity.request import to_request
from porter.parity.spec import available
from porter.port import Converter
from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch
from porter.source import SourceTree
from porter.targets import get_target


@pytest.fixture(scope="module")
def pipelines() -> list[PipelineFacts]:
    tree = SourceTree()
    names = sorted(set(live_pipelines(tree)) | set(available()))
    return [pipeline_facts(tree, tree.find_pipeline(name)) for name in names]


@pytest.fixture(scope="module")
def request_arguments():
    space: dict = {}
    exec(Converter(SourceTree(), get_target("porter"))._beside(".support"), space)
    return lambda req, pipeline: space["request_arguments"](space["request_state"](req), pipeline)


def signature_of(facts: PipelineFacts) -> type:
    own = [p.name for p in facts.parameters if p.name not in facts.dropped]
    space: dict = {}
    exec(f"def forward(self, req, {', '.join(f'{name}=None' for name in own)}): ...", space)
    return type(facts.name, (), {"forward": space["forward"], "dropped_arguments": tuple(facts.dropped)})


def fits(name: str, value: object) -> bool:
    """The engine itself reads a guidance scale, as a number, a quality, as one of its levels, and a prompt."""
    if name == "negative_prompt":
        return value is None or isinstance(value, str)
    if name.startswith("guidance_scale"):
        return value is None or isinstance(value, int)
    return name != "quality" or value in (None, "lossless")


def batch(prompt, params) -> DiffusionRequestBatch:
    return DiffusionRequestBatch([OmniDiffusionRequest(prompt=prompt, sampling_params=params, request_id="r")])


@pytest.mark.parametrize(
    "value", [2, "lossless", None, True, torch.zeros(2)], ids=["int", "str", "None", "bool", "tensor"]
)
def test_every_parameter_arrives_under_its_name(pipelines, request_arguments, value):
    assert len(pipelines) > 150
    for facts in pipelines:
        pipeline = signature_of(facts)
        for parameter in facts.parameters:
            if parameter.name in facts.dropped or not fits(parameter.name, value):
                continue
            given = request_arguments(batch(*to_request({parameter.name: value})), pipeline)
            arrived = given.get(parameter.name, "absent")
            assert arrived is value or (arrived == value and value is not None), f"{facts.name}.{parameter.name}"
            assert set(given) <= {parameter.name}, f"{facts.name}.{parameter.name} arrives under other names too"


def test_dropped_and_unknown_names_are_errors(pipelines, request_arguments):
    for facts in pipelines:
        pipeline = signature_of(facts)
        with pytest.raises(ValueError, match="Unknown argument 'no_such_argument'"):
            request_arguments(batch(*to_request({"no_such_argument": 1})), pipeline)
        for name in facts.dropped:
            with pytest.raises(ValueError, match="does not have"):
                request_arguments(batch(*to_request({name: 1})), pipeline)
