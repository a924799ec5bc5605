"""Images in folders, archives and tables; odd modes; bombs; augmentation."""

import io
import json
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

from bigmodel.data import arrow, files, images
from bigmodel.data import prepare as module
from bigmodel.data.clean import Placed, clean, read_options
from bigmodel.data.prepare import prepare
from bigmodel.data.record import Bad
from bigmodel.errors import CheckpointError, DataError
from bigmodel.experiment import AugmentConfig, DataConfig, Experiment
from bigmodel.tasks import augment_images, image_classification, pictures
from bigmodel.tasks.base import Refused
from serve_app import multipart
from serve_app.protocol import Form, Limits
from serve_app.refusal import Refusal

Size = tuple[int, int]


def file_of(
    mode: str = "L", kind: str = "PNG", size: tuple[int, int] = (4, 3), colour: object = 9, **how: object
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind, **how)  # type: ignore[arg-type]
    return out.getvalue()


def rows(source: Path | str, **data: object) -> list[Placed | Bad]:
    config = DataConfig(train=str(source), **data)  # type: ignore[arg-type]
    (found,) = files.resolve(str(source))
    task = image_classification
    return list(clean(found, task, task.columns(config), read_options(config)))  # type: ignore[arg-type]


def tell(items: list[Placed | Bad], below: Path) -> list[tuple[str, str]]:
    return [
        (str(Path(item.source).relative_to(below)), item.row["label"]) for item in items if isinstance(item, Placed)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cats/1.png", "dogs/2.png", "dogs/.hidden.png", "cats/notes.md"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of())
    return tmp_path / "pets"


def test_a_folder_of_class_folders_is_one_source(folder: Path) -> None:
    assert tell(rows(folder), folder) == [("cats/1.png", "cats"), ("dogs/2.png", "dogs")]
    before = files.digest(str(folder))
    (folder / "dogs/2.png").write_bytes(file_of(colour=10))
    assert files.digest(str(folder)) != before


def test_a_class_folder_that_is_a_link_is_followed_but_not_round_in_a_circle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/3.png").write_bytes(file_of())
    (folder / "birds").symlink_to(tmp_path / "elsewhere")
    for at, target in (("all", "."), ("cats/up", ".."), ("cats/dogs", "../dogs"), ("dogs/cats", "../cats"), ("x", "/")):
        (folder / at).symlink_to(target)
    assert tell(rows(folder), folder) == [
        ("birds/3.png", "birds"),
        *[("cats/1.png", "cats"), ("cats/dogs/2.png", "dogs"), ("dogs/2.png", "dogs"), ("dogs/cats/1.png", "cats")],
    ]


def test_images_of_formats_that_are_not_read_are_quarantined_and_other_files_told_of(folder: Path) -> None:
    (folder / "cats/4.jfif").write_bytes(file_of("RGB", "JPEG", colour=(1, 2, 3)))
    (folder / "cats/5.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "dogs/6.avif").write_bytes(b"\0\0\0\x18ftypavif")
    for name in ("cats/7", "dogs/8", "dogs/Thumbs.db", "dogs/.DS_Store"):
        (folder / name).write_bytes(file_of())
    found = rows(folder)
    assert [name for name, _ in tell(found, folder)] == ["cats/1.png", "cats/4.jfif", "dogs/2.png"]
    bad = [(item.source, item.reason) for item in found if isinstance(item, Bad)]
    assert [Path(source).name for source, _ in bad] == ["5.HEIC", "6.avif"]
    assert all("no image that is read: PNG" in reason for _, reason in bad)
    said = images.passed_over(str(folder))
    assert said == f"{folder}: passed over as no images by their names: 2 without an extension, 1 of .md"


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.tar.xz"])
def test_links_of_a_tar_are_the_images_they_stand_for_in_it(name: str, tmp_path: Path) -> None:
    archive = tmp_path / name
    links = {
        "train/dogs/2.png": ("train/cats/1.png", tarfile.LNKTYPE),
        "train/dogs/3.png": ("../cats/1.png", tarfile.SYMTYPE),
        "train/dogs/4.png": ("../all/0.png", tarfile.SYMTYPE),
        "train/dogs/5.png": ("/etc/hostname", tarfile.SYMTYPE),
        "train/dogs/6.png": ("../../../6.png", tarfile.SYMTYPE),
    }
    with tarfile.open(archive, f"w:{name.rpartition('.')[2] if name != 'pets.tar' else ''}") as tar:
        for entry, (target, kind) in links.items():
            member = tarfile.TarInfo(entry)
            member.linkname, member.type = target, kind
            tar.addfile(member)
        for entry, colour in (("train/cats/1.png", 1), ("train/all/0.png", 2)):
            member = tarfile.TarInfo(entry)
            member.size = len(file_of(colour=colour))
            tar.addfile(member, io.BytesIO(file_of(colour=colour)))
    found = rows(archive / "train")
    good = [item for item in found if isinstance(item, Placed)]
    shades = {item.source[-10:]: pictures.decode(item.row["image"]).getpixel((0, 0)) for item in good}
    shared = {"dogs/2.png": 1, "dogs/3.png": 1, "dogs/4.png": 2}
    assert shades == {"cats/1.png": 1, "/all/0.png": 2} | shared
    reasons = [item.reason for item in found if isinstance(item, Bad)]
    assert reasons == [f"a link to {to}, which is no file of the archive" for to in ("/etc/hostname", "../6.png")]


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.tar.xz", "pets.zip"])
def test_an_archive_and_a_part_of_it_are_read_without_unpacking(folder: Path, name: str, tmp_path: Path) -> None:
    archive = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(archive, "w") as out:
            for path in (folder / "cats/1.png", folder / "dogs/2.png"):
                out.write(path, f"train/{path.relative_to(folder)}")
            out.writestr("../../dogs/escaped.png", file_of())
    else:
        with tarfile.open(archive, f"w:{name.rpartition('.')[2] if name != 'pets.tar' else ''}") as tar:
            for path in (folder / "cats/1.png", folder / "dogs/2.png"):
                tar.add(path, f"train/{path.relative_to(folder)}")
            tar.add(folder / "dogs/2.png", "../../dogs/escaped.png")
    there = set(tmp_path.rglob("*"))
    pets = [("cats/1.png", "cats"), ("dogs/2.png", "dogs")]
    assert len(rows(archive)) == 3
    assert tell(rows(archive / "train"), archive / "train") == pets
    assert set(tmp_path.rglob("*")) == there


def test_entries_of_an_archive_by_every_way_of_writing_their_names(tmp_path: Path) -> None:
    archive = tmp_path / "pets.zip"
    entries = ["./train/a/1.png", "train//b/2.png", "other/../train/c/3.png", "/train/d/4.png", "train/e/.5.png"]
    entries += ["train/6.txt", "trainer/f/7.png", "../train/g/8.png"]
    with zipfile.ZipFile(archive, "w") as out:
        for entry in entries:
            out.writestr(entry, file_of())
    train = ["a/1.png", "b/2.png", "c/3.png"]
    for inside in ("train", "train/", "./train", "x/../train"):
        assert named(rows(f"{archive}/{inside}"), f"{archive}/{inside}") == train
    for inside in ("", "/", "/."):
        whole = named(rows(f"{archive}{inside}"), f"{archive}{inside}")
        assert whole == [*(f"train/{name}" for name in train), "trainer/f/7.png", "../train/g/8.png"]
    (one,) = images.read_images(f"{archive}/train/b/2.png")  # as an answer names it
    assert one.source == f"{archive}/train/b/2.png"


def named(items: list[Placed | Bad], below: str) -> list[str]:
    return [item.source.removeprefix(below.rstrip("/") + "/") for item in items]


def test_a_damaged_entry_of_a_zip_costs_no_other(tmp_path: Path) -> None:
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("train/a/1.png", file_of())
        out.writestr("test/a/2.png", file_of())
    written = archive.read_bytes()
    at = written.index(b"test/a/2.png") + len("test/a/2.png")
    archive.write_bytes(written[:at] + b"\0" * 8 + written[at + 8 :])
    assert len(rows(f"{archive}/train")) == 1
    good, bad = rows(archive)
    assert isinstance(good, Placed) and isinstance(bad, Bad)
    assert bad.source == f"{archive}/test/a/2.png" and "cannot be unpacked: Bad CRC-32" in bad.reason


def test_a_table_names_images_beside_it(folder: Path) -> None:
    table = folder / "pets.csv"
    table.write_text("file,kind\ncats/1.png,cat\nnone.png,cat\nhttp://here/1.png,cat\n")
    good, missing, address = rows(table, image="file", label="kind")
    assert isinstance(good, Placed) and good.row == {"image": file_of(), "label": "cat"}
    assert isinstance(missing, Bad) and "no such file" in missing.reason and missing.line == 3
    assert isinstance(address, Bad) and "an address is not followed" in address.reason


def test_images_in_no_class_folder_are_refused_in_one_message(folder: Path, tmp_path: Path) -> None:
    (folder / "loose.png").write_bytes(file_of())
    bad, *good = sorted(rows(folder), key=lambda item: isinstance(item, Placed))
    assert isinstance(bad, Bad) and "no class folder" in bad.reason and len(good) == 2
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/1.png").write_bytes(file_of())
    with pytest.raises(DataError, match="FOLDER/cat/1.png"):
        rows(tmp_path / "flat")


def test_a_changed_image_that_a_table_names_is_prepared_anew(folder: Path, tmp_path: Path) -> None:
    (folder / "cats/1.png").write_bytes(file_of("RGB", colour=(1, 2, 3)))
    lines = ["file,kind"] + [f"{file},{kind}" for file, kind in (("cats/1.png", "cat"), ("dogs/2.png", "dog"))]
    (folder / "pets.csv").write_text("\n".join(lines))
    tree = {
        "task": "image-classification",
        "data": {"train": str(folder / "pets.csv"), "image": "file", "label": "kind", "split": {"valid": 0, "test": 0}},
        "output": str(tmp_path / "run"),
    }
    tree["data"]["cache"] = str(tmp_path / "cache")  # type: ignore[index]
    first, same = (prepare(Experiment.model_validate(tree)) for _ in range(2))
    assert first.fresh and not same.fresh
    (folder / "cats/1.png").write_bytes(file_of("RGB", colour=(200, 2, 3), size=(9, 9)))
    assert prepare(Experiment.model_validate(tree)).fresh


def test_samples_larger_than_their_rows_are_encoded_few_at_a_time_to_several_files(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    for i in range(90):
        (folder / "cats" / f"many{i}.png").write_bytes(file_of("RGB", size=(9, 9), colour=(i, i, i)))
    tree = {"task": "image-classification", "output": str(tmp_path / "run")}
    read = {"train": str(folder), "images": {"size": 40}, "split": {"valid": 0, "test": 0}}
    found = []
    for cache in ("whole", "cut"):
        data = read | {"cache": str(tmp_path / cache)}
        made = prepare(Experiment.model_validate(tree | {"data": data}))
        found.append([(one["labels"], one["pixels"].tobytes()) for one in made.samples("train")])
        files = len(list((made.path / "samples").glob("train-*")))
        assert files == 1 if cache == "whole" else files > 3
        monkeypatch.setattr(arrow, "PART_BYTES", 50_000)
        monkeypatch.setattr(module, "ENCODED_BYTES", 20_000)
    assert found[0] == found[1] and len(found[0]) > 60


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
BOMB += chunk(b"IDAT", zlib.compress(bytes(99)))
BROKEN = {
    "bomb": (BOMB, "declares"),
    "truncated": (file_of(size=(90, 90), colour=1)[:-30], "damaged"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_image_is_quarantined_and_the_others_stay(folder: Path, what: str) -> None:
    data, reason = BROKEN[what]
    (folder / "cats/0.png").write_bytes(data)
    bad, *good = rows(folder)
    assert isinstance(bad, Bad) and reason in bad.reason and bad.source.endswith("cats/0.png")
    assert len(good) == 2


MODES = {
    "L": (9, "L", 9), "1": (1, "L", 255), "I;16": (0x1234, "L", 0x12), "RGB": ((1, 2, 3), "RGB", (1, 2, 3)),
    "RGBA": ((0, 0, 0, 0), "RGB", (255, 255, 255)), "LA": ((0, 0), "L", 255), "P": (0, "RGB", (0, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_grey_or_rgb(mode: str) -> None:
    colour, wanted, value = MODES[mode]
    image = pictures.decode(file_of(mode, colour=colour))
    assert image.mode == wanted and image.getpixel((0, 0)) == value


TRANSPARENT = {  # mode -> what of it is not seen
    "RGBA": {}, "LA": {}, "P": {"transparency": bytes(range(256))}, "RGB": {"transparency": (7, 7, 7)},
    "L": {"transparency": 7}, "1": {"transparency": 0},
}  # fmt: skip


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_what_is_put_on_white_a_strip_at_a_time_is_what_the_whole_would_be(mode: str, monkeypatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 7, 4), np.uint8)
    values[::3, :, :3] = 7
    image, out = Image.fromarray(values, "RGBA").convert(mode), io.BytesIO()
    image.save(out, "PNG", **TRANSPARENT[mode])
    monkeypatch.setattr(pictures, "STRIP", 20)
    found, stored = pictures.decode(out.getvalue()), Image.open(out)
    whole = Image.alpha_composite(Image.new("RGBA", (7, 50), "white"), stored.convert("RGBA"))
    assert found.mode == ("RGB" if mode in ("RGBA", "P", "RGB") else "L")
    assert found.tobytes() == whole.convert(found.mode).tobytes()


def test_a_large_image_with_transparency_is_held_twice_and_not_four_times(tmp_path: Path) -> None:
    Image.new("RGBA", (4000, 4000), (1, 2, 3, 4)).save(tmp_path / "large.png")
    program = (
        "import resource, sys; from bigmodel.tasks import pictures\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = open(sys.argv[1], 'rb').read(); pictures.header(data); began = most()\n"
        "pictures.decode(data); print(most() - began)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "large.png"], capture_output=True, check=True)
    assert int(done.stdout) * 1024 < 2.6 * 4 * 4000**2


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_of_16_bits_the_higher_8_stay_in_a_few_bytes_a_pixel(mode: str) -> None:
    values = np.arange(65_536, dtype={"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]).repeat(64)
    out = io.BytesIO()
    Image.frombytes(mode, (2048, 2048), values.tobytes()).save(out, "TIFF")
    tracemalloc.start()
    image = pictures.decode(out.getvalue())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(np.asarray(image).ravel(), values // 256)
    assert most < 14 * values.size


def test_cmyk_webp_and_exif_are_understood() -> None:
    assert pictures.decode(file_of("CMYK", "JPEG", colour=(0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert pictures.decode(file_of("RGB", "WEBP", colour=(9, 9, 9))).mode == "RGB"
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    turned = file_of("RGB", "JPEG", colour=(1, 2, 3), exif=exif)
    assert pictures.decode(turned).size == (3, 4) and pictures.upright_size(turned) == (4, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_that_is_told_is_that_of_the_decoded_image(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    data = file_of("RGB", kind, (16, 8), (1, 2, 3), exif=exif)
    width, height = pictures.decode(data).size
    assert pictures.upright_size(data) == (height, width) == ((8, 16) if orientation < 5 else (16, 8))


RATES = {"crop": 0.2, "flip": 1.0, "rotation": 30.0, "colour": 0.5, "erasing": 1.0, "mixup": 1.0, "cutmix": 1.0}


class Others(list):  # type: ignore[type-arg]
    def take(self, ids: list[int]) -> list[object]:
        return [self[i] for i in ids]


@pytest.mark.parametrize("rate", RATES)
def test_augmentation_changes_pixels_by_its_numbers_alone(rate: str) -> None:
    pixels = np.arange(3 * 8 * 8, dtype=np.uint8)
    sample = {"pixels": pixels, "height": 8, "width": 8, "labels": 0}
    others = Others([{**sample, "pixels": pixels[::-1][:64].copy(), "labels": 1}])
    rates = AugmentConfig(**{rate: RATES[rate]})
    one, same, other = (augment_images.augment(sample, np.random.default_rng(n), rates, others) for n in (3, 3, 4))  # type: ignore[arg-type]
    assert (one["pixels"] == same["pixels"]).all() and one["pixels"].shape == pixels.shape
    assert one["pixels"].dtype == np.uint8 and (one["pixels"] != pixels).any()
    assert rate == "flip" or (one["pixels"] != other["pixels"]).any()
    assert ("shares" in one) == (rate in ("mixup", "cutmix"))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 17), (1, 27, 27)])
def test_rotation_is_that_of_pillow(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for degrees in (0.0, *rng.uniform(-180, 180, 100)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        channels = (Image.fromarray(channel) for channel in pixels)
        wanted = [c.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=c.getpixel((0, 0))) for c in channels]
        assert np.array_equal(augment_images.rotate(pixels, degrees), np.stack(wanted))


def form() -> Form:
    task = image_classification
    return Form(task.request(None), task.answer(None), Limits(max_inputs=2), lambda fields: task.asked(fields, None))


def posted(*parts: tuple[str, bytes]) -> bytes:
    head = '--x\r\nContent-Disposition: form-data; name="{}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(head.format(name).encode() + data + b"\r\n" for name, data in parts) + b"--x--\r\n"


def test_the_endpoint_takes_base64_a_form_and_raw_bytes() -> None:
    import base64

    png, multipart = file_of(), b"multipart/form-data; boundary=x"
    row = {"image": png}
    assert form().parse(json.dumps({"image": base64.encodebytes(png).decode()}).encode()) == ([row], False)
    browser = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    assert form().parse(json.dumps({"image": browser}).encode()) == ([row], False)
    assert form().parse(png, b"image/png") == ([row], False)
    assert form().parse(posted(("image", png)), multipart) == ([row], False)
    assert form().parse(posted(("images", png), ("images", png)), multipart) == ([row, row], True)


REFUSED = {
    "an address": (b'{"image": "http://here/1.png"}', b"application/json", "is an address"),
    "an address of s3": (b'{"image": "s3://bucket/1.png"}', b"application/json", "is an address"),
    "not base64": (b'{"image": "***"}', b"application/json", "is not base64"),
    "no image": (b"text", b"image/png", "no image that is read"),
    "a bomb": (BOMB, b"image/png", "declares"),
    "no boundary": (posted(), b"multipart/form-data", "no boundary"),
    "no end": (b"--x\r\n", b"multipart/form-data; boundary=x", "no end"),
    "no file": (posted(), b"multipart/form-data; boundary=x", "no file"),
    "another name": (posted(("photo", b"")), b"multipart/form-data; boundary=x", "not 'photo'"),
    "too many": (posted(*[("images", b"")] * 3), b"multipart/form-data; boundary=x", "at most 2"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_endpoint_refuses_with_one_sentence(what: str) -> None:
    body, kind, said = REFUSED[what]
    with pytest.raises(Refusal, match=said):
        form().parse(body, kind)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="image"', "image"),
        ("form-data;NAME = image ; filename=a.png", "image"),
        ('form-data; filename="a; name=photo.png"; name="image"', "image"),
        ('form-data; filename="a\\"; name=\\"photo"; name="im\\"age"', 'im"age'),
        ("form-data; filename=a.png", ""),
        ("form-data; name*=UTF-8''image", ""),
        ('form-data; name="', '"'),
    ],
)
def test_a_part_of_a_form_is_called_what_its_header_says(disposition: str, name: str) -> None:
    body = f"--x\r\nContent-Type: image/png\r\ncontent-disposition: {disposition}\r\n\r\ndata\r\n--x--\r\n"
    assert multipart.parse(body.encode(), b'multipart/form-data; boundary="x"') == [(name, b"data")]


@pytest.mark.parametrize("filler", [";", '"', '\\"', ";a", ';a="', "; ", "=", " ", ";a =", "\\"])
def test_a_megabyte_of_a_header_is_read_at_once(filler: str) -> None:
    header = 'form-data; name="' + filler * (1_000_000 // len(filler))
    body = f"--x\r\nContent-Disposition: {header}\r\n\r\n\r\n--x--\r\n".encode()
    began = time.thread_time()
    multipart.parse(body, b"multipart/form-data; boundary=x")
    with pytest.raises(Refusal, match="no end|no boundary"):
        multipart.parse(body, header.replace("name", "boundary").encode())
    assert time.thread_time() - began < 2


def test_pixels_that_are_no_numbers_of_bytes_are_refused() -> None:
    with pytest.raises(Refused, match="floating-point"):
        pictures.decode(file_of("F", "TIFF", colour=0.5))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EfficientNet", {}),  # which divides by the deviation twice
        ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
        ("EfficientNet", {"rescale_offset": True, "do_normalize": False, "do_center_crop": True}),
        ("EfficientNet", {"rescale_offset": True, "do_rescale": False}),
        ("ViT", {}),
        ("ViT", {"do_normalize": False}),
    ],
)
def test_pixels_are_scaled_as_a_checkpoints_own_processor_does(name, settings, tmp_path: Path) -> None:
    processor = getattr(transformers, f"{name}ImageProcessorPil")(size={"height": 40, "width": 40}, **settings)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    for found in (
        image_classification._pretrained_processor(str(tmp_path)),
        image_classification.load_processor(tmp_path, transformers.ViTConfig()),
    ):
        (sample,) = image_classification.encode([{"image": out.getvalue()}], found, {})
        own = processor([Image.fromarray(pixels)], return_tensors="np")["pixel_values"]
        ours = image_classification.collate([sample], found)["pixel_values"].numpy()
        np.testing.assert_allclose(ours, own, rtol=0, atol=1e-4)


class Negative(transformers.ViTImageProcessorPil):
    """Of a pixel, what it lacks of white."""

    def rescale(self, image, scale, **more):
        return 1 - super().rescale(image, scale, **more)


def test_a_processor_that_scales_otherwise_or_to_no_size_is_refused(tmp_path: Path) -> None:
    assert "(Negative) scales pixels in a way of its own" in image_classification._strange(Negative())
    transformers.TextNetImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="its image processor takes images of any shape"):
        image_classification.load_processor(tmp_path, transformers.ViTConfig())
