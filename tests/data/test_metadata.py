"""Tests of what picture files say about their pixels: rotation and colours."""

import io
import pathlib
import struct
import types
import zlib

import numpy as np
import pytest
from folders import picture, with_package
from PIL import Image, ImageCms

from jcm.data import formats, inputs, metadata, pictures
from jcm.runtime.errors import JcmError

# A flat colour with an embedded profile of Display P3.
DISPLAY_P3 = pathlib.Path(__file__).parent / "display_p3_red.png"

TIFF = b"II*\0\x08\0\0\0"
# Entries of EXIF: the orientation, with its value as a number, and damaged ones.
SIX = struct.pack("<HHII", 0x112, 3, 1, 6)
TEXT = struct.pack("<HHI4s", 0x112, 2, 2, b"6\0\0\0")
NINE = struct.pack("<HHII", 0x112, 3, 1, 9)
BEYOND = struct.pack("<HHII", 0x10F, 2, 50, 9999)


def exif(*entries, cut=None):
    count = struct.pack("<H", len(entries))
    return (b"Exif\0\0" + TIFF + count + b"".join(entries) + bytes(4))[:cut]


def jpeg(segment, kind=0xE1):
    """Returns a JPEG file of a known picture with another segment."""
    file = io.BytesIO()
    Image.fromarray(picture(size=(16, 8))).save(file, "jpeg")
    head = struct.pack(">BBH", 0xFF, kind, len(segment) + 2)
    data = file.getvalue()
    return data[:2] + head + segment + data[2:]


def png(kind, body, sum_of_body=None):
    """Returns a PNG file of a known picture with another chunk."""
    file = io.BytesIO()
    Image.fromarray(picture(size=(16, 8))).save(file, "png")
    check = zlib.crc32(kind + body) if sum_of_body is None else sum_of_body
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    data = file.getvalue()
    return data[:33] + chunk + data[33:]


def webp(data):
    file = io.BytesIO()
    Image.fromarray(picture(size=(16, 8))).save(file, "webp", lossless=True, exif=data)
    return file.getvalue()


RAW_PROFILE = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 10\nno hex")
LONG_TEXT = b"workflow\0\0" + zlib.compress(bytes(2 << 20))
SOUND_TEXT = b"Comment\0text"
DAMAGED = {
    "no EXIF": (jpeg(b"Exif\0\0no exif at all"), False),
    "cut": (jpeg(exif(SIX, cut=24)), False),
    "text": (jpeg(exif(TEXT)), False),
    "nine": (jpeg(exif(NINE)), False),
    "beyond": (jpeg(exif(SIX, BEYOND)), True),
    "no profile": (jpeg(b"ICC_PROFILE\0", 0xE2), False),
    "short JFIF": (jpeg(b"JFIF\0", 0xE0), False),
    "short Adobe": (jpeg(b"Adobe", 0xEE), False),
    "raw profile": (png(b"zTXt", RAW_PROFILE), False),
    "EXIF of PNG": (png(b"eXIf", b"nonsense"), False),
    "long text": (png(b"zTXt", LONG_TEXT), False),
    "checksum": (png(b"tEXt", SOUND_TEXT, 1), False),
    "density": (png(b"pHYs", b"a"), False),
    "profile of PNG": (png(b"iCCP", b"a\0\0" + zlib.compress(b"no profile")), False),
    "EXIF of WebP": (webp(b"nonsense"), False),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_sound_pixels_with_damaged_metadata_are_read_with_a_warning(tmp_path, case):
    data, turned = DAMAGED[case]
    (tmp_path / "a").write_bytes(data)
    warnings = []
    image = np.asarray(pictures.decode(tmp_path / "a", warnings.append))
    expected = picture(size=(16, 8))
    if data.startswith(b"\xff\xd8"):
        file = io.BytesIO(jpeg(b""))
        expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(image, np.rot90(expected, -1 if turned else 0))
    assert len(warnings) == 1 and "\n" not in warnings[0]


def test_the_warning_names_the_file(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(DAMAGED["EXIF of PNG"][0])
    pictures.read(tmp_path / "a.png", 8, 3)
    assert f"{tmp_path / 'a.png'}: ignored damaged metadata" in caplog.text


@pytest.mark.parametrize("data", [jpeg(exif(SIX)), png(b"eXIf", exif(SIX)[6:])])
def test_sound_metadata_is_applied_without_a_warning(tmp_path, data, caplog):
    (tmp_path / "a").write_bytes(data)
    assert pictures.decode(tmp_path / "a").size == (8, 16)
    assert not caplog.records


def test_sound_metadata_beside_damaged_is_applied(tmp_path):
    data = png(b"eXIf", exif(SIX)[6:])
    bad = png(b"pHYs", b"a")[33:46]
    (tmp_path / "a").write_bytes(data[:33] + bad + data[33:])
    assert pictures.decode(tmp_path / "a", [].append).size == (8, 16)


@pytest.mark.parametrize("data", [jpeg(b"")[:-400], png(b"tEXt", SOUND_TEXT)[:-40]])
def test_damaged_pixels_are_not_read(tmp_path, data, caplog):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(OSError):
        pictures.decode(tmp_path / "a.jpg")
    assert not caplog.records


def test_an_embedded_profile_is_applied(tmp_path):
    assert pictures.read(DISPLAY_P3, 1, 3).tolist() == [[[218, 0, 26]]]
    with Image.open(DISPLAY_P3) as file:
        profile = file.info["icc_profile"]
    for suffix, tolerance in (("jpg", 2), ("webp", 0), ("tif", 0), ("avif", 3)):
        path = tmp_path / f"red.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        red = Image.new("RGB", (16, 16), (200, 40, 40))
        red.save(path, icc_profile=profile, **options)
        found = pictures.read(path, 1, 3)[0, 0]
        np.testing.assert_allclose(found, [218, 0, 26], atol=tolerance)


def test_a_profile_is_applied_once_and_to_colours_alone():
    with Image.open(DISPLAY_P3) as file:
        red, profile = file.copy(), file.info["icc_profile"]
    seen = pictures.as_seen(red)
    assert seen.getpixel((0, 0)) == (218, 0, 26)
    assert pictures.as_seen(seen).getpixel((0, 0)) == (218, 0, 26)
    assert red.getpixel((0, 0)) == (200, 40, 40) and red.info
    red.putalpha(128)
    assert pictures.as_seen(red).getpixel((0, 0)) == (218, 0, 26, 128)
    grey = Image.new("L", (2, 2), 77)
    grey.info["icc_profile"] = profile
    seen = pictures.as_seen(grey)
    assert seen.mode == "L" and seen.getpixel((0, 0)) == 77


def test_pixels_with_a_profile_of_srgb_are_kept():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(picture())
    image.info["icc_profile"] = srgb
    np.testing.assert_array_equal(np.asarray(pictures.as_seen(image)), picture())


def test_a_profile_of_other_colours_is_reported():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image, warnings = Image.fromarray(picture()), []
    image.info["icc_profile"] = lab
    seen = pictures.as_seen(image, warnings.append)
    np.testing.assert_array_equal(np.asarray(seen), picture())
    assert len(warnings) == 1


def test_colours_of_lab_are_converted(tmp_path, caplog):
    lab = Image.merge("LAB", [Image.new("L", (8, 8), n) for n in (255, 128, 128)])
    white = pictures.as_seen(lab).getpixel((0, 0))
    np.testing.assert_allclose(white, 255, atol=1)
    red = Image.merge("LAB", [Image.new("L", (8, 8), n) for n in (114, 189, 168)])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    red.save(tmp_path / "a.tif", icc_profile=profile)
    read = pictures.read(tmp_path / "a.tif", 1, 3)[0, 0]
    np.testing.assert_allclose(read, [200, 40, 40], atol=4)
    assert not caplog.records
    np.testing.assert_array_equal(inputs.as_pixels(red)[0, 0, 0], read)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp", "avif"])
def test_later_frames_are_reported(tmp_path, suffix, caplog):
    frames = [Image.new("RGB", (8, 8), (10, 200, c)) for c in (30, 60, 90)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = pictures.read(path, 1, 3)[0, 0]
    np.testing.assert_allclose(found, [10, 200, 30], atol=9)
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: ignored all frames but the first"


def test_a_damaged_later_frame_does_not_matter(tmp_path):
    frames = [Image.new("L", (8, 8), c) for c in (30, 60)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "a.tif").read_bytes()
    for cut in range(1, 120, 7):
        (tmp_path / "a.tif").write_bytes(content[:-cut])
        assert pictures.decode(tmp_path / "a.tif", [].append).getpixel((0, 0)) == 30


def test_another_gamma_is_reported(caplog):
    for gamma in (45455, 45000):
        pictures.decode(png(b"gAMA", struct.pack(">I", gamma)))
    assert not caplog.records
    linear = pictures.decode(png(b"gAMA", struct.pack(">I", 100000)))
    np.testing.assert_array_equal(np.asarray(linear), picture(size=(16, 8)))
    assert "ignored a gamma of 1, where sRGB has 0.4546" in caplog.text


def heic():
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(8)


def test_heic_without_its_package_names_the_remedy(tmp_path, monkeypatch, request):
    with_package(monkeypatch, request, None)
    (tmp_path / "phone.jpg").write_bytes(heic())
    with pytest.raises(JcmError, match="pip install pillow-heif"):
        pictures.decode(tmp_path / "phone.jpg")
    assert not formats.is_picture(tmp_path / "phone.heic")


def test_heic_is_read_with_its_package(tmp_path, monkeypatch, request):
    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = register
    package.__spec__ = types.SimpleNamespace()
    for table in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, dict(getattr(Image, table)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    with_package(monkeypatch, request, package)
    (tmp_path / "phone.HEIC").write_bytes(heic())
    assert formats.is_picture(tmp_path / "phone.HEIC")
    assert pictures.decode(tmp_path / "phone.HEIC").getpixel((0, 0)) == (1, 2, 3)


def register():
    def opened(file, name):
        image = Image.new("RGB", (2, 2), (1, 2, 3))
        image.format = "HEIF"
        return image

    Image.register_open("HEIF", opened, lambda start: start[4:8] == b"ftyp")
    Image.register_extension("HEIF", ".heic")


def test_a_file_that_runs_code_is_not_read(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    )
    with pytest.raises(Exception, match="not a picture"):
        pictures.decode(tmp_path / "a.png")
    assert not formats.is_picture(tmp_path / "a.eps")


def test_less_and_less_is_kept_of_other_files():
    assert not list(metadata.without(b"GIF89a"))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("PNG", b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd"))),
        ("JPEG", b"\xff\xe5\x00\x02"),
        ("JPEG", b"\xff"),
        ("GIF", b"\x21\xfe\x00"),
        ("GIF", b"\x21\xfe\x03abc\x00"),
    ],
)
def test_files_of_too_many_parts_are_refused(monkeypatch, kind, part):
    monkeypatch.setattr(metadata, "_PARTS", 30)
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, kind)
    data = content.getvalue()
    start = {"PNG": 33, "JPEG": 2, "GIF": data.rfind(b"\x2c")}[kind]
    before, after = data[:start], data[start:]
    assert pictures.decode(before + 10 * part + after, lambda _: None).size == (8, 8)
    with pytest.raises(JcmError, match="it has more than 30 parts: save it again"):
        pictures.decode(before + 31 * part + after)
