"""Pictures as users have them, against their own numbers and against OpenCV's reader."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.store import PICTURES, read_any_images, read_pixels, read_views

DRAW = np.random.default_rng(0)
DEEP = DRAW.integers(0, 65536, (9, 7, 3)).astype(np.uint16)
FLAT = DRAW.integers(0, 256, (9, 7, 3)).astype(np.uint8)


def read(path):
    return read_pixels(path).numpy()


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits_of_colour_and_of_grey_are_scaled(tmp_path, name):
    cv2.imwrite(str(tmp_path / name), DEEP[..., ::-1])
    assert np.abs(read(tmp_path / name) - DEEP / 257).max() < 1
    grey = tmp_path / f"grey-{name}"
    cv2.imwrite(str(grey), DEEP[..., 0])
    assert Image.open(grey).mode == "I;16"
    assert np.abs(read(grey) - DEEP[..., :1] / 257).max() < 1
    assert np.array_equal(read(grey), cv2.imread(str(grey)))


def test_depths_and_whites_that_a_file_says(tmp_path):
    values = DEEP[..., 0]
    for order in "<>":  # 16 bits in either order of bytes; white is zero
        Image.frombytes("I;16" if order == "<" else "I;16B", (7, 9), values.astype(f"{order}u2").tobytes()).save(
            tmp_path / "a.tiff"
        )
        assert np.array_equal(read(tmp_path / "a.tiff")[..., 1], values >> 8)
    Image.fromarray(values).save(tmp_path / "inverse.tiff", tiffinfo={262: 0})
    assert np.array_equal(read(tmp_path / "inverse.tiff")[..., 0], 255 - (values >> 8))
    for most in (1023, 65535):
        (tmp_path / "a.pgm").write_bytes(f"P5 2 1 {most}\n".encode() + struct.pack(">2H", most, most // 2))
        assert read(tmp_path / "a.pgm")[0, :, 0].tolist() == [255, 127]


def test_floats_are_from_0_to_1(tmp_path):
    ramp = np.linspace(0, 1, 63, dtype=np.float32).reshape(9, 7)
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    assert np.abs(read(tmp_path / "a.tiff") - 255 * ramp[..., None]).max() <= 0.5
    for bad, words in (
        (ramp * 255, "floats from 0 to 255: expected 0 to 1"),
        (ramp - 0.5, "-0.5"),
        (ramp * np.nan, "nan"),
    ):
        Image.fromarray(bad.astype(np.float32)).save(tmp_path / "bad.tiff")
        with pytest.raises(ExpungeError, match=f"bad.tiff' is not a readable image: .*{words}"):
            read(tmp_path / "bad.tiff")
    Image.fromarray(DEEP[..., 0].astype(np.int32)).save(tmp_path / "whole.tiff")
    with pytest.raises(ExpungeError, match="whose white is not known: expected 8 or 16 bits"):
        read(tmp_path / "whole.tiff")


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    file = tmp_path / "a.jpg"
    Image.fromarray(FLAT).resize((48, 32)).save(file, exif=exif)
    right = cv2.imread(str(file))[..., ::-1]
    assert read(file).shape[:2] == ((32, 48) if turn < 5 else (48, 32))
    assert np.array_equal(read(file), right)
    assert read_pixels(file, (16, 16)).shape == (16, 16, 3)


def test_exif_that_cannot_be_read_says_nothing(tmp_path):
    Image.fromarray(FLAT).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\x00\x00")
    assert np.array_equal(read(tmp_path / "a.png"), FLAT)


def test_what_is_transparent_lies_on_white_and_is_a_view_of_its_own(tmp_path):
    alpha = np.zeros((9, 7, 1), np.uint8)
    alpha[:4], alpha[4:6] = 255, 128
    file = tmp_path / "a.png"
    Image.fromarray(np.concatenate([FLAT, alpha], -1)).save(file)
    right = (FLAT * (alpha / 255) + 255 * (1 - alpha / 255)).round()
    assert np.abs(read(file) - right).max() <= 1
    shown, under = read_views(file)
    assert np.array_equal(shown.numpy(), read(file))
    assert np.array_equal(under.numpy(), FLAT), "as loaders that drop the channel read it"
    Image.fromarray(np.concatenate([FLAT, np.full_like(alpha, 255)], -1)).save(file)
    assert np.array_equal(read(file), FLAT)
    keyed = Image.fromarray(FLAT).quantize(4)
    keyed.save(tmp_path / "p.png", transparency=0)
    right = np.where(np.array(keyed)[..., None] == 0, 255, np.array(keyed.convert("RGB")))
    assert np.array_equal(read(tmp_path / "p.png"), right)


def test_inks_are_read_as_colours(tmp_path):
    smooth = Image.fromarray(np.full((16, 16, 3), (200, 30, 90), np.uint8))
    smooth.convert("CMYK").save(tmp_path / "a.jpg")
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - (200, 30, 90)).max() <= 3
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "lab.tiff")
    assert read(tmp_path / "lab.tiff").min() >= 253, "of the greatest lightness and no colour: white"


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff", "a.avif"])
def test_every_frame_is_a_view(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    seen = [view.float().mean((0, 1)).round().tolist() for view in read_views(tmp_path / name)]
    assert len(seen) == 3
    for found, right in zip(seen, ([255, 0, 0], [0, 255, 0], [0, 0, 255]), strict=True):
        assert found == pytest.approx(right, abs=8)
    assert read(tmp_path / name).mean((0, 1)) == pytest.approx([255, 0, 0], abs=8)


def test_what_is_no_picture_is_refused_in_one_line(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(FLAT).resize((64, 64)).save(whole)
    contents = {"text.png": b"no picture", "empty.png": b"", "half.jpg": whole.read_bytes()[:500]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for reader in (read_pixels, lambda path: list(read_views(path))):
            with pytest.raises(ExpungeError, match=f"'.*{name}' is not a readable image: .+") as caught:
                reader(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_a_folder_leaves_no_kind_of_picture_out(tmp_path):
    for ending in ("gif", "tiff", "jfif", "avif", "png"):
        Image.fromarray(FLAT).save(tmp_path / f"{ending}.{ending.upper()}", "JPEG" if ending == "jfif" else ending)
    assert [shot.path.suffix for shot in read_any_images(tmp_path)] == [".AVIF", ".GIF", ".JFIF", ".PNG", ".TIFF"]
    assert all(shot.pixels().shape == (9, 7, 3) for shot in read_any_images(tmp_path))
    assert {".heic", ".jxl"} <= PICTURES, "refused when they are read, and not passed over"
    (tmp_path / "more").mkdir()
    with pytest.warns(ExpungeWarning, match="folders in '.*' are not read: more"):
        read_any_images(tmp_path)
