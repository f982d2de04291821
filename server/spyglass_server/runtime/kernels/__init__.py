"""The engine's GPU kernels, in Triton, which comes with torch's CUDA builds.

Only the CUDA path imports these modules. On a CPU they run in Triton's interpreter (TRITON_INTERPRET=1), which is how
tests compare them with the CPU path. A kernel's result for a row does not depend on other rows: neither the order of
its sums nor where they are split does.
"""
