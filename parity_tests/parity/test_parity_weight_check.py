import torch

from porter.parity.weight_check import compare_tensors, pack

PACKING = [(".to_qkv.", ".to_q."), (".to_qkv.", ".to_k."), (".to_qkv.", ".to_v.")]


def shards():
    return {f"attn.to_{name}.weight": torch.full((2, 3), float(i)) for i, name in enumerate("vqk")}


def test_both_directions_are_checked():
    report = compare_tensors({"a": torch.ones(1), "b": torch.ones(1)}, {"b": torch.zeros(1), "c": torch.ones(1)})
    assert (report.missing, report.differing, report.extra) == (["a"], ["b"], ["c"])
    assert not report.passed and "1 missing in the port: a" in report.summary()


def test_dtype_and_shape_count():
    one = torch.ones(2)
    assert not compare_tensors({"a": one}, {"a": one.double()}).passed
    assert not compare_tensors({"a": one}, {"a": torch.ones(2, 1)}).passed


def test_merged_layers_are_compared_with_their_parts_in_order():
    mine = shards()
    q, k, v = (mine[f"attn.to_{name}.weight"] for name in "qkv")
    port = {"attn.to_qkv.weight": torch.cat([q, k, v])}
    assert list(pack(mine, port, PACKING)) == ["attn.to_qkv.weight"]
    assert compare_tensors(mine, port, PACKING).passed
    assert not compare_tensors(mine, {"attn.to_qkv.weight": torch.cat([k, q, v])}, PACKING).passed


def test_another_layer_of_the_same_parts_does_not_change_their_order():
    mine = shards()
    port = {"attn.to_qkv.weight": torch.cat([mine[f"attn.to_{name}.weight"] for name in "qkv"])}
    assert compare_tensors(mine, port, [(".to_kv.", ".to_k."), (".to_kv.", ".to_v."), *PACKING]).passed


def test_layers_that_the_port_keeps_apart_stay_apart():
    assert compare_tensors(shards(), shards(), PACKING).passed
