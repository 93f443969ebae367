"""What the entry points name. Both are called in every process of the engine, possibly several times."""

from __future__ import annotations

CPU_PLATFORM = "porter.omni.platform.CpuOmniPlatform"


def platform() -> str | None:
    """``vllm_omni.platform_plugins``: the CPU platform where there is no accelerator, None elsewhere.

    vLLM-Omni asks its platform plugins before it reads any model's metadata, and its general plugins long after; so
    what it should know early about ports is told here as well, whatever the hardware.
    """
    from vllm_omni.platforms import builtin_omni_platform_plugins

    from porter.omni.early import announce_models
    from porter.omni.shims import claimed, define_torchvision_operators
    from porter.omni.sound import make_torchaudio_importable

    announce_models()
    if claimed(builtin_omni_platform_plugins, "vllm_omni.platform_plugins"):
        return None
    define_torchvision_operators()
    make_torchaudio_importable()
    return CPU_PLATFORM


def register() -> None:
    """``vllm_omni.general_plugins``: make every port a model of the engine."""
    from porter.omni.plugin import register_ports

    register_ports()


def vllm_platform() -> str | None:
    """``vllm.platform_plugins``: vllm's own CPU platform where there is no accelerator, None elsewhere."""
    from vllm.platforms import builtin_platform_plugins

    from porter.omni.shims import claimed, define_torchvision_operators

    if claimed(builtin_platform_plugins, "vllm.platform_plugins"):
        return None
    define_torchvision_operators()
    return "vllm.platforms.cpu.CpuPlatform"
