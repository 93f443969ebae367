"""What may hold both branches of guidance, and what surely does not."""

import ast
import textwrap

import pytest

from porter.facts.guided import GuidedNames, rows_along

CALL = "self.transformer(x)"


def guided(body, parameters="x, guidance_scale, faces", apart=("transformer", "config", "prepare")):
    function = ast.parse(f"def forward(self, {parameters}):\n{textwrap.indent(textwrap.dedent(body), '    ')}").body[0]
    return GuidedNames(function, CALL, apart).names


@pytest.mark.parametrize(
    "line",
    [
        "y = torch.cat([x] * 2) if self.do_classifier_free_guidance else x",
        "y = torch.cat([x, x])",
        "y = self.encode(x, do_cfg)",
        "y = self.whatever(x)",
        "y = self._kept",
        "if guidance_scale > 1:\n    y = x",
        "if guidance_scale > 1:\n    for y in x: pass",
        "n = x.shape[0] * 2 if self.do_cfg else x.shape[0]\ny = {}\ny[0] = torch.zeros(n)",
        "y = []\ny.append(negative_embeds)",
        "with scope(guidance_scale) as y: pass",
        "y, z = (1, guidance_scale)",
        "y = x\ny += guidance_scale",
    ],
)
def test_what_depends_on_guidance_may_hold_both(line):
    assert "y" in guided(f"{line}\nnoise = {CALL}")


@pytest.mark.parametrize(
    "line",
    [
        "y = faces",
        "y = self.prepare(faces)",
        "y = list(self.transformer.config.parts)",
        "if x is None:\n    y = faces",
        "y = t.unsqueeze(0)",
    ],
)
def test_what_does_not_is_the_same_for_both(line):
    assert "y" not in guided(f"{line}\nnoise = {CALL}")


def test_what_happens_after_the_call_counts_only_in_a_loop():
    assert "y" not in guided(f"y = x\nnoise = {CALL}\ny = noise * guidance_scale")
    assert "y" in guided(f"y = x\nfor t in x:\n    noise = {CALL}\n    y = noise * guidance_scale")


def test_rows_behind_the_first_dimension_are_found_by_the_size():
    function = ast.parse(
        textwrap.dedent(
            """
            def forward(self, x):
                rows = x.shape[0] * 2 if self.do_classifier_free_guidance else x.shape[0]
                cache, first, both = {}, torch.zeros((rows, 4)), torch.zeros((rows, rows))
                for index in range(3):
                    cache[index] = {"keys": torch.zeros((2, rows, 8), device=x.device), "other": torch.zeros(2, rows)}
                both = torch.zeros((rows, rows))
                plain = torch.zeros((2, 8))
            """
        )
    ).body[0]
    assert rows_along(function, ["cache", "first", "both", "plain"]) == {"cache": 1}
