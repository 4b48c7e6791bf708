"""Opening pictures: what is read, and how; what is refused, and with which words."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from targets.base import FleetError
from targets.pictures import read


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = _gradient()
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        assert stored.mode == "I;16"
    else:
        stored = image.convert(mode)
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "YCbCr") else "picture.png")
    stored.save(path)
    loaded = read.load(path)
    assert (loaded.mode, loaded.size) == ("RGB", (40, 30))
    if mode not in ("1", "P", "YCbCr"):
        wanted = image.convert("L").convert("RGB") if mode in ("L", "LA", "I;16") else image
        assert np.abs(np.asarray(loaded).astype(int) - np.asarray(wanted)).max() <= 1


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((1, 1), (200, 0, 0, 255))
    image.save(tmp_path / "alpha.png")
    loaded = read.load(tmp_path / "alpha.png")
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 1)) == (200, 0, 0)

    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    loaded = read.load(tmp_path / "palette.png")
    assert (loaded.getpixel((0, 0)), loaded.getpixel((1, 1))) == ((255, 255, 255), (40, 50, 60))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = _gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = read.load(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(loaded), np.asarray(image.rotate(-90, expand=True)))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read.load(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    good = folder / "good.jpg"
    _gradient(200, 200).save(good)
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:900])
    (folder / "bomb.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "large.png").write_bytes(_png_header(9_000, 9_000))
    (folder / "nothing.png").write_bytes(_png_header(10, 10))
    (folder / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "floats.tif")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(folder / "deep.tif")
    said = {
        "text.png": "not a picture",
        "empty.png": "empty",
        "cut.jpg": "damaged",
        "bomb.png": "million pixels",
        "large.png": "million pixels",
        "nothing.png": "damaged",
        "program.eps": "not a picture",
        "floats.tif": "floating-point",
        "deep.tif": "16 bits",
        "absent.png": "no such file",
        ".": "folder",
    }
    return {name: (folder / name, words) for name, words in said.items()}


def test_a_bad_picture_is_refused_by_name_with_the_reason(tmp_path: Path) -> None:
    for path, words in _bad_files(tmp_path).values():
        with pytest.raises(FleetError) as caught:
            read.load(path)
        assert caught.value.code == "bad-picture"
        assert str(path) in caught.value.message
        assert words in caught.value.message, caught.value.message


@given(
    st.binary(max_size=200),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"P6"]),
)
def test_damaged_bytes_never_escape_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(magic + tail)
    try:
        assert read.load(path).mode == "RGB"
    except FleetError as error:
        assert error.code == "bad-picture"


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LAB", "HSV", "I;16B", "RGBX"])
def test_modes_that_only_programs_make_become_rgb(mode: str) -> None:
    """TIFF and others decode to modes that few files have; none may fall through."""
    image = _gradient()
    if mode == "I;16B":
        stored = Image.frombytes(mode, (40, 30), (np.asarray(image.convert("L")).astype(">u2") * 257).tobytes())
    elif mode in ("La", "RGBa"):
        stored = image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "PA":
        stored = image.convert("P").convert("PA")
    elif mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransformFromOpenProfiles(*profiles, "RGB", "LAB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        stored = converted
    else:
        stored = image.convert(mode)
    assert stored.mode == mode
    found = read.to_rgb(stored, Path("x"))
    assert (found.mode, found.size) == ("RGB", (40, 30))
    wanted = image.convert("L").convert("RGB") if mode in ("La", "I;16B") else image
    if mode not in ("PA", "LAB"):
        # Hues are stored coarsely.
        assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max() <= (12 if mode == "HSV" else 1)


@pytest.mark.parametrize(
    "name",
    [
        "ü ñ 漢字.png",
        "a\nb.png",
        "-o.png",
        "'; rm -rf *.png",
        "\x1b[31mred.png",
        "%s{0}.png",
        os.fsdecode(b"\xff\xfe.png"),
    ],
)
def test_names_may_have_any_characters(tmp_path: Path, name: str) -> None:
    _gradient().save(tmp_path / name)
    assert read.load(tmp_path / name).size == (40, 30)
    (one,) = read.listed([tmp_path])
    assert one == read.Listed(tmp_path / name, named=False)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FleetError) as caught:
        read.load(tmp_path / name)
    # What cannot be text is written in another way: every terminal and JSON document can hold it.
    assert read.shown(tmp_path / name) in caught.value.message.encode().decode()


def test_names_that_files_cannot_have_are_refused() -> None:
    for name in ("a\0b.png", "x" * 5000):
        with pytest.raises(FleetError) as caught:
            read.load(name)
        assert caught.value.code == "bad-picture"


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    names = ["frame1.png", "frame2.jpg", "Frame10.PNG", "frame010.png", "frame11.webp", "other 3.bmp"]
    for name in names:
        _gradient().save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert [one.path.name for one in read.listed([tmp_path])] == names
    single = tmp_path / "frame11.webp"
    assert read.listed([single, tmp_path])[:2] == [
        read.Listed(single, named=True),
        read.Listed(tmp_path / "frame1.png", named=False),
    ]
    with pytest.raises(FleetError, match="no pictures in this folder"):
        read.listed([tmp_path / "folder.png"])


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8)))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    assert sorted(sorted(names, reverse=True), key=lambda n: (read.natural(n), n)) == sorted(
        names, key=lambda n: (read.natural(n), n)
    )
