"""The engine without its arithmetic: scheduling, page accounting and the process around it.

`handle/` runs in the server's process and `worker/` in the engine process; the modules beside them define what the two
exchange. Plain Python that never imports torch, so that tests can use a fake runner.
"""
