"""Which loops over blocks a cache can run, and in which order blocks take and return their states."""

from __future__ import annotations

import ast
import textwrap

import pytest

from porter.facts.block_loops import BlockLoops, block_loops

MODEL = """
class Block(nn.Module):
    def forward(self, {parameters}):
        return hidden_states


class Model(nn.Module):
    def __init__(self, n):
        self.blocks = nn.ModuleList([Block() for _ in range(n)])

    def forward(self, hidden_states, encoder_hidden_states, temb, control=None):
{loop}
        return hidden_states
"""
BOTH = "hidden_states, encoder_hidden_states, temb"


def found(loop: str, parameters: str = BOTH) -> BlockLoops:
    text = MODEL.format(loop=textwrap.indent(textwrap.dedent(loop).strip(), " " * 8), parameters=parameters)
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    return block_loops(classes["Model"], classes.get)


@pytest.mark.parametrize(
    ("step", "pattern"),
    [
        ("hidden_states, encoder_hidden_states = block(hidden_states, encoder_hidden_states, temb)", 0),
        ("encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb=temb)", 1),
        (
            "encoder_hidden_states, hidden_states = block("
            "temb=temb, encoder_hidden_states=encoder_hidden_states, hidden_states=hidden_states)",
            1,
        ),
        ("hidden_states = block(hidden_states, encoder_hidden_states, temb)", 3),
        ("hidden_states, residual = block(hidden_states, encoder_hidden_states, temb)", 4),
        ("residual, hidden_states = block(hidden_states, encoder_hidden_states, temb)", 5),
    ],
)
def test_the_pattern_is_what_goes_round(step, pattern):
    result = found(f"for block in self.blocks:\n    {step}")
    assert result.patterns == {"blocks": pattern} and result.named and not result.absent


@pytest.mark.parametrize(
    ("loop", "parameters", "reason"),
    [
        ("for i, block in enumerate(self.blocks):\n    hidden_states = block(hidden_states, i)", BOTH, "its place"),
        ("for block in self.blocks:\n    hidden_states = hidden_states + block(hidden_states)", BOTH, "as it is"),
        (
            "for block in self.blocks:\n    hidden_states = block(hidden_states)\n    temb = temb + 1",
            BOTH,
            "does more than call",
        ),
        (
            "for block in self.blocks:\n    hidden_states = block(hidden_states=hidden_states)",
            "temb, hidden_states",
            "in place 1",
        ),
        (
            "for block in self.blocks:\n    hidden_states = block(hidden_states)\nwidth = len(self.blocks)",
            BOTH,
            "outside of the loop",
        ),
        ("for block in self.blocks:\n    hidden_states = block(hidden_states, **held)", BOTH, "unpacked"),
        ("for block in self.blocks:\n    hidden_states = block(hidden_states, hidden_states)", BOTH, "twice"),
    ],
)
def test_a_loop_that_does_not_fit_says_why(loop, parameters, reason):
    result = found(loop, parameters)
    assert not result.patterns and reason in result.reasons["blocks"]


def test_what_only_a_control_changes_is_left_out_and_named():
    result = found(
        """
        for i, block in enumerate(self.blocks):
            hidden_states = block(hidden_states, encoder_hidden_states, temb)
            if control is not None:
                hidden_states = hidden_states + control[i // len(self.blocks)]
        """
    )
    assert result.patterns == {"blocks": 3} and result.absent == ["control"]


def test_blocks_with_other_names_are_not_checked_by_name():
    result = found("for block in self.blocks:\n    hidden_states = block(hidden_states, temb)", "x, temb")
    assert result.patterns == {"blocks": 3} and not result.named


def test_a_constant_that_follows_from_what_is_absent_is_folded_too():
    result = found(
        """
        for i, block in enumerate(self.blocks):
            skipped = True if control is not None and i in control else False
            if not skipped:
                hidden_states = block(hidden_states, encoder_hidden_states, temb)
        """
    )
    assert result.patterns == {"blocks": 3} and result.absent == ["control"]


def test_a_parameter_that_is_bound_again_may_be_there():
    result = found(
        """
        control = control if temb is None else temb
        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, temb)
            if control is not None:
                hidden_states = hidden_states + control
        """
    )
    assert not result.patterns
