"""The embedded model `spyglass-demo`: SmolLM2-135M-Instruct made into a complete Mllama checkpoint.

Owns how that checkpoint is made and where it is kept. Knows nothing of how a checkpoint is served:
what stands in the folder is an ordinary Hugging Face checkpoint. Making it takes numpy, gguf,
safetensors and tokenizers, never torch; finding one that is already made takes none of them.
"""

from spyglass_server.demo.errors import DemoError
from spyglass_server.demo.folder import default_folder, prepare

__all__ = ["DemoError", "default_folder", "prepare"]
