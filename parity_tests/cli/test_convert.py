"""``porter convert``: what it writes, what it says, what it refuses."""

from __future__ import annotations

import ast
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import sys; from porter.cli import main; code = main(); "


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(result, *words: str) -> None:
    """Exit code 2, and one line on stderr that says why."""
    assert result.code == 2
    assert result.err.startswith("porter: error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""
    for word in words:
        assert word in result.err


def test_a_port_is_written_and_registered(porter, tree):
    result = porter("convert", "diffusers.TinyPipeline", "-o", "out", "--source", tree.root)
    assert (result.code, result.err) == (0, "")
    assert set(files(Path("out"))) == {
        "__init__.py",
        "examples/tiny.py",
        "manifest.json",
        "registry.py",
        "tiny/__init__.py",
        "tiny/pipeline_tiny.py",
        "tiny/stepwise.py",
        "tiny/invariants.py",
        "tiny/support.py",
        "tiny/tiny_transformer.py",
    }
    assert '"TinyPipeline": ("tiny", "pipeline_tiny", "TinyPipeline")' in Path("out/registry.py").read_text()
    assert "dropped: callback_on_step_end" in result.out


@pytest.mark.parametrize("target", ["porter", "vllm-omni"])
def test_a_renamed_import_that_the_target_lacks_is_taken_over_under_its_name(porter, tree, target):
    tree.write("pipelines/tiny/helpers.py", "def scaled(value):\n    return value * 2\n")
    path = tree.root / "pipelines/tiny/pipeline_tiny.py"
    text = path.read_text().replace("import torch\n", "import torch\n\nfrom .helpers import scaled as doubled\n", 1)
    path.write_text(text.replace("image = torch.zeros((1, 4))", "image = doubled(torch.zeros((1, 4)))"))
    assert porter("convert", "TinyPipeline", "-o", "out", "--source", tree.root, "--target", target).code == 0
    module = ast.parse(Path("out/tiny/pipeline_tiny.py").read_text())
    nodes = list(ast.walk(module))
    assert [
        node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name in ("doubled", "scaled")
    ] == ["doubled"]
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and "helpers" in (node.module or "")]
    assert sum(isinstance(node, ast.Call) and ast.unparse(node.func) == "doubled" for node in nodes) == 1


def test_json_says_what_was_written(porter, tree):
    result = porter("convert", "TinyPipeline", "--source", tree.root, "--json")
    found = json.loads(result.out)
    [pipeline] = found["pipelines"]
    assert (found["target"], found["diffusers"]) == ("porter", "0.42.1")
    assert pipeline["name"] == "TinyPipeline"
    assert "callback_on_step_end" in pipeline["dropped"]
    assert all(Path("out", file).is_file() for file in pipeline["files"])


def test_who_calls_the_command_line_keeps_its_collector(porter, tree):
    assert porter("convert", "Car", "--source", tree.root).code == 2
    assert gc.isenabled()


def test_quiet_says_nothing(porter, tree):
    result = porter("convert", "TinyPipeline", "--source", tree.root, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_unchanged_sources_are_answered_from_the_cache(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root)
    before = {name: os.stat(Path("out", name)).st_ino for name in files(Path("out"))}
    assert "up to date" in porter("convert", "TinyPipeline", "--source", tree.root).out
    assert {name: os.stat(Path("out", name)).st_ino for name in files(Path("out"))} == before


def test_a_changed_source_is_converted_again(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root)
    model = tree.root / "models/transformers/transformer_tiny.py"
    model.write_text(model.read_text().replace("self.proj", "self.projection"))
    assert "up to date" not in porter("convert", "TinyPipeline", "--source", tree.root).out
    assert "self.projection(hidden_states)" in Path("out/tiny/tiny_transformer.py").read_text()


def test_a_broken_cache_is_no_cache(porter, tree, tmp_path):
    porter("convert", "TinyPipeline", "--source", tree.root)
    for file in (tmp_path / "cache").rglob("*.gz"):
        file.write_bytes(b"broken")
    assert porter("convert", "TinyPipeline", "--source", tree.root, "-o", "again").code == 0
    assert files(Path("again")) == files(Path("out"))


def test_all_leaves_out_what_is_deprecated_and_what_has_no_transformer(porter, tree):
    tree.add("Other")
    tree.add("Old")
    old = tree.root / "pipelines/old/pipeline_old.py"
    old.write_text(old.read_text().replace("    model_cpu", '    _last_supported_version = "0.33.1"\n    model_cpu'))
    plain = "from ..pipeline_utils import DiffusionPipeline\n\n\nclass PlainPipeline(DiffusionPipeline):\n    pass\n"
    tree.write("pipelines/plain/pipeline_plain.py", plain)
    result = porter("convert", "--all", "--source", tree.root, "--json")
    assert [pipeline["name"] for pipeline in json.loads(result.out)["pipelines"]] == ["OtherPipeline", "TinyPipeline"]
    assert result.code == 0


def test_all_lists_what_fails_and_writes_the_others(porter, tree):
    tree.add("Broken")
    (tree.root / "models/transformers/transformer_broken.py").write_text("class BrokenTransformer2DModel(\n")
    result = porter("convert", "--all", "--source", tree.root)
    assert result.code == 1
    assert "transformer_broken.py does not parse" in result.out
    assert "1 of 2 pipelines written" in result.out
    assert Path("out/tiny/pipeline_tiny.py").is_file()


def test_several_processes_write_what_one_writes(porter, tree):
    tree.add("Other")
    for jobs, folder in ((1, "one"), (2, "two")):
        arguments = ("--all", "--source", tree.root, "--jobs", jobs, "-o", folder, "--no-cache")
        assert porter("convert", *arguments).code == 0
    assert files(Path("one")) == files(Path("two"))


def test_strict_fails_on_residue(porter, tree, monkeypatch):
    import porter.batch as batch

    original = batch.convert_batch

    def with_residue(*args, **kwargs):
        outcomes = original(*args, **kwargs)
        outcomes[0].residue = [{"file": "a.py", "line": 3, "reason": "left", "affects_results": True}]
        return outcomes

    assert porter("convert", "TinyPipeline", "--source", tree.root, "--strict").code == 0
    monkeypatch.setattr(batch, "convert_batch", with_residue)
    result = porter("convert", "TinyPipeline", "--source", tree.root, "--strict")
    assert result.code == 1
    assert "a.py:3: left (results can depend on it)" in result.out
    assert porter("convert", "TinyPipeline", "--source", tree.root).code == 0


def test_an_unknown_pipeline_is_refused_with_the_nearest_names(porter, tree):
    result = porter("convert", "TinnyPipeline", "--source", tree.root)
    refused(result, "'TinnyPipeline'", "Did you mean TinyPipeline")
    assert not Path("out").exists()


def test_the_installed_package_is_the_default_source(porter):
    refused(porter("convert", "QwenImagEditPipeline"), "QwenImageEditPipeline")


@pytest.mark.parametrize("name", ["TinyTransformer2DModel", "diffusers.ImagePipelineOutput", "DiffusionPipeline"])
def test_a_class_that_is_no_pipeline_is_refused(porter, tree, name):
    refused(porter("convert", name, "--source", tree.root), name.removeprefix("diffusers."))
    assert not Path("out").exists()


@pytest.mark.parametrize("file", ["pipelines/tiny/pipeline_tiny.py", "models/transformers/transformer_tiny.py"])
def test_a_source_that_does_not_parse_is_refused_by_name(porter, tree, file):
    path = tree.root / file
    path.write_text(path.read_text() + "\ndef broken(:\n")
    refused(porter("convert", "TinyPipeline", "--source", tree.root), path.name, "does not parse", "line")
    assert not Path("out").exists()


def test_one_bad_name_among_several_writes_nothing(porter, tree):
    refused(porter("convert", "TinyPipeline", "NoPipeline", "--source", tree.root), "NoPipeline")
    assert not Path("out").exists()


def test_an_output_that_is_a_file_is_refused(porter, tree):
    Path("taken").write_text("mine")
    refused(porter("convert", "TinyPipeline", "--source", tree.root, "-o", "taken"), "taken", "is a file")
    refused(porter("convert", "TinyPipeline", "--source", tree.root, "-o", "taken/below"), "taken", "is a file")
    assert Path("taken").read_text() == "mine"


def test_an_output_that_leaves_by_dots_is_refused(porter, tree, tmp_path):
    refused(porter("convert", "TinyPipeline", "--source", tree.root, "-o", "../elsewhere"), "..")
    assert not (tmp_path / "elsewhere").exists()


def test_an_output_that_is_not_writable_is_refused(porter, tree, monkeypatch):
    Path("locked").mkdir()
    # Whoever is root may write anywhere, so the answer of the system is replaced, not the mode of the folder.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    refused(porter("convert", "TinyPipeline", "--source", tree.root, "-o", "locked/out"), "locked", "not writable")
    assert files(Path("locked")) == {}


def test_a_write_that_fails_is_one_line(porter, tree, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(porter("convert", "TinyPipeline", "--source", tree.root, "--no-cache"), "No space left")
    assert files(Path("out")) == {}


def test_a_half_written_registry_is_refused_and_left_whole(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root)
    registry = Path("out/registry.py")
    registry.write_text(registry.read_text()[:200])
    before = files(Path("out"))
    refused(porter("convert", "TinyPipeline", "--source", tree.root), "registry.py")
    assert files(Path("out")) == before


def test_a_half_written_port_is_replaced(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root)
    before = files(Path("out"))
    pipeline = Path("out/tiny/pipeline_tiny.py")
    pipeline.write_bytes(pipeline.read_bytes()[:300])
    assert porter("convert", "TinyPipeline", "--source", tree.root).code == 0
    assert files(Path("out")) == before


def test_a_source_that_is_no_package_is_refused(porter):
    refused(porter("convert", "TinyPipeline", "--source", "."), "no diffusers package")


def test_an_unknown_target_is_refused(porter, tree):
    refused(porter("convert", "TinyPipeline", "--source", tree.root, "--target", "moon"), "moon", "vllm-omni")


@pytest.mark.parametrize(
    "arguments",
    [["convert"], ["convert", "X", "--all"], ["convert", "X", "--jobs", "-1"], ["convert", "X", "--nope"], ["nope"]],
)
def test_usage_errors_are_one_line(porter, arguments):
    refused(porter(*arguments))


def test_help_and_version(porter):
    assert "Usage: porter" in porter("--help").out
    assert porter().out == porter("--help").out
    assert porter("--version").out.startswith("porter ")


def run(tmp_path: Path, code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PORTER_CACHE_DIR": str(tmp_path / "cache"), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_a_conversion_imports_nothing_heavy(tree, tmp_path):
    heavy = ("torch", "diffusers", "transformers", "numpy", "PIL", "rich.progress", "porter.runtime", "porter.parity")
    code = f"{CODE}print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    result = run(tmp_path, code, "convert", "TinyPipeline", "--source", tree.root)
    assert (result.returncode, result.stderr) == (0, "[]\n")


def test_an_answer_from_the_cache_does_not_import_the_converter(tree, tmp_path):
    code = f"{CODE}print('porter.port' in sys.modules, file=sys.stderr); sys.exit(code)"
    first, second = (run(tmp_path, code, "convert", "TinyPipeline", "--source", tree.root) for _ in range(2))
    assert (first.stderr, second.stderr) == ("True\n", "False\n")


@pytest.mark.slow
def test_the_hash_seed_does_not_matter(tmp_path):
    for seed in ("1", "2"):
        arguments = ("convert", "QwenImageEditPipeline", "--no-cache", "-o", seed)
        result = run(tmp_path, CODE + "sys.exit(code)", *arguments, PYTHONHASHSEED=seed)
        assert result.returncode == 0, result.stderr
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_the_working_folder_does_not_matter(porter, tree, tmp_path, monkeypatch):
    # A formatter may sort imports by the packages that it finds around it.
    porter("convert", "TinyPipeline", "--source", tree.root, "-o", tmp_path / "a", "--no-cache")
    for package in ("torch", "porter"):
        (tmp_path / "elsewhere" / package).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    porter("convert", "TinyPipeline", "--source", tree.root, "-o", tmp_path / "b", "--no-cache")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_example_scripts_of_two_targets_differ_in_imports_alone(porter, tree):
    for target in ("porter", "vllm-omni"):
        porter("convert", "TinyPipeline", "--source", tree.root, "--target", target, "-o", target)
    texts = [Path(target, "examples/tiny.py").read_text().splitlines() for target in ("porter", "vllm-omni")]
    different = [line for pair in zip(*texts, strict=True) if pair[0] != pair[1] for line in pair]
    assert len(different) == 4
    assert all(line.startswith(("from porter.runtime.", "from vllm_omni.")) for line in different)


def test_an_example_script_offers_what_the_pipeline_takes(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root)
    result = subprocess.run(
        [sys.executable, "out/examples/tiny.py", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--model", "--prompt", "--height", "--width", "--num-inference-steps", "--seed", "--output"):
        assert option in result.stdout
    for option in ("--image", "--guidance-scale", "--num-frames", "--callback-on-step-end"):
        assert option not in result.stdout
