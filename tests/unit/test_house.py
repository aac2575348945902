"""How the helpers are built: the core imports nothing below it, and all of it can be read in a sitting."""

import ast
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[2] / "rlhf_helpers"
# what stands higher may be imported by what stands lower; modules on one line know nothing of each other
FLOORS = [
    ("checks",), ("presets", "data"), ("models",), ("rollouts",), ("ppo", "training"),  # the core
    ("environment", "tiny.grammar", "tiny.dialogues"), ("tiny.posts",), ("judges",),
    ("evaluation", "health", "plots", "hub", "smollm2"),
    ("beyond.judging", "beyond.preferences", "beyond.loops", "beyond.parallel"), ("__main__",),
]  # fmt: skip
CORE = [module for floor in FLOORS[:5] for module in floor]
FLOOR_OF = {module: i for i, floor in enumerate(FLOORS) for module in floor}


def name_of(path):
    return ".".join(path.relative_to(HELPERS).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(HELPERS.rglob("*.py")) if path.name != "__init__.py"}


def imports(path):
    """The modules of the helpers that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlhf_helpers"):
            package = node.module.removeprefix("rlhf_helpers").lstrip(".")
            inside = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
            yield from (name for name in inside if name in MODULES)
            yield from [package] if package in MODULES else []


def test_every_module_has_its_floor():
    assert set(MODULES) == set(FLOOR_OF)


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_points_down(module):
    arrows = []
    for other in imports(MODULES[module]):
        late = (module, other) == ("presets", "models")  # inside a method: one module of the core asks another
        if FLOOR_OF[other] >= FLOOR_OF[module] and not late:
            arrows.append(f"{module}.py imports {other}.py, which stands below it")
    assert not arrows, "; ".join(arrows)


def lines(*modules):
    return sum(MODULES[module].read_text(encoding="utf-8").count("\n") for module in modules)


@pytest.mark.parametrize(
    "what, modules, most",
    [
        ("the core", CORE, 1_281),
        ("beyond/", [m for m in MODULES if m.startswith("beyond.")], 448),
        ("tiny/", [m for m in MODULES if m.startswith("tiny.")], 245),
        ("judges, evaluation and health", ("judges", "evaluation", "health"), 244),
        ("the figures", ["plots"], 336),
        ("set-up, Hub and commands", ("environment", "hub", "smollm2", "__main__"), 310),
    ],
)
def test_it_can_be_read_in_a_sitting(what, modules, most):
    """Where the house stands. The aim is 900 lines for the core and 2,400 for all: lower these when you can."""
    assert lines(*modules) <= most, f"{what} has {lines(*modules)} lines; who needs the new ones?"
