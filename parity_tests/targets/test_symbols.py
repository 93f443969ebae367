"""Names and definitions of the published releases, against what is known of them."""

import subprocess
import sys

import pytest

from porter.targets import load_symbols

SYMBOLS = load_symbols()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("diffusers", "QwenImageEditPipeline"),  # handed out lazily
        ("diffusers", "ModelMixin"),
        ("diffusers", "__version__"),
        ("diffusers", "models"),  # a module inside the package
        ("diffusers.models", "AutoencoderKLQwenImage"),
        ("diffusers.models.normalization", "RMSNorm"),
        ("diffusers.models.normalization", "LayerNorm"),  # bound in both branches of an `if`
        ("diffusers.models.embeddings", "TimestepEmbedding"),
        ("diffusers.utils.torch_utils", "randn_tensor"),
        ("diffusers.utils", "logging"),
        ("vllm.distributed", "get_tensor_model_parallel_rank"),  # by way of `import *`
        ("vllm.model_executor.layers.linear", "QKVParallelLinear"),
        ("vllm.platforms", "current_platform"),  # by `__getattr__`
        ("vllm_omni", "Omni"),  # by `__getattr__`
        ("vllm_omni.diffusion.attention.layer", "Attention"),
        ("vllm_omni.diffusion.data", "DiffusionOutput"),
        ("vllm_omni.inputs.data", "OmniDiffusionSamplingParams"),
    ],
)
def test_names_that_exist(module, name):
    assert SYMBOLS.has_module(module)
    assert SYMBOLS.has(module, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("diffusers", "ImaginaryPipeline"),
        ("diffusers.models", "TYPE_CHECKING"),  # gone once the package has replaced itself
        ("diffusers.models.normalization", "RMSNormalisation"),
        ("diffusers.models.normalisation", "RMSNorm"),
        ("vllm_omni.diffusion.attention.layer", "AttentionLayer"),
        ("torch", "Tensor"),
        ("", ""),
    ],
)
def test_names_that_do_not_exist(module, name):
    assert not SYMBOLS.has(module, name)


def test_modules():
    assert SYMBOLS.has_module("diffusers.models.transformers.transformer_qwenimage")
    assert not SYMBOLS.has_module("diffusers.models.transformers.transformer_imaginary")
    assert SYMBOLS.names("diffusers.models.transformers.transformer_imaginary") == frozenset()


def test_what_the_table_speaks_about():
    assert {name: wheel["version"] for name, wheel in SYMBOLS.wheels.items()} == {
        "diffusers": "0.40.0",
        "vllm": "0.30.0",
        "vllm-omni": "0.30.0",
    }
    assert SYMBOLS.covers("diffusers.imaginary")
    assert not SYMBOLS.covers("torch")


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        ("diffusers.models.normalization", "RMSNorm", ("dim", "eps", "elementwise_affine", "bias")),
        (
            "diffusers.utils.torch_utils",
            "randn_tensor",
            ("shape", "generator", "device", "dtype", "layout"),
        ),
        ("diffusers.models.modeling_outputs", "Transformer2DModelOutput", ("sample",)),  # a dataclass
        ("diffusers.models.normalization", "LayerNorm", None),  # depends on the version of torch
        ("diffusers.models.normalization", "nothing", None),
        ("nothing", "RMSNorm", None),
    ],
)
def test_parameters(module, name, parameters):
    assert SYMBOLS.parameters(module, name) == parameters


def test_parameters_of_what_a_package_only_hands_on():
    direct = SYMBOLS.parameters("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL")
    assert direct is not None and direct[:2] == ("in_channels", "out_channels")
    assert SYMBOLS.parameters("diffusers.models", "AutoencoderKL") == direct
    assert SYMBOLS.parameters("diffusers", "AutoencoderKL") == direct
    assert SYMBOLS.origin("diffusers", "AutoencoderKL") == (
        "diffusers.models.autoencoders.autoencoder_kl",
        "AutoencoderKL",
    )


def test_where_a_name_is_defined():
    assert "diffusers.models.normalization" in SYMBOLS.definers("RMSNorm")
    assert SYMBOLS.definers("RMSNormalisation") == ()


def test_another_hash_is_not_the_same():
    assert not SYMBOLS.same("diffusers.models.normalization", "RMSNorm", "0" * 16)
    assert not SYMBOLS.same("diffusers.models.normalization", "nothing", "")


def test_loading_imports_no_library():
    code = (
        "import sys; from porter.targets import get_target;"
        "get_target('vllm-omni').symbols.parameters('diffusers', 'x');"
        "print(sorted({'torch', 'numpy', 'diffusers', 'transformers', 'vllm_omni'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
