"""The layers of the design: deploy -> agents -> models -> stream, and a domain that knows neither Kafka nor a clock."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
BELOW = {"stream": (), "models": ("stream",), "agents": ("models", "stream"), "deploy": ("agents", "models", "stream")}
# Pure modules of `stream`: everything but Kafka and the files that read the environment, count or log.
IMPURE = {"settings.py", "metrics.py", "logs.py", "store.py"}
FOREIGN = {"faust", "mode", "aiokafka", "onnxruntime", "onnx", "prometheus_client", "torch", "transformers"}
CLOCKS = {"time", "datetime.now", "datetime.utcnow", "datetime.today", "asyncio", "random", "uuid"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_a_layer_imports_only_what_lies_below_it() -> None:
    for layer, below in BELOW.items():
        forbidden = set(BELOW) - set(below) - {layer}
        for path in (ROOT / layer).rglob("*.py"):
            wrong = {name for name in imports(path) if name.split(".")[0] in forbidden}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_domain_knows_no_kafka_no_onnx_and_no_clock() -> None:
    domain = [path for path in (ROOT / "stream").rglob("*.py") if path.name not in IMPURE and "kafka" not in path.parts]
    assert len(domain) > 10
    for path in domain:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & (FOREIGN | CLOCKS), f"{path.name} imports {roots & (FOREIGN | CLOCKS)}"
        assert not any(module.startswith("stream.kafka") for module in imports(path))
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not calls & CLOCKS, f"{path.name} reads a clock: {calls & CLOCKS}"


def test_the_edge_and_the_models_do_not_know_the_agents_framework() -> None:
    ours = [*(ROOT / "models").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")]
    for path in set(ours) - {ROOT / "deploy" / "bench" / "naive.py"}:  # what we compare ourselves with
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"faust", "mode"}, path
