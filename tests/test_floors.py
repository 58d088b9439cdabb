"""The house stands on floors: imports go down only, files and functions stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "varlit"
FLOORS = [
    {"errors", "places", "arrays"},
    {"disks"},
    {"ops"},
    {"models"},
    {"losses", "metrics", "data", "viz", "generation"},
    {"training"},
    {"callbacks", "checkpoints"},
    {"page"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FRONT_DOOR = {"__init__", "__main__"}  # the package itself imports whatever it shows, lazily
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 80
FORBIDDEN_NAMES = {"utils", "util", "misc", "common", "helpers", "helper", "base", "core"}

FILES = sorted(SOURCE.rglob("*.py"))
IDS = [str(path.relative_to(SOURCE)) for path in FILES]
each_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, only_at_import: bool = False) -> Iterator[str]:
    """Yield what a file imports, dotted; optionally only what runs when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if only_at_import and (is_function or is_typing):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_rooms(path: Path) -> set[str]:
    own = [name.split(".") for name in imports_of(path) if name.split(".")[0] == "varlit"]
    return {parts[1] for parts in own if len(parts) > 1 and parts[1] in FLOOR_OF}


def test_there_is_a_house() -> None:
    assert {room_of(path) for path in FILES} - FRONT_DOOR <= set(FLOOR_OF)
    assert len(FILES) > 30


@each_file
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    if room in FRONT_DOOR:
        return
    for target in own_rooms(path):
        assert target == room or FLOOR_OF[target] < FLOOR_OF[room], (
            f"{path.relative_to(SOURCE)} ({room}) must not import {target}"
        )


def test_there_are_no_import_cycles() -> None:
    modules = {module_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for target in imports_of(path, only_at_import=True):
            # `from varlit.x import y` needs varlit.x, or varlit.x.y where that is a module.
            found |= {t for t in (target, target.rpartition(".")[0]) if t in modules}
        graph[name] = found - {name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@each_file
def test_files_are_short(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{num_lines} lines, at most {MAX_FILE_LINES}"


@each_file
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or 0) - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{node.name}: {num_lines} lines"


@each_file
def test_names_say_what_lives_there(path: Path) -> None:
    parts = set(path.relative_to(SOURCE).with_suffix("").parts)
    assert not parts & FORBIDDEN_NAMES


@each_file
def test_code_is_ascii(path: Path) -> None:
    assert path.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("room", ["errors", "places", "ops", "models"])
def test_networks_run_in_a_single_process(room: str) -> None:
    for path in FILES:
        if room_of(path) == room:
            assert not any(name.startswith("torch.distributed") for name in imports_of(path))
            assert "dist.is_initialized" not in path.read_text(encoding="utf-8")
            assert "torch.distributed" not in path.read_text(encoding="utf-8")


def test_ops_know_torch_only() -> None:
    allowed = {"torch", "varlit", "__future__"}
    allowed |= {"abc", "collections", "dataclasses", "functools", "itertools", "math", "typing"}
    allowed |= {"contextlib", "threading"}
    for path in FILES:
        if room_of(path) == "ops":
            names = set(imports_of(path))
            roots = {name.split(".")[0] for name in names}
            assert roots <= allowed, f"{path.name} imports {roots - allowed}"
            assert not any(name.startswith("torch.nn.Module") for name in names)


def test_models_know_no_lightning() -> None:
    for path in FILES:
        if room_of(path) == "models":
            assert not any(name.split(".")[0] == "lightning" for name in imports_of(path))
