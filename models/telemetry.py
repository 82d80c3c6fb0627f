"""Keeps libraries from reporting to their makers. `models/__init__.py` imports this before any of them is imported.

ONNX Runtime 1.32 reads its variable when it is imported. Without it, it writes a device id and a queue of events below
HOME and looks up an upload host; `onnxruntime.disable_telemetry_events()` comes too late for that. So ONNX Runtime and
the libraries of Hugging Face are imported below `models/` alone, or after a module of it: a test checks that.

A variable holds for child processes too. Values that the user has set are overwritten: what the shop knows stays there.
"""

import os

SWITCHED_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers
    "DO_NOT_TRACK": "1",  # the common name, which huggingface_hub and others read
}

os.environ.update(SWITCHED_OFF)
