"""How the helpers are built: the core imports nothing below it, and all of it can be read in a sitting."""

import ast
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[2] / "rlhf_helpers"
CORE = ["checks", "presets", "data", "models", "rollouts", "ppo", "training"]  # each may import those before it
FILES = [path for path in sorted(HELPERS.rglob("*.py")) if path.name != "__init__.py"]
MODULES = {".".join(path.relative_to(HELPERS).with_suffix("").parts): path for path in FILES}


def imports(path):
    """The modules of the helpers that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_helpers"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from MODULES.keys() & {name.removeprefix("rlhf_helpers.") for name in names}


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_nothing_that_stands_below_it(module):
    late = {"models"} if module == "presets" else set()  # inside a method
    below = set(imports(MODULES[module])) - late - set(CORE[: CORE.index(module)])
    assert not below, f"{module}.py imports {' and '.join(f'{name}.py' for name in below)}, which stands below it"


@pytest.mark.parametrize(
    "what, modules, most",
    [
        ("the core", CORE, 1_295),
        ("beyond/", [m for m in MODULES if m.startswith("beyond.")], 443),
        ("tiny/", [m for m in MODULES if m.startswith("tiny.")], 245),
        ("judges, evaluation and health", ("judges", "evaluation", "health"), 244),
        ("the figures", ["plots"], 328),
        ("set-up, Hub and commands", ("environment", "hub", "smollm2", "__main__"), 310),
    ],
)
def test_it_can_be_read_in_a_sitting(what, modules, most):
    """Where the house stands. The aim is 900 lines for the core and 2,400 for all: lower these when you can."""
    lines = sum(len(MODULES[module].read_text(encoding="utf-8").splitlines()) for module in modules)
    assert lines <= most, f"{what} has {lines} lines; who needs the new ones?"
