"""The toys: one that takes steps together, one that takes them alone, one that runs whole."""

_DIFFUSION_MODELS = {
    "ToyPipeline": ("toy", "pipeline_toy", "ToyPipeline"),
    "ToyAlonePipeline": ("toy", "pipeline_toy", "ToyAlonePipeline"),
    "ToyWholePipeline": ("toy", "pipeline_toy", "ToyWholePipeline"),
}
_DIFFUSION_PRE_PROCESS_FUNCS: dict[str, str] = {}
_DIFFUSION_POST_PROCESS_FUNCS = dict.fromkeys(_DIFFUSION_MODELS, "get_toy_post_process_func")
