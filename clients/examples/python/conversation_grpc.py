"""Holds a conversation over gRPC: two pictures and several turns."""

import os
from pathlib import Path

from spyglass_client import Client, assistant, image, user

pictures = Path(__file__).parents[1] / "pictures"
questions = [
    user(image(pictures / "star_and_square.png"), "What is to the left of the square?"),
    user("What colour is the square?"),
    user(image(pictures / "three_triangles.png"), "How many triangles are there?"),
]

messages = []
with Client() as client:
    for question in questions:
        messages.append(question)
        answer = client.chat(messages, model=os.environ.get("SPYGLASS_CHAT_MODEL"), max_tokens=80, temperature=0)
        messages.append(assistant(answer.text))
        print(answer.text)
