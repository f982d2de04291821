"""Turns sampled tokens into the rows' outputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spyglass_server.engine.messages import Logprobs
from spyglass_server.engine.worker.batch import Row, RowOutput
from spyglass_server.runtime.image_attention import image_maps, watched_span
from spyglass_server.runtime.sampler import Draw

NOT_FINITE = -1
"""Replaces a token if the logits of the row are not finite."""


def draws_of(rows: Sequence[Row]) -> list[Draw]:
    """Returns the draws for rows whose logits are sampled, row by row."""
    return [
        Draw(row=i, params=row.request.sampling, choice=choice, position=row.end)
        for i, row in enumerate(rows)
        for choice in row.choices
    ]


def sampled_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the same rows, with one for each position of rows that have drafts."""
    return [one for row in rows for one in (row.sampled() if row.num_drafts else (row,))]


def with_drafted(rows: Sequence[Row], outputs: Iterable[RowOutput]) -> list[RowOutput]:
    """Returns the rows' outputs from those of their `sampled_rows`."""
    found = iter(outputs)
    whole = []
    for row in rows:
        first = next(found)
        drafted = tuple(next(found) for _ in range(row.num_drafts))
        whole.append(replace(first, drafted=drafted) if drafted else first)
    return whole


def row_outputs(
    rows: Sequence[Row],
    tokens: Iterable[int],
    failed: Mapping[int, str],
    logprobs: Iterator[Logprobs],
    prompts: Iterator[Sequence[Logprobs]],
    attention: Iterator[NDArray[np.float32]],
) -> list[RowOutput]:
    """Assembles the rows' outputs.

    `tokens` are those of all draws; `failed` rows, counted among the sampled ones, cannot continue by their grammars;
    `logprobs` are for the draws of rows that request them, `prompts` for rows that request prompt logprobs, and
    `attention` for rows that return theirs, to all slots of the images that they see.
    """
    outputs = []
    drawn, sampled = iter(tokens), -1
    for row in rows:
        sampled += bool(row.choices)
        chosen = tuple(next(drawn) for _ in row.choices)
        told = tuple(next(logprobs) for _ in row.choices) if row.request.top_logprobs is not None else ()
        own_prompt = tuple(next(prompts)) if row.prompt_targets else ()
        maps = None
        if row.tells_attention:
            seen = watched_span(row)
            maps = image_maps(row, seen, next(attention)) if seen else (None,) * len(row.request.images)
        if row.choices and (error := failed.get(sampled)) is not None:
            outputs.append(RowOutput(error=error, by_grammar=True))
        elif NOT_FINITE in chosen:
            outputs.append(RowOutput(error="the logits are not finite"))
        else:
            outputs.append(RowOutput(tokens=chosen, logprobs=told, prompt_logprobs=own_prompt, attention=maps))
    return outputs
