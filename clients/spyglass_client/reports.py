"""`spyglass models` and `spyglass usage`: aligned tables for people, JSON and CSV for programs."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from spyglass_client.account import ModelInfo, UsageRecord, UsageSum, UsageSummary
from spyglass_client.keys_command import open_admin
from spyglass_client.sync import Client
from spyglass_client.tables import as_csv, as_json, table
from spyglass_client.target import tls_of


def run_models(args: argparse.Namespace) -> int:
    """Prints the models that the server runs. Raises SpyglassError."""
    with Client(args.grpc, api_key=args.api_key, tls=tls_of(args)) as client:
        models = client.models()
    sys.stdout.write(as_json(models) if args.json else _models_table(models))
    return 0


def run_usage(args: argparse.Namespace) -> int:
    """Prints the key's usage, or that of others with an operator's key. Raises SpyglassError."""
    groups = args.by or ()
    chosen: dict[str, Any] = {"model": args.model or "", "since": args.since, "until": args.until}
    if args.all or args.tenant or args.key:
        with open_admin(args) as admin:
            sums, records = admin.usage(
                tenant=args.tenant or "", key_id=args.key or "", group_by=groups, max_records=args.records, **chosen
            )
        whole: Any = {"sums": sums, "records": records}
    else:
        with Client(args.grpc, api_key=args.api_key, tls=tls_of(args)) as client:
            whole = client.usage(args.records, group_by=groups, **chosen)
        sums = list(whole.sums) if groups else [_sum_of(whole)]
        records = list(whole.records)
    match "json" if args.json else args.format:
        case "json":
            sys.stdout.write(as_json(whole))
        case "csv":
            sys.stdout.write(as_csv(sums))
        case _:
            sys.stdout.write(_sums_table(sums) + (f"\n{_records_table(records)}" if records else ""))
    return 0


def _sum_of(usage: UsageSummary) -> UsageSum:
    return UsageSum(
        tenant="",
        key_id=usage.key_id,
        model="",
        day="",
        generations=usage.generations,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        images=usage.images,
        estimated_cost=usage.estimated_cost,
    )


def _models_table(models: Sequence[ModelInfo]) -> str:
    described = [model for model in models if model.memory.device_name]
    return _terms_table(models) + ("\n" + _memory_table(described) if described else "")


def _terms_table(models: Sequence[ModelInfo]) -> str:
    header = ("MODEL", "DTYPE", "CONTEXT", "MAX TOKENS", "IMAGES", "$/M IN", "$/M OUT")
    return table(
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
    """Shows each device's memory: weights, and text and image caches with their capacity."""
    header = ("MODEL", "HOST", "DEVICE", "MEMORY", "WEIGHTS", "TEXT CACHE", "TOKENS", "IMAGE CACHE", "TILES")
    return table(
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


def _sums_table(sums: Sequence[UsageSum]) -> str:
    names = [name for name in ("day", "tenant", "key_id", "model") if any(getattr(each, name) for each in sums)]
    header = [name.removesuffix("_id").upper() for name in names]
    numbers = ("GENERATIONS", "PROMPT TOKENS", "CACHED", "GENERATED TOKENS", "IMAGES", "COST $")
    rows = [
        (
            *(getattr(each, name) for name in names),
            f"{each.generations:,}",
            f"{each.prompt_tokens:,}",
            f"{each.cached_tokens:,}",
            f"{each.completion_tokens:,}",
            f"{each.images:,}",
            f"{each.estimated_cost:.6f}",
        )
        for each in sums
    ]
    return table((*header, *numbers), rows, num_words=len(names))


def _records_table(records: Sequence[UsageRecord]) -> str:
    rows = [
        (
            f"{record.started:%Y-%m-%d %H:%M:%S}",
            record.request_id,
            record.model,
            record.outcome or "running",
            f"{record.usage.prompt_tokens:,}",
            f"{record.usage.completion_tokens:,}",
            f"{record.usage.estimated_cost:.6f}",
        )
        for record in records
    ]
    header = ("STARTED (UTC)", "REQUEST", "MODEL", "OUTCOME", "PROMPT", "GENERATED", "COST $")
    return table(header, rows, num_words=4)
