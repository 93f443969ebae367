"""``porter upgrade`` between two small source trees."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from parity_tests.cli.conftest import Tree

MODEL = Path("out/tiny/tiny_transformer.py")


@pytest.fixture
def newer(tree, tmp_path) -> Tree:
    """A copy of the tree, one version on: a pipeline more, one less, one changed."""
    import shutil

    tree.add("Old")
    shutil.copytree(tree.root, tmp_path / "newer" / "diffusers")
    made = Tree(tmp_path / "newer" / "diffusers")
    made.write("__init__.py", '__version__ = "0.43.0"\n')
    made.add("Fresh")
    shutil.rmtree(made.root / "pipelines/old")
    model = made.root / "models/transformers/transformer_tiny.py"
    text = model.read_text().replace("return self.proj(hidden_states)", "return self.scaled(hidden_states)")
    model.write_text(text + "\n    def scaled(self, hidden_states):\n        return self.proj(hidden_states) * 2\n")
    return made


@pytest.fixture
def upgrade(porter, tree, newer):
    porter("convert", "--all", "--source", tree.root, "--jobs", 1)

    def run(*arguments: object):
        return porter("upgrade", "out", "--from", tree.root, "--to", newer.root, "--jobs", 1, *arguments)

    return run


def test_it_tells_what_is_added_gone_and_changed(upgrade):
    result = upgrade("--verbose")
    assert (result.code, result.err) == (0, "")
    assert "diffusers 0.42.1 → 0.43.0" in result.out
    assert "pipelines added: 1: FreshPipeline" in result.out
    assert "pipelines gone: 1: OldPipeline" in result.out
    assert "0 stay, 1 change, 0 fail" in result.out
    assert "added tiny/tiny_transformer.py TinyTransformer2DModel.scaled +2 -0" in result.out


def test_json_names_each_definition_with_the_rules_behind_it(upgrade):
    found = json.loads(upgrade("--json").out)
    assert found["schema_version"] == 1
    [change] = found["changed"]
    definitions = {item["name"]: item for item in change["definitions"]}
    assert definitions["TinyTransformer2DModel.forward"]["kind"] == "changed"
    assert "remove-mixins" in definitions["TinyTransformer2DModel.forward"]["rules"]
    assert change["parity_before"] == "not tested" and change["residue_added"] == []


def test_nothing_is_written_without_being_asked(upgrade):
    before = MODEL.read_text()
    upgrade()
    assert MODEL.read_text() == before


def test_the_new_ports_are_written_on_request_and_edits_kept(upgrade, porter, newer):
    MODEL.write_text(
        MODEL.read_text().replace("self.proj = nn.Linear(dim, dim)", "self.proj = nn.Linear(dim, dim + 0)")
    )
    result = upgrade("--write")
    assert result.code == 0, result.err
    assert "1 edits by hand kept" in result.out
    text = MODEL.read_text()
    assert "dim + 0" in text and "def scaled" in text and "diffusers 0.43.0" in text
    assert not Path("out/old").exists() or not list(Path("out/old").glob("pipeline_*"))
    assert porter("check", "out", "--source", newer.root).code == 0


def test_added_pipelines_are_written_on_request(upgrade, porter, newer):
    assert upgrade("--add").code == 2
    assert upgrade("--write", "--add").code == 0
    assert Path("out/fresh/pipeline_fresh.py").is_file()
    assert porter("check", "out", "--source", newer.root).code == 0


def test_a_conflict_keeps_everything_as_it_was(upgrade):
    MODEL.write_text(MODEL.read_text().replace("return self.proj(hidden_states)", "return hidden_states"))
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    result = upgrade("--write")
    assert result.code == 2 and "<<<<<<< by hand" in result.err
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_port_that_fails_is_told_and_nothing_is_written(upgrade, newer):
    (newer.root / "models/transformers/transformer_tiny.py").write_text("class TinyTransformer2DModel(\n")
    result = upgrade()
    assert result.code == 1
    assert "does not convert any more: TinyPipeline: " in result.out
    before = MODEL.read_text()
    assert upgrade("--write").code == 2
    assert MODEL.read_text() == before


def test_residue_that_a_port_gains_is_told(upgrade, newer):
    model = newer.root / "models/transformers/transformer_tiny.py"
    call = "x = dispatch_attention_fn(x, x, x, backend=self.backend)\n        return self.scaled(x)"
    text = model.read_text().replace("return self.scaled(hidden_states)", f"x = hidden_states\n        {call}")
    model.write_text(
        text.replace("import torch\n", "import torch\nfrom ..attention_dispatch import dispatch_attention_fn\n", 1)
    )
    newer.write("models/attention_dispatch.py", "def dispatch_attention_fn(q, k, v, backend=None):\n    return q\n")
    result = upgrade()
    assert result.code == 1
    assert "TinyPipeline: residue + diffusers/models/transformers/transformer_tiny.py: " in result.out


@pytest.fixture
def verdicts(tmp_path, monkeypatch):
    """Committed results, measured with a version of diffusers."""

    def commit(version: str, verdict: str) -> None:
        for name, value in (("results", {"TinyPipeline": {"verdict": verdict}}), ("measured", {"diffusers": version})):
            file = tmp_path / f"{name}.json"
            file.write_text(json.dumps(value))
            monkeypatch.setattr(f"porter.listing.{name.upper()}", file)

    return commit


def test_parity_is_run_with_the_new_diffusers(upgrade, newer, verdicts, monkeypatch):
    verdicts("0.42.1", "parity")
    calls = []

    def run(command, **kwargs):
        if "parity" not in command:
            return real(command, **kwargs)
        calls.append((command, kwargs["env"]["PYTHONPATH"].split(":")[0]))
        return subprocess.CompletedProcess(command, 1, stdout='{"verdict": "differs", "reason": "far off"}', stderr="")

    real = subprocess.run
    assert "parity, to be proved again" in upgrade().out
    monkeypatch.setattr("porter.upgrade.subprocess.run", run)
    result = upgrade("--parity")
    assert result.code == 1 and "parity → differs" in result.out and "TinyPipeline: differs: far off" in result.out
    [(command, first)] = calls
    assert first == str(newer.root.parent)
    assert command[:4] == [sys.executable, "-m", "porter", "parity"]


@pytest.mark.parametrize(("verdict", "code"), [("parity", 0), ("differs", 1)])
def test_what_was_measured_with_the_new_diffusers_is_known(upgrade, verdicts, verdict, code):
    verdicts("0.43.0", verdict)
    result = upgrade("--json")
    assert result.code == code
    [change] = json.loads(result.out)["changed"]
    assert (change["parity_before"], change["parity_after"]) == ("not tested", verdict)


def test_the_version_of_the_ports_is_where_it_starts(porter, tree, newer):
    porter("convert", "--all", "--source", newer.root)
    result = porter("upgrade", "out", "--to", "nowhere")
    assert result.code == 2 and "nowhere" in result.err
    porter("convert", "OldPipeline", "--source", tree.root)
    result = porter("upgrade", "out", "--to", newer.root)
    assert result.code == 2 and "were made from 0.42.1, 0.43.0; say it with --from" in result.err


def test_an_empty_folder_is_refused(porter, newer):
    result = porter("upgrade", "nowhere", "--to", newer.root)
    assert result.code == 2 and "holds no registry.py" in result.err


def test_a_version_is_fetched_once_and_never_run(tree, tmp_path, monkeypatch):
    """The package client is stood in for: what it brings is hostile, and only its Python text is kept."""
    from porter.source import releases

    monkeypatch.setenv("PORTER_CACHE_DIR", str(tmp_path / "cache"))
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "diffusers-0.40.0-py3-none-any.whl", "w") as wheel:
            for path in sorted(tree.root.rglob("*.py")):
                wheel.write(path, f"diffusers/{path.relative_to(tree.root)}")
            wheel.writestr("diffusers/../../../outside.py", "x = 1\n")
            wheel.writestr("/outside.py", "x = 1\n")
            wheel.writestr("other/outside.py", "x = 1\n")
            wheel.writestr("diffusers/run.so", "x")
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(releases.subprocess, "run", run)
    for _ in range(2):
        assert "TinyPipeline" in releases.open_source("0.40.0").pipelines()
    [command] = calls
    assert "diffusers==0.40.0" in command and "--only-binary" in command
    held = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert "outside.py" not in held and "run.so" not in held
    assert not (tmp_path / "outside.py").exists()


@pytest.mark.parametrize("version", ["0.40.0 --index-url=x", "../0.40.0", "-r", "0.40.0;rm"])
def test_what_is_no_version_is_never_given_to_the_client(version):
    from porter.source import SourceError, releases

    with pytest.raises(SourceError, match="no diffusers package"):
        releases.open_source(version)
