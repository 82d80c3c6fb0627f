"""A graph that cannot be loaded is named, with the reason of ONNX Runtime in a sentence."""

from pathlib import Path

import pytest

from models.onnx_session import SessionError, create_session


def test_a_graph_that_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path) -> None:
    graph = tmp_path / "softmax.onnx"
    graph.write_bytes(b"not a graph")
    with pytest.raises(
        SessionError, match=rf"{graph} cannot be loaded by ONNX Runtime \(.*\); if memory is short"
    ) as error:
        create_session(graph)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(SessionError, match="a graph cannot be loaded"):
        create_session(b"not a graph")
