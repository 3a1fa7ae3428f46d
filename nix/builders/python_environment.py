"""Join unpacked wheels into one environment by links: python_environment.py OUT WHEEL ..."""

import configparser
import filecmp
import sys
from pathlib import Path

# What each wheel has of its own, and two wheels may both have.
PER_WHEEL = {"nix-support"}


def join(sources: list[Path], target: Path) -> None:
    """Link the content of ``sources`` into ``target``; only directories that several have are made anew."""
    by_name: dict[str, list[Path]] = {}
    for source in sources:
        for child in sorted(source.iterdir()):
            by_name.setdefault(child.name, []).append(child)
    target.mkdir(exist_ok=True)
    for name, children in sorted(by_name.items()):
        if name in PER_WHEEL:
            continue
        if len(children) > 1 and all(child.is_dir() for child in children):
            join(children, target / name)
            continue
        for other in children[1:]:
            require_same(children[0], other)
        (target / name).symlink_to(children[0])


def require_same(first: Path, second: Path) -> None:
    """Refuse two files that differ; bytecode holds the path of its source, which is compared instead."""
    if first.suffix == ".pyc" or (
        first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)
    ):
        return
    raise SystemExit(f"error: two wheels bring one file with different contents:\n  {first}\n  {second}")


def write_scripts(site: Path, target: Path) -> None:
    """Write the commands that the wheels declare as entry points."""
    for declared in sorted(site.glob("*.dist-info/entry_points.txt")):
        points = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
        points.optionxform = str  # type: ignore[assignment,method-assign]
        points.read_string(declared.read_text())
        for name, value in points["console_scripts"].items() if "console_scripts" in points else ():
            module, _, function = value.split("[")[0].strip().partition(":")
            script = target / name
            script.unlink(missing_ok=True)
            script.write_text(
                f"#!{target}/python3\nimport sys\n\nfrom {module} import {function.split('.')[0]}\n\n"
                f"if __name__ == '__main__':\n    sys.exit({function}())\n"
            )
            script.chmod(0o755)


def name_interpreter(target: Path) -> None:
    """Give scripts of wheels this environment's Python, for which wheels write ``#!python``."""
    for script in sorted(target.iterdir()):
        with script.open("rb") as file:
            first = file.readline()
        if first.startswith(b"#!python"):
            content = script.read_bytes()[len(first) :]
            script.unlink()
            script.write_bytes(f"#!{target}/python3\n".encode() + content)
            script.chmod(0o755)


def main() -> None:
    out = Path(sys.argv[1])
    wheels = [Path(word) for word in sys.argv[2:]]
    for part in sorted({child.name for wheel in wheels for child in wheel.iterdir()} - PER_WHEEL):
        join([wheel / part for wheel in wheels if (wheel / part).is_dir()], out / part)
    # Packages of nixpkgs bring scripts with an interpreter of their own; wheels declare theirs.
    site = out / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    write_scripts(site, out / "bin")
    name_interpreter(out / "bin")


if __name__ == "__main__":
    main()
