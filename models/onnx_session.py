"""ONNX Runtime as all models use it: one thread, quiet, and telling nobody."""

from pathlib import Path

import onnxruntime as ort


def session(graph: Path | bytes) -> ort.InferenceSession:
    """A session over a graph, at a path or as bytes."""
    ort.disable_telemetry_events()  # what happens in the shop stays in the shop
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), sess_options=options, providers=["CPUExecutionProvider"]
    )
