"""Greedy decoding with our runner: prompts first, then a token for each sequence and step.

Owns the rows and their pages, as a scheduler would. Knows nothing of how logits come about.
"""

import dataclasses
from collections.abc import Collection, Sequence

from PIL import Image

from fidelity.ours import PAGE_SIZE, Ours
from spyglass_server.engine.worker.batch import Row


def greedy(
    ours: Ours,
    prompts: Sequence[tuple[list[int], list[Image.Image]]],
    max_tokens: int,
    stops: Collection[int],
) -> list[list[int]]:
    """Answers all prompts in one batch, each until a stop token, which is then its last.

    `ours` must have pages for every prompt and its answer.
    """
    rows = {}
    first_page = 0
    for index, (token_ids, images) in enumerate(prompts):
        num_pages = -(-(len(token_ids) + max_tokens) // PAGE_SIZE)
        row = ours.row(token_ids, images, choices=(0,))
        rows[index] = dataclasses.replace(row, pages=tuple(range(first_page, first_page + num_pages)))
        first_page += num_pages
    answers: list[list[int]] = [[] for _ in prompts]
    while rows:
        outputs = ours.runner.execute(list(rows.values()))
        for (index, row), output in zip(list(rows.items()), outputs, strict=True):
            assert output.error is None
            answers[index] += output.tokens
            if len(answers[index]) == max_tokens or answers[index][-1] in stops:
                del rows[index]
            else:
                rows[index] = _next(row, output.tokens)
    return answers


def _next(row: Row, tokens: tuple[int, ...]) -> Row:
    return dataclasses.replace(row, tokens=tokens, start=row.end)
