"""What is written: names, files, registry; and that text from outside reaches generated code as a literal only."""

from __future__ import annotations

import ast
import keyword
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porter.emit.format import FormatError
from porter.emit.hooks import post_process_text
from porter.emit.module import import_lines
from porter.emit.names import controlnet_stem, family, model_stem, pipeline_stem, snake, transformer_stem
from porter.emit.write import (
    TABLES,
    OutputError,
    check_folder,
    read_registry,
    registry_text,
    reserved,
    write_files,
    write_ports,
)
from porter.port import Converter, Port
from porter.rules.build import PortedFile
from porter.rules.pipeline.postprocess import PostProcess
from porter.source import SourceError, SourceTree
from porter.targets import get_target

# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("QwenImageTransformer2DModel", "qwen_image"),
        ("SD3Transformer2DModel", "sd3"),
        ("FluxTransformer2DModel", "flux"),
        ("Flux2Transformer2DModel", "flux2"),
        ("WanTransformer3DModel", "wan"),
        ("WanVACETransformer3DModel", "wan_vace"),
        ("ZImageTransformer2DModel", "z_image"),
        ("OvisImageTransformer2DModel", "ovis_image"),
        ("ErnieImageTransformer2DModel", "ernie_image"),
        ("GlmImageTransformer2DModel", "glm_image"),
        ("HeliosTransformer3DModel", "helios"),
        ("SanaVideoTransformer3DModel", "sana_video"),
        ("CogView3PlusTransformer2DModel", "cog_view3_plus"),
        ("DiTTransformer2DModel", "dit"),
        ("PixArtTransformer2DModel", "pix_art"),
        ("Transformer2DModel", "transformer_2d"),
    ],
)
def test_model_stem(name, stem):
    assert model_stem(name) == stem


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("QwenImageEditPlusPipeline", "qwen_image_edit_plus"),
        ("QwenImageControlNetPipeline", "qwen_image_controlnet"),
        ("FluxKontextPipeline", "flux_kontext"),
        ("Flux2KleinPipeline", "flux2_klein"),
        ("FluxImg2ImgPipeline", "flux_img2img"),
        ("KandinskyV22PriorEmb2EmbPipeline", "kandinsky_v22_prior_emb2emb"),
        ("WanVACEPipeline", "wan_vace"),
        ("Krea2Pipeline", "krea2"),
        ("LTXI2VLongMultiPromptPipeline", "ltx_i2v_long_multi_prompt"),
        ("Kandinsky6TI2VAPipeline", "kandinsky6_ti2va"),
        ("LTX2VideoPipeline", "ltx2_video"),
        ("DiTPipeline", "dit"),
    ],
)
def test_pipeline_stem(name, stem):
    assert pipeline_stem(name) == stem


@pytest.mark.parametrize(
    ("name", "family", "stem"),
    [
        ("LongCatImageEditPipeline", "longcat_image", "longcat_image_edit"),
        ("HiDreamImagePipeline", "hidream_image", "hidream_image"),
        ("Flux2KleinPipeline", "flux", "flux2_klein"),
        ("WanVACEPipeline", "wan", "wan_vace"),
        ("StableDiffusion3Pipeline", "sd3", "stable_diffusion3"),
    ],
)
def test_a_pipeline_spells_its_family_as_the_folder(name, family, stem):
    assert pipeline_stem(name, family) == stem


@pytest.mark.parametrize(
    ("name", "family", "models", "stem"),
    [
        ("StableAudioDiTModel", "stable_audio", [], "stable_audio"),
        ("LTX2VideoTransformer3DModel", "ltx2", ["LTX2VideoTransformer3DModel"], "ltx2"),
        ("WanVACETransformer3DModel", "wan", ["WanTransformer3DModel"], "wan_vace"),
        ("SanaVideoTransformer3DModel", "sana", ["SanaTransformer2DModel"], "sana_video"),
    ],
)
def test_transformer_stem(name, family, models, stem):
    assert transformer_stem(name, family, models) == stem


@pytest.mark.parametrize(
    ("name", "family", "stem"),
    [
        ("QwenImageControlNetModel", "qwen_image", "qwen_image_controlnet"),
        ("HunyuanDiT2DControlNetModel", "hunyuan_dit", "hunyuan_dit_controlnet"),
        ("SD3ControlNetModel", "sd3", "sd3_controlnet"),
    ],
)
def test_a_controlnet_is_named_after_its_denoiser(name, family, stem):
    assert controlnet_stem(name, family, []) == stem


@pytest.mark.parametrize(
    ("folder", "own", "models", "expected"),
    [
        pytest.param("qwenimage", ["QwenImageTransformer2DModel"], [], "qwen_image", id="of the model"),
        pytest.param(
            "wan",
            ["WanVACETransformer3DModel"],
            ["WanTransformer3DModel", "WanVACETransformer3DModel"],
            "wan",
            id="shortest",
        ),
        pytest.param(
            "flux", ["Flux2Transformer2DModel"], ["FluxTransformer2DModel"], "flux2", id="a longer word is another one"
        ),
        pytest.param("longcat_image", ["LongCatImageTransformer2DModel"], [], "longcat_image", id="better breaks"),
        pytest.param("stable_audio", ["StableAudioDiTModel"], [], "stable_audio", id="without what it is"),
        pytest.param("hunyuandit", ["HunyuanDiT2DModel"], [], "hunyuan_dit", id="with what it is"),
        pytest.param("stable_diffusion_3", ["SD3Transformer2DModel"], [], "sd3", id="other words"),
        pytest.param("stable_diffusion_xl", [], [], "stable_diffusion_xl", id="no transformer"),
        pytest.param("flux", [], ["FluxTransformer2DModel"], "flux", id="no transformer of its own"),
    ],
)
def test_family(folder, own, models, expected):
    assert family(folder, own, models) == expected


@given(st.from_regex(r"[A-Z][A-Za-z0-9]{0,30}", fullmatch=True))
def test_a_stem_is_a_name_in_small_letters(name):
    for stem in (snake(name), model_stem(name), pipeline_stem(name + "Pipeline")):
        assert stem.isidentifier() and stem == stem.lower() and not stem.endswith("_")


# Files -------------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_are_written_formatted_below_the_folder(tmp_path):
    written = write_files(tmp_path / "out", {"a/b.py": "import os\nimport sys\nx = [ os.sep ]\n", "c.py": "y = 'c'\n"})
    assert written == [tmp_path / "out/a/b.py", tmp_path / "out/c.py"]
    assert files_of(tmp_path / "out") == {"a/b.py": "import os\n\nx = [os.sep]\n", "c.py": 'y = "c"\n'}


def test_a_text_that_does_not_parse_leaves_the_folder_as_it_was(tmp_path):
    write_files(tmp_path, {"a/b.py": "x = 1\n"})
    before = files_of(tmp_path)
    with pytest.raises(FormatError, match=r"a/c\.py:2: .*: y = = 2"):
        write_files(tmp_path, {"a/b.py": "x = 2\n", "a/c.py": "x = 1\ny = = 2\n", "d/e.py": "z = 3\n"})
    assert files_of(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_what_was_staged_whole_is_finished_by_the_next_writer(tmp_path):
    write_files(tmp_path, {"a/b.py": "x = 1\n", "registry.py": "y = 1\n"})
    for name, whole in ((".porter-one", True), (".porter-two", False)):
        staged = tmp_path / name / "a"
        staged.mkdir(parents=True)
        (staged / "b.py").write_text(f"x = {name!r}\n")
        (tmp_path / name / ("a/c.py" if whole else "registry.py")).write_text("z = 1\n")
        if whole:
            (tmp_path / name / ".whole").touch()
    with reserved(tmp_path):
        assert (tmp_path / "a/b.py").read_text() == "x = '.porter-one'\n"
        assert (tmp_path / "a/c.py").is_file()
        assert (tmp_path / "registry.py").read_text() == "y = 1\n"
        assert not list(tmp_path.glob(".porter-*"))


def test_the_registry_is_moved_in_last(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr("porter.emit.write.os.replace", lambda source, place: moved.append(Path(place).name))
    write_files(tmp_path, {"registry.py": "y = 1\n", "z/z.py": "x = 1\n", "a.py": "x = 1\n"})
    assert moved[-1] == "registry.py" and len(moved) == 3


def test_other_files_of_the_folder_stay(tmp_path):
    write_files(tmp_path, {"a/b.py": "x = 1\n", "a/mine.py": "x = 1\n"})
    write_files(tmp_path, {"a/b.py": "x = 2\n"})
    assert files_of(tmp_path) == {"a/b.py": "x = 2\n", "a/mine.py": "x = 1\n"}


def test_a_failing_move_leaves_no_staging_behind(tmp_path, monkeypatch):
    def fail(source: Any, target: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr("porter.emit.write.os.replace", fail)
    with pytest.raises(OSError, match="full"):
        write_files(tmp_path, {"a.py": "x = 1\n"})
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".porter-")] == []


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(OutputError, match="out is a file"):
            check_folder(folder)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_folder_that_leaves_the_tree(tmp_path):
    with pytest.raises(OutputError, match="leaves the tree"):
        check_folder(tmp_path / "out" / ".." / ".." / "elsewhere")


def test_an_output_folder_that_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr("porter.emit.write.os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_folder(tmp_path / "out")


# The registry ------------------------------------------------------------------------------------------------------


def port(name: str, stem: str, hooks: tuple[str, ...] = ()) -> Port:
    text = "".join(f"def get_{stem}_{kind}_process_func(od_config): ...\n" for kind in hooks)
    return Port(name, "fam", stem, texts={f"fam/pipeline_{stem}.py": text, "fam/__init__.py": ""})


def test_ports_are_added_to_the_registry_that_is_there(tmp_path):
    write_ports(tmp_path, [port("BPipeline", "b", ("pre", "post"))])
    write_ports(tmp_path, [port("APipeline", "a", ("post",))])
    models, pre, post = (read_registry(tmp_path)[name] for name in TABLES)
    assert models == {"APipeline": ("fam", "pipeline_a", "APipeline"), "BPipeline": ("fam", "pipeline_b", "BPipeline")}
    assert list(models) == ["APipeline", "BPipeline"]
    assert pre == {"BPipeline": "get_b_pre_process_func"}
    assert post == {"APipeline": "get_a_post_process_func", "BPipeline": "get_b_post_process_func"}


def test_a_hook_that_is_gone_leaves_the_registry(tmp_path):
    write_ports(tmp_path, [port("APipeline", "a", ("pre", "post"))])
    write_ports(tmp_path, [port("APipeline", "a", ("post",))])
    assert read_registry(tmp_path)[TABLES[1]] == {}


def test_the_order_of_ports_does_not_matter(tmp_path):
    ports = [port("BPipeline", "b", ("post",)), port("APipeline", "a", ("pre",))]
    write_ports(tmp_path / "one", ports)
    write_ports(tmp_path / "two", ports[::-1])
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_no_registry_is_an_empty_one(tmp_path):
    assert read_registry(tmp_path) == {name: {} for name in TABLES}


@pytest.mark.parametrize(
    "text", ["_DIFFUSION_MODELS = load()\n", "_DIFFUSION_MODELS = {\n", "_DIFFUSION_MODELS = {x: 1}\n"]
)
def test_a_registry_is_read_and_never_run(tmp_path, text):
    (tmp_path / "registry.py").write_text(text)
    with pytest.raises(OutputError, match=r"registry\.py is no registry that porter wrote"):
        read_registry(tmp_path)
    assert (tmp_path / "registry.py").read_text() == text


identifiers = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True).filter(lambda n: not keyword.iskeyword(n))


@given(st.dictionaries(identifiers, st.tuples(identifiers, identifiers, identifiers), max_size=5))
def test_a_registry_is_read_as_it_was_written(models):
    text = registry_text({TABLES[0]: models, TABLES[1]: {}, TABLES[2]: {name: "hook" for name in models}})
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    assert namespace[TABLES[0]] == models
    assert namespace[TABLES[2]] == {name: "hook" for name in models}


# Imports -----------------------------------------------------------------------------------------------------------


def test_import_lines_are_one_a_name_and_sorted():
    file = PortedFile(
        imports={
            "torch": ("torch", None),
            "F": ("torch.nn.functional", None),
            "init_logger": ("vllm.logger", "init_logger"),
            "Norm": ("vllm_omni.diffusion.layers.norm", "RMSNorm"),
        },
        relative={"helper": "support"},
    )
    assert import_lines(file, get_target("vllm-omni")) == [
        "from .support import helper",
        "from vllm.logger import init_logger",
        "from vllm_omni.diffusion.layers.norm import RMSNorm as Norm",
        "import torch",
        "import torch.nn.functional as F",
    ]
    assert import_lines(file, get_target("porter"))[1:3] == [
        "from porter.runtime.diffusion.layers.norm import RMSNorm as Norm",
        "from porter.runtime.logger import init_logger",
    ]


# Text from outside stays a literal ---------------------------------------------------------------------------------

PIPELINE = "pipelines/example/pipeline_example.py"
PACKAGE = {
    "__init__.py": '__version__ = "0.0.0"\n',
    "image_processor.py": "class VaeImageProcessor: ...\n",
    "models/__init__.py": "from .autoencoder_kl import AutoencoderKL\n",
    "models/autoencoder_kl.py": "class AutoencoderKL:\n    def __init__(self, scale=8): ...\n",
    "pipelines/__init__.py": "",
    "pipelines/example/__init__.py": "",
    "pipelines/pipeline_utils.py": "class DiffusionPipeline: ...\n",
}
SOURCE = """
from ...image_processor import VaeImageProcessor
from ...models import AutoencoderKL
from ..pipeline_utils import DiffusionPipeline


class ExamplePipeline(DiffusionPipeline):
    {class_doc}

    def __init__(self, vae: AutoencoderKL, setting={setting}):
        super().__init__()
        self.register_modules(vae=vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=8, mode={setting})

    def __call__(self, image, {name}={default}, prompt=None, output_type={output_type}):
        {call_doc}
        image = self.image_processor.preprocess(image, {name}, {inline})
        image = self.vae.decode(image)
        image = self.image_processor.postprocess(image, output_type=output_type)
        return ExamplePipelineOutput(images=image)
"""
NASTY = [
    '"""; import os; """',
    "'; import os #",
    "\"\"\"\nimport os\n'''",
    "\\",
    '\\"""',
    "{{ 7 * 7 }}{% if x %}",
    "{0} {name}",
    "line\nother\r\n\ttab\x00\x1b\u2028\ud800",
    "# -*- coding: latin-1 -*-",
    "%s %(x)s $HOME `id`",
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.sampled_from(NASTY),
    st.binary(max_size=10),
)
literals = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
texts = st.one_of(st.text(max_size=40), st.sampled_from(NASTY))


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "diffusers"
    for file, text in PACKAGE.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")

    def run(**values: Any) -> dict[str, str]:
        given = {"class_doc": "doc", "call_doc": "doc", "setting": 1, "default": 2, "inline": 3, "output_type": "pil"}
        shown = {key: repr(value) for key, value in {**given, **values}.items() if key != "name"}
        (folder / PIPELINE).write_text(SOURCE.format(name=values.get("name", "size"), **shown), encoding="utf-8")
        return Converter(SourceTree(folder), get_target("porter")).port("ExamplePipeline").texts

    return run


def parsed(texts: dict[str, str]) -> ast.Module:
    return ast.parse(texts["example/pipeline_example.py"])


def shape(tree: ast.AST, placeholders: tuple[Any, ...]) -> str:
    """The tree with every literal that equals one of ``placeholders`` taken out: what is left is code."""
    known = {ast.dump(ast.parse(repr(value), mode="eval").body) for value in placeholders}

    class Blank(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            if isinstance(node, ast.expr) and ast.dump(node) in known:
                return ast.Name("literal", ast.Load())
            return super().generic_visit(node)

        visit = generic_visit

    return ast.dump(Blank().visit(tree))


def same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)


def default_of(tree: ast.Module, name: str) -> Any:
    forward = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "forward")
    names = [a.arg for a in forward.args.args]
    return ast.literal_eval(dict(zip(reversed(names), reversed(forward.args.defaults)))[name])


def hook_default_of(tree: ast.Module, name: str) -> Any:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "given.get"
            and ast.unparse(node.args[0]) == repr(name)
        ):
            return ast.literal_eval(node.args[1])
    raise AssertionError(f"the hook does not ask for {name}")


@settings(max_examples=60, deadline=None)
@given(literals)
def test_a_default_stays_the_same_literal(convert, value):
    tree = parsed(convert(default=value))
    assert same(default_of(tree, "size"), value)
    assert same(hook_default_of(tree, "size"), value)


@settings(max_examples=40, deadline=None)
@given(texts)
def test_an_argument_inside_a_moved_call_stays_the_same_literal(convert, value):
    tree = parsed(convert(inline=value, default="unlike"))
    calls = [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "image_processor.preprocess"
    ]
    assert [same(ast.literal_eval(call.args[2]), value) for call in calls] == [True]


@settings(max_examples=40, deadline=None)
@given(literals)
def test_a_setting_stays_the_same_literal(convert, value):
    tree = parsed(convert(setting=value))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "model_index_value"]
    assert calls and all(same(ast.literal_eval(call.args[2]), value) for call in calls)
    built = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "VaeImageProcessor"]
    modes = [k.value for n in built for k in n.keywords if k.arg == "mode"]
    assert modes and all(same(ast.literal_eval(mode), value) for mode in modes)


@settings(max_examples=40, deadline=None)
@given(texts, texts)
def test_docstrings_stay_docstrings(convert, class_doc, call_doc):
    tree = parsed(convert(class_doc=class_doc, call_doc=call_doc))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "ExamplePipeline")
    forward = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "forward")
    assert same(ast.get_docstring(node, clean=False), class_doc)
    assert same(ast.get_docstring(forward, clean=False), call_doc)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NASTY) | st.text(min_size=1, max_size=30))
def test_nothing_but_literals_changes(convert, value):
    plain, other = "a plain text that is nowhere else", value
    trees = [
        parsed(convert(default=v, class_doc=v, call_doc=v, inline=v, setting=v, output_type=v)) for v in (plain, other)
    ]
    assert shape(trees[0], (plain,)) == shape(trees[1], (other,))


TAKEN = {"self", "image", "prompt", "output_type", "vae", "setting", "req", "given", "preprocessed", "request"}


@settings(max_examples=40, deadline=None)
@given(identifiers.filter(lambda name: name not in TAKEN))
def test_any_parameter_name_is_taken_over(convert, name):
    tree = parsed(convert(name=name, default="here"))
    assert default_of(tree, name) == "here"
    assert hook_default_of(tree, name) == "here"


def test_what_is_written_has_the_same_literals(convert, tmp_path):
    for value in NASTY:
        write_files(tmp_path, convert(default=value, call_doc=value, setting=value))
        tree = ast.parse((tmp_path / "example/pipeline_example.py").read_text(encoding="utf-8"))
        assert same(default_of(tree, "size"), value)
        assert same(hook_default_of(tree, "size"), value)


@pytest.mark.parametrize("name", ["given", "preprocessed", "req", "request"])
def test_a_parameter_that_is_called_like_a_variable_of_the_port_is_refused(convert, name):
    with pytest.raises(SourceError, match=name):
        convert(name=name)


def test_an_entry_of_an_earlier_registry_stays_a_literal(tmp_path):
    models = {'x": 1}; import os; y = {"z': ("a", "b", "c")}
    tables = {TABLES[0]: models, TABLES[1]: {}, TABLES[2]: {}}
    (tmp_path / "registry.py").write_text("".join(f"{name} = {table!r}\n" for name, table in tables.items()))
    assert "import os" not in [ast.unparse(node) for node in ast.parse(registry_text(read_registry(tmp_path))).body]


def test_braces_in_a_processing_call_stay(tmp_path):
    hook = PostProcess(
        outputs=[("images", "image")],
        calls={"image": ("image_processor.postprocess", 'output_type=output_type, options={"a": "{}"}')},
        processors={"image_processor": "VaeImageProcessor()"},
    )
    tree = ast.parse(post_process_text("example", "ExamplePipeline", hook))
    [call] = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(".postprocess")]
    assert ast.unparse(call) == "image_processor.postprocess(output, output_type=output_type, options={'a': '{}'})"


def test_an_output_that_is_an_expression_goes_by_the_name_of_its_field():
    hook = PostProcess(default='"pil"')
    hook.outputs = [("sequences", "tokens.to(device=device)"), ("texts", "texts")]
    text = post_process_text("example", "ExamplePipeline", hook)
    ast.parse(text)
    assert "sequences, texts = output" in text and '"sequences": sequences' in text


# Formatting --------------------------------------------------------------------------------------------------------


def test_what_a_port_leaves_out_does_not_keep_the_rest_from_being_formatted():
    """diffusers writes its comment that ends unformatted lines before an attribute that ports do without."""
    text = Converter(SourceTree(), get_target("porter")).port("SanaPipeline").texts["sana/pipeline_sana.py"]
    assert [line.strip() for line in text.splitlines() if "# fmt:" in line] == ["# fmt: off", "# fmt: on"]
