"""The architecture: arrows run one way, every room keeps to its task.

simd -> kernels -> isa -> core -> bindings -> _core -> arrays -> ... -> cli
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import vegrad
from vegrad import _core

ROOT = Path(__file__).parents[2]
CPP = ROOT / "cpp"
PYTHON = ROOT / "python" / "vegrad"

CPP_ROOMS = ["simd", "kernels", "isa", "core", "bindings"]
# Rooms of a room, with the same rule: each may include those before it.
CPP_INNER_ROOMS = {"core": ["runtime", "buffers", "network", "recurrent", "tables"]}
# Bottom up: a package imports what stands above it in this list, or itself.
LAYERS = ["_core", "arrays", "pictures", "sweeps", "activations", "clipping", "optim",
          "datasets", "theory", "flow", "reports", "diagnosis", "runs", "treatment",
          "recordings", "networks", "sklearn", "torch", "jax", "benchmark", "watching",
          "cli"]  # fmt: skip
FRONT_ENDS = {"recordings", "networks", "sklearn", "torch", "jax"}
# The front ends that stand on another, whose networks theirs are turned into.
STAND_ON = {("sklearn", "networks")}
# Who may import a framework: the front end for it, and the peer that vegrad is timed beside. The
# latter only in functions, as nobody needs the framework who does not run that peer.
FRAMEWORKS = {
    "torch": ("torch/", "benchmark/peers/torch.py"),
    "sklearn": ("sklearn/", "datasets/files.py"),
    "jax": ("jax/", "benchmark/peers/jax.py"),
}
LONGEST = {"cpp": 400, "python": 400, "bench": 400, "tests": 450}

pytestmark = pytest.mark.skipif(not PYTHON.is_dir(), reason="an installed package has no house")


def cpp_files(*rooms: str) -> list[Path]:
    found = [p for room in rooms or CPP_ROOMS for p in sorted((CPP / room).rglob("*.[ch]pp"))]
    assert found
    return found


def python_files() -> list[Path]:
    return sorted(PYTHON.rglob("*.py"))


def code_of(path: Path) -> str:
    """C++ without comments and string literals."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return "\n".join(re.sub(r"//.*", "", line) for line in text.splitlines())


def includes(path: Path) -> tuple[list[str], list[str]]:
    """Names in quotes and names in brackets."""
    code = code_of(path)
    own = re.findall(r'^\s*#\s*include\s*"([^"]+)"', code, flags=re.MULTILINE)
    others = re.findall(r"^\s*#\s*include\s*<([^>]+)>", code, flags=re.MULTILINE)
    return own, others


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


# ------------------------------------------------------------------------------------------ C++


def test_every_cpp_file_is_in_a_room() -> None:
    everything = {p for p in CPP.rglob("*") if p.suffix in {".cpp", ".hpp", ".h", ".cc", ".cxx"}}
    assert everything == set(cpp_files())


@pytest.mark.parametrize("file", names(cpp_files()))
def test_includes_run_one_way(file: str) -> None:
    path = ROOT / file
    room = CPP_ROOMS.index(path.relative_to(CPP).parts[0])
    for include in includes(path)[0]:
        there, slash, _ = include.partition("/")
        assert slash, f'"{include}" must be written from cpp/ on, as "room/file.hpp"'
        assert (CPP / include).is_file(), f'"{include}" is not there'
        assert there in CPP_ROOMS[: room + 1], f"{file} must not include {include}"


@pytest.mark.parametrize("file", names(cpp_files(*CPP_INNER_ROOMS)))
def test_includes_run_one_way_inside_a_room(file: str) -> None:
    path = ROOT / file
    outer, inner, *_ = path.relative_to(CPP).parts
    rooms = CPP_INNER_ROOMS[outer]
    assert inner in rooms, f"{file} must be in one of the rooms {rooms}"
    for include in includes(path)[0]:
        there = include.split("/")
        if there[0] == outer:
            assert there[1] in rooms[: rooms.index(inner) + 1], f"{file} must not include {include}"


def test_no_cpp_file_is_long() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in cpp_files()}
    assert [str(p) for p, n in lengths.items() if n > 400] == []


@pytest.mark.parametrize("file", names(cpp_files("simd", "kernels", "isa", "core")))
def test_only_the_bindings_know_python(file: str) -> None:
    code = code_of(ROOT / file)
    assert not re.search(r"pybind11|Python\.h|numpy/|\bPy[A-Z_]\w*\(|\bpy::", code)


def stripped_of_includes(path: Path) -> str:
    return re.sub(r"^\s*#\s*include.*", "", code_of(path), flags=re.MULTILINE)


@pytest.mark.parametrize("file", names(cpp_files("simd", "kernels", "isa")))
def test_kernels_are_free_of_the_standard_library(file: str) -> None:
    """The linker might keep a template instantiated here, with AVX-512, as the copy for all."""
    path = ROOT / file
    allowed = {"cstddef", "cstdint", "cstring", "cmath", "cfloat", "climits", "limits",
               "immintrin.h", "arm_neon.h", "xmmintrin.h", "stddef.h", "stdint.h"}  # fmt: skip
    assert set(includes(path)[1]) <= allowed
    code = stripped_of_includes(path)
    plain = {"std::size_t", "std::ptrdiff_t", "std::numeric_limits"}
    used = set(re.findall(r"std::\w+", code))
    integers = {name for name in used if re.fullmatch(r"std::u?int\d+_t", name)}
    assert used <= plain | integers
    assert not re.search(r"\bnew\b|\bmalloc\b|\bthrow\b|\bthread_local\b", code)
    assert not re.search(r"\[[&=]?\]\s*\(", code), "no lambdas: their type may leak out"


@pytest.mark.parametrize("file", names(cpp_files("isa")))
def test_target_regions_hold_only_the_kernels(file: str) -> None:
    """Standard headers come before the region, so that they are compiled for every machine."""
    code = code_of(ROOT / file)
    opening = re.search(r"#\s*pragma\s+(GCC\s+(push_options|target)|clang\s+attribute)", code)
    if opening is None:
        pytest.skip("no region")
    assert not re.search(r"#\s*include\s*<", code[opening.start() :])


# --------------------------------------------------------------------------------------- Python


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules of vegrad that a file imports, wherever, and whether inside a function."""
    package = ".".join(path.relative_to(PYTHON.parent).with_suffix("").parts[:-1])

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by full names"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            found = []
        for name in found:
            if name.split(".")[0] == "vegrad":
                yield name.removeprefix("vegrad").removeprefix("."), in_function
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    assert package
    return visit(ast.parse(path.read_text(encoding="utf-8")), False)


def layer_of(module: str) -> str:
    """The entry of LAYERS that `arrays.checks.as_batch` and the like belong to."""
    parts = module.split(".")
    found = [layer for layer in LAYERS if parts[: len(layer.split("."))] == layer.split(".")]
    assert found, f"vegrad.{module} has no place in LAYERS"
    return max(found, key=len)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PYTHON).with_suffix("").parts)


@pytest.mark.parametrize(
    "file",
    names(
        [p for p in python_files() if p.parent != PYTHON or p.stem not in {"__init__", "__main__"}]
    ),
)
def test_imports_run_one_way(file: str) -> None:
    own = layer_of(module_of(ROOT / file))
    for imported, _ in imports(ROOT / file):
        assert imported, f"{file} must import from the module, not from vegrad itself"
        other = layer_of(imported)
        assert LAYERS.index(other) <= LAYERS.index(own), f"{file} must not import {imported}"
        front = own.split(".")[0], other.split(".")[0]
        alone = front in STAND_ON or len({*front} & FRONT_ENDS) < 2
        assert alone, f"{file}: no front end imports another ({imported})"


def files_by_module() -> dict[str, Path]:
    return {module_of(path).removesuffix(".__init__"): path for path in python_files()}


def test_there_is_no_circle() -> None:
    """Not even one that only a function or a type checker would close."""
    known = files_by_module()
    below = {
        module: {
            name if name in known else name.rpartition(".")[0] for name, _ in imports(path) if name
        }
        & known.keys()
        for module, path in known.items()
        if not path.name.startswith("__")
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for one in sorted(below.get(module, ())):
                visit(one, (*way, module))
            done.add(module)

    for module in sorted(below):
        visit(module, ())


@pytest.mark.parametrize("file", names(python_files()))
def test_functions_import_optional_packages_only(file: str) -> None:
    inner = [name for name, in_function in imports(ROOT / file) if in_function]
    assert [name for name in inner if layer_of(name) != "torch"] == []


def outside(path: Path) -> Iterator[tuple[str, bool]]:
    """Other packages that a file imports, by a statement or by name, and whether in a function."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[str, bool]]:
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found = [a.value for a in node.args if isinstance(a, ast.Constant)]
        yield from ((name.split(".")[0], in_function) for name in found)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.mark.parametrize("file", names(python_files()))
def test_frameworks_stay_in_their_rooms(file: str) -> None:
    inside = (ROOT / file).relative_to(PYTHON).as_posix()
    for name, in_function in outside(ROOT / file):
        if name in FRAMEWORKS:
            assert inside.startswith(FRAMEWORKS[name]), f"{file} must not import {name}"
            assert in_function or not inside.startswith(("benchmark/", "datasets/"))


def test_the_stub_of_the_package_names_what_it_imports_later() -> None:
    """`vegrad.__getattr__` imports what type checkers read in __init__.pyi."""
    stub: dict[str, str] = {}
    for node in ast.parse((PYTHON / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            stub |= {alias.name: str(node.module) for alias in node.names}
    assert stub.keys() == {*vegrad.__all__}
    later = {name: module for name, module in stub.items() if name in vegrad._LATER}
    assert later == vegrad._LATER
    for name, module in stub.items():
        found = importlib.import_module(module)
        assert getattr(vegrad, name) is getattr(found, name), name
    with pytest.raises(AttributeError, match="no attribute 'cur'"):
        _ = vegrad.cur


# ------------------------------------------------------------------------ the compiled module


def parameter_names(signature: str) -> list[str]:
    """The names in `name(a: T, b: U = 1) -> V`, as pybind11 writes it."""
    inner, depth, parts, current = signature, 0, [], ""
    for letter in inner[inner.index("(") + 1 :]:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [part.split(":")[0].split("=")[0].strip() for part in [*parts, current] if part.strip()]


def stub_functions() -> Iterator[tuple[str, list[str]]]:
    """`name` or `Class.name`, and its arguments, from _core.pyi."""
    tree = ast.parse((PYTHON / "_core.pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, [a.arg for a in node.args.args + node.args.kwonlyargs]
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                is_property = isinstance(method, ast.FunctionDef) and method.decorator_list
                if isinstance(method, ast.FunctionDef) and not is_property:
                    arguments = method.args.args + method.args.kwonlyargs
                    yield f"{node.name}.{method.name}", [a.arg for a in arguments]


@pytest.mark.parametrize(("name", "arguments"), list(stub_functions()))
def test_stubs_name_the_arguments_of_the_compiled_module(name: str, arguments: list[str]) -> None:
    thing: object = _core
    for part in name.split("."):
        thing = getattr(thing, part)
    documentation = thing.__doc__ or ""
    short = name.rpartition(".")[2]
    lines = [s for s in documentation.splitlines() if re.match(rf"(\d+\. )?{short}\(", s)]
    lines = [line for line in lines if "(*args, **kwargs)" not in line]
    assert lines, f"{name} has no signature line"
    assert arguments in [parameter_names(line) for line in lines], f"{arguments} are not in {lines}"


def test_stubs_name_everything_in_the_compiled_module() -> None:
    tree = ast.parse((PYTHON / "_core.pyi").read_text(encoding="utf-8"))
    stubbed = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            stubbed.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            stubbed.add(ast.unparse(node.target))
    compiled = {name for name in dir(_core) if not name.startswith("_")} | {"__version__"}
    assert compiled == stubbed - {"Array"}


# ------------------------------------------------------------------------------------ the house


@pytest.mark.parametrize(("folder", "most"), LONGEST.items())
def test_no_file_is_long(folder: str, most: int) -> None:
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".pyi", ".cpp", ".hpp"}]
    assert files
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
    }
    assert {file: n for file, n in lengths.items() if n > most} == {}


@pytest.mark.parametrize("file", names(cpp_files()))
def test_headers_are_included_once(file: str) -> None:
    if file.endswith(".hpp"):
        assert "#pragma once" in (ROOT / file).read_text(encoding="utf-8")


def test_no_fast_math() -> None:
    """NaN and infinity are what this library is about."""
    build = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    sources = build + "".join(path.read_text(encoding="utf-8") for path in cpp_files())
    assert not re.search(r"-ffast-math|-Ofast|/fp:fast|-funsafe-math|-ffinite-math", sources)
    assert not re.search(r"optimize\s*\(\s*\"[^\"]*fast", sources)


def test_no_lock_stays_closed_after_a_fork() -> None:
    """That of functools has a lock up to Python 3.11; pybind11's release aborts daemon threads."""
    own = PYTHON / "arrays" / "cached.py"
    imported = re.compile(r"functools import .*\bcached_property|functools\.cached_property")
    assert [p for p in python_files() if p != own and imported.search(p.read_text("utf-8"))] == []
    held = re.compile(r"gil_scoped_(release|acquire)|std::(recursive_)?mutex running")
    assert [p for p in cpp_files() if held.search(code_of(p))] == []
