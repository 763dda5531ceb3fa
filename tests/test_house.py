"""The architecture: arrows run one way, every room keeps to its task.

simd -> kernels -> isa -> core -> bindings -> _core -> buffers -> ... -> cli
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from vegrad import _core

ROOT = Path(__file__).parent.parent
CPP = ROOT / "cpp"
PYTHON = ROOT / "python" / "vegrad"

CPP_ROOMS = ["simd", "kernels", "isa", "core", "bindings"]
# Rooms of a room, with the same rule: each may include those before it.
CPP_INNER_ROOMS = {"core": ["runtime", "buffers", "network"]}
# Each module may import those before it. A new module finds its place here first.
MODULES = ["_core", "buffers", "datasets", "clipping", "measurement", "optim", "files",
           "findings", "descent", "history", "training", "gaussian", "meanfield",
           "initializers", "network", "propagation", "expected", "theory", "measured",
           "rules", "diagnosis", "recorded", "treatment", "remedies", "trial", "learnable",
           "cured", "cure_report", "cure", "report", "theory_report", "svg", "charts",
           "training_charts", "style", "page", "options", "cli_train", "cli_cure",
           "cli_theory", "timing", "machine", "peers", "limits", "benchmark", "cli_bench",
           "torch", "cli"]  # fmt: skip
# The arrows back: Diagnosis and Cure leave text, picture and page to others, when called.
ARROWS_BACK = {("diagnosis", "report"), ("diagnosis", "page"), ("cured", "cure_report")}
PACKAGES = {"torch", "peers"}  # whose files may import each other
# Who may import a framework: what works under it, and the peer that vegrad is timed beside. The
# latter only in functions, as nobody needs the framework who does not run that peer.
FRAMEWORKS = {"torch": ("torch/", "peers/torch.py"), "jax": ("peers/jax.py",)}
LONGEST = 450

pytestmark = pytest.mark.skipif(not PYTHON.is_dir(), reason="an installed package has no house")


def cpp_files(*rooms: str) -> list[Path]:
    found = [p for room in rooms or CPP_ROOMS for p in sorted((CPP / room).rglob("*.[ch]pp"))]
    assert found
    return found


def python_files() -> list[Path]:
    return sorted(PYTHON.rglob("*.py"))


def module_of(path: Path) -> str:
    """The module's name, or that of the package under vegrad that it is in."""
    return path.relative_to(PYTHON).with_suffix("").parts[0]


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
    """Modules of vegrad that a file imports anywhere, and whether inside a function.

    Those under `if TYPE_CHECKING:` are no arrows: nothing is imported when the program runs.
    """

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, in_function)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "vegrad":
                    yield (parts[1] if len(parts) > 1 else ""), in_function
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == 0 and parts[0] == "vegrad":
                parts = parts[1:]
            elif node.level == 0:
                return
            if parts and parts[0]:
                yield parts[0], in_function
            else:
                for alias in node.names:
                    yield (alias.name if alias.name in MODULES else ""), in_function
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(ast.parse(path.read_text(encoding="utf-8")), False)


def test_every_module_has_its_place() -> None:
    known = {*MODULES, "__init__", "__main__"}
    assert {module_of(path) for path in python_files()} <= known
    folders = [p.name for p in PYTHON.iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert set(folders) <= PACKAGES


@pytest.mark.parametrize("file", names([p for p in python_files() if module_of(p) in MODULES]))
def test_imports_run_one_way(file: str) -> None:
    module = module_of(ROOT / file)
    for imported, in_function in imports(ROOT / file):
        assert imported, f"{module} must import from the module, not from vegrad itself"
        if in_function and (module, imported) in ARROWS_BACK:
            continue
        if imported == module and module in PACKAGES:
            continue
        assert imported in MODULES
        assert MODULES.index(imported) < MODULES.index(module), (
            f"{module} must not import {imported}"
        )
        assert (module, imported) != ("cli", "torch")


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
            assert in_function or not inside.startswith("peers/")


def test_init_has_public_names_and_nothing_else() -> None:
    tree = ast.parse((PYTHON / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        documented = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        listed = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert documented or listed or isinstance(node, ast.Import | ast.ImportFrom)


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


def test_no_file_is_long() -> None:
    folders = ["cpp", "python", "tests", "bench"]
    suffixes = {".py", ".pyi", ".cpp", ".hpp"}
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert lengths
    assert {file: n for file, n in lengths.items() if n > LONGEST} == {}


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
