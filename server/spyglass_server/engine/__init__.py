"""The engine without its arithmetic: scheduling, page accounting and the process around it.

Plain Python that never imports torch, so that it is tested with a fake runner.
"""
