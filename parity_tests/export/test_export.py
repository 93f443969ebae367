"""Ports in a small source tree of vLLM-Omni; parity_tests/omni/engine/test_engine_export.py has the real one."""

from __future__ import annotations

import ast
import difflib
import json
from pathlib import Path

import pytest

from porter.cli import main
from porter.export import ExportError
from porter.export.checkout import EXTRAS, METADATA, REGISTRY, open_checkout
from porter.export.plan import check_plan, plan_export, write_plan


def files(root: Path) -> dict[str, bytes]:
    paths = (p for p in root.rglob("*") if p.is_file() and ".git" not in p.parts)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}


def deliver(converter, root, *names, force=False):
    plan = plan_export(converter, names, open_checkout(root))
    check_plan(plan, force)
    return plan, write_plan(plan)


def removed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Lines that the export took away."""
    lines = []
    for name, text in before.items():
        diff = difflib.ndiff(text.decode().splitlines(), after[name].decode().splitlines())
        lines += [line for line in diff if line.startswith("-")]
    return lines


def test_an_image_model_is_added_and_nothing_is_touched(converter, checkout):
    before = files(checkout)
    _, written = deliver(converter, checkout, "AuraFlowPipeline")
    after = files(checkout)
    assert removed(before, after) == []
    assert set(after) - set(before) == set(written) - set(before)
    folder = "vllm_omni/diffusion/models/aura_flow"
    beside = {"support.py", "stepwise.py", "invariants.py"}
    modules = {"__init__.py", "aura_flow_transformer.py", "pipeline_aura_flow.py", *beside}
    assert {Path(name).name for name in after if name.startswith(folder)} == modules
    for name in (name for name in written if name.endswith(".py")):
        ast.parse(after[name])
        assert "porter.runtime" not in after[name].decode()
    text = after[f"{folder}/pipeline_aura_flow.py"].decode()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert "Licensed under the Apache License" in text
    assert '"get_aura_flow_post_process_func"' in after[REGISTRY].decode()
    assert "AURA_FLOW_EXTRA_BODY_PARAMS" in after[EXTRAS].decode()
    assert after["docs/models/supported_models.md"].decode().count("AuraFlowPipeline") == 1
    assert "AuraFlowPipeline" not in after[METADATA].decode()
    request = after["PULL_REQUEST.md"].decode()
    assert "parity" in request and "untested" in request and "not measured" in request


def test_twice_is_once(converter, checkout, committed):
    deliver(converter, checkout, "AuraFlowPipeline")
    once = files(checkout)
    assert deliver(converter, checkout, "AuraFlowPipeline")[1] == []
    committed(checkout)
    assert deliver(converter, checkout, "AuraFlowPipeline")[1] == []
    assert files(checkout) == once


def test_a_second_model_of_a_family_joins_the_first(converter, checkout, committed):
    deliver(converter, checkout, "LTXPipeline")
    committed(checkout)
    deliver(converter, checkout, "LTXImageToVideoPipeline")
    init = files(checkout)["vllm_omni/diffusion/models/ltx/__init__.py"].decode()
    assert '"LTXPipeline"' in init and '"LTXImageToVideoPipeline"' in init
    registry = files(checkout)[REGISTRY].decode()
    assert registry.index('"LTXPipeline": (') < registry.index('"LTXImageToVideoPipeline": (')
    assert 'DiffusionModelMetadata(final_output_type="video")' in files(checkout)[METADATA].decode()


def test_a_model_that_takes_the_place_of_another_leaves_its_files(converter, checkout):
    before = files(checkout)
    plan, _ = deliver(converter, checkout, "FluxPipeline")
    after = files(checkout)
    assert plan.models[0].folder == "flux_diffusers"
    assert plan.models[0].replaces == "vllm_omni/diffusion/models/flux/pipeline_flux.py"
    assert after[plan.models[0].replaces] == before[plan.models[0].replaces]
    assert removed(before, after) == [
        '-         "flux",',
        '-     "FluxPipeline": "get_flux_post",  # by hand',
        '-     "FluxPipeline": "get_flux_pre",',
    ]
    assert plan.models[0].replaces in after["PULL_REQUEST.md"].decode()
    assert deliver(converter, checkout, "FluxPipeline")[1] == []


def test_a_constant_that_vllm_omni_has_keeps_its_meaning(converter, checkout, committed):
    path = checkout / EXTRAS
    taken = "from vllm_omni.model_extras.other import AURA_FLOW_EXTRA_BODY_PARAMS\n"
    path.write_text(
        path.read_text().replace("from vllm_omni.model_extras.vace", f"{taken}from vllm_omni.model_extras.vace")
    )
    committed(checkout)
    deliver(converter, checkout, "AuraFlowPipeline")
    assert "import AURA_FLOW_DIFFUSERS_EXTRA_BODY_PARAMS" in path.read_text()


def test_sound_is_told_to_the_engine(converter, checkout):
    deliver(converter, checkout, "StableAudio3Pipeline")
    text = files(checkout)["vllm_omni/diffusion/models/stable_audio_3/pipeline_stable_audio_3.py"].decode()
    assert "    support_audio_output: ClassVar[bool] = True\n" in text


def test_changes_that_are_not_committed_are_not_mixed_in(converter, checkout):
    (checkout / "notes.txt").write_text("mine")
    before = files(checkout)
    with pytest.raises(ExportError, match="notes.txt"):
        deliver(converter, checkout, "AuraFlowPipeline")
    assert files(checkout) == before


def test_other_files_in_the_way_are_listed_or_kept_beside(converter, checkout, committed):
    name = "tests/diffusion/models/aura_flow/test_aura_flow.py"
    (checkout / name).parent.mkdir(parents=True)
    (checkout / name).write_text("# mine\n")
    committed(checkout)
    before = files(checkout)
    with pytest.raises(ExportError, match=name):
        deliver(converter, checkout, "AuraFlowPipeline")
    assert files(checkout) == before
    deliver(converter, checkout, "AuraFlowPipeline", force=True)
    assert (checkout / f"{name}.orig").read_text() == "# mine\n"
    assert "AuraFlowPipeline" in (checkout / name).read_text()
    assert (checkout / f"{REGISTRY}.orig").read_bytes() == before[REGISTRY]


@pytest.mark.parametrize(
    ("version", "told"), [("0.31.0", "is vLLM-Omni 0.31.0"), ("0.3.0", "0.3.0"), ("", "does not say which version")]
)
def test_another_version_is_refused(checkout, version, told):
    path = checkout / "vllm_omni/_version.py"
    path.write_text(f"__version__ = version = '{version}'\n") if version else path.unlink()
    with pytest.raises(ExportError, match=told):
        open_checkout(checkout)


def test_the_command_line(checkout, tmp_path, capsys):
    before = files(checkout)
    assert main(["export", "diffusers.AuraFlowPipeline", "--into", str(tmp_path)]) == 2
    assert "no source tree of vLLM-Omni" in capsys.readouterr().err
    assert main(["export", "NoSuchPipeline", "--into", str(checkout)]) == 2
    assert main(["export", "AuraFlowPipeline", "--into", str(checkout), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dry_run"] and REGISTRY in found["written"] and files(checkout) == before
    assert found["models"][0]["folder"] == "aura_flow"
