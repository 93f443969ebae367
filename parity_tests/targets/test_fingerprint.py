"""When two definitions count as the same."""

import ast

import pytest

from porter.targets import definition_hash, function_parameters

PLAIN = """\
def scale(x, factor=2.0, *rest, keep=True, **more):
    y = x * factor
    return f"{y}!" if keep else y
"""


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("keep=True", "keep: bool = True").replace("):", ") -> str:", 1),
        PLAIN.replace("    y =", '    """Scale it."""\n    y =').replace("2.0", "2.00"),
        PLAIN.replace("    return", "    pass  # nothing\n\n    return").replace('f"{y}!"', "f'{y}' '!'"),
    ],
    ids=["annotations", "docstring", "layout"],
)
def test_what_computes_the_same(other):
    assert definition_hash(other) == definition_hash(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("x * factor", "factor * x"),
        PLAIN.replace("2.0", "2"),
        PLAIN.replace("!", "?"),
        PLAIN.replace("scale", "rescale"),
        PLAIN.replace("keep=True", "keep=False"),
        "@staticmethod\n" + PLAIN,
        "async " + PLAIN,
    ],
    ids=["order", "type of a number", "string", "name", "default", "decorator", "async"],
)
def test_what_does_not(other):
    assert definition_hash(other) != definition_hash(PLAIN)


def test_bodies_of_nothing_but_words_are_empty():
    assert definition_hash('class A(B):\n    """Words."""') == definition_hash("class A(B):\n    pass")


def test_a_string_further_down_is_no_docstring():
    assert definition_hash("def f():\n    g()\n    'x'") != definition_hash("def f():\n    g()")


def test_node_and_text_agree():
    assert definition_hash(ast.parse(PLAIN).body[0]) == definition_hash(PLAIN)


@pytest.mark.parametrize("source", ["", "x = 1", PLAIN + PLAIN])
def test_text_must_be_one_definition(source):
    with pytest.raises(ValueError, match="exactly one function or class"):
        definition_hash(source)


def test_the_hash_is_fixed():
    # The stored tables hold it: another algorithm means other tables.
    assert definition_hash(PLAIN) == "bd9313b4302a3255"


def test_parameters():
    function = ast.parse(PLAIN).body[0]
    assert function_parameters(function) == ("x", "factor", "*rest", "keep", "**more")
    assert function_parameters(function, bound=True) == ("factor", "*rest", "keep", "**more")
