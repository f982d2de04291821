"""A11 to A18: pictures that are damaged, huge, or not what they claim to be."""

import base64
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageOps

from contract.doors import Doors, Reply, about_images, refused, refused_grpc
from contract.listeners import body, listen
from fakes import image_chat
from pictures import data_uri, disc, encoded, noise
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import options_pb2

PARAM = "messages[0].content[0].image_url.url"
FIELD = "chat.messages[0].parts[0].image"


def as_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def start(*images: bytes) -> pb.Start:
    stopping = options_pb2.Stopping(max_tokens=4)
    return image_chat("What is it?", images, stopping=stopping, sampling=options_pb2.Sampling(temperature=0))


def refuse(doors: Doors, data: bytes, kind: str = "image/png", within_s: float = 1.0) -> None:
    """The picture is refused at both doors."""
    uri = as_uri(data, kind)
    refused(lambda: doors.chat(about_images(uri)), code="invalid_image", param=PARAM, within_s=within_s)
    refused_grpc(lambda: doors.generate(start(data)), reason="invalid_image", field=FIELD, within_s=within_s)


def probabilities(doors: Doors, data: bytes, kind: str = "image/png") -> list[float]:
    """Those of the tokens that may begin an answer about a picture: another picture has others."""
    reply = doors.chat(about_images(as_uri(data, kind)), logprobs=True, top_logprobs=20, max_tokens=1)
    assert reply.status == 200, reply.text
    [token] = reply.json["choices"][0]["logprobs"]["content"]
    return [top["logprob"] for top in token["top_logprobs"]]


def same(doors: Doors, one: bytes, other: bytes, kind: str = "image/png") -> bool:
    """Whether the model sees the same in two pictures. The order of sums may differ, so a little is allowed."""
    return probabilities(doors, one, kind) == pytest.approx(probabilities(doors, other), abs=1e-4)


def png(width: int, height: int, data: bytes = b"", bits: int = 8) -> bytes:
    """A PNG that declares this size, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00\x00\x00,\0\0\0\0" + struct.pack("<HH", width, height)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(65500, 65500), id="png"),
        pytest.param(png(65500, 65500, zlib.compress(bytes(1 << 20))), id="png with something"),
        pytest.param(png(2**31 - 1, 2**31 - 1), id="png of the largest size"),
        pytest.param(png(40_000_001, 1), id="png of a pixel more than is allowed"),
        pytest.param(png(0, 0), id="png of nothing"),
        pytest.param(gif_header(65500, 65500) + bytes(90), id="gif"),
        pytest.param(
            b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", 65500, 65500) + b"\x03\x01\x22\0\x02\x11\1\x03\x11\1",
            id="jpeg",
        ),
        pytest.param(
            b"RIFF\x5a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (65499).to_bytes(3, "little") * 2 + bytes(60), id="webp"
        ),
    ],
)
def test_a11_huge_declared_sizes(doors: Doors, data: bytes) -> None:
    refuse(doors, data, within_s=0.1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a12_truncated(doors: Doors, kind: str) -> None:
    whole = encoded(noise((200, 150)), kind)
    for size in (len(whole) // 2, len(whole) // 10, 20, 3):
        refuse(doors, whole[:size], f"image/{kind.lower()}")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"This is a picture of a cat.", id="text"),
        pytest.param(b"<html><img src=x></html>", id="html"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"not really" * 100, id="a signature"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param(b"\xff\xd8\xff\xe0" + b"JFIF" * 100, id="a marker"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(zlib.compress(bytes(1 << 20)), id="zlib"),
    ],
)
def test_a13_what_is_no_picture(doors: Doors, data: bytes) -> None:
    refuse(doors, data)


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(lambda text: text[:20] + "!" + text[20:], id="mark"),
        pytest.param(lambda text: text[:20] + " " + text[20:], id="space"),
        pytest.param(lambda text: text[:20] + "\0" + text[20:], id="nul"),
        pytest.param(lambda text: text[:20] + "é" + text[20:], id="letter"),
        pytest.param(lambda text: text[:20] + "=" + text[20:], id="early padding"),
        pytest.param(lambda text: text.rstrip("=")[:-1], id="short"),
        pytest.param(lambda text: text + "=", id="too much padding"),
        pytest.param(lambda text: text + "====", id="four too many"),
        pytest.param(lambda text: text + "AAAA=", id="more behind"),
        pytest.param(lambda text: "_-" + text[2:], id="of URLs"),
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "=", id="padding alone"),
    ],
)
def test_a14_base64_with_junk(doors: Doors, junk: Any) -> None:
    text = base64.b64encode(encoded(disc("red"))).decode()
    uri = f"data:image/png;base64,{junk(text)}"
    refused(lambda: doors.chat(about_images(uri)), code="invalid_image", param=PARAM)


def test_a14_line_breaks_as_mail_tools_write_them(doors: Doors) -> None:
    data = encoded(disc("red"))
    broken = base64.encodebytes(data).decode()
    for text in (broken, broken.replace("\n", "\r\n")):
        assert doors.chat(about_images(f"data:image/png;base64,{text}")).status == 200


def test_a15_a_gif_of_1000_frames(doors: Doors) -> None:
    """Its first frame is what the model sees, and the others take no time."""
    first, *rest = [noise((16, 16), seed) for seed in range(1000)]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest)
    alone = encoded(first, "GIF")
    assert same(doors, file.getvalue(), alone, "image/gif")
    assert not same(doors, file.getvalue(), encoded(rest[0], "GIF"), "image/gif")


def ask(doors: Doors, data: bytes) -> Reply:
    return doors.chat(about_images(as_uri(data)))


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 40_000), (6300, 6300)], ids=str)
def test_a16_extreme_shapes(doors: Doors, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, "red"))
    reply = ask(doors, data)
    assert reply.status in (200, 400), reply
    outcome = doors.generate(start(data))
    assert outcome.code == ("OK" if reply.status == 200 else "INVALID_ARGUMENT")


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(disc("blue"), kind, exif=exif)


def wide(image: Image.Image) -> Image.Image:
    """The picture in 16-bit grey."""
    return image.convert("L").point(lambda value: value * 257, "I").convert("I;16")


KINDS: dict[str, tuple[bytes, Image.Image]] = {
    "palette": (save(disc("red").quantize(8), "PNG"), disc("red").quantize(8).convert("RGB")),
    "16-bit grey": (save(wide(disc("red")), "PNG"), disc("red").convert("L").convert("RGB")),
    "grey": (save(disc("red").convert("L"), "PNG"), disc("red").convert("L").convert("RGB")),
    "black and white": (save(disc("red").convert("1"), "PNG"), disc("red").convert("1").convert("RGB")),
    "transparent": (save(Image.new("RGBA", (64, 48), (255, 0, 0, 0)), "PNG"), Image.new("RGB", (64, 48), "white")),
    "webp": (save(disc("red"), "WEBP", lossless=True), disc("red")),
    **{
        f"turned by {orientation}": (
            rotated("PNG", orientation),
            ImageOps.exif_transpose(Image.open(io.BytesIO(rotated("PNG", orientation)))),
        )
        for orientation in range(2, 9)
    },
}
"""Files, and the plain pictures that they are."""


@pytest.mark.parametrize("kind", KINDS)
def test_a16_kinds_of_pictures_are_read_right(doors: Doors, kind: str) -> None:
    data, plain = KINDS[kind]
    assert same(doors, data, encoded(plain))
    assert not same(doors, data, encoded(disc("green")))


def test_a16_cmyk_is_read_right(doors: Doors) -> None:
    """A lossy format: the picture is what Pillow reads, and near to what it was made of."""
    ink = save(disc("red").convert("CMYK"), "JPEG", quality=100, subsampling=0)
    plain = Image.open(io.BytesIO(ink)).convert("RGB")
    assert all(abs(a - b) < 8 for a, b in zip(plain.getpixel((32, 24)), (255, 0, 0), strict=True))  # type: ignore[arg-type]
    assert same(doors, ink, encoded(plain), "image/jpeg")


def test_a16_a_turned_jpeg_is_read_right(doors: Doors) -> None:
    turned = rotated("JPEG", 6)
    plain = Image.open(io.BytesIO(turned)).rotate(-90, expand=True)
    assert same(doors, turned, encoded(plain), "image/jpeg")
    assert not same(doors, turned, encoded(Image.open(io.BytesIO(turned)).convert("RGB")), "image/jpeg")


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "AVIF", "PDF", "EPS", "DDS"])
def test_a17_other_formats(doors: Doors, kind: str) -> None:
    refuse(doors, save(disc("red"), kind))


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"push graphic-context\nimage over 0,0 0,0 'file:///etc/passwd'\npop graphic-context\n",
    ],
)
def test_a17_formats_that_run_or_read_something(doors: Doors, data: bytes) -> None:
    refuse(doors, data)


def test_a17_types_that_are_not_read(doors: Doors) -> None:
    for kind in ("image/svg+xml", "image/tiff", "text/html", "application/pdf"):
        uri = as_uri(encoded(disc("red")), kind)
        refused(lambda uri=uri: doors.chat(about_images(uri)), code="invalid_image", param=PARAM)  # type: ignore[misc]


def test_a18_more_images_than_the_limit(doors: Doors) -> None:
    """Refused before any is fetched, or sent."""
    with listen(a=body(encoded(disc("red")))) as source:
        urls = [f"http://localhost:{source.port}/a"] * 17
        reply = refused(lambda: doors.chat(about_images(*urls)))
        assert "16" in reply.json["error"]["message"]
        messages = [{"role": "user", "content": about_images(url)} for url in urls]
        refused(lambda: doors.chat(messages=messages))
        assert source.num_connections == 0
        assert doors.chat(about_images(*urls[:16])).status == 200
    tiny = encoded(Image.new("RGB", (1, 1)))
    refused(lambda: doors.chat(about_images(*[as_uri(tiny)] * 17)))
    refused_grpc(lambda: doors.generate(start(*[tiny] * 17)))
    announced: list[Any] = [None] * 17
    refused_grpc(lambda: doors.generate(start(*announced)))


def test_a18_an_image_that_is_too_large(doors: Doors) -> None:
    uri = as_uri(bytes((20 << 20) + 1))
    refused(lambda: doors.chat(about_images(data_uri(disc("red")), uri)), code="invalid_image")
