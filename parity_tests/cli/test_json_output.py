"""Every ``--json`` prints what docs/json.md says, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from porter.cli import app
from porter.cli.schema import outputs
from porter.parity.results import CaseResult, ParityReport

ROOT = Path(__file__).parents[2]


@pytest.fixture
def printed(porter, tree):
    """Runs a command on the small tree and validates what it prints."""

    def run(*arguments: object, code: int = 0) -> dict:
        result = porter(*arguments, "--json")
        assert (result.code, result.err) == (code, "")
        found = json.loads(result.out)
        model = outputs()[str(arguments[0])]
        assert TypeAdapter(model).validate_json(result.out, strict=True)
        fields = TypeAdapter(model).json_schema(mode="serialization")["properties"]
        assert found["schema_version"] == 1 and set(found) <= set(fields)
        return found

    porter("convert", "TinyPipeline", "--source", tree.root)
    return run


def test_list(printed, tree):
    assert [row["name"] for row in printed("list", "--source", tree.root)["pipelines"]] == ["TinyPipeline"]


def test_convert(printed, tree):
    [pipeline] = printed("convert", "TinyPipeline", "--source", tree.root)["pipelines"]
    assert pipeline["error"] == "" and "registry.py" not in pipeline["files"]
    tree.add("Broken")
    (tree.root / "models/transformers/transformer_broken.py").write_text("class BrokenTransformer2DModel(\n")
    broken, _ = printed("convert", "--all", "--source", tree.root, code=1)["pipelines"]
    assert "does not parse" in broken["error"]


def test_check(printed, tree):
    assert printed("check", "out", "--source", tree.root)["same"]
    model = Path("out/tiny/tiny_transformer.py")
    model.write_text(model.read_text() + "\n\nMINE = 1\n")
    [difference] = printed("check", "out", "--source", tree.root, code=1)["differences"]
    assert difference == {"path": str(model), "kind": "differs", "edited": True}


def test_diff_explain_and_upgrade(printed, tree):
    assert printed("diff", "TinyPipeline", "--source", tree.root)["hunks"]
    assert "TinyTransformer2DModel" in printed("explain", "TinyPipeline", "--source", tree.root)["text"]
    assert printed("upgrade", "out", "--from", tree.root, "--to", tree.root, "--jobs", 1)["same"] == ["TinyPipeline"]


def test_parity(printed, monkeypatch):
    import porter.parity

    report = ParityReport(pipeline="TinyPipeline", verdict="parity", cases=[])
    report.cases.append(CaseResult(name="plain", description="a call", verdict="parity"))
    command = sys.modules["porter.cli.parity"]  # the package has the function under that name
    monkeypatch.setattr(command, "_names", lambda *args: ["TinyPipeline"])
    monkeypatch.setattr(porter.parity, "run_parity", lambda *args, **kwargs: report)
    assert printed("parity", "TinyPipeline")["cases"][0]["name"] == "plain"


def test_every_command_that_prints_json_is_described():
    import typer

    commands = typer.main.get_command(app).commands
    with_json = {name for name, command in commands.items() if any(p.name == "json" for p in command.params)}
    assert with_json == set(outputs())


@pytest.mark.parametrize(
    "name", ["list", "convert", "check", "diff", "explain", "parity", "upgrade", "export", "bench"]
)
def test_every_command_can_be_quiet(name):
    import typer

    names = {p.name for p in typer.main.get_command(app).commands[name].params}
    assert "quiet" in names and ("verbose" in names or name == "explain")


def test_the_page_is_up_to_date():
    command = [sys.executable, ROOT / "tools" / "json_page.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0, "run python tools/json_page.py"
