"""The toys: their steps are taken together, or one by one, or cannot be shared, or are no steps to the engine."""

_DIFFUSION_MODELS = {
    "ToyPipeline": ("toy", "pipeline_toy", "ToyPipeline"),
    "ToyAlonePipeline": ("toy", "pipeline_toy", "ToyAlonePipeline"),
    "ToyMixingPipeline": ("toy", "pipeline_toy", "ToyMixingPipeline"),
    "ToyWholePipeline": ("toy", "pipeline_toy", "ToyWholePipeline"),
}
_DIFFUSION_PRE_PROCESS_FUNCS: dict[str, str] = {}
_DIFFUSION_POST_PROCESS_FUNCS = dict.fromkeys(_DIFFUSION_MODELS, "get_toy_post_process_func")
