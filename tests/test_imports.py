"""What a user's loop loads, and that no module of ours needs one that needs it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("src/kecae_aug", "training/kecae_training", "benchmarks/kecae_bench")
MOST_MODULES = 45  # of kecae_aug, by `import kecae_aug`: the engine, weights, bank, data set, loader


def test_the_core_loads_the_engine_alone():
    """No phantom, no Hub client, nothing of [train], no other library; a missing one is an error that says the way out."""
    code = f"""
import sys
import kecae_aug, kecae_aug.integrations
own = sorted(name for name in sys.modules if name.split(".")[0].startswith("kecae"))
assert len(own) <= {MOST_MODULES}, (len(own), own)
libraries = {{"albumentations": "albumentations", "timm": "timm", "lightning": "lightning"}}
others = {{"kecae_aug.phantom", "kecae_aug.phantom.jsw", "kecae_aug.generate", "kecae_aug.cli", "huggingface_hub"}}
others |= {{"kecae_training", "kecae_bench", "scipy", "sklearn", "pandas", "pydicom", "matplotlib"}}
assert not (others | set(libraries)) & set(sys.modules), (others | set(libraries)) & set(sys.modules)
sys.modules["pytorch_lightning"] = None
for module, library in libraries.items():
    sys.modules[library] = None
    try:
        __import__(f"kecae_aug.integrations.{{module}}")
    except ImportError as error:
        assert f"pip install 'kecae-aug[{{library}}]'" in str(error), error
    else:
        raise AssertionError(module)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def read_modules(package: Path) -> dict[str, Path]:
    """Name -> file of every module of a package."""
    paths = {".".join(p.relative_to(package.parent).with_suffix("").parts): p for p in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def find_imports(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of ours that this one loads when it is loaded: not in functions, for types, or as a command."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            source = node.module or ""
            found |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source
                for alias in node.names
            }
        nodes += list(ast.iter_child_nodes(node))
    return (found & known) - {name}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules in a circle, the first one twice; none where there is no circle."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if circle := walk(other, [*trail, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(graph) if (circle := walk(name, []))), [])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_circles(package):
    """A stranger can read the modules in an order in which each is explained by those before."""
    modules = read_modules(ROOT / package)
    assert len(modules) > 10
    graph = {name: find_imports(name, path, set(modules)) for name, path in modules.items()}
    circle = find_circle(graph)
    assert not circle, " -> ".join(circle)


def test_packages_import_in_one_direction():
    """kecae_aug imports neither of the others at its top level, kecae_training not kecae_bench."""
    modules = {package: read_modules(ROOT / package) for package in PACKAGES}
    known = {name for names in modules.values() for name in names}
    for package, forbidden in zip(
        PACKAGES, (("kecae_training", "kecae_bench"), ("kecae_bench",), ()), strict=True
    ):
        for name, path in modules[package].items():
            wrong = {m for m in find_imports(name, path, known) if m.split(".")[0] in forbidden}
            assert not wrong, (name, wrong)


def test_a_circle_is_found(tmp_path):
    """The search itself: a circle of three modules, of which one import is for types alone."""
    for name, text in (
        ("a", "from p import b"),
        ("b", "import p.c"),
        ("c", "from p.a import x"),
        ("__init__", ""),
    ):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{name}.py").write_text(text)
    modules = read_modules(tmp_path / "p")
    assert find_circle({n: find_imports(n, f, set(modules)) for n, f in modules.items()}) == [
        "p.a", "p.b", "p.c", "p.a",
    ]  # fmt: skip
    (tmp_path / "p" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x"
    )
    assert not find_circle({n: find_imports(n, f, set(modules)) for n, f in modules.items()})
