"""What a person writes into a folder of ports is never lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests.emit.test_emit import files_of
from porter.emit.edits import BASE, Plan, plan_files
from porter.emit.manifest import MANIFEST
from porter.emit.merge import regions
from porter.emit.overrides import apply_overrides
from porter.emit.write import EditConflict, OutputError, carry_out, reserved

LINES = [f"value_{number} = {number}\n" for number in range(12)]
TEXT = "".join(LINES)
FILE = "family/model.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own; without it, a machine that has never seen the folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PORTER_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    write(folder, TEXT)
    return folder


def write(folder: Path, text: str, choice: str = "fail") -> Plan:
    with reserved(folder):
        plan = plan_files(folder, {FILE: text}, choice)
        carry_out(folder, plan)
        return plan


def changed(*numbers: int, by: str = "hand", text: str = TEXT) -> str:
    for number in numbers:
        text = text.replace(f"value_{number} = {number}\n", f"value_{number} = {by!r}\n")
    return text


def edit(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)


def held(folder: Path) -> str:
    return (folder / FILE).read_text()


def test_an_edit_is_kept_and_its_base_lies_beside_it(models):
    edit(models, changed(2))
    assert not write(models, TEXT).differing
    assert held(models) == changed(2)
    assert (models / (FILE + BASE)).read_text() == TEXT
    [again] = write(models, TEXT).edits
    assert again.recorded and again.counts == (1, 1)


def test_an_edit_is_merged_with_what_porter_changes_elsewhere(models):
    edit(models, changed(2))
    write(models, changed(8, by="porter"))
    assert held(models) == changed(8, by="porter", text=changed(2))
    write(models, changed(8, 10, by="porter"))
    assert held(models) == changed(8, 10, by="porter", text=changed(2))


def test_a_clone_with_a_recorded_edit_needs_nothing_else(models, cache, tmp_path):
    edit(models, changed(2))
    write(models, TEXT)
    clone = tmp_path / "clone"
    shutil.copytree(models, clone)
    shutil.rmtree(cache)
    edit(clone, changed(2, 4))  # and somebody edits on
    write(clone, changed(8, by="porter"))
    assert held(clone) == changed(8, by="porter", text=changed(2, 4))


def test_an_unrecorded_edit_finds_its_generation_in_the_history(models, cache):
    git = ["git", "-C", str(models), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    edit(models, changed(2))
    subprocess.run([*git, "commit", "-qam", "edit"], check=True)
    shutil.rmtree(cache)
    write(models, changed(8, by="porter"))
    assert held(models) == changed(8, by="porter", text=changed(2))


def test_an_unrecorded_edit_without_its_generation_is_refused(models, cache):
    edit(models, changed(2))
    shutil.rmtree(cache)
    before = files_of(models)
    with pytest.raises(EditConflict, match="nothing was written") as refused:
        write(models, changed(8, by="porter"))
    assert "check --fix" in str(refused.value.conflicts[0])
    assert files_of(models) == before
    write(models, changed(8, by="porter"), "porter")
    assert held(models) == changed(8, by="porter")
    assert (models / (FILE + ".orig")).read_text() == changed(2)


def test_a_conflict_shows_both_sides_and_writes_nothing(models):
    edit(models, changed(2))
    before = files_of(models)
    with pytest.raises(EditConflict) as refused:
        write(models, changed(2, by="porter"))
    [conflict] = refused.value.conflicts
    assert (conflict.file, conflict.line) == (FILE, 3)
    assert (conflict.mine, conflict.porter) == ("value_2 = 'hand'", "value_2 = 'porter'")
    assert conflict.base == "value_2 = 2"
    assert "value_2 = 'hand'" in str(refused.value) and "value_2 = 'porter'" in str(refused.value)
    assert files_of(models) == before


@pytest.mark.parametrize(("choice", "side"), [("mine", "hand"), ("porter", "porter")])
def test_a_side_can_be_chosen_and_the_other_is_not_lost(models, choice, side):
    edit(models, changed(2, 5))
    write(models, changed(2, 8, by="porter"), choice)
    merged = changed(8, by="porter", text=changed(2, by=side, text=changed(5)))
    assert held(models) == merged
    kept = models / (FILE + ".orig")
    assert kept.is_file() == (choice == "porter")
    if choice == "porter":
        assert kept.read_text() == changed(2, 5)
    write(models, changed(2, 8, by="porter"))  # the choice is made once
    assert held(models) == merged


def test_an_edit_that_porter_makes_itself_is_no_edit_any_more(models):
    edit(models, changed(2))
    write(models, TEXT)
    assert write(models, changed(2)).edits == []
    assert set(files_of(models)) == {FILE, MANIFEST}


def test_an_edit_that_is_taken_back_is_no_edit_any_more(models):
    edit(models, changed(2))
    write(models, TEXT)
    edit(models, TEXT)
    write(models, TEXT)
    assert set(files_of(models)) == {FILE, MANIFEST}


def test_an_older_generation_is_no_edit(models, cache):
    shutil.rmtree(cache)
    assert write(models, changed(3, by="porter")).edits == []
    assert held(models) == changed(3, by="porter")


def test_half_a_file_is_no_edit(models):
    edit(models, TEXT[:50])
    write(models, TEXT)
    assert files_of(models)[FILE] == TEXT


def test_an_end_that_somebody_took_away_is_an_edit(models):
    edit(models, "".join(LINES[:6]))
    [found] = write(models, TEXT).edits
    assert found.counts == (0, 6) and held(models) == "".join(LINES[:6])


def test_an_edit_that_uses_what_porter_takes_away_is_refused(models):
    write(models, "import math\n\n" + TEXT)
    edit(models, "import math\n\n" + TEXT + "\nroot = math.sqrt(value_4)\n")
    with pytest.raises(EditConflict) as refused:
        write(models, TEXT)
    assert "there is no `math`" in str(refused.value.conflicts[0])


def test_a_file_that_no_manifest_knows_is_set_aside(models):
    (models / MANIFEST).unlink()
    edit(models, changed(2))
    write(models, TEXT)
    assert held(models) == TEXT
    edit(models, changed(4))
    (models / MANIFEST).write_text("<<<<<<< a merge\n")
    write(models, TEXT)
    assert (models / (FILE + ".orig")).read_text() == changed(2)
    assert (models / (FILE + ".orig2")).read_text() == changed(4)


def crash(folder: Path, text: str, at: int, monkeypatch) -> bool:
    """Write, killed before the move with that number: nothing is cleaned up. Whether it came to that."""
    import os

    real, moves = os.replace, []

    def move(source: Path, place: Path) -> None:
        if Path(source).is_relative_to(folder):  # not those of the cache
            moves.append(place)
            if len(moves) > at:
                raise KeyboardInterrupt
        real(source, place)

    with monkeypatch.context() as patched:
        patched.setattr("porter.emit.write.os.replace", move)
        patched.setattr("porter.emit.write.shutil.rmtree", lambda *args, **kwargs: None)
        try:
            write(folder, text)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("at", range(4))
def test_a_crash_at_any_move_loses_no_edit(models, at, monkeypatch):
    edit(models, changed(2))
    crashed = crash(models, changed(8, by="porter"), at, monkeypatch)
    assert crashed == (at < 3)  # the file, its base, the manifest
    write(models, changed(8, by="porter"))
    assert held(models) == changed(8, by="porter", text=changed(2))
    assert (models / (FILE + BASE)).read_text() == changed(8, by="porter")
    assert not list(models.glob(".porter-*"))


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("recorded", [True, False])
def test_an_edit_made_after_a_crash_is_not_overwritten_by_what_was_staged(models, at, recorded, monkeypatch):
    if recorded:
        edit(models, changed(2))
        write(models, TEXT)
    crash(models, changed(8, by="porter"), at, monkeypatch)
    edit(models, held(models).replace("value_5 = 5", "value_5 = 'later'"))
    with reserved(models):
        assert "value_5 = 'later'" in held(models)
    write(models, changed(8, by="porter"))
    expected = changed(8, by="porter", text=changed(2) if recorded else TEXT)
    assert held(models) == expected.replace("value_5 = 5", "value_5 = 'later'")


def test_an_edit_made_while_porter_writes_is_not_overwritten(models):
    with reserved(models):
        plan = plan_files(models, {FILE: changed(8, by="porter")})
        edit(models, changed(2))
        carry_out(models, plan)
    assert held(models) == changed(2)
    write(models, changed(8, by="porter"))
    assert held(models) == changed(8, by="porter", text=changed(2))


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "a/../../outside.py", "linked/file.py"])
def test_nothing_is_written_outside_of_the_folder(models, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError), reserved(models):
        carry_out(models, plan_files(models, {name: TEXT}))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "outside.py").exists()


def test_a_generated_file_that_is_a_link_is_refused(models, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("mine")
    (models / FILE).unlink()
    (models / FILE).symlink_to(mine)
    with pytest.raises(OutputError, match="symbolic link"):
        write(models, TEXT)
    assert mine.read_text() == "mine"


def test_a_file_that_is_no_text_is_refused(models):
    (models / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(OutputError, match="not UTF-8"):
        write(models, TEXT)


texts = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n"]), max_size=8)


@settings(max_examples=300, deadline=None)
@given(texts, texts, texts)
def test_regions_hold_all_of_each_side(base, mine, theirs):
    found = regions(base, mine, theirs)
    for side, lines in (("base", base), ("mine", mine), ("theirs", theirs)):
        assert [line for region in found for line in getattr(region, side)] == lines
    # Whoever did not change anything gets what the other did.
    assert [line for region in regions(base, base, theirs) for line in region.merged] == theirs
    assert [line for region in regions(base, mine, base) for line in region.merged] == mine
    assert not any(region.conflict for region in regions(base, mine, mine))


# Overrides -----------------------------------------------------------------------------------------------------------

GENERATED = '''\
import math


class Model:
    def forward(self, x):
        """Text."""
        return math.sqrt(x)

    def other(self):
        return 1


def helper(x):
    return x
'''
OVERRIDE = '''\
"""Mine."""

import itertools


# replaces: Model.forward {hash}
def forward(self, x):
    text = """
  as it is"""
    return itertools.count(x), text
'''


def overridden(folder: Path, override: str, text: str = GENERATED) -> tuple[str, list[str]]:
    folder.mkdir(exist_ok=True)
    (folder / "model.override.py").write_text(override)
    files, conflicts = apply_overrides(folder, {"model.py": text})
    return files.get("model.py", ""), [str(conflict) for conflict in conflicts]


def with_hash(folder: Path) -> str:
    """The override with the hash that the refusal of one without it names."""
    _, [refusal] = overridden(folder, OVERRIDE.replace(" {hash}", ""))
    line = refusal.split("\n")[0]
    return OVERRIDE.format(hash=line.rpartition(" ")[2])


def test_a_method_is_replaced(tmp_path):
    text, conflicts = overridden(tmp_path, with_hash(tmp_path))
    assert conflicts == []
    spaces: dict = {}
    exec(text, spaces)  # noqa: S102 - this test's own text
    count, kept = spaces["Model"]().forward(3)
    assert next(count) == 3 and kept == "\n  as it is"
    assert spaces["Model"]().other() == 1
    assert "    # From model.override.py.\n    def forward" in text


def test_layout_and_docstrings_do_not_make_an_override_stale(tmp_path):
    override = with_hash(tmp_path)
    assert overridden(tmp_path, override, GENERATED.replace('"""Text."""', "# A comment."))[1] == []


def test_a_stale_override_shows_both_sides(tmp_path):
    override = with_hash(tmp_path)
    text, [conflict] = overridden(tmp_path, override, GENERATED.replace("math.sqrt(x)", "math.cbrt(x)"))
    assert text == ""
    assert "stale: Model.forward" in conflict
    assert "itertools.count(x)" in conflict and "math.cbrt(x)" in conflict


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("def helper(x):\n    return 2\n", "say above helper what it replaces"),
        ("# replaces: gone 0123456789abcdef\ndef gone(): ...\n", "porter writes no gone any more"),
        ("# replaces: helper 0123456789abcdef\ndef other(): ...\n", "call it the same"),
        ("x = 1\n", "imports and definitions"),
        ("def (\n", "no Python"),
    ],
)
def test_an_override_that_says_too_little_is_refused(tmp_path, override, words):
    _, [conflict] = overridden(tmp_path, override)
    assert words in conflict


def test_the_manifest_names_its_version(models):
    assert json.loads((models / MANIFEST).read_text())["schema_version"] == 1
