"""``[tool.porter]`` of pyproject.toml, terminals, colours, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "porter"]


def settings(text: str) -> None:
    Path("pyproject.toml").write_text(f"[project]\nname = 'x'\n\n[tool.porter]\n{text}\n")


def test_settings_are_the_defaults_and_the_command_line_wins(porter, tree):
    settings(f"source = {str(tree.root)!r}\noutput = 'ports'\ntarget = 'vllm-omni'\njobs = 1")
    found = json.loads(porter("convert", "TinyPipeline", "--json").out)
    assert (found["target"], found["output"]) == ("vllm-omni", "ports")
    assert "from vllm_omni." in Path("ports/tiny/tiny_transformer.py").read_text()
    assert porter("check").code == 0  # the folder of ports is the same setting
    found = json.loads(porter("convert", "TinyPipeline", "--target", "porter", "-o", "other", "--json").out)
    assert (found["target"], found["output"]) == ("porter", "other")


def test_paths_are_relative_to_the_file(porter, tree, monkeypatch):
    settings(f"source = {os.path.relpath(tree.root)!r}\noutput = 'ports'")
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert porter("convert", "TinyPipeline").code == 0
    assert Path("../ports/registry.py").is_file()
    assert porter("check").code == 0
    assert json.loads(porter("list", "--json").out)["pipelines"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("taget = 'porter'", "no setting 'taget'; did you mean target?"),
        ("allow-imports = []", "did you mean allow_imports?"),
        ("zzz = 1", "there are source, target, output"),
        ("jobs = 'many'", "jobs must be a whole number"),
        ("jobs = true", "jobs must be a whole number"),
        ("strict = 1", "strict must be true or false"),
        ("jobs = -1", "--jobs"),
        ("target = 'moon'", "moon"),
        ("conflicts = 'theirs'", "fail, mine, porter"),
        ("= 1", "pyproject.toml"),
    ],
)
def test_a_bad_setting_is_one_line(porter, tree, text, words):
    settings(text)
    result = porter("convert", "TinyPipeline", "--source", tree.root)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1
    assert not Path("out").exists()
    assert porter("--help").code == 0


def test_a_project_without_the_table_has_no_settings(porter, tree):
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert porter("convert", "TinyPipeline", "--source", tree.root).code == 0


def test_allowed_imports_reach_the_conversion(porter, tree, monkeypatch):
    monkeypatch.setenv("PORTER_ALLOW_IMPORTS", "")
    monkeypatch.delenv("PORTER_ALLOW_IMPORTS")
    model = tree.root / "models/transformers/transformer_tiny.py"
    text = model.read_text().replace("import torch\n", "import torch\nimport unheard_of\n", 1)
    model.write_text(text.replace("self.proj(hidden_states)", "unheard_of.scale(self.proj(hidden_states))"))
    result = porter("convert", "TinyPipeline", "--source", tree.root)
    assert result.code == 2 and "PORTER_ALLOW_IMPORTS=unheard_of" in result.err
    settings("allow_imports = ['unheard_of']")
    assert porter("convert", "TinyPipeline", "--source", tree.root).code == 0


def on_a_terminal(folder: Path, *arguments: str, **environment: str) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    given = {"TERM": "xterm-256color", "COLUMNS": "120", "PORTER_CACHE_DIR": str(folder / "cache")}
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    command = [*COMMAND, *arguments]
    with subprocess.Popen(
        command, cwd=folder, env={**clean, **given, **environment}, stdin=theirs, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    return shown.decode()


COLOUR = re.compile(r"\x1b\[[\d;]*3[0-7][\d;]*m|\x1b\[38;")


def test_colours_and_bars_are_for_terminals_and_no_color_is_heeded(tree, tmp_path):
    tree.add("Other")
    arguments = ("convert", "--all", "--source", str(tree.root), "--jobs", "1", "--no-cache", "-o", "out")
    shown = on_a_terminal(tmp_path, *arguments)
    assert COLOUR.search(shown) and "converting" in shown
    plain = on_a_terminal(tmp_path, *arguments, NO_COLOR="1")
    assert not COLOUR.search(plain)
    quiet = on_a_terminal(tmp_path, *arguments, "--quiet")
    assert quiet == ""
    machine = on_a_terminal(tmp_path, *arguments, "--json")
    assert json.loads(machine)["output"] == "out"
    shown = on_a_terminal(tmp_path, "upgrade", "out", "--from", str(tree.root), "--to", str(tree.root), "--jobs", "1")
    assert "2 stay, 0 change, 0 fail" in shown and "error" not in shown


def test_completion_knows_commands_options_and_pipelines(tmp_path):
    def complete(words: str) -> str:
        count = str(len(words.split(" ")) - 1)
        given = {"_PORTER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        done = subprocess.run(COMMAND, env={**os.environ, **given}, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout

    assert complete("porter up").split() == ["upgrade"]
    assert "--target" in complete("porter convert --t")
    assert complete("porter convert QwenImageEditI").split() == ["QwenImageEditInpaintPipeline"]
    given = {"_PORTER_COMPLETE": "source_bash"}
    script = subprocess.run(COMMAND, env={**os.environ, **given}, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "complete_bash" in script


def test_help_is_quick(tmp_path):
    """Processor time: the wall clock of a busy machine says nothing."""
    before = os.times()
    start = time.monotonic()
    subprocess.run([*COMMAND, "--help"], cwd=tmp_path, capture_output=True, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 1.5, (used, time.monotonic() - start)
