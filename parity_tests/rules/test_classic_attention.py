"""The classic ``Attention`` of the installed diffusers, specialised: what its examples show on a smaller class."""

from __future__ import annotations

import ast
import builtins
import re

import libcst as cst
import pytest

from porter.rules.build import module_facts
from porter.rules.engine import Context, code
from porter.rules.fold import NOT_NONE
from porter.rules.model.classic_attention import MODULE, ClassicAttention, known_parameters
from porter.source import SourceTree

SITES = {
    "self-attention": ("AttnProcessor2_0", "query_dim=dim, heads=heads, dim_head=64, bias=True"),
    "cross-attention": ("AttnProcessor2_0", "query_dim=dim, cross_attention_dim=other, heads=8, out_bias=True"),
    "normed": ("AttnProcessor2_0", 'query_dim=dim, qk_norm="rms_norm", eps=1e-6, heads=heads, dim_head=dim_head'),
    "joint": (
        "JointAttnProcessor2_0",
        "query_dim=dim, cross_attention_dim=None, added_kv_proj_dim=dim, dim_head=64, heads=heads, out_dim=dim, "
        'context_pre_only=False, bias=True, qk_norm="rms_norm"',
    ),
    "grouped": ("HunyuanAttnProcessor2_0", 'query_dim=dim, heads=heads, kv_heads=2, qk_norm="layer_norm"'),
    "open norm": ("CogVideoXAttnProcessor2_0", "query_dim=dim, heads=heads, dim_head=dim_head, qk_norm=norm"),
    "residual": ("AttnProcessor2_0", "query_dim=dim, residual_connection=True, norm_num_groups=32"),
}


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return SourceTree()


@pytest.fixture(scope="module", params=SITES)
def specialised(request, tree):
    """(the specialised class, the context, the arguments of the site)"""
    name, text = SITES[request.param]
    module = tree.module(MODULE)
    ctx = Context(tree, module, facts=module_facts(module))
    call = cst.parse_expression(f"f({text})")
    given = {arg.keyword.value: arg.value for arg in call.args}
    source = module.definitions["Attention"].node
    init = next(i for i in source.body if isinstance(i, ast.FunctionDef) and i.name == "__init__")
    known = known_parameters(init, given, {"dim", "other", "heads", "dim_head"})
    node = ClassicAttention().specialise(ctx, "Specialised", given, known, module.definitions[name])
    constants = {k for k, v in known.items() if v is not NOT_NONE}
    return ast.parse(code(node)).body[0], ctx, [name for name in given if name not in constants]


def test_the_constructor_takes_what_the_site_does_not_fix(specialised):
    node, _, open_arguments = specialised
    # With an out_dim, diffusers computes the number of heads from it and reads no other.
    expected = set(open_arguments) - ({"heads"} if "out_dim" in open_arguments else set())
    assert set(_parameters(_method(node, "__init__"))[1:]) == expected


def test_every_parameter_and_local_name_is_read(specialised):
    node, _, _ = specialised
    init = _method(node, "__init__")
    for function in [i for i in node.body if isinstance(i, ast.FunctionDef)]:
        names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
        read = {n.id for n in names if isinstance(n.ctx, ast.Load)}
        single = [n.targets[0] for n in ast.walk(function) if isinstance(n, ast.Assign)]
        written = {target.id for target in single if isinstance(target, ast.Name)}
        assert written <= read, function.name
        if function is init:
            assert set(_parameters(function)[1:]) <= read


def test_nothing_is_computed_with_none(specialised):
    node, _, _ = specialised
    computed = [n for n in ast.walk(node) if isinstance(n, ast.BinOp) and not isinstance(n.op, ast.BitOr)]  # X | None
    operands = [side for n in computed for side in (n.left, n.right)]
    assert not [side for side in operands if isinstance(side, ast.Constant) and side.value is None]


def test_every_name_is_bound_imported_or_asked_for(specialised):
    node, ctx, _ = specialised
    for function in [i for i in node.body if isinstance(i, ast.FunctionDef)]:
        names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
        bound = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
        bound |= {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
        bound |= {a.name for n in ast.walk(function) if isinstance(n, ast.ImportFrom) for a in n.names}
        free = {n.id for n in names} - bound - set(dir(builtins))
        assert free <= {*ctx.imports, *ctx.module.imports, *ctx.module.definitions}, function.name


def test_every_attribute_that_is_read_is_there(specialised):
    node, _, _ = specialised
    own = {i.name for i in node.body if isinstance(i, ast.FunctionDef)}
    assigned = set(re.findall(r"self\.(\w+)(?:: [^=]+)? = ", ast.unparse(_method(node, "__init__"))))
    read = set(re.findall(r"self\.(\w+)", ast.unparse(node)))
    module = {"training", "add_module", "register_buffer"}
    assert read <= own | assigned | module


def test_no_trace_of_the_processor_is_left(specialised):
    node, _, _ = specialised
    assert not re.search(r"\battn\.|\.processor\b|\.set_processor\b", ast.unparse(node))


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(i for i in node.body if isinstance(i, ast.FunctionDef) and i.name == name)


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in [*function.args.args, *function.args.kwonlyargs]]
