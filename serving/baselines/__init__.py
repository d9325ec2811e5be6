"""Hugging Face transformers behind the same endpoint: what vLLM is measured against.

A baseline is a Ray Serve deployment on the direct path behind the same gate, with the same HTTP
API, so that the engine is the only difference. As in vLLM, the model runs in a process of its own:
the work of HTTP then takes nothing from a loop that launches kernels from Python.

    spec.py        BaselineSpec and the four strategies, as data
    app.py         the Serve application
    replica.py     the deployment's class: the engine's process, and the gate
    api.py         OpenAI's HTTP API: completions and chat, streamed or whole; models
    link.py        the replica's end of the pipe to the engine
    engine.py      the engine's process
    rows.py        one request, as engines see it; what is counted
    batches.py     one at a time, static and dynamic batches: `generate`
    continuous.py  transformers' own continuous batching
    loading.py     the model, from weights or with random ones
"""
