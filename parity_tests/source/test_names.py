"""A model is known by what it does: under another name it becomes the same port, under that name."""

from __future__ import annotations

import re
import shutil

import pytest

from porter.port import Converter
from porter.source.tree import SourceTree
from porter.targets import get_target

# Word in names of the model, and another of its length (lines break where they did) that sorts alike. What else their
# pipelines import has names of its own, known to the target.
OTHERS = {"AuraFlow": "AuraFlox", "EasyAnimate": "EasyAnimatf"}


def renamed(text: str, word: str) -> str:
    """A text with all spellings of a word exchanged."""
    other = OTHERS[word]
    for spell in (str, str.upper, str.lower, lambda name: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()):
        text = text.replace(spell(word), spell(other))
    return text


def written(source: SourceTree, pipeline: str) -> dict[str, str]:
    """What a port says by file, without the hash of its source and what was proven for this very text."""
    port = Converter(source, get_target("porter")).port(pipeline)
    assert port.clean
    kept = {}
    for name, text in port.texts.items():
        text = re.sub(r"\b[0-9a-f]{64}\b", "", text)
        kept[name] = re.sub(r"\bverified\b", "derived", text)
    return kept


@pytest.mark.parametrize("word", OTHERS)
def test_names_of_models_decide_nothing(tmp_path, word):
    source = SourceTree()
    for file in source.root.rglob("*.py"):
        path = tmp_path / "diffusers" / renamed(str(file.relative_to(source.root)), word)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text("utf-8")
        other = renamed(text, word)
        path.write_text(other, "utf-8") if other != text else shutil.copyfile(file, path)
    expected = written(source, f"{word}Pipeline")
    found = written(SourceTree(tmp_path), f"{OTHERS[word]}Pipeline")
    assert set(found) == {renamed(name, word) for name in expected}
    for name, text in expected.items():
        assert found[renamed(name, word)] == renamed(text, word)
