from porter.parity.cases import Case, build_cases, half_cases
from porter.parity.recipes import decode

INPUTS = {
    "prompt": "dog",
    "image": {"$image": {"size": [8, 8], "seed": 1}},
    "height": 32,
    "width": 16,
    "num_inference_steps": 2,
    "generator": {"$generator": 0},
    "output_type": "pt",
    "true_cfg_scale": 1.0,
}


def call(
    self,
    image=None,
    prompt=None,
    negative_prompt=None,
    true_cfg_scale=4.0,
    height=None,
    width=None,
    num_inference_steps=50,
    strength=0.6,
    num_images_per_prompt=1,
    generator=None,
    output_type="pil",
):
    """The signature of an image-to-image pipeline."""


def by_name(inputs=INPUTS, function=call):
    return {case.name: case for case in build_cases(function, inputs)}


def test_the_cases_of_an_image_pipeline():
    assert list(by_name()) == [
        "plain",
        "two prompts",
        "two prompts, two inputs",
        "two prompts, a generator each",
        "inputs of unlike sizes",
        "untidy prompt",
        "guidance on",
        "guidance omitted",
        "guidance on, two prompts",
        "guidance on, no negative prompt",
        "taller",
        "wider",
        "output latent",
        "output pil",
        "output np",
        "two per prompt",
        "two per prompt, a generator each",
        "two prompts, two per prompt",
        "more steps",
        "half strength",
        "defaults",
        "all defaults",
    ]


def test_pictures_of_unlike_sizes():
    image = INPUTS["image"]
    [one, two] = decode(by_name()["inputs of unlike sizes"].recipe(INPUTS))["image"]
    assert (one.size, two.size) == ((8, 8), (12, 8))
    several = {**INPUTS, "image": [image, image, image]}
    sizes = [item.size for item in decode(by_name(several)["inputs of unlike sizes"].recipe(several))["image"]]
    assert sizes == [(8, 8), (8, 8), (12, 8)]
    assert "inputs of unlike sizes" not in by_name({"prompt": "dog"})


def test_half_precision_is_tried_in_some_calls():
    dtypes = {case.name: case.dtype for case in half_cases(by_name().values())}
    assert dtypes == {
        "half precision": "bfloat16",
        "half precision, two prompts": "bfloat16",
        "half precision, guidance on": "bfloat16",
        "half precision, wider": "bfloat16",
        "half precision, float16": "float16",
    }


def test_no_case_repeats_another():
    cases = by_name()
    recipes = [case.recipe(INPUTS) for case in cases.values()]
    assert all(recipe not in recipes[:index] for index, recipe in enumerate(recipes))
    assert "output pt" not in cases and "guidance off" not in cases, "these are the plain call"


def test_what_a_call_does_not_take_is_not_tried():
    def bare(self, num_inference_steps=50, batch_size=1):
        """A pipeline without prompts."""

    cases = by_name({"num_inference_steps": 2}, bare)
    assert list(cases) == ["plain", "two prompts", "more steps", "all defaults"]
    assert cases["two prompts"].changes == {"batch_size": 2}


def test_changes_and_omissions_make_the_call():
    case = Case(name="x", changes={"height": 64}, omitted=["prompt"])
    recipe = case.recipe(INPUTS)
    assert recipe["height"] == 64 and "prompt" not in recipe and INPUTS["height"] == 32
    assert case.describe() == "height=64, without prompt"


def test_guidance_is_omitted_rather_than_set_to_the_default():
    omitted = by_name()["guidance omitted"].recipe(INPUTS)
    assert "true_cfg_scale" not in omitted and omitted["negative_prompt"] == "bad quality"
    assert by_name()["guidance on"].recipe(INPUTS)["true_cfg_scale"] == 3.5


def test_sizes_are_not_square():
    taller, wider = by_name()["taller"].changes, by_name()["wider"].changes
    assert (taller["height"], taller["width"]) == (64, 16) and (wider["height"], wider["width"]) == (32, 32)


def test_defaults_keep_what_the_call_needs_and_what_bounds_its_cost():
    assert by_name()["defaults"].omitted == ["output_type", "true_cfg_scale"]


def test_all_defaults_leaves_out_what_costs_and_stops_early():
    case = by_name()["all defaults"]
    assert {"height", "width", "num_inference_steps"} <= set(case.omitted) and case.first_call_only
    assert not {"prompt", "image", "generator"} & set(case.omitted)


def test_two_inputs_are_two_different_ones():
    one, two = decode(by_name()["two prompts, two inputs"].recipe(INPUTS))["image"]
    assert one.tobytes() != two.tobytes()


def test_batches_draw_from_generators_of_their_own():
    generators = decode(by_name()["two prompts, a generator each"].recipe(INPUTS))["generator"]
    assert generators[0].initial_seed() != generators[1].initial_seed()


def test_a_specs_own_cases_join_the_others():
    own = Case(name="with a reference", changes={"strength": 0.25})
    names = [case.name for case in build_cases(call, INPUTS, own=[own])]
    assert names[0] == "plain" and "with a reference" in names
