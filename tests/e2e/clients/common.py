"""What the scripts here share: where the server is, a picture, tools, a type, and a prompt that is too long."""

import base64
import io
import os
from typing import Any

from PIL import Image, ImageDraw
from pydantic import BaseModel, Field

URL, KEY, MODEL = (os.environ[f"SPYGLASS_{name}"] for name in ("URL", "KEY", "MODEL"))


class Person(BaseModel):
    """A person."""

    name: str = Field(description="The first name.", max_length=20)
    age: int = Field(ge=0, le=150)


ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
BOB = "Bob is 5 years old. Tell his name and his age as JSON."
QUESTION = "How is the weather in Paris?"
TOO_LONG = "word " * 9000
"""More tokens than the context of the model holds."""


def weather(city: str) -> str:
    """The weather of a city."""
    return f"clear in {city}"


def picture() -> bytes:
    """A red disc, as a PNG."""
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).ellipse((50, 50, 150, 150), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def which_colour() -> list[dict[str, Any]]:
    """A question about it, as parts of a message."""
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which colour is the circle?"}]
