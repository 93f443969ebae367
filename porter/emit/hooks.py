"""The pre- and post-processing hooks of a pipeline file."""

from __future__ import annotations

from porter.emit.templates import fill
from porter.rules.pipeline.postprocess import PostProcess
from porter.rules.pipeline.preprocess import PreProcess

# What diffusers calls an output, and the key under which the engine takes it.
MEDIA = {"frames": "video", "video": "video", "audios": "audio", "audio": "audio", "sound": "audio"}


def post_process_text(stem: str, pipeline: str, hook: PostProcess) -> str:
    """Text of ``get_<stem>_post_process_func``."""
    variables = [variable for _, variable in hook.outputs]
    several = len(hook.outputs) > 1
    # What is returned may be an expression of the forward; here it goes by the name of its field.
    local = {variable: variable if variable.isidentifier() else field for field, variable in hook.outputs}
    raw = {variable: local[variable] if several else "output" for variable in variables}
    processed = {v: _call(*hook.calls[v], raw[v]) if v in hook.calls else raw[v] for v in variables}
    return fill(
        "post_process.py.j2",
        stem=stem,
        pipeline=pipeline,
        settings=hook.settings,
        processors=hook.processors,
        calls=hook.calls,
        default=hook.default,
        untouched=hook.untouched,
        unpack=", ".join(local[variable] for variable in variables) if several else "",
        result="output" if several else _result(hook, raw),
        processed=_result(hook, processed) if hook.outputs else "output",
    )


def pre_process_text(stem: str, pipeline: str, hook: PreProcess) -> str:
    """Text of ``get_<stem>_pre_process_func``."""
    return fill(
        "pre_process.py.j2",
        stem=stem,
        pipeline=pipeline,
        setup=hook.setup,
        arguments=hook.arguments,
        required=hook.required,
        body=hook.body,
        outputs=hook.outputs,
    )


def _call(function: str, arguments: str, value: str) -> str:
    return f"{function}({value}, {arguments})" if arguments else f"{function}({value})"


def _result(hook: PostProcess, values: dict[str, str]) -> str:
    keys = [MEDIA.get(field, field) for field, _ in hook.outputs]
    if keys in (["images"], ["image"]):
        return values[hook.outputs[0][1]]
    pairs = ", ".join(f'"{key}": {values[v]}' for key, (_, v) in zip(keys, hook.outputs, strict=True))
    return f"{{{pairs}}}"
