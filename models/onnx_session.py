"""ONNX Runtime sessions as all models use them: one thread, few log lines, no telemetry (see `telemetry.py`)."""

from pathlib import Path

import onnxruntime as ort

_LOG_ERRORS = 3


class SessionError(RuntimeError):
    """ONNX Runtime cannot load a graph; the message names the file, the reason and what to do."""


def create_session(graph: Path | bytes) -> ort.InferenceSession:
    """Session over a graph, given by its path or its bytes. Raises SessionError."""
    # The variable in `telemetry.py` comes too late if the caller's program has imported ONNX Runtime before.
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    try:
        return ort.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes have no other base
        name = "a graph" if isinstance(graph, bytes) else str(graph)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SessionError(
            f"{name} cannot be loaded by ONNX Runtime ({reason}); if memory is short, free some or raise the limit of "
            "this process, else copy the model again"
        ) from error
