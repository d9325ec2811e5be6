"""Baselines: Hugging Face transformers behind the same endpoint, to compare vLLM with.

A baseline is a Ray Serve deployment on the direct path, with the same gate and the same HTTP API,
so the engine is the only difference. As in vLLM, the model runs in a separate process. Its Python
loop launches GPU kernels and would otherwise share a process with the HTTP server.
"""
