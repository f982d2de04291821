"""Asks several questions at once over one gRPC stream."""

import asyncio
import os

from spyglass_client import AsyncClient

QUESTIONS = ["What is a lighthouse?", "What is a lens?", "What is a telescope?", "What is a prism?"]


async def main() -> None:
    async with AsyncClient() as client:
        model = os.environ.get("SPYGLASS_CHAT_MODEL")
        answers = await asyncio.gather(
            *(client.generate(question, model=model, max_tokens=40, temperature=0) for question in QUESTIONS)
        )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer.text}\n")


asyncio.run(main())
