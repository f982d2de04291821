"""Exports what plain_model.py writes to OpenVINO: `export_openvino.py FOLDER TARGET`, in the peers' environment.

The graph is as optimum-intel makes it: keys and values are states, reordered by `beam_idx`. optimum-intel asks for
an older transformers; its export gave the same answers as this one, at the same speed. Weights stay in float32.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation
from openvino_tokenizers import convert_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

_INPUTS = ("input_ids", "attention_mask", "position_ids")


class Step(torch.nn.Module):
    """One step of a model: tokens and past keys and values in, logits and all keys and values out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        cache = DynamicCache()
        cache.layers = [filled(keys, values) for keys, values in zip(past[::2], past[1::2], strict=True)]
        places = torch.arange(attention_mask.shape[1], device=input_ids.device)
        seen = (places <= position_ids[:, :, None]) & (attention_mask[:, None, :] != 0)
        mask = torch.where(seen[:, None], 0.0, torch.finfo(torch.float32).min)
        out = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, cache=cache, use_cache=True
        )
        return out.logits, *(state for layer in cache.layers for state in (layer.keys, layer.values))


def filled(keys: Tensor, values: Tensor) -> Any:
    """A layer of a cache. Filled by `update`, it would put an empty tensor in front, which the export does not know."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def convert(model: Any) -> ov.Model:
    """The model with keys and values as inputs and outputs, all named."""
    config = model.config
    state = torch.zeros(2, config.num_key_value_heads, 3, config.head_dim)
    names = [f"{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
    example = (
        torch.ones(2, 4, dtype=torch.long),
        torch.ones(2, 7, dtype=torch.long),
        torch.arange(3, 7).expand(2, 4),
        *(state for _ in names),
    )
    shapes = [ov.PartialShape([-1, -1])] * 3
    shapes += [ov.PartialShape([-1, config.num_key_value_heads, -1, config.head_dim])] * len(names)
    with torch.inference_mode():
        converted = ov.convert_model(Step(model), example_input=example, input=shapes)
    inputs = [*_INPUTS, *(f"past_key_values.{name}" for name in names)]
    for port, name in zip(converted.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(converted.outputs, ["logits", *(f"present.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
    keep_states(converted, names)
    return converted


def keep_states(model: ov.Model, names: Sequence[str]) -> None:
    """Makes keys and values states that begin empty, and that `beam_idx` reorders before each step."""
    batch = model.input("input_ids").get_partial_shape()[0]
    order = opset13.parameter([batch], dtype=ov.Type.i32, name="beam_idx")
    order.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([order])
    for name in names:
        past = model.input(f"past_key_values.{name}")
        consumers = past.get_target_inputs()
        gathered = opset13.gather(past, order, opset13.constant(0))
        for consumer in consumers:
            consumer.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {f"past_key_values.{name}": f"present.{name}" for name in names})
    shape = opset13.shape_of(model.input("input_ids"), output_type="i64")
    rows = opset13.gather(shape, opset13.constant([0]), opset13.constant(0))
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            _, heads, _, width = (dim.min_length for dim in op.get_output_partial_shape(0))
            empty = opset13.concat([rows, opset13.constant(np.array([heads, 0, width], dtype=np.int64))], axis=0)
            op.set_arguments([opset13.broadcast(opset13.constant(0.0, dtype=ov.Type.f32), empty)])
    model.validate_nodes_and_infer_types()


def main(arguments: Sequence[str]) -> int:
    """Runs the script."""
    source, target = map(Path, arguments)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    target.mkdir(parents=True, exist_ok=True)
    ov.save_model(convert(model), target / "openvino_model.xml", compress_to_fp16=False)
    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    ov.save_model(tokenizer, target / "openvino_tokenizer.xml")
    ov.save_model(detokenizer, target / "openvino_detokenizer.xml")
    for name in ("config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
