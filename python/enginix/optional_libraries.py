"""The extras of pyproject.toml: the commands that need each, and the error where one is missing."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from enginix.errors import MachineError

# How a fix begins where Nix has installed enginix.
FROM_FLAKE = "run it from the flake"
PROJECT = "enginix"
PACKAGE = Path(__file__).resolve().parent
FLAKE = "github:enginix/enginix"


@dataclass(frozen=True)
class Extra:
    """One extra.

    Attributes:
        commands: sub-commands that need it, or some of whose options do.
        modules: top-level modules that it brings and enginix imports.
        package: the flake's package whose command has them.
    """

    commands: tuple[str, ...]
    modules: tuple[str, ...]
    package: str = "enginix"


_EXECUTOR = ("torch", "transformers", "tokenizers")

# The first extra that has a module is named where a command without an extra misses that module.
EXTRAS = {
    "reference": Extra(("build", "reference", "gate", "runner"), _EXECUTOR),
    "serve": Extra(("triton-repo", "serve"), (*_EXECUTOR, "tritonclient", "google", "grpc", "requests")),
    "quantize": Extra(("calibrate", "quantize", "convert"), (*_EXECUTOR, "modelopt"), "enginix-quantize"),
    "gateway": Extra(("gateway",), ("litellm", "fastapi", "orjson", "uvicorn"), "enginix-gateway"),
    "edgellm": Extra(
        ("edgellm-export", "edgellm-build", "edgellm-serve"),
        (*_EXECUTOR, "onnx", "onnx_graphsurgeon", "onnxscript", "tensorrt_edgellm"),
        "enginix-edgellm",
    ),
    "rtx": Extra(
        ("rtx-build",),
        (*_EXECUTOR, "tritonclient", "google", "grpc", "requests", "tensorrt_rtx_bindings"),
        "enginix-rtx",
    ),
}
# The dependencies of enginix itself.
CORE = ("huggingface_hub", "jinja2", "ml_dtypes", "numpy", "safetensors", "shtab")


def find_extra(module: str, command: str) -> str | None:
    """Return the extra that brings a module to a command; None where no extra has it."""
    extras_with_module = [name for name, extra in EXTRAS.items() if module in extra.modules]
    return next(
        (name for name in extras_with_module if command in EXTRAS[name].commands),
        extras_with_module[0] if extras_with_module else None,
    )


def missing_library(error: ImportError, command: str) -> MachineError | None:
    """Return the error of a library that cannot be imported; None for a module of enginix itself.

    Args:
        error: as the import raised it.
        command: the sub-command that asked for it.
    """
    module = (error.name or "").split(".")[0]
    if not module or module in sys.stdlib_module_names:
        return None
    if module == PROJECT:
        return _missing_stage(error, command)
    state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
    extra = find_extra(module, command)
    if extra is not None:
        return missing_extra(extra, f"{module} {state}", command)
    if module in CORE:
        return MachineError(
            f"{module} {state}", where=sys.executable, fix=format_install_command(None, command)
        )
    # A dependency of a dependency: only its own name is known.
    fix = format_install_command(None, command) if is_in_nix_store() else _format_pip_command([module])
    return MachineError(f"{module} {state}", where=sys.executable, fix=fix)


def missing_extra(extra: str, what: str, command: str, python: str | Path | None = None) -> MachineError:
    """Return the error of a command whose extra is not installed.

    Args:
        python: the interpreter whose environment lacks it; by default this one.
    """
    python = str(python or sys.executable)
    return MachineError(
        f"{what}; enginix {command} needs the extra {extra!r}",
        where=python,
        fix=format_install_command(extra, command, python),
    )


@contextlib.contextmanager
def pause_garbage_collector() -> Iterator[None]:
    """Import in this block a library that makes many objects and little garbage.

    What a first import made stays as long as the process, so later collections pass it over.
    """
    is_collecting, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if is_collecting:
            gc.enable()


def require_extra(extra: str, command: str) -> None:
    """Raise ``MachineError`` where a library of an extra is not installed, before any work."""
    missing = [module for module in EXTRAS[extra].modules if not has_module(module)]
    if missing:
        state = "is not installed" if len(missing) == 1 else "are not installed"
        raise missing_extra(extra, f"{', '.join(missing)} {state}", command)


def has_module(name: str) -> bool:
    """Tell whether a module can be found."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def format_install_command(extra: str | None, command: str, python: str = sys.executable) -> str:
    """Return how to get an extra, or enginix's own dependencies: by pip, or another package of the flake.

    Args:
        command: the sub-command that needs it.
        python: the interpreter whose environment lacks it.
    """
    if is_in_nix_store(python):
        package = PROJECT if extra is None else EXTRAS[extra].package
        return f"{FROM_FLAKE}: nix run {locate_flake()}#{package} -- {command}"
    source = _find_install_source()
    if source is not None:
        return _format_pip_command([f"{source}[{extra}]" if extra else source], python)
    return _format_pip_command(_read_requirements(extra), python)


def _missing_stage(error: ImportError, command: str) -> MachineError | None:
    """Return the error of a package that leaves stages out, as the small ones of the flake do."""
    part = Path(*(error.name or "").split("."))
    if (PACKAGE.parent / part).is_dir() or (PACKAGE.parent / part).with_suffix(".py").is_file():
        return None
    return MachineError(
        f"this package of enginix leaves enginix {command} out ({error.name})",
        where=PACKAGE,
        fix=f"{FROM_FLAKE}: nix run {locate_flake()}#{PROJECT} -- {command}",
    )


def is_externally_managed() -> bool:
    """Tell whether the distribution of this Python alone installs packages into it."""
    managed = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return sys.prefix == sys.base_prefix and managed.exists()


def _format_pip_command(requirements: list[str], python: str = sys.executable) -> str:
    words = " ".join(map(shlex.quote, requirements))
    if python == sys.executable:
        is_managed, has_pip = is_externally_managed(), find_spec("pip") is not None
        use = "run enginix-venv/bin/enginix"
    else:
        import inspect

        from enginix.process import query_python

        script = (
            "import json, sys, sysconfig\nfrom importlib.util import find_spec\nfrom pathlib import Path\n"
            f"{inspect.getsource(is_externally_managed)}"
            "print(json.dumps([is_externally_managed(), find_spec('pip') is not None]))"
        )
        is_managed, has_pip = False, True
        # What it lacks is told even where it does not say this.
        with contextlib.suppress(MachineError):
            is_managed, has_pip = query_python(Path(python), script, failure="does not run")
        use = "pass enginix-venv/bin/python3 in its place"
    python = shlex.quote(python)
    if is_managed:
        return (
            f"{python} -m venv enginix-venv && enginix-venv/bin/pip install {words}, then {use} "
            "(this Python lets its distribution alone install packages)"
        )
    if not has_pip:
        return f"uv pip install --python {python} {words}"
    return f"{python} -m pip install {words}"


def locate_flake() -> str:
    """Return the flake with enginix's packages: the checkout that this enginix is in, or the public one."""
    checkout = PACKAGE.parents[1]
    return shlex.quote(str(checkout)) if (checkout / "flake.nix").is_file() else FLAKE


def format_tritonserver_command() -> str:
    """Return the command that makes a tritonserver which enginix finds."""
    if is_in_nix_store():
        return (
            f"nix build {locate_flake()}#tritonserver -o tritonserver && "
            'export ENGINIX_TRITONSERVER="$PWD/tritonserver"'
        )
    return "enginix tritonserver -o tritonserver"


def is_in_nix_store(python: str = sys.executable) -> bool:
    """Tell whether an environment is Nix's, in which nothing can be installed."""
    store = os.environ.get("NIX_STORE_DIR", "/nix/store") + "/"
    # Not the real path of the program: a virtual environment over Nix's Python can be installed into.
    paths = [python, os.path.realpath(os.path.dirname(python))]
    if python == sys.executable:
        paths += [str(PACKAGE), sys.prefix]
    return any(path.startswith(store) for path in paths)


def _find_install_source() -> str | None:
    """Return the source that pip can install enginix from again: a checkout, or the original source."""
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)
    from importlib import metadata

    try:
        recorded = json.loads(metadata.distribution(PROJECT).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    url = recorded.get("url", "")
    if "vcs_info" in recorded:
        return None  # its requirements are named instead: a clone may need credentials
    path = Path(unquote(urlsplit(url).path))
    return str(path) if url.startswith("file:") and path.exists() else None


def _read_requirements(extra: str | None) -> list[str]:
    """Return an extra's requirements as the installed metadata has them, enginix's own extras resolved."""
    from importlib import metadata

    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        lines = []
    requirements: list[str] = []
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra_match = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        if (extra_match[1] if extra_match else None) != extra:
            continue
        self_reference = re.fullmatch(rf"{PROJECT}\[([^\]]+)\]", requirement)
        if self_reference:
            requirements += [
                r for name in self_reference[1].split(",") for r in _read_requirements(name.strip())
            ]
            continue
        other_markers = re.sub(r"""\s*(and\s+)?\(?extra\s*==\s*["'][^"']+["']\)?""", "", marker).strip()
        requirements.append(f"{requirement}; {other_markers}" if other_markers else requirement)
    return list(dict.fromkeys(requirements)) or [PROJECT if extra is None else f"{PROJECT}[{extra}]"]
