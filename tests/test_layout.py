"""The house rules: who imports whom, one door per library, what lies where."""

import ast
import functools
import importlib.util
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engines", "export", "server", "bench")
MAX_LINES = 330

# Who may import whom; a package may always import itself.
ALLOWED = {
    "engines": (),
    "export": ("engines",),
    "server": ("engines",),
    "model_repository": ("server",),
    "bench": ("server", "engines"),
}

# One library, one door: the only files that may import it; a name that ends in "/" is a folder.
DOORS = {
    "torch": ("export/", "bench/peers", "bench/judging/distances.py", "tests/"),
    "diffusers": ("export/", "bench/peers", "tests/"),
    "transformers": ("export/", "bench/peers", "bench/judging/distances.py", "tests/"),
    "torchmetrics": ("bench/judging/distances.py",),
    "skimage": ("bench/judging/likeness.py",),
    "huggingface_hub": ("export/", "tests/"),
    # Counting a graph's operations needs its shapes.
    "onnx": ("export/", "bench/flops.py", "tests/"),
    "onnxscript": ("export/",),
    "onnx_ir": ("export/", "tests/"),
    "tokenizers": ("export/", "server/tokenizer.py", "tests/"),
    "tensorrt": ("engines/compilers.py", "tests/"),
    "tensorrt_rtx": ("engines/compilers.py", "tests/"),
    "polygraphy": ("engines/compilers.py", "tests/"),
    "nncf": ("export/int8.py", "tests/"),
    "numba": ("server/fused.py",),
    "onnxruntime": ("engines/ort_runner.py", "engines/binding.py", "tests/"),
    "onnxruntime_ep_openvino": ("engines/ort_runner.py", "tests/"),
    "openvino": ("engines/openvino_runner.py", "engines/channel_affine.py", "bench/peers", "tests/"),
    "opentelemetry": ("server/tracing.py", "tests/"),
    "triton_python_backend_utils": ("server/triton_", "engines/triton_runner.py", "bench/triton_patterns/", "tests/"),
    "tritonclient": (
        "server/client.py",
        "server/async_client.py",
        "server/protocol.py",
        "server/answers.py",
        "bench/traffic/echo.py",
        "tests/",
    ),
    "mlperf_loadgen": ("bench/loadgen/rules.py", "tests/"),
    "grpc": ("server/client.py", "server/async_client.py", "server/protocol.py", "bench/traffic/echo.py", "tests/"),
    "aiohttp": ("bench/traffic/http_face.py", "tests/"),
    "yaml": ("bench/traffic/workload.py", "tests/"),
    "matplotlib": ("bench/reporting/charts.py", "bench/samplers.py", "tests/"),
    "jinja2": ("bench/reporting/pages.py", "tests/"),
    "scipy": ("bench/reporting/comparing.py", "tests/"),
    "jsonschema": ("tests/",),
}

# Files that need nothing but the standard library, those that need numpy too, and what both may share.
BARE = (
    *("request", "request_checks", "sampler_names", "job", "scheduler", "step_curve", "urgency", "backlog", "reply"),
    *("metrics", "metric_names", "fields", "field_values", "request_sizes", "task_checks", "attachments"),
)
NUMERIC = (
    "schedule",
    "levels",
    "table",
    "exploding",
    "preserving",
    "exponential",
    "correctors",
    "samplers",
    "rows",
    "extras",
    "blend",
    "noise",
    "philox",
    "variation",
    "interpolation",
    "latents",
    "low_resolution",
    "tiling",
)

# `except Exception` is for outer edges, where one failure must not take the others down and the client must be
# answered, and for libraries that raise bare exceptions of their own; each file says which it is.
CATCH_ALL = {
    "export/loading.py",  # loaders of diffusers, transformers and the hub raise whatever they meet
    "export/single_file.py",  # likewise the hub
    "bench/peers/worker.py",  # whatever a peer's libraries raise is told in words to the process that asked
    "bench/supervised.py",  # whatever ends the supervisor's thread is told
    "engines/ort_runner.py",  # ONNX Runtime's pybind exceptions share no base below Exception
    "engines/openvino_runner.py",  # OpenVINO's exceptions likewise
    "server/tokenizer.py",  # the tokenizers library raises bare Exception
    "server/launch.py",  # stops the child process on every way out, then raises again
    "server/service.py",  # the admission thread: it must outlive one request
    "server/decoder.py",  # the decoding thread: likewise
    "server/loop.py",  # the denoising thread: likewise
    "server/reply.py",  # what one client's sink raises must not end a thread that serves others
    "server/metrics.py",  # the thread that exports: likewise
    "server/preview.py",  # the thread that encodes previews: likewise
    "server/forwarding.py",  # the thread that takes forwarded requests: likewise
    "server/triton_model.py",  # Triton's `execute()` and the threads behind it
    "server/triton_face.py",  # likewise
    "server/triton_io.py",  # the thread that sends responses: likewise
}

TOP_LEVEL = {"pyproject.toml", "README.md", "export", "engines", "model_repository", "server", "bench", "tests"}
SMALL_FILES = {"LICENSE", "Makefile", ".gitignore", ".ci", "constraints.txt", "docs", "Dockerfile", "compose.yaml"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def nodes(tree: ast.AST, *, run_time: bool) -> Iterator[ast.AST]:
    """Every node; without the bodies of `if TYPE_CHECKING:` when only run time counts."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if run_time and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from nodes(other, run_time=run_time)
        else:
            yield from nodes(child, run_time=run_time)


def imported(path: Path, *, run_time: bool = False) -> set[str]:
    """Dotted names that a file imports, by statement, `import_module("...")` or `__import__("...")`.

    `from a import b` counts as `a.b`, whether b is a module or a name in one.
    """
    found = set()
    for node in nodes(tree_of(path), run_time=run_time):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                package = path.relative_to(ROOT).parts[:-level] if level else ()
                stem = ".".join([*package, *filter(None, [module])])
                found |= {f"{stem}.{alias.name}" for alias in names}
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(function).split(".")[-1] in ("import_module", "__import__", "importorskip"):
                    found.add(name)
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def own(names: set[str]) -> set[str]:
    return {n for n in names if n.split(".")[0] in (*PACKAGES, "model_repository", "tests")}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("importer", ALLOWED)
def test_imports_go_one_way(importer: str) -> None:
    wrong = {
        f"{relative(path)} imports {name}"
        for path in sources(importer)
        for name in own(imported(path))
        if not any(within(name, package) for package in (importer, *ALLOWED[importer]))
    }
    assert not wrong


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    wrong = {
        relative(path)
        for path in sources(*PACKAGES, "model_repository", "tests")
        if not relative(path).startswith(DOORS[library]) and any(within(n, library) for n in imported(path))
    }
    assert not wrong


def test_doors_that_are_files_exist() -> None:
    doors = {door for library in DOORS.values() for door in library if door.endswith(".py")}
    assert {door for door in doors if not (ROOT / door).is_file()} == set()


@pytest.mark.parametrize("name", BARE + NUMERIC)
def test_the_core_of_the_server_needs_little(name: str) -> None:
    friends = {f"server.{friend}" for friend in (*BARE, "errors")}
    libraries = set(sys.stdlib_module_names)
    if name in NUMERIC:
        friends |= {f"server.{friend}" for friend in (*NUMERIC, "fused")}
        libraries |= {"numpy"}
    wrong = {
        imports
        for imports in imported(ROOT / f"server/{name}.py", run_time=True)
        if imports.split(".")[0] not in libraries and not any(within(imports, friend) for friend in friends)
    }
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_else(package: str) -> None:
    for initializer in (ROOT / package).rglob("__init__.py"):
        assert not imported(initializer), relative(initializer)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_resolves_inside_the_repository(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert [Path(place).resolve() for place in spec.submodule_search_locations or ()] == [ROOT / package]


def test_every_package_is_declared_under_its_own_path() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {relative(p.parent).replace("/", ".") for name in PACKAGES for p in (ROOT / name).rglob("__init__.py")}
    assert set(setuptools["packages"]) == found
    assert "package-dir" not in setuptools


def test_folders_with_sources_are_packages_and_tests_are_not() -> None:
    assert {relative(p.parent) for p in sources(*PACKAGES) if not p.with_name("__init__.py").exists()} == set()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_file_is_named_after_nothing() -> None:
    vague = {"utils", "common", "helpers", "base", "misc"}
    found = [relative(path) for path in sources(*PACKAGES, "model_repository", "tests")]
    assert [path for path in found if vague & {part.removesuffix(".py") for part in Path(path).parts}] == []


def test_files_stay_short() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*PACKAGES)}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_the_top_level_holds_what_was_agreed() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    entries = {path.split("/")[0] for path in listed if (ROOT / path).exists()}
    assert TOP_LEVEL <= entries <= TOP_LEVEL | SMALL_FILES


def test_triton_models_are_one_import() -> None:
    models = sorted((ROOT / "model_repository").glob("*/1/model.py"))
    assert len(models) == len(list((ROOT / "model_repository").glob("*/config.pbtxt"))) > 0
    for path in models:
        docstring, statement, *rest = tree_of(path).body
        assert isinstance(docstring, ast.Expr)
        assert isinstance(statement, ast.ImportFrom)
        assert [ast.unparse(node) for node in rest] == ["__all__ = ['TritonPythonModel']"]
        assert [alias.asname or alias.name for alias in statement.names] == ["TritonPythonModel"]


def test_everything_is_caught_only_where_that_is_stated() -> None:
    def catches_all(node: ast.AST) -> bool:
        if not isinstance(node, ast.ExceptHandler):
            return False
        kinds = {ast.unparse(kind) for kind in ast.walk(node.type) if isinstance(kind, ast.Name)} if node.type else {""}
        return bool(kinds & {"", "Exception", "BaseException"})

    found = {relative(p) for p in sources(*PACKAGES, "model_repository") if any(map(catches_all, ast.walk(tree_of(p))))}
    assert found == CATCH_ALL
