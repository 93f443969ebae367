"""Pictures of a request: what can be read is decoded, what cannot is one error that names the argument."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from porter.runtime.errors import RequestError
from porter.runtime.inputs.media import decode_media


@pytest.fixture
def picture() -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 24, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture
def png(picture) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


def test_files_and_bytes_become_pictures(picture, png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    found = decode_media({"image": path, "mask_image": png, "images": [str(path), picture], "video": torch.ones(2)})
    for item in (found["image"], found["mask_image"], *found["images"]):
        assert np.array_equal(np.asarray(item), np.asarray(picture))
    assert found["images"][1] is picture and isinstance(found["video"], torch.Tensor)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no picture", lambda data: b""])
@pytest.mark.parametrize("as_path", [True, False])
def test_a_broken_picture_is_one_error_that_names_it(png, tmp_path, damage, as_path):
    path = tmp_path / "broken.png"
    path.write_bytes(damage(png))
    with pytest.raises(RequestError, match=r"^images\[1\]: .*is not a picture that can be read \(.+\)$") as caught:
        decode_media({"images": [png, str(path) if as_path else path.read_bytes()]})
    assert "\n" not in str(caught.value)


def test_a_picture_that_was_cut_off_is_found_though_it_opens(png, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(png[: len(png) // 2])
    with PIL.Image.open(path) as opened, pytest.raises(RequestError, match="^image: this is not a picture"):
        decode_media({"image": opened})


def test_a_missing_file_and_a_wrong_form():
    with pytest.raises(RequestError, match=r"image: 'nowhere.png' is not a picture"):
        decode_media({"image": "nowhere.png"})
    with pytest.raises(RequestError, match="multi_modal_data is a dict"):
        decode_media(["nowhere.png"])


def test_text_that_is_no_file_name_stays():
    assert decode_media({"caption": "a cat"}) == {"caption": "a cat"}
