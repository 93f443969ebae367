"""Reading diffusers as text: finding classes, following re-exports, and giving back what was read."""

from __future__ import annotations

import ast
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import libcst as cst
import pytest

from porter.port import Converter
from porter.rules.engine import Context, walk
from porter.source import SourceError, SourceModule, SourceTree
from porter.targets import get_target

CAR = "diffusers.pipelines.car"
FILES = {
    "__init__.py": '__version__ = "1.2.3"\nfrom .models import Engine\n',
    "models/__init__.py": "from .engine import Engine as Motor, Wheel\nfrom .engine import Engine\n",
    "models/engine.py": "class Engine: ...\n\n\nclass Wheel: ...\n",
    "pipelines/__init__.py": (
        "_import_structure = {}\n_import_structure['car'] = ['CarPipeline', 'CarPipelineOutput']\n"
        "from ..models import Motor\n"
    ),
    "pipelines/car/__init__.py": "_import_structure = {'pipeline_car': ['CarPipeline']}\n",
    "pipelines/car/pipeline_car.py": "from ...models import Engine\n\n\nclass CarPipeline(DiffusionPipeline): ...\n",
    "pipelines/car/pipeline_output.py": "class CarPipelineOutput: ...\n",
    "pipelines/deprecated/pipeline_car.py": (
        "class CarPipeline(DiffusionPipeline): ...\n\n\nclass CartPipeline(CarPipeline): ...\n\n\n"
        "class MapPipeline: ...\n"
    ),
}


@pytest.fixture(scope="module")
def installed() -> SourceTree:
    return SourceTree()


@pytest.fixture
def package(tmp_path) -> Path:
    write(tmp_path / "diffusers", FILES)
    return tmp_path / "diffusers"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def module_of(text: str, name: str = "diffusers.models.example") -> SourceModule:
    return SourceModule(name, Path("example.py"), text)


# The tree ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["", "diffusers", "src/diffusers"])
def test_the_package_is_found_where_it_usually_stands(tmp_path, depth):
    write(tmp_path / depth, FILES)
    tree = SourceTree(tmp_path)
    assert tree.root == tmp_path / depth
    assert tree.version == "1.2.3"


def test_a_folder_without_diffusers_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no diffusers package"):
        SourceTree(tmp_path)


def test_reading_imports_nothing(tmp_path):
    write(tmp_path / "diffusers", {**FILES, "models/engine.py": "raise SystemExit(3)\n\n\nclass Engine: ...\n"})
    program = (
        "import sys\nfrom porter.source import SourceTree\n"
        f"tree = SourceTree({str(tmp_path)!r})\n"
        "assert tree.resolve('diffusers.models', 'Engine').name == 'Engine'\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_pipeline_is_found_with_and_without_its_package(package):
    tree = SourceTree(package)
    assert tree.find_pipeline("CarPipeline") is tree.find_pipeline("diffusers.CarPipeline")
    assert tree.find_pipeline("CarPipeline").module.name == "diffusers.pipelines.car.pipeline_car"


def test_a_deprecated_pipeline_is_found_where_there_is_no_other(package):
    found = SourceTree(package).find_pipeline("CartPipeline")
    assert found.module.name == "diffusers.pipelines.deprecated.pipeline_car"


def test_an_unknown_name_gives_the_nearest_names(installed):
    with pytest.raises(SourceError) as error:
        installed.find_pipeline("QwenImageEditPipelin")
    message = str(error.value)
    assert "has no pipeline called 'QwenImageEditPipelin'" in message
    assert "Did you mean QwenImageEditPipeline" in message
    assert "\n" not in message


def test_a_name_like_no_other_gives_no_guess(installed):
    with pytest.raises(SourceError) as error:
        installed.find_pipeline("zzzz")
    assert "Did you mean" not in str(error.value)


def test_a_class_that_is_no_pipeline_is_named_with_its_module(installed):
    with pytest.raises(SourceError, match=r"AutoencoderKL is a class of diffusers\.models\..*, not a pipeline"):
        installed.find_pipeline("AutoencoderKL")


def test_a_class_that_is_only_called_a_pipeline_is_none(package):
    with pytest.raises(SourceError, match="MapPipeline is a class of .*, not a pipeline"):
        Converter(SourceTree(package), get_target("porter")).port("MapPipeline")


def test_a_syntax_error_names_file_and_line(package):
    (package / "pipelines/car/pipeline_car.py").write_text("import os\n\nclass CarPipeline:\n    def f(:\n")
    with pytest.raises(SourceError, match=r"pipeline_car\.py does not parse: .+ \(line 4\)"):
        SourceTree(package).find_pipeline("CarPipeline")


@pytest.mark.parametrize(
    ("module", "name", "origin"),
    [
        pytest.param("diffusers", "Engine", "diffusers.models.engine.Engine", id="two packages deep"),
        pytest.param("diffusers.models", "Motor", "diffusers.models.engine.Engine", id="renamed"),
        pytest.param("diffusers.pipelines", "Motor", "diffusers.models.engine.Engine", id="renamed, then re-exported"),
        pytest.param("diffusers.models", "Wheel", "diffusers.models.engine.Wheel", id="beside another"),
        pytest.param("diffusers.pipelines", "CarPipelineOutput", f"{CAR}.pipeline_output.CarPipelineOutput", id="lazy"),
        pytest.param(f"{CAR}.pipeline_car", "Engine", "diffusers.models.engine.Engine", id="imported"),
        pytest.param("diffusers.models", "CarPipeline", None, id="of another package"),
        pytest.param("diffusers.models.engine", "Nothing", None, id="unknown name"),
        pytest.param("diffusers.models.nothing", "Engine", None, id="unknown module"),
        pytest.param("torch.nn", "Linear", None, id="another library"),
    ],
)
def test_re_exports_are_followed(package, module, name, origin):
    found = SourceTree(package).resolve(module, name)
    assert (f"{found.module.name}.{found.name}" if found else None) == origin


def test_re_exports_in_a_circle_end(package):
    write(package, {"models/a.py": "from .b import Thing\n", "models/b.py": "from .a import Thing\n"})
    assert SourceTree(package).resolve("diffusers.models.a", "Thing") is None


def test_modules_are_read_once(package):
    tree = SourceTree(package)
    assert tree.module("diffusers.models.engine") is tree.module("diffusers.models.engine")


def test_every_pipeline_of_the_installed_diffusers_is_found(installed):
    names = installed.pipelines()
    assert len(names) > 150 and names == sorted(names)
    for name in set(names) - {"DiffusionPipeline"}:
        assert installed.find_pipeline(name).name == name


# One module --------------------------------------------------------------------------------------------------------


def test_definitions_in_order_with_decorators_and_guards():
    module = module_of(
        "# Copied from there\n# a note\n@decorated\nclass A: ...\n\n\nB = C = 1\nd: int = 2\ne: int\n\n"
        "if flag:\n    def f():\n        return 1\nelse:\n    f = None\n"
    )
    assert list(module.definitions) == ["A", "B", "C", "d", "f"]
    assert module.definitions["A"].code == "@decorated\nclass A: ...\n"
    assert module.definitions["A"].comments == ["# a note"]
    assert module.definitions["f"].code == "def f():\n    return 1\n"
    assert module.guarded["f"] is module.tree.body[-1]


def test_the_parsed_definition_carries_its_comments():
    module = module_of("# a note\nclass A:\n    x = 1  # one\n")
    assert cst.Module([module.definitions["A"].parse()]).code == "# a note\nclass A:\n    x = 1  # one\n"


@pytest.mark.parametrize(
    ("line", "bound", "module", "name"),
    [
        ("import torch", "torch", "torch", None),
        ("import torch.nn.functional as F", "F", "torch.nn.functional", None),
        ("import torch.nn.functional", "torch", "torch", None),
        ("from torch import nn", "nn", "torch", "nn"),
        ("from .attention import A as B", "B", "diffusers.models.attention", "A"),
        ("from ..utils import logging", "logging", "diffusers.utils", "logging"),
        ("from . import attention", "attention", "diffusers.models", "attention"),
        ("if x:\n    from ..utils import a", "a", "diffusers.utils", "a"),
        ("try:\n    import b\nexcept ImportError:\n    from c import b", "b", "b", None),
    ],
)
def test_imports_are_absolute(line, bound, module, name):
    found = module_of(line + "\n").imports[bound]
    assert (found.module, found.name) == (module, name)


def test_relative_imports_of_a_package_start_at_itself():
    module = SourceModule("diffusers.models", Path("__init__.py"), "from .attention import A\n", is_package=True)
    assert module.imports["A"].module == "diffusers.models.attention"


def test_the_licence_is_the_head_of_the_file():
    module = module_of("# Copyright\n#\n# Licensed\n\nimport os\n\n# not this\n")
    assert module.license == "# Copyright\n#\n# Licensed"


def test_a_module_travels_between_processes():
    module = module_of("class A: ...\n")
    assert module.definitions
    copy = pickle.loads(pickle.dumps(module))
    assert (copy.name, copy.sha256, list(copy.definitions)) == (module.name, module.sha256, ["A"])


# Files of diffusers as they are ------------------------------------------------------------------------------------

ODD = ["models/attention_processor.py", "models/attention_dispatch.py", "models/embeddings.py", "utils/import_utils.py"]


def sample() -> list[str]:
    root = SourceTree().root
    found = [p.relative_to(root).as_posix() for p in sorted(root.glob("models/transformers/*.py"))]
    found += [p.relative_to(root).as_posix() for p in sorted(root.glob("pipelines/*/pipeline_*.py"))]
    step = max(1, len(found) // (30 - len(ODD)))
    return [*ODD, *found[::step]]


@pytest.mark.parametrize("file", sample())
def test_every_definition_of_a_file_parses(installed, file):
    module = installed.module("diffusers." + file.removesuffix(".py").replace("/", "."))
    for name, definition in module.definitions.items():
        [statement] = ast.parse(definition.code).body
        assert ast.dump(statement) == ast.dump(definition.node), name


@pytest.mark.parametrize("file", sample())
def test_with_no_rules_the_source_comes_back_byte_for_byte(installed, file):
    module = installed.module("diffusers." + file.removesuffix(".py").replace("/", "."))
    parsed = cst.parse_module(module.text)
    assert parsed.code == module.text
    assert walk(parsed, [], Context(installed, module)).code.encode() == (installed.root / file).read_bytes()


def test_a_module_is_let_go_of_without_the_collector(package):
    tree = SourceTree(package)
    module = tree.module(f"{CAR}.pipeline_car")
    assert list(module.definitions) == ["CarPipeline"]
    gone = weakref.ref(module)
    gc.disable()
    try:
        tree.forget(module.name)
        del module
        assert gone() is None
    finally:
        gc.enable()
    assert tree.find_pipeline("CarPipeline").name == "CarPipeline"
