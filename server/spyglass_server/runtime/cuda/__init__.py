"""The engine on GPUs: one copy of numbers to the device and one back in each step, kernels that read pages and tiles in
place, and recorded decode steps."""
