"""Developers' tasks: `nox` runs the quick ones, `nox -s NAME` one of them, `nox -l` lists all.

    pip install nox

`.ci/run` decides whether a change may land, and needs no nox. Both read what they would otherwise
repeat: the tools and their versions from the extras in pyproject.toml, the test command from
README.md, the exceptions of stubtest from .ci/stubtest-allowed.txt.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "docs"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
# Optimizing the module once more when it is linked takes minutes of a build for tests.
AS_COMPILED = ("-C", "cmake.define.CMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/**/*.md")


def extra(name: str) -> list[str]:
    """Return the packages of an extra, without vegrad itself."""
    return [package for package in EXTRAS[name] if not package.startswith("vegrad")]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the README's test command; further arguments go to pytest."""
    found = re.search(r"^pip install .* && pytest$", Path("README.md").read_text("utf-8"), re.M)
    if found is None:
        session.error("README.md has no test command")
    *first, last = found[0].split(" && ")
    for command in first:
        session.run(*shlex.split(command))
    session.run(*shlex.split(last), *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style of Python and C++, the spelling, and the workflows for what is unsafe."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    if set(re.findall(r"[\w-]+==[\d.]+", hooks)) != set(extra("lint")):
        session.error(".pre-commit-config.yaml has other versions than the lint extra")
    session.install(*extra("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    files = session.run("git", "ls-files", "*.cpp", "*.hpp", external=True, silent=True)
    session.run("clang-format", "--dry-run", "--Werror", *str(files).split())
    session.run("zizmor", "--offline", "--persona", "pedantic", ".github")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, and the stub of the compiled module against the module."""
    session.install(".[cli]", *extra("lint"))
    session.run("mypy")
    session.chdir(session.create_tmp())  # away from the source, whose package has no module
    allowed = ROOT / ".ci" / "stubtest-allowed.txt"
    session.run("stubtest", "--allowlist", str(allowed), "vegrad._core")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/site, without a warning; check the links of other documents."""
    session.install(".[cli]", *extra("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-j", "auto", "docs", "build/site")
    documents = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    broken = [line for path in documents for line in broken_links(path)]
    if broken:
        session.error("\n".join(["links that point nowhere:", *broken]))
    session.log(f"the links of {len(documents)} documents are right")


def broken_links(document: Path) -> list[str]:
    """Return "document: target" for each link whose file or heading does not exist."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        name, _, anchor = target.partition("#")
        if ":" in name:  # an address
            continue
        path = document.parent / name if name else document
        missing = anchor and path.suffix == ".md" and path.is_file() and anchor not in anchors(path)
        if missing or not path.exists():
            broken.append(f"{document.relative_to(ROOT)}: {target}")
    return broken


def anchors(document: Path) -> set[str]:
    """Return the names by which GitHub links to the headings of a document."""
    headings = re.findall(r"^#+ +(.*)$", text_of(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def text_of(document: Path) -> str:
    """Read a document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure which lines of Python and C++ the tests run; arguments go to pytest.

    Prints what is below 90 %, with the reason in .ci/coverage.toml, and the whole; it is an error
    if there is no reason. A test that fails hides no figure. Processes that tests start count, too.
    """
    session.install("coverage>=7.10", "gcovr>=8", "torch==2.13.0", "polars", *extra("tables"))
    session.install("jax", "optax", "flax", "equinox", "dm-haiku", "keras", *extra("torch-loggers"))
    build, found = ROOT / "build" / "coverage", Path(session.create_tmp())
    core = ["-C", "cmake.define.VEGRAD_COVERAGE=ON", "-C", f"build-dir={build}"]
    session.install(*core, *AS_COMPILED, ".[test]", env={"CXX": os.environ.get("CXX", "g++")})
    session.run("coverage", "erase")
    for counted in build.rglob("*.gcda"):
        counted.unlink()
    # Tests kill processes, also while these write what they have run: so they do it elsewhere.
    killed = (found / "killed").resolve()
    shutil.rmtree(killed, ignore_errors=True)
    session.run(
        "coverage", "run", "-m", "pytest", *session.posargs, env={"GCOV_PREFIX": str(killed)}
    )
    session.run("coverage", "json", "-q", "-o", str(found / "python.json"))
    for notes in build.rglob("*.gcno"):
        beside = killed / notes.relative_to(notes.anchor)
        if beside.parent.is_dir():
            shutil.copy(notes, beside)
    options = ["--filter", "cpp/", "--exclude-throw-branches", "--json"]
    # Headers of the build's environment are gone by then; inner loops run more than 2^32 times.
    options = ["--gcov-ignore-errors=all", "--gcov-suspicious-hits-threshold=0", *options]
    session.run("gcovr", "--root", ".", *options, str(found / "cpp.json"), str(build), str(killed))
    files = covered_python(found / "python.json") | covered_cpp(found / "cpp.json")
    reasons = tomllib.loads((ROOT / ".ci" / "coverage.toml").read_text("utf-8"))
    unexplained = []
    for name, (run, lines) in sorted(files.items(), key=lambda one: one[1][0] / one[1][1]):
        if run / lines < 0.9:
            why = reasons.get(name, "")
            print(f"{run / lines:7.1%}  {name}: {why or 'no reason is given'}")
            unexplained += [] if why else [name]
    for label, root in (("Python", "python/"), ("C++", "cpp/"), ("together", "")):
        part = [counts for name, counts in files.items() if name.startswith(root)]
        run, lines = sum(r for r, _ in part), sum(n for _, n in part)
        print(f"{run / lines:7.1%}  of {lines} lines, {label}")
    if unexplained:
        session.error(f"below 90 % without a reason in .ci/coverage.toml: {unexplained}")


Counts = dict[str, tuple[int, int]]  # of each file: lines that ran, and all


def covered_python(path: Path) -> Counts:
    """Read what coverage.py has written, by the paths in the source."""
    counts = {}
    for name, of_file in json.loads(path.read_text("utf-8"))["files"].items():
        summary = of_file["summary"]
        inside = name.replace(os.sep, "/").rpartition("/vegrad/")[2]
        if summary["num_statements"]:
            lines = summary["covered_lines"], summary["num_statements"]
            counts[f"python/vegrad/{inside}"] = lines
    return counts


def covered_cpp(path: Path) -> Counts:
    """Read what gcovr has written; a line of a template counts once, whichever of it has run."""
    counts = {}
    for of_file in json.loads(path.read_text("utf-8"))["files"]:
        ran: dict[int, bool] = {}
        for line in of_file["lines"]:
            if not (line.get("gcovr/noncode") or line.get("gcovr/excluded")):
                ran[line["line_number"]] = ran.get(line["line_number"], False) or line["count"] > 0
        if ran:
            counts[of_file["file"]] = sum(ran.values()), len(ran)
    return counts


@nox.session
def plain(session: nox.Session) -> None:
    """Build without threads, instruction sets and the flushing of subnormals, and test the core.

    What is left is what a port to a processor or system without these needs: VEGRAD_PLAIN.
    """
    session.install("-C", "cmake.define.VEGRAD_PLAIN=ON", ".[test]")
    session.run("pytest", "tests/core", "tests/arrays", "tests/networks", *session.posargs)


@nox.session(name="release-check")
def release_check(session: nox.Session) -> None:
    """Build what a release has into dist/, and try it on a bare interpreter.

    That is the source and a wheel made from it, their bill of materials, and the recipe for
    conda-forge with the version and the hash filled in.
    """
    session.install("build>=1.2", "twine>=6", "cyclonedx-bom>=7")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")
    (source,), (wheel,) = (ROOT / "dist").glob("*.tar.gz"), (ROOT / "dist").glob("*.whl")
    session.run("twine", "check", "--strict", str(source), str(wheel))
    version = source.name.removeprefix("vegrad-").removesuffix(".tar.gz")
    check_version(session, version)
    bare = Path(session.create_tmp()).resolve() / "bare"
    session.run("python", "-m", "venv", "--clear", str(bare))
    programs = bare / ("Scripts" if os.name == "nt" else "bin")
    session.run(str(programs / "pip"), "install", "--quiet", str(wheel), external=True)
    listed = ["--output-reproducible", "--output-file", "dist/sbom.cdx.json"]
    session.run("cyclonedx-py", "environment", *listed, str(programs / "python"))
    session.run(str(programs / "pip"), "install", "--quiet", f"{wheel}[cli]", external=True)
    session.chdir(session.create_tmp())  # away from the source
    session.run(str(programs / "vegrad"), "demo", external=True)
    recipe = (ROOT / ".ci" / "recipe.yaml").read_text("utf-8")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    recipe = recipe.replace("@VERSION@", version).replace("@SHA256@", digest)
    (ROOT / "dist" / "recipe.yaml").write_text(recipe, "utf-8")


def check_version(session: nox.Session, version: str) -> None:
    """End with an error unless the changelog's first heading, and a tag if it is one, agree."""
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    found = heading[1] if heading else "nothing"
    tag = os.environ["GITHUB_REF_NAME"] if os.environ.get("GITHUB_REF_TYPE") == "tag" else ""
    if found.split(" ")[0] != version or tag not in ("", f"v{version}"):
        said = f"CHANGELOG.md begins with {found}, the tag is {tag or 'none'}"
        session.error(f"CMakeLists.txt has version {version}; {said}")
    if tag and "unreleased" in found:
        session.error(f"CHANGELOG.md must begin with the date of {version}, not {found!r}")


@nox.session(python=False)
def long(session: nox.Session) -> None:
    """Take a million steps of every rule and optimizer, and count what grows; kill 1,000 trainings.

    This takes about half an hour. Arguments go to pytest.
    """
    steps = {"VEGRAD_STEPS": os.environ.get("VEGRAD_STEPS", "1000000")}
    session.run("pytest", "tests/test_long_runs.py", *session.posargs, env=steps)
    session.run("python", "bench/kills.py", "--kills", os.environ.get("VEGRAD_KILLS", "1000"))


@nox.session
@nox.parametrize("kinds", ["address,undefined", "thread"])
def sanitize(session: nox.Session, kinds: str) -> None:
    """Build with Clang's sanitizers; run what touches memory, and what shares it among threads.

    GCC's AddressSanitizer does not see masked loads. Python itself is not sanitized, so the
    sanitizer's runtime is loaded before it, as works on Linux. Arguments go to pytest.
    """
    clang = clang_of(session)
    build_cpp(session, "cpp_tests", clang, VEGRAD_CPP_TESTS="ON", VEGRAD_SANITIZE=kinds)
    define = f"cmake.define.VEGRAD_SANITIZE={kinds.replace(',', ';')}"
    session.install("-C", define, *AS_COMPILED, ".[test]", env={"CXX": clang})
    name = f"libclang_rt.{'tsan' if kinds == 'thread' else 'asan'}-{platform.machine()}.so"
    preloaded = {
        "LD_PRELOAD": " ".join(file_of(session, clang, one) for one in (name, "libstdc++.so.6")),
        # Python leaves objects behind on purpose; tests have a process die of SIGSEGV.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0",
        # ThreadSanitizer sees no access of more than 16 bytes.
        **({"VEGRAD_ISA": "baseline"} if kinds == "thread" else {}),
    }
    session.chdir(ROOT)
    shown = "--capture=sys"  # a report comes from below Python, and ends the process
    session.run("pytest", "-q", shown, *SANITIZED[kinds], *session.posargs, env=preloaded)
    if kinds != "thread":
        targets = [f"--target={one}" for one in ("arrays", "tensors", "passes")]
        session.run("python", "-m", "tests.fuzz", "--memory=0", *targets, env=preloaded)


SANITIZED = {
    "address,undefined": ["tests/core", "tests/arrays", "tests/test_clipping.py",
                          "tests/test_optim.py"],
    "thread": ["tests/core/test_shared.py", "tests/core/test_processes.py",
               "tests/core/test_threads.py"],
}  # fmt: skip


def clang_of(session: nox.Session) -> str:
    """Return the newest Clang on the path."""
    folders = [Path(one) for one in os.environ["PATH"].split(os.pathsep)]
    found = {p.name for one in folders for p in one.glob("clang++*")}
    names = [one for one in found if re.fullmatch(r"clang\+\+(-\d+)?", one)]
    if not names:
        session.error("this takes Clang (on Debian clang-19 and libclang-rt-19-dev)")
    return max(names, key=lambda name: int(name.partition("-")[2] or 0))


def file_of(session: nox.Session, compiler: str, name: str) -> str:
    """Return the path of a library of a compiler's."""
    found = session.run(compiler, f"-print-file-name={name}", external=True, silent=True)
    return str(found).strip()


def build_cpp(session: nox.Session, target: str, compiler: str, **defined: str) -> Path:
    """Build a program of CMakeLists.txt and run its tests, if it has some; return its folder."""
    session.install("cmake>=3.20", "ninja")
    build = Path(session.create_tmp()) / target
    options = [f"-D{name}={value.replace(',', ';')}" for name, value in defined.items()]
    compiled = f"-DCMAKE_CXX_COMPILER={compiler}"
    session.run("cmake", "-S", ".", "-B", str(build), "-G", "Ninja", compiled, *options)
    session.run("cmake", "--build", str(build))
    session.run("ctest", "--test-dir", str(build), "--output-on-failure")
    return build


@nox.session
def arm(session: nox.Session) -> None:
    """Build the core for arm64 and run its tests in C++ on an emulator.

    This takes a cross compiler and qemu; on Debian g++-aarch64-linux-gnu and qemu-user.
    """
    defined = {
        "VEGRAD_CPP_TESTS": "ON",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CROSSCOMPILING_EMULATOR": "qemu-aarch64,-L,/usr/aarch64-linux-gnu",
    }
    build_cpp(session, "arm", "aarch64-linux-gnu-g++", **defined)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damage whatever is read, a minute for each reader, and more by what it reaches.

    Arguments go to tests/fuzz in place of all that. Where there is Clang, the core is fuzzed by
    itself, too; where there is atheris, the readers by their coverage.
    """
    session.install(".[test]")
    if session.posargs:
        session.run("python", "-m", "tests.fuzz", *session.posargs)
        return
    listed = session.run("python", "-m", "tests.fuzz", "--list", silent=True)
    for name in str(listed).split():
        session.run("python", "-m", "tests.fuzz", f"--target={name}", "--seconds=60")
    build = build_cpp(session, "core_fuzzer", clang_of(session), VEGRAD_FUZZ="ON",
                      VEGRAD_SANITIZE="address,undefined")  # fmt: skip
    session.run(str(build / "core_fuzzer"), "-max_total_time=60", "-max_len=512", external=True)
    session.install("atheris>=3")
    for name in ("mlp", "log", "trainer_state", "metrics", "events", "examples"):
        session.run("python", "-m", "tests.fuzz.guided", name, "-max_total_time=60")
