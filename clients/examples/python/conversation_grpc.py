"""Holds a conversation over gRPC: pictures and text in several turns."""

import os
from pathlib import Path

from spyglass_client import Client, assistant, image, system, user

picture = Path(__file__).parents[1] / "red_circle.png"
questions = [
    user("Look at this: ", image(picture), " What could a pizzeria do with it?"),
    user("And which pizza fits it best?"),
    user("Name it, in three words."),
]

messages = [system("Respond like a michelin starred chef.")]
with Client() as client:
    for question in questions:
        messages.append(question)
        answer = client.chat(messages, model=os.environ.get("SPYGLASS_CHAT_MODEL"), max_tokens=80, temperature=0)
        messages.append(assistant(answer.text))
        print(answer.text, end="\n\n")
