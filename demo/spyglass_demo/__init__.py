"""The demo model: SmolLM2-135M-Instruct and a trained vision adapter, joined into a Mllama checkpoint.

`prepare` makes the checkpoint once, in the user's cache; it is an ordinary Hugging Face folder that any
Mllama implementation can load. Making it needs gguf, numpy, safetensors and tokenizers, but not torch;
these are imported only when there is something to make.

    from spyglass_demo import default_folder, prepare

    folder = prepare(default_folder(), print)
"""

from spyglass_demo.errors import DemoError
from spyglass_demo.folder import default_folder, prepare

__all__ = ["DemoError", "default_folder", "prepare"]
