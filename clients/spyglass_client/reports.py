"""`spyglass models` and `spyglass usage`: aligned tables for people, JSON for programs."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from spyglass_client.account import ModelInfo, UsageSummary
from spyglass_client.sync import Client


def run_models(args: argparse.Namespace) -> int:
    """Prints the models that the server runs. Raises SpyglassError."""
    with Client(args.grpc, api_key=args.api_key) as client:
        models = client.models()
    sys.stdout.write(_json(models) if args.json else _models_table(models))
    return 0


def run_usage(args: argparse.Namespace) -> int:
    """Prints what the key has used. Raises SpyglassError."""
    with Client(args.grpc, api_key=args.api_key) as client:
        usage = client.usage(args.records)
    sys.stdout.write(_json(usage) if args.json else _usage_table(usage))
    return 0


def _models_table(models: Sequence[ModelInfo]) -> str:
    described = [model for model in models if model.memory.device_name]
    return _terms_table(models) + ("\n" + _memory_table(described) if described else "")


def _terms_table(models: Sequence[ModelInfo]) -> str:
    header = ("MODEL", "DTYPE", "CONTEXT", "MAX TOKENS", "IMAGES", "$/M IN", "$/M OUT")
    return _table(
        header,
        [
            (
                model.id,
                f"{model.dtype}, {model.quantization}" if model.quantization else model.dtype,
                f"{model.context_length:,}",
                f"{model.max_tokens:,}",
                f"{model.max_images:,}",
                f"{model.pricing.input_tokens:.2f}",
                f"{model.pricing.output_tokens:.2f}",
            )
            for model in models
        ],
        num_words=2,
    )


def _memory_table(models: Sequence[ModelInfo]) -> str:
    """Where each device's memory goes: weights, and caches of text and images with what they hold."""
    header = ("MODEL", "HOST", "DEVICE", "MEMORY", "WEIGHTS", "TEXT CACHE", "TOKENS", "IMAGE CACHE", "TILES")
    return _table(
        header,
        [
            (
                model.id,
                memory.host,
                f"{rank}: {memory.device_name}" if model.ranks else memory.device_name,
                _gigabytes(memory.device_bytes),
                _gigabytes(memory.weight_bytes),
                _gigabytes(memory.kv_cache_bytes),
                f"{memory.kv_cache_tokens:,}",
                _gigabytes(memory.image_cache_bytes),
                f"{memory.image_cache_tiles:,}",
            )
            for model in models
            for rank, memory in enumerate(model.ranks or (model.memory,))
        ],
        num_words=3,
    )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _usage_table(usage: UsageSummary) -> str:
    totals = _table(
        ("KEY", "GENERATIONS", "PROMPT TOKENS", "GENERATED TOKENS", "COST $"),
        [
            (
                usage.key_id,
                f"{usage.generations:,}",
                f"{usage.prompt_tokens:,}",
                f"{usage.completion_tokens:,}",
                f"{usage.estimated_cost:.6f}",
            )
        ],
        num_words=1,
    )
    if not usage.records:
        return totals
    records = [
        (
            f"{record.started:%Y-%m-%d %H:%M:%S}",
            record.request_id,
            record.model,
            record.outcome or "running",
            f"{record.usage.prompt_tokens:,}",
            f"{record.usage.completion_tokens:,}",
            f"{record.usage.estimated_cost:.6f}",
        )
        for record in usage.records
    ]
    header = ("STARTED (UTC)", "REQUEST", "MODEL", "OUTCOME", "PROMPT", "GENERATED", "COST $")
    return totals + "\n" + _table(header, records, num_words=4)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_words: int) -> str:
    """Columns two spaces apart; the first `num_words` are words, to the left, the rest numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < num_words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain, indent=2, ensure_ascii=False) + "\n"


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
