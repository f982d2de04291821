"""A stage of the check: where a decode step's time goes: kernels, and what the host calls and waits for."""

from functools import partial

from torch.profiler import ProfilerActivity, profile

from stage_run import StageRun
from subject import Subject
from timing import synchronize

SHAPES = ((1, 1024, 0), (32, 512, 8))
"""Rows, tokens of context, and how many rows see an image."""
SMOKE_SHAPES = ((2, 20, 1),)
STEPS, NUM_KERNELS = 3, 14
HOST_CALLS = (
    "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaLaunchKernelExC",
    "cuLaunchKernelEx", "cudaGraphLaunch", "aten::_local_scalar_dense",
)  # fmt: skip


def run(run: StageRun) -> None:
    """Runs the stage."""
    shapes = SMOKE_SHAPES if run.is_smoke else SHAPES
    subject = Subject(run, max(count * context for count, context, _ in shapes), 8)
    for shape in shapes:
        run.case(f"trace of {shape[0]} rows", partial(trace, subject, *shape))


def trace(subject: Subject, count: int, context: int, num_seeing: int) -> None:
    """Records the kernels of a step and their times, the longest first."""
    is_gpu = subject.run.is_gpu
    rows = subject.decode_rows([context] * count, num_seeing)
    for _ in range(STEPS):
        subject.runner.execute(rows)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_gpu]) as found:
        for _ in range(STEPS):
            subject.runner.execute(rows)
        synchronize(subject.device)
    events = found.key_averages()
    name = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    kernels = [event for event in events if str(event.device_type).endswith("CUDA") is is_gpu]
    kernels.sort(key=lambda event: getattr(event, name), reverse=True)
    subject.run.record(
        "trace",
        rows=count,
        num_seeing=num_seeing,
        kernels=sum(event.count for event in kernels) // STEPS,
        device_ms=round(sum(getattr(event, name) for event in kernels) / (1000 * STEPS), 2),
        host_calls={event.key: event.count / STEPS for event in events if event.key in HOST_CALLS},
        longest=[
            (event.key[:70], round(event.count / STEPS, 1), round(getattr(event, name) / (1000 * STEPS), 3))
            for event in kernels[:NUM_KERNELS]
        ],
    )
