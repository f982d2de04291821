"""The engine's kernels for GPUs, in Triton, which comes with torch's builds for CUDA.

Only the CUDA path imports these modules. On a CPU they run in Triton's interpreter (TRITON_INTERPRET=1), which is how
tests hold them to the CPU path. What a kernel computes for a row does not depend on the rows beside it: neither the
order of its sums nor where they are split.
"""
