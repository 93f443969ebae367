"""Folding by what is known: it removes what cannot happen and changes nothing else."""

from __future__ import annotations

import ast
import itertools
import textwrap
from typing import Any

import libcst as cst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porter.rules.fold import NOT_NONE, UNKNOWN, Facts, bindings, dotted, fold, fold_function, mentions

FACTS = Facts({"none": None, "yes": True, "no": False, "three": 3, "word": "pil", "some": NOT_NONE, "self.flag": False})


def folded(text: str, facts: Facts = FACTS) -> str:
    return fold(cst.parse_module(textwrap.dedent(text).strip("\n") + "\n"), facts).code


def folded_function(text: str, facts: Facts = FACTS) -> str:
    node = cst.parse_module(textwrap.dedent(text).strip("\n") + "\n").body[0]
    return cst.Module([fold_function(node, facts)]).code


def lines(text: str) -> str:
    return textwrap.dedent(text).strip("\n") + "\n"


# What is known -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", None),
        ("yes", True),
        ("word", "pil"),
        ("some", NOT_NONE),
        ("other", UNKNOWN),
        ("other.none", UNKNOWN),
        ("self.flag", False),
        ("self.other", UNKNOWN),
        ("none is None", True),
        ("none is not None", False),
        ("some is None", False),
        ("some is not None", True),
        ("other is None", UNKNOWN),
        ("word == 'pil'", True),
        ("word != 'pil'", False),
        ("word == other", UNKNOWN),
        ("three > 2", True),
        ("three < 2", False),
        ("1 < three < 5", UNKNOWN),
        ("not none", True),
        ("not some", UNKNOWN),
        ("no and other", False),
        ("yes or other", True),
        ("yes and other", UNKNOWN),
        ("other or other", UNKNOWN),
        ("three if yes else other", 3),
        ("isinstance(none, str)", False),
        ("isinstance(word, str)", UNKNOWN),
        ("[other]", NOT_NONE),
        ("other + 1", NOT_NONE),
        ("f(none)", UNKNOWN),
    ],
)
def test_value(text, value):
    found = FACTS.value(cst.parse_expression(text))
    assert found is value if value is UNKNOWN or value is NOT_NONE else (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("other and no", False),
        ("other or yes", True),
        ("other or no", None),
        ("some", None),
        ("not (other and no)", True),
        ("no or yes and three", True),
    ],
)
def test_truth(text, truth):
    assert FACTS.truth(cst.parse_expression(text)) is truth


def test_calls_are_known_by_their_dotted_name():
    facts = Facts({}, {"is_there": lambda call: len(call.args) == 1, "torch.on": lambda call: False})
    assert facts.truth(cst.parse_expression("is_there(1)")) is True
    assert facts.truth(cst.parse_expression("is_there()")) is False
    assert facts.truth(cst.parse_expression("torch.on()")) is False
    assert facts.truth(cst.parse_expression("module.is_there(1)")) is None


@pytest.mark.parametrize(
    ("text", "name"), [("a", "a"), ("a.b.c", "a.b.c"), ("a[0].b", None), ("a().b", None), ("1", None)]
)
def test_dotted(text, name):
    assert dotted(cst.parse_expression(text)) == name


# What is removed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("x = a if yes else b", "x = a", id="conditional expression"),
        pytest.param("x = no or b", "x = b", id="value of or"),
        pytest.param("x = a or no", "x = a or no", id="only the left operand decides a value"),
        pytest.param("if a and yes:\n    f()", "if a:\n    f()", id="a test loses what is known"),
        pytest.param("if no:\n    f()", "", id="dead branch"),
        pytest.param("if no:\n    f()\nelse:\n    g()", "g()", id="else takes its place"),
        pytest.param("if yes:\n    f()\nelse:\n    g()", "f()", id="branch takes its place"),
        pytest.param("if a:\n    f()\nelif no:\n    g()", "if a:\n    f()", id="dead elif"),
        pytest.param(
            "if a:\n    f()\nelif yes:\n    g()\nelse:\n    h()", "if a:\n    f()\nelse:\n    g()", id="last elif"
        ),
        pytest.param("if no:\n    f()\nelif a:\n    g()", "if a:\n    g()", id="elif becomes if"),
        pytest.param("if no: f()", "", id="on one line"),
        pytest.param("if a:\n    if no:\n        f()", "if a:\n    pass", id="an empty block"),
        pytest.param("if a:\n    f()\nelse:\n    if no:\n        g()", "if a:\n    f()", id="an empty else"),
        pytest.param(
            "def f():\n    if yes:\n        return 1\n    return 2",
            "def f():\n    return 1",
            id="unreachable statements",
        ),
        pytest.param("# why\nif yes:\n    # how\n    f()", "# why\n# how\nf()", id="comments stay"),
    ],
)
def test_fold(before, after):
    assert folded(before).strip() == after


@pytest.mark.parametrize(
    "text",
    [
        "if some:\n    f()\n",
        "if a:\n    pass\nelse:\n    pass\n",
        "x = [none for none in values]\n",
        "f(none=none)\n",
        "none.x = 1\n",
        "while yes:\n    f()\n",
    ],
)
def test_left_alone(text):
    assert folded(text) == text


def test_a_fact_is_withdrawn_when_a_live_assignment_remains():
    text = """
        def f(none, other):
            if other:
                none = 1
            if none is None:
                return 0
            return none
    """
    assert folded_function(text) == lines(text)


def test_a_fact_holds_when_its_assignments_are_dead():
    text = """
        def f(none):
            if none is not None:
                none = prepare(none)
            if none is None:
                return 0
            return none
    """
    assert folded_function(text) == lines("def f(none):\n    return 0")


def test_a_withdrawn_fact_brings_its_branches_back():
    # `no` keeps the assignment of `none` dead only as long as nothing assigns `no`.
    text = """
        def f(no, none, other):
            if other:
                no = True
            if no:
                none = 1
            return none is None
    """
    assert folded_function(text) == lines(text)


@pytest.mark.parametrize(
    "binding",
    [
        "for none in values:\n    use(none)",
        "with open(path) as none:\n    use(none)",
        "none, other = values",
        "none += 1",
        "none: int = 1",
        "use(none := 1)",
        "use(lambda none: none)",
        "use([none for none in values])",
        "*none, other = values",
        "[none, other] = values",
        "def inner(none):\n    return none",
        "import thing as none",
        "try:\n    use()\nexcept ValueError as none:\n    pass",
    ],
)
def test_every_kind_of_binding_withdraws_a_fact(binding):
    text = "def f(none, other):\n" + textwrap.indent(binding, "    ") + "\n    return 1 if none is None else 2\n"
    assert folded_function(text) == text


def test_what_is_assigned_once_is_known():
    text = """
        def f(none, other):
            wanted = none is not None
            if wanted:
                other = change(other)
            return other
    """
    assert folded_function(text) == lines("def f(none, other):\n    wanted = none is not None\n    return other")


def test_what_is_assigned_twice_is_not_known():
    text = """
        def f(none, other):
            wanted = none is not None
            if other:
                wanted = True
            return other if wanted else 0
    """
    assert folded_function(text) == lines(text)


def test_a_function_that_mentions_nothing_known_is_the_same_object():
    node = cst.parse_statement("def f(a):\n    return a\n")
    assert fold_function(node, FACTS) is node
    assert not mentions(node, FACTS)


def test_bindings_are_counted():
    function = cst.parse_statement("def f(z):\n    a = e = 1\n    e, a = 1, 2\n    b = lambda c: c\n")
    found = bindings(function.body)
    assert found.counts == {"a": 2, "b": 1, "c": 1, "e": 2}
    assert set(found.values) == {"b"}


# Each of these once changed what a function does.

FIXED = {
    "parentheses of a conditional expression": ("x = (a if yes else b + c) * 2", "x = a * 2"),
    "parentheses of its other branch": ("x = (b + c if yes else a) * 2", "x = (b + c) * 2"),
    "parentheses of an operation": ("x = not (no or a and b)", "x = not (a and b)"),
    "parentheses of a test": ("if not (no or a and b):\n    f()", "if not (a and b):\n    f()"),
    "the value of and is no truth value": ("if (none and a) is None:\n    f()", "f()"),
    "an operand that is known second": ("if (a and none) is None:\n    f()", "if (a and none) is None:\n    f()"),
    "what cannot be compared": ("if a and none > 1:\n    f()", "if a and none > 1:\n    f()"),
}


@pytest.mark.parametrize("name", FIXED)
def test_fold_keeps_what_binds_and_what_is_compared(name):
    before, after = FIXED[name]
    assert folded(before).strip() == after


def test_a_chain_over_several_lines_keeps_its_parentheses():
    ast.parse(folded("x = (\n    a.b()\n    .c()\n    if yes\n    else d\n)\n"))


def test_a_star_parameter_is_no_local_constant():
    text = "def f(none, *args):\n    if args is None:\n        return 1\n    args = none\n    return args\n"
    assert folded_function(text) == text


def test_an_assignment_withdraws_the_fact_about_an_attribute():
    text = "def f(self, none):\n    self.flag = True\n    return 1 if self.flag else none\n"
    assert folded_function(text) == text


# Folding never changes a value -------------------------------------------------------------------------------------

KNOWN: dict[str, Any] = {"none": None, "yes": True, "no": False, "three": 3, "word": "pil", "some": 0}
GIVEN = Facts({**KNOWN, "some": NOT_NONE})
OPEN = ("a", "b")
VALUES = (None, True, False, 0, 2, "pil")

names = st.sampled_from([*KNOWN, *OPEN]).map(lambda name: ast.Name(name, ast.Load()))
constants = st.sampled_from([None, True, False, 0, 3, "pil"]).map(ast.Constant)


def _compound(inner: st.SearchStrategy[ast.expr]) -> st.SearchStrategy[ast.expr]:
    none = st.just(ast.Constant(None))
    return st.one_of(
        st.builds(lambda e: ast.UnaryOp(ast.Not(), e), inner),
        st.builds(
            lambda op, values: ast.BoolOp(op, values),
            st.sampled_from([ast.And(), ast.Or()]),
            st.lists(inner, min_size=2, max_size=3),
        ),
        st.builds(
            lambda left, op, right: ast.Compare(left, [op], [right]),
            inner,
            st.sampled_from([ast.Is(), ast.IsNot()]),
            none,
        ),
        st.builds(
            lambda left, op, right: ast.Compare(left, [op], [right]),
            inner,
            st.sampled_from([ast.Eq(), ast.NotEq(), ast.Gt(), ast.Lt()]),
            inner,
        ),
        st.builds(ast.IfExp, inner, inner, inner),
        st.builds(lambda left, right: ast.Tuple([left, right], ast.Load()), inner, inner),
    )


expressions = st.recursive(st.one_of(names, constants), _compound, max_leaves=6)


def assignments() -> list[dict[str, Any]]:
    return [{**KNOWN, **dict(zip(OPEN, values))} for values in itertools.product(VALUES, repeat=len(OPEN))]


def outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call gives, told apart by type too; None if it raises."""
    try:
        return repr(function(*args, **kwargs))
    except (TypeError, NameError):
        return None


def same_outcomes(before: Any, after: Any, *texts: str) -> None:
    for values in assignments():
        expected = outcome(before, dict(values))
        if expected is not None:  # what raised before has no value to keep
            assert outcome(after, dict(values)) == expected, (values, *texts)


def evaluator(text: str) -> Any:
    code = compile(text, "<expression>", "eval")
    return lambda values: eval(code, {}, values)


def runner(text: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(text, "<function>", "exec"), namespace)
    return lambda values: namespace["f"](**values)


@settings(max_examples=400, deadline=None)
@given(expressions)
def test_an_expression_keeps_its_value(node):
    before = ast.unparse(ast.fix_missing_locations(ast.Expression(node)))
    after = cst.Module([]).code_for_node(fold(cst.parse_expression(before), GIVEN))
    same_outcomes(evaluator(before), evaluator(after), before, after)


@settings(max_examples=300, deadline=None)
@given(expressions)
def test_what_is_said_about_an_expression_is_true(node):
    text = ast.unparse(ast.fix_missing_locations(ast.Expression(node)))
    value, run = GIVEN.value(cst.parse_expression(text)), evaluator(text)
    if value is not UNKNOWN:
        for values in assignments():
            found = outcome(run, values)
            if found is not None:
                assert found != "None" if value is NOT_NONE else found == repr(value), (text, values)


LOCALS = ("x", "y")


@st.composite
def blocks(draw: Any, targets: tuple[str, ...], depth: int = 2) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["assign", "assign", "return", "pass"] + ["if"] * 4 * (depth > 0)))
        value = ast.unparse(ast.fix_missing_locations(ast.Expression(draw(expressions))))
        if kind == "assign":
            parts.append(f"{draw(st.sampled_from(targets))} = {value}")
        elif kind == "return":
            parts.append(f"return ({value}, {', '.join(draw(st.permutations(targets))[:1])})")
        elif kind == "pass":
            parts.append("pass")
        else:
            part = f"if {value}:\n{textwrap.indent(draw(blocks(targets, depth - 1)), '    ')}"
            for _ in range(draw(st.integers(0, 2))):
                test = ast.unparse(ast.fix_missing_locations(ast.Expression(draw(expressions))))
                part += f"\nelif {test}:\n{textwrap.indent(draw(blocks(targets, depth - 1)), '    ')}"
            if draw(st.booleans()):
                part += f"\nelse:\n{textwrap.indent(draw(blocks(targets, depth - 1)), '    ')}"
            parts.append(part)
    return "\n".join(parts)


def function_text(block: str) -> str:
    state = ", ".join([*KNOWN, *OPEN, *LOCALS])
    body = f"x = y = a\n{block}\nreturn ({state})"
    # Every local is bound at the head: a name whose only binding is in dead code would turn into a global without it.
    return f"def f({', '.join([*KNOWN, *OPEN])}):\n    x = y = z = None\n{textwrap.indent(body, '    ')}\n"


@settings(max_examples=100, deadline=None)
@given(blocks(LOCALS).map(function_text))
def test_statements_keep_what_they_do(before):
    after = folded(before, GIVEN)
    same_outcomes(runner(before), runner(after), before, after)


@settings(max_examples=100, deadline=None)
@given(blocks((*LOCALS, "none", "no", "z")).map(function_text))
def test_a_function_that_rebinds_known_names_keeps_what_it_does(before):
    after = folded_function(before, GIVEN)
    same_outcomes(runner(before), runner(after), before, after)
