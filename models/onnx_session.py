"""ONNX Runtime sessions as all models use them: one thread, few log lines, no telemetry."""

from pathlib import Path

import onnxruntime as ort

_LOG_ERRORS = 3


def create_session(graph: Path | bytes) -> ort.InferenceSession:
    """Session over a graph, given by its path or its bytes."""
    # The shop's data must not leave the machine.
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    return ort.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), sess_options=options, providers=["CPUExecutionProvider"]
    )
