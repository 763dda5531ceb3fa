"""Developers' tasks: `nox` runs the quick ones, `nox -s NAME` one of them, `nox -l` lists all.

    pip install nox

`.ci/run` decides whether a change may land, and needs no nox. Both read what they would otherwise
repeat: the tools and their versions from the extras in pyproject.toml, the test command from
README.md, the exceptions of stubtest from .ci/stubtest-allowed.txt.
"""

import hashlib
import os
import re
import shlex
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "docs"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/**/*.md")


def extra(name: str) -> list[str]:
    """Return the packages of an extra, without vegrad itself."""
    return [package for package in EXTRAS[name] if not package.startswith("vegrad")]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the README's test command; further arguments go to pytest."""
    found = re.search(
        r"^pip install .* && pytest [-a-z ]*$", Path("README.md").read_text("utf-8"), re.M
    )
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
    """Measure which lines of the Python package the tests run; arguments go to pytest."""
    session.install(".[test]", "coverage>=7.6")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "report")


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
    bare = Path(session.create_tmp()) / "bare"
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
    """Take a million steps of every rule and optimizer, and count what grows: some minutes."""
    steps = {"VEGRAD_STEPS": os.environ.get("VEGRAD_STEPS", "1000000")}
    session.run("pytest", "tests/test_long_runs.py", *session.posargs, env=steps)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Build with sanitizers and run the tests that touch memory; arguments go to pytest.

    The environment's VEGRAD_SANITIZE chooses other sanitizers than address and undefined. Python
    itself is not sanitized, so the runtimes are loaded before it; this works on Linux with GCC.
    """
    kinds = os.environ.get("VEGRAD_SANITIZE", "address,undefined")
    session.install("-C", f"cmake.define.VEGRAD_SANITIZE={kinds}", ".[test]")
    runtimes = ["libtsan.so" if "thread" in kinds else "libasan.so", "libstdc++.so"]
    found = [
        str(session.run("g++", f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in runtimes
    ]
    preloaded = {
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves objects behind on purpose
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    core = session.run(
        "python",
        "-c",
        "from vegrad import _core; print(_core.__file__)",
        env=preloaded,
        silent=True,
    )
    library = Path(str(core).split()[-1]).read_bytes()
    if not any(name in library for name in (b"__asan_", b"__tsan_", b"__ubsan_")):
        session.error("the core was built without sanitizers: CMake ignored VEGRAD_SANITIZE")
    session.chdir(ROOT)
    session.run("pytest", "tests/core", "tests/arrays", *session.posargs, env=preloaded)


@nox.session
def arm(session: nox.Session) -> None:
    """Build the core for arm64 and run its tests in C++ on an emulator.

    This takes a cross compiler and qemu; on Debian g++-aarch64-linux-gnu and qemu-user.
    """
    session.install("cmake>=3.20", "ninja")
    build = session.create_tmp()
    compiler, root = "aarch64-linux-gnu-g++", "/usr/aarch64-linux-gnu"
    defined = {
        "VEGRAD_CPP_TESTS": "ON",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_CROSSCOMPILING_EMULATOR": f"qemu-aarch64;-L;{root}",
    }
    options = [f"-D{name}={value}" for name, value in defined.items()]
    session.run("cmake", "-S", ".", "-B", build, "-G", "Ninja", *options)
    session.run("cmake", "--build", build)
    session.run("ctest", "--test-dir", build, "--output-on-failure")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Read randomly damaged files for half a minute; arguments go to .ci/fuzz.py."""
    session.install(".[test]")
    session.run("python", ".ci/fuzz.py", *session.posargs)
