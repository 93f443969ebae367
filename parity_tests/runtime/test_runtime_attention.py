"""Attention: to the last bit what diffusers' native backend computes, and honest about what it cannot do."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from porter.runtime import ConfigError
from porter.runtime.diffusion.attention import selector
from porter.runtime.diffusion.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionMetadata
from porter.runtime.diffusion.attention.backends.sdpa import SDPAImpl
from porter.runtime.diffusion.attention.layer import Attention
from porter.runtime.diffusion.config import get_current_diffusion_config_or_none, set_current_diffusion_config
from porter.runtime.diffusion.data import OmniDiffusionConfig

BATCH, HEADS, Q_LEN, KV_LEN = 2, 4, 7, 11


def qkv(head_size=8, kv_heads=HEADS, q_len=Q_LEN, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(BATCH, q_len, HEADS, head_size, generator=generator).to(dtype),
        torch.randn(BATCH, KV_LEN, kv_heads, head_size, generator=generator).to(dtype),
        torch.randn(BATCH, KV_LEN, kv_heads, head_size, generator=generator).to(dtype),
    )


def mask_of(kind):
    keep = torch.arange(KV_LEN) < torch.tensor([[KV_LEN], [5]])
    additive = torch.zeros(BATCH, 1, 1, KV_LEN).masked_fill(~keep[:, None, None], float("-inf"))
    full = torch.rand(BATCH, 1, Q_LEN, KV_LEN, generator=torch.Generator().manual_seed(1)) > 0.3
    return {"none": None, "padding": keep, "additive": additive, "full": full}[kind]


@pytest.mark.parametrize("head_size", [8, 24, 40, 64, 80, 128])
@pytest.mark.parametrize("mask", ["none", "padding", "additive", "full"])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("explicit_scale", [True, False])
def test_equal_to_diffusers(head_size, mask, kv_heads, explicit_scale):
    query, key, value = qkv(head_size, kv_heads)
    attn_mask = mask_of(mask)
    layer = Attention(
        num_heads=HEADS,
        head_size=head_size,
        causal=False,
        softmax_scale=1.0 / head_size**0.5 if explicit_scale else None,
        num_kv_heads=kv_heads,
    )
    metadata = AttentionMetadata(attn_mask=attn_mask) if attn_mask is not None else None
    expected = dispatch_attention_fn(
        query, key, value, attn_mask=attn_mask, enable_gqa=kv_heads != HEADS, backend=AttentionBackendName.NATIVE
    )
    actual = layer(query, key, value, metadata)
    assert actual.shape == expected.shape and torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_causal_equal_to_diffusers(dtype, scale):
    query, key, value = qkv(q_len=KV_LEN, dtype=dtype)
    layer = Attention(HEADS, 8, causal=True, softmax_scale=scale)
    expected = dispatch_attention_fn(
        query, key, value, is_causal=True, scale=scale, backend=AttentionBackendName.NATIVE
    )
    assert torch.equal(layer(query, key, value), expected)


def test_an_integer_padding_mask_is_read_as_bool():
    query, key, value = qkv()
    layer = Attention(HEADS, 8, False, None)
    keep = mask_of("padding")
    as_int = layer(query, key, value, AttentionMetadata(attn_mask=keep.long()))
    assert torch.equal(as_int, layer(query, key, value, AttentionMetadata(attn_mask=keep)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (AttentionMetadata(attn_mask=torch.zeros(BATCH, KV_LEN)), "ambiguous"),
        (AttentionMetadata(extra={"cu_seqlens_k": torch.zeros(2)}), "not as sequence lengths"),
        (AttentionMetadata(joint_query=torch.zeros(1)), "sequence parallelism"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        Attention(HEADS, 8, False, None)(*qkv(), metadata)


@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_compiles_into_one_graph(mask, dynamic, kv_heads):
    torch.compiler.reset()
    layer = Attention(HEADS, 8, False, None)
    attn_mask = mask_of(mask)

    def run(query, key, value):
        return layer(query, key, value, AttentionMetadata(attn_mask=attn_mask))

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for q_len in (Q_LEN, 5):
        inputs = qkv(kv_heads=kv_heads, q_len=q_len)
        assert torch.equal(compiled(*inputs), run(*inputs))


class PickyBackend(AttentionBackend):
    """Takes no mask; can be made unavailable."""

    reason: str | None = None

    @staticmethod
    def get_name():
        return "PICKY"

    @staticmethod
    def get_impl_cls():
        return PickyImpl

    @classmethod
    def why_unavailable(cls, head_size, dtype, device):
        return cls.reason


class PickyImpl(AttentionImpl):
    def refusal(self, query, key, attn_metadata):
        return "it takes no attn_mask" if attn_metadata is not None and attn_metadata.attn_mask is not None else None

    def forward(self, query, key, value, attn_metadata=None):
        return torch.full_like(query, 7.0)


@pytest.fixture
def picky(monkeypatch):
    real = selector.get_backend_class
    monkeypatch.setattr(selector, "get_backend_class", lambda name: PickyBackend if name == "PICKY" else real(name))
    monkeypatch.setattr(selector, "_AUTOMATIC", ("PICKY", "TORCH_SDPA"))
    monkeypatch.setattr(PickyBackend, "reason", None)
    return PickyBackend


def test_automatic_choice_falls_back_for_a_call_with_a_mask(picky):
    layer = Attention(HEADS, 8, False, None)
    metadata = AttentionMetadata(attn_mask=mask_of("padding"))
    assert layer.backend_name == "PICKY" and (layer(*qkv()) == 7).all()
    assert torch.equal(layer(*qkv(), metadata), SDPAImpl(HEADS, 8, None).forward(*qkv(), metadata))


def test_explicit_choice_refuses_a_call_with_a_mask(picky):
    with set_current_diffusion_config(OmniDiffusionConfig(diffusion_attention_config="PICKY")):
        layer = Attention(HEADS, 8, False, None)
    assert (layer(*qkv()) == 7).all()
    with pytest.raises(ValueError, match="PICKY cannot take this call: it takes no attn_mask"):
        layer(*qkv(), AttentionMetadata(attn_mask=mask_of("padding")))


def test_automatic_choice_passes_over_what_cannot_run_and_logs_it(picky, monkeypatch, caplog):
    monkeypatch.setattr(picky, "reason", "the moon is full")
    with caplog.at_level(logging.INFO, logger="porter"):
        layer = Attention(HEADS, 8, False, None, role="moonlit")
    assert layer.backend_name == "TORCH_SDPA"
    assert "PICKY: the moon is full" in caplog.text


def test_explicit_choice_that_cannot_run_says_why(picky, monkeypatch):
    monkeypatch.setattr(picky, "reason", "the moon is full")
    with set_current_diffusion_config(OmniDiffusionConfig(diffusion_attention_config="PICKY")):
        with pytest.raises(ConfigError, match="PICKY cannot run: the moon is full"):
            Attention(HEADS, 8, False, None)


def test_backends_by_role(picky):
    config = OmniDiffusionConfig(
        diffusion_attention_config={"default": "TORCH_SDPA", "per_role": {"cross": "PICKY", "self": "auto"}}
    )
    with set_current_diffusion_config(config):
        names = [
            Attention(HEADS, 8, False, None, role=role, role_category=category).backend_name
            for role, category in [("self", None), ("cross", None), ("audio_to_video", "cross")]
        ]
    assert names == ["TORCH_SDPA", "PICKY", "PICKY"]
    assert get_current_diffusion_config_or_none() is None


@pytest.mark.parametrize("name", ["FLASH_ATTN", "sage_attn"])
def test_accelerator_backends_say_what_they_need(name):
    with set_current_diffusion_config(OmniDiffusionConfig(diffusion_attention_config=name)):
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match="needs a CUDA device"):
                Attention(HEADS, 64, False, None)
