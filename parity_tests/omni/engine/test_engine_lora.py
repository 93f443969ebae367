"""An adapter that names projections as diffusers does finds them in the layers that they became."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from porter.model_port import ModelPort, build_model, find_model, write_models
from porter.source import SourceTree
from porter.targets import get_target

ROOT = Path(__file__).resolve().parents[3]
NAME = "Krea2Transformer2DModel"

# In a process of its own: the engine's groups can be set up once in each.
SCRIPT = """
import json, sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from porter.model_port import load_model
from porter.omni.ranks import Rank, apart, difference, fill
from porter.omni.rendezvous import free_port
from porter.parity import model_spec
from porter.parity.model_spec import decode_calls

work, name = Path(sys.argv[1]), sys.argv[2]
rank, case = Rank(0, 1, "one", free_port()), model_spec.read(name)[0]
cls = load_model(work / "ports" / f"{name}.py", name)


def loaded(state):
    model = rank.build(cls, case.config)
    rank.load(model, state)
    return model


def run(model):
    return rank.run(model, decode_calls(case.calls, sys.modules[cls.__module__]), False)


model = rank.build(cls, case.config)
fill(model, 1)
state = apart(model, {key: value.clone() for key, value in model.state_dict().items()})
targets, adapter, adapted = ["to_q", "to_v", "up", "to_out.0"], {}, dict(state)
torch.manual_seed(2)
for key, weight in state.items():
    path = key.removesuffix(".weight")
    if key.startswith("transformer_blocks") and any(path.endswith(f".{target}") for target in targets):
        a, b = torch.randn(4, weight.shape[1]) / 4, torch.randn(weight.shape[0], 4) / 4
        adapter |= {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}
        adapted[key] = weight + 0.5 * b @ a
save_file(adapter, work / "adapter_model.safetensors")
config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q", "to_v", "up", "to_out.0"]}
(work / "adapter_config.json").write_text(json.dumps(config))

from vllm.lora.request import LoRARequest
from vllm_omni.diffusion.lora.manager import DiffusionLoRAManager

pipeline = torch.nn.Module()
pipeline.transformer = loaded(state)
plain = run(pipeline.transformer)
with rank.context():
    manager = DiffusionLoRAManager(pipeline, torch.device("cpu"), torch.float32)
    manager.set_active_adapter(LoRARequest("style", 1, str(work)), 0.5)
found = run(pipeline.transformer)
expected = run(loaded(adapted))
with rank.context():
    manager.set_active_adapter(None)
print(json.dumps({
    "tensors": len(adapter),
    "adapted": difference(found, expected),
    "changed": difference(plain, expected),
    "off": difference(run(pipeline.transformer), plain),
}))
"""


def test_an_adapter_applies_to_parts_of_merged_layers(tmp_path):
    tree = SourceTree(None)
    text, _ = build_model(tree, get_target("vllm-omni"), find_model(tree, NAME))
    write_models(tmp_path / "ports", [ModelPort(NAME, NAME, text)])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), NAME]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tensors"] >= 8
    assert found["changed"] > 1e-2  # the adapter does something
    assert found["adapted"] <= 1e-5
    assert found["off"] <= 1e-5
