"""Where faults are planted, and what they make of the source."""

import ast

import pytest

from porter.parity.mutants import KNOWN_BUGS, MUTATORS, apply, find_mutants
from porter.parity.mutants.equivalents import known, looked_into, proof

SOURCE = b'''
"""A module: 1 + 2."""
from __future__ import annotations
import copy

def _turn(self, own, name: Annotated[int, 3]):
    own[name] = copy.deepcopy(getattr(self, name))

class Block:
    def forward(self, hidden_states, scale: float = 2.0, flag=True):
        """Adds 5."""
        if flag:
            logger.warning("%d", 1)
        if scale < 0:
            raise ValueError(f"not {1 + 1}")
        hidden_states = hidden_states.permute(0, 2, 1).float()
        for index in range(3):
            hidden_states = hidden_states + (scale * index)
        return hidden_states.to(
            torch.float32
        )

    def load_weights(self, weights):
        for name, tensor in weights:
            self.fill(name, tensor)

class Pipeline:
    def _pack_latents(self, latents):
        return latents.permute(0, 2, 4, 1, 3, 5)

    def prepare_encode(self, state):
        self.scheduler = load_component(od_config, "scheduler", Scheduler)
        guidance_scale = given.pop("guidance_scale", guidance_scale)
        prompt = prompt_clean(given.pop("prompt", prompt))
        negative_prompt = given.pop("negative_prompt", negative_prompt)
        mu = calculate_shift(length, 256)
        prompt_embeds_mask = state.mask
        length = prompt_embeds.shape[1]
        state.timesteps = timesteps
        guidance = guidance.to(dtype) * 1000
        noise = comb * (cond_norm / noise_norm)
        both = torch.cat([text, picture], dim=1).clamp(0, 1)
        both = both.repeat_interleave(number, dim=0) * self.vae.config.scaling_factor
        both = self.norm(both, eps=1e-6, affine=False, attention_mask=mask, generator=generator)

class Second:
    def __init__(self):
        self.attn2 = Attention(1)
'''
FOUND = find_mutants(SOURCE, "module")


def changed(mutator):
    return [apply(SOURCE, mutant.edits).decode() for mutant in FOUND if mutant.mutator == mutator]


@pytest.mark.parametrize("mutator", [*MUTATORS, *KNOWN_BUGS])
def test_every_mutator_finds_its_place_and_leaves_a_module(mutator):
    texts = changed(mutator)
    assert texts
    for text in texts:
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(SOURCE))


def test_what_no_result_depends_on_is_left_alone():
    lines = {mutant.line for mutant in FOUND}
    text = SOURCE.decode().splitlines()
    touched = [text[line - 1] for line in lines]
    assert not any("logger" in line or "raise" in line or "import" in line or '"""' in line for line in touched)
    assert not any("Annotated" in line for line in touched)


def test_a_fault_names_its_place_and_the_lines_that_run_it():
    [term] = [m for m in FOUND if m.mutator == "drop-term" and m.before.startswith("scale * index")]
    assert (term.function, term.after) == ("Block.forward", "(scale)")
    assert "hidden_states = hidden_states + ((scale))" in apply(SOURCE, term.edits).decode()
    [dtype] = [m for m in FOUND if m.mutator == "change-dtype" and m.before == "torch.float32"]
    assert len(dtype.lines) == 3 and dtype.line in dtype.lines


def test_swapped_axes_change_places():
    assert any("permute(0, (1), (2)).float()" in text for text in changed("transpose-axes"))


def test_a_fault_knows_the_expressions_around_it():
    [swap] = [m for m in FOUND if m.mutator == "joined-in-another-order"]
    texts = [SOURCE[start:end].decode() for start, end in swap.around]
    joined = "torch.cat([text, picture], dim=1)"
    assert texts[0] == joined and texts[-1] == f"{joined}.clamp(0, 1)"


def test_repeats_change_places():
    assert "(lambda x: x.repeat(number, *[1] * (x.ndim - 1)))(both)" in "".join(changed("repeated-in-another-order"))


def test_an_equivalent_fault_needs_a_reason():
    for entry in known():
        assert len(entry.reason) > 40, f"{entry.module} {entry.before}: say why nothing can show"
    assert looked_into(FOUND[0]) is None


ROWS = b"""
def forward(self, size, mask, number):
    rows = size.view(1, -1).to(torch.int32)
    if number:
        mask = mask.unsqueeze(0)
    size = torch.tensor([size])
    rows = rows.repeat(number, 1)
    mask = mask.repeat(number, 1)
    size = size.repeat(number, 1)
    size = size.repeat(number, 1)
    timestep = size.expand(number)
    timestep = (1000 - timestep) / 1000
    mixed = timestep + mask
    ids = torch.tensor([size + number])
    if number:
        ids = torch.cat([ids] * 2)
        other = torch.tensor([size])
        other = torch.cat([other, mask])
    last = rows[-1:].repeat(number, 1), rows[1:].repeat(number, 1), timestep.repeat(2), mixed.repeat(2)
    both = ids.to(number).repeat(2, 1), other.repeat(2, 1)
    return size.unsqueeze(0).repeat(number, 1, 1) + mask[None].repeat(number, 1) + mask[0].repeat(number, 1)
"""


def test_a_repeated_row_is_proven_to_be_one_from_the_source_alone():
    planted = [fault for fault in find_mutants(ROWS, "rows") if fault.mutator == "repeated-in-another-order"]
    proven = {fault.before: bool(proof(fault, ROWS)) for fault in planted}
    assert proven.pop("size.unsqueeze(0).repeat(number, 1, 1)") and proven.pop("mask[None].repeat(number, 1)")
    assert proven.pop("rows.repeat(number, 1)")
    assert not proven.pop("mask.repeat(number, 1)"), "it was made in a branch"
    assert not proven.pop("mask[0].repeat(number, 1)")
    assert proven.pop("rows[-1:].repeat(number, 1)") and not proven.pop("rows[1:].repeat(number, 1)")
    assert proven.pop("ids.to(number).repeat(2, 1)") and not proven.pop("other.repeat(2, 1)"), "copies of one row"
    assert proven.pop("timestep.repeat(2)") and not proven.pop("mixed.repeat(2)"), "one number for all rows"
    assert [bool(proof(fault, ROWS)) for fault in planted if fault.before.startswith("size.rep")] == [True, False]


TOKENS = b"""
class Model(nn.Module):
    def __init__(self, dim):
        self.tokens = nn.Parameter(torch.randn(1, 8, dim) * 0.02)
        self.table = nn.Parameter(torch.randn(2, dim))

    def forward(self, texts):
        tokens = self.tokens.to(texts.device)
        return tokens.repeat(texts.size(0), 1, 1), self.table.repeat(texts.size(0), 1)
"""


def test_a_parameter_of_one_row_is_known_by_how_it_is_made():
    planted = [fault for fault in find_mutants(TOKENS, "model") if fault.mutator == "repeated-in-another-order"]
    assert [bool(proof(fault, TOKENS)) for fault in planted] == [True, False]


def test_axes_that_change_places_are_not_swapped_as_arguments():
    assert not [
        fault
        for fault in find_mutants(b"def forward(x):\n    return x.transpose(1, 2)\n", "m")
        if "swap" in fault.mutator
    ]
