"""Print sizes of functions and modules of hostd/ against the limits of the house; exit 1 above a hard one."""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

FUNCTION_LINES_MAX = 70
MODULE_LINES_WANTED = 450
MODULE_LINES_MAX = 700
MEDIAN_WANTED = 8
P95_WANTED = 30


def code_lines(node: ast.AST, lines: list[str]) -> int:
    """Lines of a function that hold code: no blank ones, comments or docstring."""
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    body = node.body
    has_docstring = ast.get_docstring(node) is not None
    first = body[1] if has_docstring and len(body) > 1 else body[0]
    span = lines[first.lineno - 1 : node.end_lineno]
    return sum(1 for line in span if line.strip() and not line.strip().startswith("#"))


def main() -> int:
    """Measure every module below hostd/."""
    functions: list[tuple[int, str]] = []
    modules: list[tuple[int, str]] = []
    for path in sorted(Path("hostd").rglob("*.py")):
        text = path.read_text()
        lines = text.splitlines()
        modules.append((len(lines), str(path)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions.append((code_lines(node, lines), f"{path}:{node.lineno} {node.name}"))
    sizes = sorted(size for size, _ in functions)
    p95 = sizes[int(len(sizes) * 0.95)]
    print(
        f"functions  {len(sizes)}, median {statistics.median(sizes):g} (wanted <= {MEDIAN_WANTED}),"
        f" 95 % {p95} (wanted <= {P95_WANTED}), longest {sizes[-1]} (limit {FUNCTION_LINES_MAX})"
    )
    print(
        f"modules    {len(modules)}, longest {max(modules)[0]} lines (wanted <= {MODULE_LINES_WANTED}, limit {MODULE_LINES_MAX})"
    )
    for size, name in sorted(functions, reverse=True)[:5]:
        print(f"  {size:4} {name}")
    for size, name in sorted(modules, reverse=True)[:5]:
        print(f"  {size:4} {name}")
    return int(sizes[-1] > FUNCTION_LINES_MAX or max(modules)[0] > MODULE_LINES_MAX)


if __name__ == "__main__":
    sys.exit(main())
