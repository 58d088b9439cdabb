"""No line of varlit calls what could run a stranger's file: the source is searched for such calls.

A call that is allowed stands here with its file, and its reason in docs/reliability.md.
"""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "varlit"
FILES = sorted(SOURCE.rglob("*.py"))
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "dill.load", "dill.loads", "joblib.load", "cloudpickle.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("torch.hub.load", "torch.package.PackageImporter", "shutil.unpack_archive"),
    "gopen",  # it may start a program for any address; ours know theirs
    *("extract_archive", "download_and_extract_archive", "pandas.read_pickle", "pd.read_pickle"),
}
ONLY_IN = {
    "torch.jit.load": {"metrics/torchscript.py"},
    "importlib.import_module": {"__init__.py", "cli/main.py", "data/tokens/verification.py"},
}
"""Calls that are allowed in these files alone."""
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "get_state_dict": ("weights_only", True),
    "extractall": ("filter", "data"),
    "extract": ("filter", "data"),
    "Image.open": ("formats", ...),
}
"""Calls that are allowed with this argument alone; ... is any value."""
FORBIDDEN_ARGUMENTS = {"trust_remote_code": True, "allow_pickle": True, "shell": True}


def dotted(node: ast.expr) -> str:
    """The name that is called; what a call or an index gives is `_`."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id if isinstance(node, ast.Name) else "_"]))


def is_call_of(name: str, known: str) -> bool:
    """Whether a dotted name ends with a known one; built-ins stand alone."""
    return name == known or (not hasattr(builtins, known) and name.endswith(f".{known}"))


def faults(source: str, file: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {k.arg: getattr(k.value, "value", ...) for k in node.keywords if k.arg}
        where = f"{file}:{node.lineno}: {name}"
        if any(is_call_of(name, never) for never in NEVER):
            yield f"{where} is never called"
        for limited, files in ONLY_IN.items():
            if is_call_of(name, limited) and file not in files:
                yield f"{where} is called in {files} alone"
        for needy, (argument, wanted) in NEEDS.items():
            is_given = argument in given and wanted in (..., given[argument])
            if is_call_of(name, needy) and not is_given:
                yield f"{where} without {argument}={wanted}"
        for argument, value in FORBIDDEN_ARGUMENTS.items():
            if given.get(argument) == value:
                yield f"{where} with {argument}={value}"


def imported_by_name(source: str) -> set[str]:
    """`from torch import load` would hide the call from the search."""
    tree = ast.walk(ast.parse(source))
    froms = [node for node in tree if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(SOURCE)) for p in FILES])
def test_nothing_is_called_that_runs_a_file(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not list(faults(source, str(path.relative_to(SOURCE))))
    assert not imported_by_name(source) & {*NEVER, *NEEDS, *ONLY_IN}


@pytest.mark.parametrize(
    "line",
    [
        *("eval('1')", "exec(x)", "__import__('os')", "os.system('x')", "pickle.load(f)"),
        *("yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)", "torch.load(p)"),
        *("torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)"),
        *("np.load(p)", "np.load(p, allow_pickle=True)", "np.save(p, x, allow_pickle=True)"),
        *("tar.extractall(d)", "tar.extractall(d, filter='fully_trusted')", "z.extract(m, d)"),
        *("torch.jit.load(p)", "torch.hub.load('a', 'b')", "importlib.import_module(n)"),
        *("Image.open(p)", "PIL.Image.open(p)", "subprocess.run(c, shell=True)"),
        *("load_dataset(n, trust_remote_code=True)", "extract_archive(a, b)", "gopen(u)"),
        *("weights.get_state_dict(progress=True)", "datasets.utils.extract_archive(a)"),
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert list(faults(line, "some/file.py"))


@pytest.mark.parametrize(
    "line",
    [
        *("model.eval()", "re.compile('x')", "torch.compile(m)", "yaml.safe_load(t)"),
        *("torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "json.load(f)"),
        *("Image.open(p, formats=FORMATS)", "subprocess.run(['a'])", "features.extract_all()"),
        "path.open()",
        "tar.extract(m, d, set_attrs=False, filter='data')",
    ],
)
def test_a_harmless_line_is_let_pass(line: str) -> None:
    assert not list(faults(line, "some/file.py"))
