"""Real image files that break readers: each is decoded, or refused with a reason in one line."""

import time
from pathlib import Path

import pytest

from bigmodel.tasks import pictures
from bigmodel.tasks.base import Refused

NO_IMAGE = "no image that is read"
# file: mode, width, height; or what the reason says
OUTCOMES: dict[str, tuple[str, int, int] | str] = {
    "12in16bit.tif": ("L", 100, 100),
    "16bit.MM.deflate.tif": ("L", 64, 64),
    "16bit.cropped.jp2": NO_IMAGE,
    "16bit.deflate.tif": ("L", 64, 64),
    "16bit.s.tif": ("L", 10, 10),
    "apng/chunk_no_actl.png": ("RGB", 128, 64),
    "apng/chunk_no_fdat.png": ("RGB", 128, 64),
    "apng/delay_zero_numer.png": ("RGB", 128, 64),
    "apng/sequence_fdat_fctl.png": ("RGB", 128, 64),
    "apng/sequence_reorder.png": ("RGB", 128, 64),
    "apng/sequence_repeat.png": ("RGB", 128, 64),
    "apng/sequence_start.png": ("RGB", 128, 64),
    "apng/syntax_num_frames_high.png": ("RGB", 128, 64),
    "apng/syntax_num_frames_low.png": ("RGB", 128, 64),
    "apng/syntax_num_frames_zero_default.png": ("RGB", 128, 64),
    "avif/hopper-missing-pixi.avif": NO_IMAGE,
    "bad_palette_entry.gpl": NO_IMAGE,
    "bmp/b/badbitcount.bmp": "Unsupported BMP pixel depth (30000)",
    "bmp/b/baddens1.bmp": ("L", 127, 64),
    "bmp/b/badfilesize.bmp": ("L", 127, 64),
    "bmp/b/badpalettesize.bmp": "Unsupported BMP Palette size (305402420)",
    "bmp/b/badrle.bmp": ("RGB", 127, 64),
    "bmp/b/pal8badindex.bmp": ("RGB", 127, 64),
    "bmp/q/rgba32.bmp": ("RGB", 127, 64),
    "bmp/q/rgba32h56.bmp": ("RGB", 127, 64),
    "broken_data_stream.png": "unrecognized data stream contents when reading image file",
    "crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif": "decoder error -2",
    "crash-0e16d3bfb83be87356d026d66919deaefca44dac.tif": "decoder error -2",
    "crash-1185209cf7655b5aed8ae5e77784dfdd18ab59e9.tif": "decoder error -2",
    "crash-338516dbd2f0e83caddb8ce256c22db3bd6dc40f.tif": "decoder error -2",
    "crash-4f085cc12ece8cde18758d42608bed6a2a2cfb1c.tif": "decoder error -2",
    "crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif": "decoder error -2",
    "crash-6b7f2244da6d0ae297ee0754a424213444e92778.sgi": NO_IMAGE,
    "crash-754d9c7ec485ffb76a90eeaab191ef69a2a3a3cd.sgi": NO_IMAGE,
    "crash-86214e58da443d2b80820cff9677a38a33dcbbca.tif": "decoder error -2",
    "crash-b82e64d4f3f76d7465b6af535283029eda211259.sgi": NO_IMAGE,
    "crash-ccca68ff40171fdae983d924e127a721cab2bd50.j2k": NO_IMAGE,
    "crash-db8bfa78b19721225425530c5946217720d7df4e.sgi": NO_IMAGE,
    "cross_scan_line_truncated.tga": NO_IMAGE,
    "decompression_bomb.ico": NO_IMAGE,
    "dispose_bgnd_rgba.gif": ("RGB", 100, 100),
    "exif-72dpi-int.jpg": ("RGB", 500, 450),
    "exif-ifd-offset.jpg": ("RGB", 200, 200),
    "exif_gps.jpg": ("RGB", 8, 8),
    "exif_imagemagick.png": ("RGB", 512, 512),
    "exif_text.png": ("RGB", 512, 512),
    "g4_orientation_1.tif": ("L", 590, 88),
    "g4_orientation_3.tif": ("L", 590, 88),
    "g4_orientation_5.tif": ("L", 590, 88),
    "g4_orientation_7.tif": ("L", 590, 88),
    "hopper_16bit.pgm": ("L", 128, 128),
    "hopper_16bit_qtables.jpg": ("RGB", 128, 128),
    "hopper_bad_checksum.msp": NO_IMAGE,
    "hopper_lzma.tif": ("RGB", 128, 128),
    "hopper_orientation_2.jpg": ("RGB", 128, 128),
    "hopper_orientation_3.jpg": ("RGB", 128, 128),
    "hopper_orientation_4.jpg": ("RGB", 128, 128),
    "hopper_orientation_5.jpg": ("RGB", 128, 128),
    "hopper_orientation_6.jpg": ("RGB", 128, 128),
    "hopper_orientation_7.jpg": ("RGB", 128, 128),
    "hopper_orientation_8.jpg": ("RGB", 128, 128),
    "hopper_unknown_pixel_mode.tif": NO_IMAGE,
    "imagedraw/triangle_right_width_no_fill.png": ("RGB", 100, 100),
    "imagedraw_chord_zero_width.png": ("RGB", 100, 100),
    "imagedraw_floodfill_RGBA.png": ("RGB", 100, 100),
    "imagedraw_rectangle_zero_width.png": ("RGB", 100, 100),
    "invalid-exif.jpg": ("RGB", 200, 200),
    "invalid_header_length.jp2": NO_IMAGE,
    "missing_background_first_frame.png": ("RGB", 32, 32),
    "no-dpi-in-exif.jpg": ("RGB", 200, 200),
    "no_palette.gif": ("L", 1, 1),
    "no_palette_with_background.gif": ("L", 1, 1),
    "no_palette_with_transparency_after_rgb.gif": ("RGB", 128, 128),
    "orientation_rectangle.jpg": ("RGB", 1, 2),
    "p_16.tga": NO_IMAGE,
    "p_8.tga": NO_IMAGE,
    "photoshop-200dpi-broken.jpg": ("RGB", 200, 200),
    "pil123rgba.qoi": NO_IMAGE,
    "pngtest_bad.png.bin": NO_IMAGE,
    "rgba16.tga": NO_IMAGE,
    "sugarshack_bad_mpo_header.jpg": ("RGB", 640, 480),
    "tga/common/200x32_rgba.png": ("RGB", 200, 32),
    "tga/common/200x32_rgba_bl_rle.tga": NO_IMAGE,
    "tga/common/200x32_rgba_tl_rle.tga": NO_IMAGE,
    "tiff_16bit_RGB_target.png": ("RGB", 100, 40),
    "tiff_16bit_RGBa_target.png": ("RGB", 100, 40),
    "tiff_strip_cmyk_jpeg.tif": ("RGB", 100, 100),
    "tiff_strip_planar_16bit_RGBa.tiff": ("RGB", 100, 40),
    "tiff_tiled_planar_16bit_RGB.tiff": ("RGB", 100, 40),
    "timeout-041dd17dfde800360a47a172269df127af138c6b.dds": NO_IMAGE,
    "timeout-31c8f86233ea728339c6e586be7af661a09b5b98.blp": NO_IMAGE,
    "timeout-60d8b7c8469d59fc9ffff6b3a3dc0faeae6ea8ee.blp": NO_IMAGE,
    "timeout-755a4d204f4208e3597ac3391edebee196462bd0.dds": NO_IMAGE,
    "timeout-bba4f2e026b5786529370e5dfe9a11b1bf991f07.blp": NO_IMAGE,
    "timeout-d6ec061c4afdef39d3edf6da8927240bb07fe9b7.blp": NO_IMAGE,
    "total-pages-zero.tif": ("L", 1728, 2156),
    "truncated_end_chunk.png": "Truncated File Read",
    "truncated_image.png": "image file is truncated",
    "unknown_compression_method.png": NO_IMAGE,
    "xmp_no_prefix.jpg": ("RGB", 1, 1),
    "xmp_tags_orientation_exiftool.png": ("RGB", 10, 10),
    "zero_height.j2k": NO_IMAGE,
    "zero_width.gif": NO_IMAGE,
}


@pytest.fixture(scope="module")
def folder(data_folder: Path) -> Path:
    return data_folder / "bad_inputs/Pillow/Tests/images"


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_image_is_decoded_or_refused(name: str, folder: Path) -> None:
    began, expected = time.monotonic(), OUTCOMES[name]
    try:
        image = pictures.decode((folder / name).read_bytes())
        assert (image.mode, *image.size) == expected
    except Refused as refused:
        assert isinstance(expected, str) and expected in refused.reason
        assert "\n" not in refused.reason
    assert time.monotonic() - began < 5


def test_the_table_names_every_image(folder: Path) -> None:
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(OUTCOMES)
