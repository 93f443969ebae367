"""Linear layers on the CPU, as torch computes them.

After loading, vLLM hands the weight of a linear layer to oneDNN in a packed form and leaves an empty tensor behind. The
results then differ from torch's in the last bits, and nobody can read the weights any more. This platform is there to
hold ports against diffusers, so its layers use torch's own kernel, as they do on a GPU.
"""

from __future__ import annotations


def keep_weights() -> None:
    """Turn the packing off, for layers that are loaded from now on."""
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False
