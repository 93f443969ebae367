"""Cut a call at its denoising loop, so that the engine can run it step by step."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import Any

import libcst as cst

from porter.facts.flow import Flow, flow
from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import (
    INVARIANTS,
    STEPWISE,
    SURFACE,
    Context,
    Rule,
    body_statements,
    code,
    is_docstring,
    names_in,
    parameters,
    statements,
    to_ast,
)
from porter.rules.pipeline.conversions import convert_before, convert_once
from porter.rules.pipeline.loop import Loop, NoSplit, find_loop
from porter.rules.pipeline.predictions import denoisers
from porter.source.walk import walk

STATE = "StepRequestState"
# What predicts besides the models themselves, once guidance was expressed for the engine.
PREDICTIONS = ("self.predict_noise_maybe_with_cfg", "predict_branches", "predict_halves")
# diffusers' way to change how a model attends, for one call and back after it: requests in turns would undo each other.
_SHARED_CHANGE = ".set_attn_processor("
# A part of a call: what it is handed, and the head of the method that it becomes.
PREPARE, DENOISE, STEP, DECODE = "prepare_encode", "denoise", "step_scheduler", "post_decode"


@dataclass
class Part:
    """One of the four methods: its statements and what they do to variables."""

    body: list[Any]
    flow: Flow

    @classmethod
    def of(cls, body: list[Any]) -> Part:
        return cls(body, flow([node for item in body for node in to_ast(item).body]))


class StepExecution(Rule):
    """Split ``forward`` into ``prepare_encode``, ``denoise``, ``step_scheduler`` and ``post_decode``.

    What lives across the cuts is the request's state: variables by live-variable analysis, and what the call keeps on
    ``self`` (its guidance, its scheduler), which ``per_request`` puts there while one of the methods works on the
    request. ``forward`` runs the four, so a request computes the same whether it is run whole or step by step.
    A call that has no single denoising loop stays as it is, and the port's features say why.
    """

    name = "step-execution"
    safety = SURFACE
    VALID = (
        """
        class ExamplePipeline(DiffusionPipeline):
            def __init__(self, transformer: ExampleTransformer2DModel):
                super().__init__()
                self.register_modules(transformer=transformer)

            def forward(self, req, prompt=None):
                for chunk in self.chunks(prompt):
                    for i, t in enumerate(timesteps):
                        noise_pred = self.transformer(latents, t)
                        latents = self.scheduler.step(noise_pred, t, latents)[0]
                return DiffusionOutput(output=latents)
        """,
    )
    INVALID = (
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                @torch.no_grad()
                def forward(self, req, prompt=None, guidance_scale=5.0) -> DiffusionOutput:
                    state = request_state(req)
                    given = request_arguments(state, type(self))
                    prompt = given.pop("prompt", prompt)
                    guidance_scale = given.pop("guidance_scale", guidance_scale)
                    embeds, ids = self.encode_prompt(prompt)
                    latents = self.prepare_latents(embeds)
                    timesteps = self.scheduler.timesteps
                    num_warmup_steps = len(timesteps) - 2
                    with self.progress_bar(total=2) as progress_bar:
                        for i, t in enumerate(timesteps):
                            if self.interrupt:
                                continue
                            noise_pred = self.transformer(latents, t, embeds, ids)
                            noise_pred = noise_pred * guidance_scale
                            latents_dtype = latents.dtype
                            latents = self.scheduler.step(noise_pred, t, latents)[0]
                            latents = latents.to(latents_dtype)
                            if i > num_warmup_steps:
                                progress_bar.update()
                    return DiffusionOutput(output=self.vae.decode(latents))
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                @per_request
                def prepare_encode(
                    self, state: StepRequestState, prompt=None, guidance_scale=5.0
                ) -> StepRequestState:
                    given = request_arguments(state, type(self))
                    prompt = given.pop("prompt", prompt)
                    guidance_scale = given.pop("guidance_scale", guidance_scale)
                    embeds, ids = self.encode_prompt(prompt)
                    latents = self.prepare_latents(embeds)
                    timesteps = self.scheduler.timesteps
                    state.latents = latents
                    state.timesteps = list(timesteps)
                    state.extra.update(guidance_scale=guidance_scale, embeds=embeds, ids=ids)
                    return state

                @per_request
                def denoise(self, state: StepRequestState) -> torch.Tensor:
                    """The prediction for one step of one request."""
                    latents = state.latents
                    embeds = state.extra["embeds"]
                    ids = state.extra["ids"]
                    guidance_scale = state.extra["guidance_scale"]
                    t = state.timesteps[state.step_index]
                    noise_pred = self.transformer(latents, t, embeds, ids)
                    noise_pred = noise_pred * guidance_scale
                    return noise_pred

                def denoise_step(
                    self,
                    input_batch: InputBatch | None,
                    *,
                    states: Sequence[StepRequestState] | None = None,
                    **kwargs: Any,
                ) -> torch.Tensor:
                    return denoise_requests(self, input_batch, states)

                @per_request
                def step_scheduler(
                    self, state: StepRequestState, noise_pred: torch.Tensor, **kwargs: Any
                ) -> None:
                    latents = state.latents
                    t = state.timesteps[state.step_index]
                    state.step_index += 1
                    latents_dtype = latents.dtype
                    latents = self.scheduler.step(noise_pred, t, latents)[0]
                    latents = latents.to(latents_dtype)
                    state.latents = latents

                @per_request
                def post_decode(self, state: StepRequestState, **kwargs: Any) -> DiffusionOutput:
                    latents = state.latents
                    return DiffusionOutput(output=self.vae.decode(latents))

                def forward(self, req: DiffusionRequestBatch) -> DiffusionOutput:
                    return run_request(self, req)
            ''',
        ),
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                @torch.no_grad()
                def forward(self, req, prompt=None) -> DiffusionOutput:
                    state = request_state(req)
                    given = request_arguments(state, type(self))
                    prompt = given.pop("prompt", prompt)
                    embeds = self.encode_prompt(prompt)
                    latents, audio_latents = self.prepare_latents(), self.prepare_audio_latents()
                    dtype = self.transformer.dtype
                    audio_scheduler = copy.deepcopy(self.scheduler)
                    for t in timesteps:
                        noise_pred = self.transformer(latents, audio_latents, t, embeds.to(dtype), return_dict=False)
                        latents = self.scheduler.step(noise_pred[0], t, latents)[0]
                        audio_latents = audio_scheduler.step(noise_pred[1], t, audio_latents)[0]
                    return DiffusionOutput(output=(latents, audio_latents))
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                @per_request
                def prepare_encode(self, state: StepRequestState, prompt=None) -> StepRequestState:
                    given = request_arguments(state, type(self))
                    prompt = given.pop("prompt", prompt)
                    embeds = self.encode_prompt(prompt)
                    latents, audio_latents = self.prepare_latents(), self.prepare_audio_latents()
                    dtype = self.transformer.dtype
                    audio_scheduler = copy.deepcopy(self.scheduler)
                    embeds = embeds.to(dtype)
                    state.latents = latents
                    state.timesteps = list(timesteps)
                    state.extra.update(
                        embeds=embeds, audio_latents=audio_latents, audio_scheduler=audio_scheduler
                    )
                    return state

                @per_request
                def denoise(self, state: StepRequestState) -> torch.Tensor:
                    """The prediction for one step of one request."""
                    latents = state.latents
                    audio_latents = state.extra["audio_latents"]
                    embeds = state.extra["embeds"]
                    t = state.timesteps[state.step_index]
                    noise_pred = self.transformer(latents, audio_latents, t, embeds, return_dict=False)
                    noise_pred, noise_pred_rest = noise_pred[0], noise_pred[1:]
                    state.extra.update(noise_pred_rest=noise_pred_rest)
                    return noise_pred

                def denoise_step(
                    self,
                    input_batch: InputBatch | None,
                    *,
                    states: Sequence[StepRequestState] | None = None,
                    **kwargs: Any,
                ) -> torch.Tensor:
                    return denoise_requests(self, input_batch, states)

                @per_request
                def step_scheduler(
                    self, state: StepRequestState, noise_pred: torch.Tensor, **kwargs: Any
                ) -> None:
                    latents = state.latents
                    audio_latents = state.extra["audio_latents"]
                    audio_scheduler = state.extra["audio_scheduler"]
                    noise_pred_rest = state.extra.get("noise_pred_rest")
                    t = state.timesteps[state.step_index]
                    state.step_index += 1
                    latents = self.scheduler.step(noise_pred, t, latents)[0]
                    audio_latents = audio_scheduler.step(noise_pred_rest[0], t, audio_latents)[0]
                    state.latents = latents
                    state.extra.update(audio_latents=audio_latents)

                @per_request
                def post_decode(self, state: StepRequestState, **kwargs: Any) -> DiffusionOutput:
                    latents = state.latents
                    audio_latents = state.extra["audio_latents"]
                    return DiffusionOutput(output=(latents, audio_latents))

                def forward(self, req: DiffusionRequestBatch) -> DiffusionOutput:
                    return run_request(self, req)
            ''',
        ),
    )

    def __init__(self, facts: PipelineFacts) -> None:
        self.facts = facts
        self.constants: tuple[str, ...] = ()
        """Variables of the request that its steps read and leave as they are."""

    def apply(self, ctx: Context, forward: cst.FunctionDef) -> list[cst.FunctionDef]:
        """The methods that take the place of ``forward``; ``forward`` alone where it cannot be cut."""
        try:
            loop = find_loop(body_statements(forward), [*denoisers(self.facts, forward), *PREDICTIONS])
            split = Split(forward, loop).converted()
        except NoSplit as reason:
            ctx.features["step_execution"] = f"refused: {reason}"
            return [forward]
        ctx.features["step_execution"] = "derived"
        self.constants = split.constants
        converted = convert_once(split.denoise.body, split.constants)
        if any(new is not old for new, old in zip(converted, split.denoise.body)):
            split.denoise.body = converted
            ctx.need(INVARIANTS, "once")
        ctx.used(self)
        for name in ("per_request", "denoise_requests", "run_request"):
            ctx.need(STEPWISE, name)
        ctx.need("vllm_omni.diffusion.worker.utils", STATE)
        ctx.need("vllm_omni.diffusion.worker.input_batch", "InputBatch")
        ctx.need("vllm_omni.diffusion.worker.request_batch", "DiffusionRequestBatch")
        ctx.need("collections.abc", "Sequence")
        ctx.need("typing", "Any")
        return split.methods()


class Split:
    """The four methods of a call that was cut at its loop.

    Raises:
        NoSplit: no variable, or more than one, can be the prediction or the sample.
    """

    def __init__(self, forward: cst.FunctionDef, loop: Loop) -> None:
        self.forward, self.loop = forward, loop
        loop.before = [s for s in loop.before if code(s) != "state = request_state(req)"]
        self.doc = [s for s in list(forward.body.body)[:1] if is_docstring(s)]
        self.prepare, self.denoise = Part.of(loop.before), Part.of(loop.denoise)
        self.step, self.decode = Part.of(loop.step), Part.of(loop.after)
        self.order = [p.name.value for p in parameters(forward) if p.name.value not in ("self", "req")]
        self.params = set(self.order)
        prepare, denoise, step, decode = (p.flow for p in (self.prepare, self.denoise, self.step, self.decode))
        made = self.params | prepare.bound | denoise.bound | step.bound
        if any(_SHARED_CHANGE in code(statement) for statement in (*loop.before, *loop.after)):
            raise NoSplit("the call puts other attention processors into a model that requests share")
        if "state" in made:
            raise NoSplit("the call has a variable named state")
        counted = {n for n in (loop.index, loop.element) if n}
        if counted & decode.exposed:
            raise NoSplit("what follows the loop reads its last step")
        self.handed = denoise.bound & step.exposed
        self.prediction = self._prediction()
        # What each part finds in the state.
        self.loads = {
            DENOISE: (denoise.exposed & made) - counted,
            STEP: (step.exposed & made) - counted - {self.prediction},
            DECODE: decode.exposed & made,
        }
        across = self.loads[DENOISE] | (self.loads[STEP] - denoise.sure) | self.loads[DECODE]
        self.stores = {
            PREPARE: (self.params | prepare.bound) & across,
            DENOISE: denoise.bound & (across | (self.loads[STEP] - {self.prediction})),
            STEP: step.bound & across,
        }
        self.sample = self._sample()
        self.schedule = code(loop.schedule)

    def _prediction(self) -> str:
        handed = [name for name in self.loop.given if name in self.handed]
        if not handed:
            raise NoSplit("the scheduler's step is given nothing that the prediction left")
        return sorted(handed, key=[*names_in(self.loop.step[0]), *sorted(handed)].index)[0]

    def _sample(self) -> str:
        if self.loop.sample in self.stores[PREPARE]:
            return self.loop.sample
        carried = [
            n for item in self.loop.step for n in names_in(item) if n in self.stores[STEP] & self.stores[PREPARE]
        ]
        if not carried:
            raise NoSplit("no variable goes from step to step")
        return carried[0]

    @property
    def constants(self) -> tuple[str, ...]:
        """What every prediction reads and no step binds, sorted."""
        kept = self.loads[DENOISE] & self.stores[PREPARE]
        return tuple(sorted(kept - self.stores[DENOISE] - self.stores[STEP] - {self.sample, self.schedule}))

    def converted(self) -> Split:
        """The same, with constants converted before the first step where each step converts them alike."""
        alone = set(self.constants) - self.loads[STEP] - self.loads[DECODE]
        before, denoise = convert_before(self.loop.before, self.loop.denoise, self.constants, alone)
        if before is self.loop.before:
            return self
        return Split(self.forward, replace(self.loop, before=before, denoise=denoise))

    def methods(self) -> list[cst.FunctionDef]:
        """The methods, in the order in which they run."""
        decode = self._load(DECODE, self.decode)
        step = [*self._unbound(STEP, self.step), *self._load(STEP, self.step), "state.step_index += 1"]
        if self.prediction != "noise_pred":
            step.insert(0, f"{self.prediction} = noise_pred")
        denoise = ['"""The prediction for one step of one request."""', *self._unbound(DENOISE, self.denoise)]
        denoise += self._load(DENOISE, self.denoise)
        return [
            self._prepare(self._unbound(PREPARE, self.prepare)),
            self._method(
                "def denoise(self, state: StepRequestState) -> torch.Tensor: pass",
                [*statements("\n".join(denoise)), *self.denoise.body],
                [*self._store(DENOISE), f"return {self.prediction}"],
            ),
            self._denoise_step(),
            self._method(
                "def step_scheduler(self, state: StepRequestState, noise_pred: torch.Tensor, **kwargs: Any) -> None: "
                "pass",
                [*statements("\n".join(step)), *self.step.body],
                self._store(STEP),
            ),
            self._method(
                "def post_decode(self, state: StepRequestState, **kwargs: Any) -> DiffusionOutput: pass",
                [*statements("\n".join(decode)), *self.decode.body],
                [],
            ),
            _function(
                "def forward(self, req: DiffusionRequestBatch) -> DiffusionOutput:\n    return run_request(self, req)"
            ),
        ]

    def _prepare(self, head: list[str]) -> cst.FunctionDef:
        """The first part takes the parameters of the call, and its documentation."""
        body = [*self.doc, *statements("\n".join(head)), *self.prepare.body]
        tail = [*self._store(PREPARE), "return state"]
        made = self._method(f"def prepare_encode(self, state: {STATE}) -> {STATE}: pass", body, tail)
        own, _, *params = self.forward.params.params
        return made.with_changes(params=self.forward.params.with_changes(params=[own, made.params.params[1], *params]))

    def _denoise_step(self) -> cst.FunctionDef:
        return _function(
            f"def denoise_step(self, input_batch: InputBatch | None, *, states: Sequence[{STATE}] | None = None, "
            "**kwargs: Any) -> torch.Tensor:\n"
            "    return denoise_requests(self, input_batch, states)"
        )

    def _method(self, signature: str, body: list[Any], tail: list[str]) -> cst.FunctionDef:
        made = _function(signature)
        decorators = [cst.Decorator(cst.Name("per_request"))]
        end = statements("\n".join(tail)) if tail else []
        return made.with_changes(decorators=decorators, body=cst.IndentedBlock([*body, *end] or statements("pass")))

    def _load(self, name: str, part: Part) -> list[str]:
        loop = self.loop
        lines: list[str] = []
        counted = part.flow.exposed & {n for n in (loop.index, loop.element) if n} if name != DECODE else set()
        order = [n for item in part.body for n in names_in(item)]
        for variable in sorted(self.loads[name], key=order.index):
            if variable == self.sample:
                lines.insert(0, f"{variable} = state.latents")
            elif variable == self.schedule:
                lines.insert(0, f"{variable} = state.timesteps")
            elif variable in self.stores[PREPARE]:
                lines.append(f'{variable} = state.extra["{variable}"]')
            else:  # a step before this one may have left it
                lines.append(f'{variable} = state.extra.get("{variable}")')
        if loop.index in counted:
            lines.append(f"{loop.index} = state.step_index")
        if loop.element in counted:
            lines.append(f"{loop.element} = state.timesteps[state.step_index]")
        return lines

    def _store(self, name: str) -> list[str]:
        part = {PREPARE: self.prepare, DENOISE: self.denoise, STEP: self.step}[name]
        stored = self.stores[name] - {self.schedule}
        lines = []
        if self.sample in stored:
            lines.append(f"state.latents = {self.sample}")
        if name == PREPARE:
            lines.append(self._timesteps())
        order = [*self.order, *(n for item in part.body for n in names_in(item))]
        names = sorted(stored - {self.sample}, key=order.index)
        if names:
            lines.append(f"state.extra.update({', '.join(f'{n}={n}' for n in names)})")
        return lines

    def _unbound(self, name: str, part: Part) -> list[str]:
        """Lines that bind what a part stores and might not have bound."""
        have = self.params if name == PREPARE else self.loads[name]
        return [f"{n} = None  # not in every case" for n in sorted(self.stores[name] - part.flow.sure - have)]

    def _timesteps(self) -> str:
        if self.loop.element is None:
            return f"state.timesteps = torch.arange({self.schedule})"
        if any(self.schedule in names for names in self.loads.values()):
            return f"state.timesteps = {self.schedule}"
        return f"state.timesteps = list({self.schedule})"  # to take one out of a tensor costs more than out of a list


def _function(text: str) -> cst.FunctionDef:
    made = cst.parse_statement(text)
    assert isinstance(made, cst.FunctionDef)
    return made


def request_attributes(functions: dict[str, list[Any]], components: list[str]) -> list[str]:
    """What the methods of a pipeline set on ``self`` for the request at hand, sorted.

    A method other than the call may also keep something for later requests: what the constructor made, it may.
    """
    made = _assigned(functions.get("__init__", []))
    found = _assigned(functions["__call__"])
    for name, items in functions.items():
        if name not in ("__init__", "__call__"):
            found |= _assigned(items) - made
    return sorted(found - set(components))


def _assigned(functions: list[Any]) -> set[str]:
    return {
        node.attr
        for function in functions
        for node in walk(to_ast(function))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
