"""Imports go one way: between the parts of the library, from it to no reproduction, and in no circle."""

import ast
from graphlib import TopologicalSorter

from reproduce import ROOT

SOURCE = ROOT / "src"
# A module imports from its own part and those before it.
PARTS = [
    "errors", "commit", "clock", "processors", "stop", "streams", "clusters", "cpu", "config", "disk",
    "hashes", "weight_files", "checkpoint_files", "sharded", "hub", "distributed", "codecs",
    "modalities", "corpora", "data", "run_folder", "models", "generation", "evaluation", "serving",
    "training", "arguments", "cli", "__main__",
]  # fmt: skip


def imports() -> dict[str, set[str]]:
    """Every module of ours, with those of ours that it imports anywhere in its code."""
    files = {
        ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
        for package in ("zipper", "reproduce")
        for file in (SOURCE / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        found[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module in files:
                names = {f"{node.module}.{one.name}" for one in node.names}
                found[module] |= names & {*files} or {node.module}
    return found


def test_no_module_imports_a_part_that_builds_on_its_own():
    def place(module: str) -> int:
        parts = module.split(".")
        if parts[0] == "reproduce":
            return len(PARTS) + 1
        return PARTS.index(parts[1]) if len(parts) > 1 else len(PARTS)

    wrong = [
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in others
        if place(other) > place(module)
    ]
    assert wrong == []


def test_no_circle():
    graph = imports()
    assert len(graph) > 100
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError
