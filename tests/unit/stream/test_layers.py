"""The structure of the code: layers, pure modules, no circles of imports, no overlong lines and functions."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BELOW = {"stream": (), "models": ("stream",), "agents": ("models", "stream"), "deploy": ("agents", "models", "stream")}
# Modules of `stream` that read the environment, count, log or hold state; everything else outside of `kafka` is pure.
IMPURE = {"settings.py", "metrics.py", "logs.py", "store.py"}
FOREIGN = {"faust", "mode", "aiokafka", "onnxruntime", "onnx", "prometheus_client", "torch", "transformers"}
CLOCKS = {"time", "datetime.now", "datetime.utcnow", "datetime.today", "asyncio", "random", "uuid"}
MAX_LINE_CHARS = 120
MAX_FUNCTION_LINES = 100


def sources() -> list[Path]:
    return [path for layer in BELOW for path in sorted((ROOT / layer).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions and for type checking too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yield the strongly connected components of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[list[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                yield from visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                yield component

    for node in graph:
        if node not in index:
            yield from visit(node)


@pytest.mark.slow
def test_a_layer_imports_only_layers_below_it() -> None:
    for layer, below in BELOW.items():
        forbidden = set(BELOW) - set(below) - {layer}
        for path in (ROOT / layer).rglob("*.py"):
            wrong = {name for name in imports(path) if name.split(".")[0] in forbidden}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_name(path): path for path in sources()}
    graph = {name: {found for found in imports(path) if found in modules} for name, path in modules.items()}
    assert not list(circles(graph))


def test_circles_are_found() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == [["b", "c"]]
    assert not list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}))


@pytest.mark.slow
def test_the_domain_uses_no_kafka_no_onnx_and_no_clock() -> None:
    domain = [path for path in (ROOT / "stream").rglob("*.py") if path.name not in IMPURE and "kafka" not in path.parts]
    assert len(domain) > 10
    for path in domain:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & (FOREIGN | CLOCKS), f"{path.name} imports {roots & (FOREIGN | CLOCKS)}"
        assert not any(module.startswith("stream.kafka") for module in imports(path))
        calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        assert not calls & CLOCKS, f"{path.name} reads a clock: {calls & CLOCKS}"


@pytest.mark.slow
def test_models_and_deploy_do_not_import_faust() -> None:
    layers = [*(ROOT / "models").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")]
    for path in set(layers) - {ROOT / "deploy" / "bench" / "naive.py"}:  # the naive agent is the benchmarks' baseline
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"faust", "mode"}, path


@pytest.mark.slow
def test_no_function_is_longer_than_a_hundred_lines() -> None:
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_no_line_is_longer_than_120_characters() -> None:
    """Tables in Markdown are excepted: a row cannot be wrapped."""
    texts = [path for layer in (*BELOW, "tests") for path in (ROOT / layer).rglob("*.py")]
    for path in [*texts, *ROOT.glob("*.md"), *(path for layer in BELOW for path in (ROOT / layer).rglob("*.md"))]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not (path.suffix == ".md" and line.startswith("|")):
                assert len(line) <= MAX_LINE_CHARS, f"{path.relative_to(ROOT)}:{number} has {len(line)} characters"
