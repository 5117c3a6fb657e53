"""The floors of docs/architecture.md: who may import whom in Python, who may include whom in C++, what the object files export."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "python" / "adaptive_search"
SOURCES = REPOSITORY / "csrc"

# Bottom to top. A name stands for the module and everything below it; the longest match decides.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("types",),
    ("arrays", "hadamard", "layout", "backends.protocol", "storage"),
    ("_native", "backends.numba", "backends.numba_ops"),
    ("backends",),
    ("functional", "flat", "overlaps", "validation", "execution", "margins"),
    ("quantizers", "rotations"),
    ("identifiers", "rows", "vectors", "representations", "transforms"),
    ("calibration", "candidates", "cascade", "families", "filters", "fitting", "intake", "plan", "running", "searching", "tuning_queries"),
    ("explaining", "tuning", "ways"),
    ("index", "persistence"),
    ("",),
    ("evaluate", "measuring", "plots"),
    ("cli", "commands", "comparing", "demo"),
)

# Packages outside the standard library, and the only modules that may import them.
DEPENDENCIES: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "safetensors": ("storage",),
    "numba": ("backends.numba", "backends.numba_ops"),
    "llvmlite": ("backends.numba", "backends.numba_ops"),
    "tqdm": ("execution",),
    "typer": ("cli", "commands"),
    "rich": ("commands", "comparing", "demo"),
    "matplotlib": ("plots",),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_within(module: str, name: str) -> bool:
    return name == "" or module == name or module.startswith(name + ".")


def floor(module: str) -> int:
    """The number of the floor whose name fits best; the package itself (re-exports) is the floor below the doors."""
    if module == "":
        return FLOORS.index(("",))
    named = [(len(name), number) for number, names in enumerate(FLOORS) for name in names if name and is_within(module, name)]
    assert named, f"{module} stands on no floor: add it to FLOORS and to docs/architecture.md"
    return max(named)[1]


def imports(module: str) -> set[tuple[str, bool]]:
    """Everything that a module imports, at any depth of its code: (absolute name without the package, whether it is ours)."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, False) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "", False))
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".") if package else []
            base = base[: len(base) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                name = ".".join([*base, alias.name])
                found.add((name if name in MODULES or name == "_native" else ".".join(base), True))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "adaptive_search")
def test_a_module_imports_only_from_its_own_floor_and_below(module: str) -> None:
    for name, ours in imports(module):
        if ours:
            assert floor(name) <= floor(module), f"{module} imports {name or 'the package'} from a floor above"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name, ours in imports(module) if ours and name in MODULES} for module in MODULES}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "adaptive_search")
def test_a_dependency_is_imported_only_behind_its_door(module: str) -> None:
    for name, ours in imports(module):
        top = name.partition(".")[0]
        if ours or top in sys.stdlib_module_names:
            continue
        assert top in DEPENDENCIES, f"{module} imports {top}, which is no dependency"
        assert any(is_within(module, door) for door in DEPENDENCIES[top]), f"{module} imports {top}"


def test_only_the_backend_choice_imports_implementations() -> None:
    implementations = {"_native", "backends.numba"}
    users = {module for module in MODULES if implementations & {name for name, ours in imports(module) if ours}}
    assert {user for user in users if not user.startswith("backends.numba")} <= {"backends"}


def test_storage_knows_arrays_but_not_searching() -> None:
    for module in MODULES:
        if is_within(module, "storage"):
            assert {name for name, ours in imports(module) if ours and not is_within(name, "storage")} <= {"types", "layout"}


# --- C++ ------------------------------------------------------------------------------------------------------------------

KERNEL_FLOOR = ("kernels", "simd", "targets")
HEADERS_OF_KERNELS = {
    "cstdint",
    "cstddef",
    "cstring",
    "cmath",
    "climits",
    "cfloat",
    "immintrin.h",
    "stdint.h",
    "stddef.h",
    "string.h",
    "math.h",
}
CPP_FLOORS = {"include": 0, "simd": 1, "kernels": 1, "targets": 1, "ops": 2, "bindings": 3}
# All that the floors above see of the kernels; anything else would be compiled there for the wrong CPU.
KERNEL_INTERFACE = {"kernels/table.h", "targets/cpu_features.h"}


def cpp_files() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in (".h", ".cpp"))


def includes(path: Path) -> list[tuple[str, bool]]:
    found = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.MULTILINE)
    return [(name, bracket == '"') for bracket, name in found]


@pytest.mark.parametrize("path", cpp_files(), ids=lambda path: str(path.relative_to(SOURCES)))
def test_a_unit_includes_only_from_its_own_floor_and_below(path: Path) -> None:
    own = path.relative_to(SOURCES).parts[0]
    for name, ours in includes(path):
        if not ours:
            continue
        # What lies beside the including file may be named without its directory.
        other = name.split("/")[0] if "/" in name else own
        assert other in CPP_FLOORS, f"{path.name} includes {name}: name headers by their path under csrc/"
        assert CPP_FLOORS[other] <= CPP_FLOORS[own], f"{path.name} includes {name} from a floor above"
        if own not in KERNEL_FLOOR and other in KERNEL_FLOOR:
            assert name in KERNEL_INTERFACE, f"{path.name} includes {name}: kernels are called through the table"


@pytest.mark.parametrize(
    "path",
    [path for path in cpp_files() if path.relative_to(SOURCES).parts[0] in KERNEL_FLOOR],
    ids=lambda path: str(path.relative_to(SOURCES)),
)
def test_kernels_use_no_standard_library_containers(path: Path) -> None:
    assert {name for name, ours in includes(path) if not ours} <= HEADERS_OF_KERNELS


@pytest.mark.parametrize("path", sorted((SOURCES / "kernels").glob("*.h")), ids=lambda path: path.name)
def test_kernels_do_not_ask_for_instruction_sets(path: Path) -> None:
    asked = re.findall(
        r"^\s*#\s*(?:if|ifdef|ifndef|elif).*__(?:AVX|SSE|FMA|F16C|BMI|ARM)\w*", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert not asked, "an operation is missing from simd/"


# --- object files ---------------------------------------------------------------------------------------------------------


def target_objects() -> dict[str, Path]:
    """The newest object file of every kernel target that a build has left in build/."""
    found = sorted(
        REPOSITORY.glob("build/*/CMakeFiles/adaptive_search_target_*.dir/csrc/targets/*.o"), key=lambda path: path.stat().st_mtime
    )
    return {path.name.partition(".")[0]: path for path in found}


def tool_output(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=("baseline", "avx2", "avx512", "avx512_bf16"))
def target_object(request: pytest.FixtureRequest) -> tuple[str, Path]:
    objects = target_objects()
    if not objects:
        pytest.skip("no object files in build/: the package was not built here")
    if request.param not in objects:
        pytest.skip(f"{request.param} is not built for this processor")
    return request.param, objects[request.param]


def test_a_target_exports_its_table_and_nothing_else(target_object: tuple[str, Path]) -> None:
    # A weak symbol of one target may replace that of another at link time, which then runs the wrong instructions everywhere.
    target, path = target_object
    lines = [line.split(maxsplit=2) for line in tool_output("nm", "--demangle", "--extern-only", "--defined-only", str(path)).splitlines()]
    assert len(lines) == 1, f"{target} exports {[line[-1] for line in lines]}"
    _, kind, name = lines[0]
    assert kind in "DRB", f"{name} is not plain data: {kind}"
    assert "table" in name.lower()


def test_a_target_calls_nothing_but_memory_and_mathematics(target_object: tuple[str, Path]) -> None:
    target, path = target_object
    wanted = {line.split()[-1] for line in tool_output("nm", "--undefined-only", str(path)).splitlines()}
    allowed = {"memcpy", "memset", "memmove", "sqrt", "sqrtf", "nextafterf", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert wanted <= allowed, f"{target} needs {sorted(wanted - allowed)}"


@pytest.mark.parametrize(
    ("target", "wanted", "forbidden"),
    [
        ("baseline", "%xmm", r"%[yz]mm|\tv[a-z]"),
        ("avx2", "%ymm", "%zmm|%k[1-7]"),
        ("avx512", "%zmm", r"\tv\w*bf16"),
        ("avx512_bf16", r"\tvdpbf16ps .*%zmm", "%tmm"),
    ],
)
def test_a_target_uses_its_registers_and_no_others(target: str, wanted: str, forbidden: str) -> None:
    path = target_objects().get(target)
    if path is None:
        pytest.skip(f"no object file of {target} in build/")
    text = tool_output("objdump", "--disassemble", "--no-show-raw-insn", str(path))
    assert re.search(wanted, text)
    assert not re.search(forbidden, text)


def test_the_extension_exports_only_its_entry_point() -> None:
    native = pytest.importorskip("adaptive_search._native", reason="built without native code")
    names = {line.split()[-1] for line in tool_output("nm", "--dynamic", "--extern-only", "--defined-only", native.__file__).splitlines()}
    assert names == {"PyInit__native"}
