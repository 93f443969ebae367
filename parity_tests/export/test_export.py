"""Ports in a small source tree of vLLM-Omni; parity_tests/omni/engine/test_engine_export.py has the real one."""

from __future__ import annotations

import ast
import difflib
import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from porter.cli import main
from porter.export import ExportError, style
from porter.export.checkout import EXTRAS, METADATA, REGISTRY, open_checkout
from porter.export.plan import check_plan, plan_export, write_plan
from porter.export.review import answers


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


DELIVERED = ("AuraFlowPipeline", "LTXPipeline")
FEATURES = ("cache_dit", "sequence_parallel", "tensor_parallel", "step_execution", "cfg_parallel", "hsdp")


def test_pages_get_a_row_where_it_belongs(converter, checkout):
    deliver(converter, checkout, *DELIVERED)
    text = {name: found.decode() for name, found in files(checkout).items() if name.endswith(".md")}
    models = text["docs/models/supported_models.md"].splitlines()
    assert models[3] == "| `AuraFlowPipeline` | AuraFlow | `fal/AuraFlow` | | |" and models[4].startswith("| `FluxP")
    assert models[-2:] == ["", "End."]
    features = text["docs/user_guide/diffusion_features.md"]
    proven = {name: {k for k, v in converter.port(name).features.items() if v == "verified"} for name in DELIVERED}
    aura, ltx = ({k: "✅" if k in held else "❓" for k in FEATURES} for held in proven.values())
    order = ("cache_dit", "sequence_parallel", "tensor_parallel", "hsdp", "step_execution")
    row = " | ".join(aura[name] for name in order)
    assert f"| **AuraFlow** | ❌ | {row} |\n| **Bagel**" in features
    assert f"| **LTX** | {ltx['cache_dit']} | {ltx['cfg_parallel']} |\n| **Wan** |" in features
    recipes = text["recipes/README.md"].splitlines()
    [row] = [at for at, line in enumerate(recipes) if "AuraFlow" in line]
    assert recipes[row] == "| [`fal/AuraFlow.md`](./fal/AuraFlow.md) | Text to image serving | 1x GPU (untested) |"
    assert recipes[row - 1].startswith("| [`aa") and (checkout / "recipes/fal/AuraFlow.md").is_file()


@pytest.mark.parametrize("form", ["queues", "presets"])
def test_the_ci_gets_a_step_in_the_form_of_its_neighbours(converter, checkout, committed, ci, form):
    path = ci(form)
    before = files(checkout)
    deliver(converter, checkout, "AuraFlowPipeline")
    assert removed(before, files(checkout)) == []
    steps = yaml.safe_load(path.read_text())["steps"][0]["steps"]
    old = yaml.safe_load(before[path.relative_to(checkout).as_posix()])["steps"][0]["steps"]
    made, *others = [step for step in steps if step not in old]
    assert [step for step in steps if step in old] == old and steps.index(made) == 1
    assert made["label"].endswith("· AuraFlow Function Test") and "key" not in made
    if form == "presets":
        [two] = others
        assert two["label"].endswith("· AuraFlow Function Test · 2-GPU") and steps.index(two) == 3
        [command] = two["commands"]
        assert (
            "test_aura_flow_expansion.py" in command and '-m "full_model and diffusion and H100 and cards_2"' in command
        )
    else:
        assert others == []
    assert len(made["commands"]) == 2
    for command in made["commands"]:
        test, marks = re.fullmatch(r'pytest -s -v (\S+) -m "(.*)" --run-level "full_model"', command).groups()
        assert (checkout / test).is_file() and marks.startswith("full_model and diffusion and H100")
    if form == "queues":
        assert {key: made[key] for key in ("agents", "plugins")} == {key: old[0][key] for key in ("agents", "plugins")}
    else:
        assert made["timeout_in_minutes"] == 120
        table = yaml.safe_load(files(checkout)[".buildkite/common/ci_source_file_dependencies.yml"])
        paths = table["source_file_dependencies"][made["source_file_dependencies"]]
        assert paths[0] == "vllm_omni/diffusion/models/aura_flow/" and len(paths) == 3
    said = "a step, a step for two cards (" if form == "presets" else "a step, no step for two cards:"
    assert f"| CI | {said}" in (checkout / "PULL_REQUEST.md").read_text()
    committed(checkout)
    assert deliver(converter, checkout, "AuraFlowPipeline")[1] == []


def test_a_step_that_runs_the_tests_already_is_named(converter, checkout, committed, ci):
    path = ci("queues")
    path.write_text(path.read_text().replace("tests/e2e/online_serving/test_old_expansion.py", "tests/e2e/"))
    committed(checkout)
    _, written = deliver(converter, checkout, "AuraFlowPipeline")
    assert not [name for name in written if name.startswith(".buildkite")]
    assert "run by the step 'Diffusion X2I · Function Test with H100'" in (checkout / "PULL_REQUEST.md").read_text()


def test_shared_examples_are_used_where_they_run_the_model(converter, checkout, committed):
    for name in ("offline_inference/text_to_image/text_to_image.py", "online_serving/text_to_image/run_server.sh"):
        path = checkout / "examples" / name
        path.parent.mkdir(parents=True)
        path.touch()
    committed(checkout)
    _, written = deliver(converter, checkout, "AuraFlowPipeline", "FluxInpaintPipeline")
    own = {name.split("/")[2] for name in written if name.startswith("examples/")}
    assert own == {"flux_inpaint"}  # it wants a mask, which the shared script does not give
    recipe = (checkout / "recipes/fal/AuraFlow.md").read_text()
    assert "examples/offline_inference/text_to_image/text_to_image.py" in recipe
    assert "examples/online_serving/text_to_image/README.md" in recipe


def test_what_was_measured_is_told_and_nothing_else(converter, checkout, tmp_path):
    times = {"values": [1.0, 2.0], "median": 1.5, "low": 1.25, "high": 1.75}
    row = {"name": "whole call", "unit": "s", "diffusers": times, "port": times, "ratio": 1.0}
    picture = "data:image/png;base64,AAAA"
    report = {
        "pipeline": "AuraFlowPipeline", "checkpoint": "fal/AuraFlow", "device": "cuda", "machine": "Card 9",
        "dtype": "bfloat16", "threads": 1, "runs": 2, "memory": "allocated on the device",
        "environment": {"torch": "2.14.1"}, "modes": [{"mode": "eager", "quantities": [row]}],
        "pictures": {"reference": picture, "port": picture, "difference": picture}, "command": "porter bench X",
    }  # fmt: skip
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(report))
    plan = plan_export(converter, ["AuraFlowPipeline"], open_checkout(checkout), [file])
    write_plan(plan)
    text = (checkout / "PULL_REQUEST.md").read_text()
    assert "Card 9, cuda, bfloat16" in text and "| whole call | eager | 1.5 [1.25, 1.75] s |" in text
    assert "porter bench X --json" in text and "measured on Card 9" in text and "tiny checkpoint this" not in text
    for name in ("speed", "output"):
        assert f"PULL_REQUEST/AuraFlowPipeline_{name}.svg" in text
        ElementTree.parse(checkout / f"PULL_REQUEST/AuraFlowPipeline_{name}.svg")
    with pytest.raises(ExportError, match="is of AuraFlowPipeline, which is not exported"):
        plan_export(converter, ["LTXPipeline"], open_checkout(checkout), [file])
    file.write_text('{"pipeline": "AuraFlowPipeline"}')
    with pytest.raises(ExportError, match="bench.json holds no result: write it with `porter bench NAME --json"):
        plan_export(converter, ["AuraFlowPipeline"], open_checkout(checkout), [file])


def test_the_style_checks_of_the_repository_pass(converter, checkout):
    _, written = deliver(converter, checkout, "AuraFlowPipeline", "LTXImageToVideoPipeline", "StableAudio3Pipeline")
    python = [name for name in written if name.endswith(".py") and name not in (REGISTRY, METADATA, EXTRAS)]
    assert any(name.startswith("tests/e2e/online") for name in python)
    for command in (["check", *style._SETTINGS], ["format", "--check", *style._SETTINGS[:4]]):
        done = subprocess.run([style.find_ruff_bin(), *command, *python], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    for name in python:
        text = (checkout / name).read_text()
        assert text.startswith(style.SPDX), name
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        for function in (node for node in functions if node.name.startswith("test_")):
            assert ast.get_docstring(function) and function.returns is not None, (name, function.name)
            assert all(argument.annotation is not None for argument in function.args.args), (name, function.name)


def test_reviewers_are_answered_from_the_text(converter, checkout):
    deliver(converter, checkout, "AuraFlowPipeline")
    text = (checkout / "PULL_REQUEST.md").read_text()
    found = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.count(" | ") == 1)
    assert re.match(r"\d+ places? builds? it; backends can be chosen: yes", found["vLLM-Omni's Attention layer"])
    assert found["no training paths"].startswith("yes")
    assert "ColumnParallelLinear" in found["parallel linear layers"]
    assert found["latency and peak memory against diffusers"] == "not measured"
    assert "test_aura_flow_expansion.py` (not run: they need a GPU)" in found["regression test"]
    diff = text.split("```diff\n")[1].split("```")[0]
    assert '+    "AuraFlowPipeline": (' in diff and not re.search(r"^-(?!--)", diff, re.MULTILINE)


def test_what_reviewers_would_find_is_said(converter, checkout):
    exported = plan_export(converter, ["AuraFlowPipeline"], open_checkout(checkout)).models[0]
    text = "def f(self):\n    if self.gradient_checkpointing:\n        logger.info(f'{self}')\n"
    found = dict(answers(exported, {"a.py": text}))
    assert found["no training paths"] == "left: `a.py:2`" and found["lazy log formatting"] == "no: `a.py:3`"


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
