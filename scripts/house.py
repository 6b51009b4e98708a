"""Print sizes of functions and modules of hostd/ beside their limits; exit 1 above a hard one."""

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
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    body = node.body
    has_docstring = ast.get_docstring(node) is not None
    first = body[1] if has_docstring and len(body) > 1 else body[0]
    span = lines[first.lineno - 1 : node.end_lineno]
    return sum(1 for line in span if line.strip() and not line.strip().startswith("#"))


def measure() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Sizes and names of all functions, and of all modules, largest first."""
    functions: list[tuple[int, str]] = []
    modules: list[tuple[int, str]] = []
    for path in sorted(Path("hostd").rglob("*.py")):
        text = path.read_text()
        lines = text.splitlines()
        modules.append((len(lines), str(path)))
        functions += [
            (code_lines(node, lines), f"{path}:{node.lineno} {node.name}")
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    return sorted(functions, reverse=True), sorted(modules, reverse=True)


def main() -> int:
    """Print the figures and the five largest of each kind."""
    functions, modules = measure()
    sizes = sorted(size for size, _ in functions)
    longest, longest_module = functions[0][0], modules[0][0]
    print(
        f"functions  {len(sizes)}, "
        f"median {statistics.median(sizes):g} (wanted <= {MEDIAN_WANTED}), "
        f"95 % {sizes[int(len(sizes) * 0.95)]} (wanted <= {P95_WANTED}), "
        f"longest {longest} (limit {FUNCTION_LINES_MAX})"
    )
    print(
        f"modules    {len(modules)}, longest {longest_module} lines "
        f"(wanted <= {MODULE_LINES_WANTED}, limit {MODULE_LINES_MAX})"
    )
    for size, name in functions[:5] + modules[:5]:
        print(f"  {size:4} {name}")
    return int(longest > FUNCTION_LINES_MAX or longest_module > MODULE_LINES_MAX)


if __name__ == "__main__":
    sys.exit(main())
