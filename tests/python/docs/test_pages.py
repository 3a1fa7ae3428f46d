"""The documentation: generated pages are fresh, links lead somewhere, pages that the code names exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import reference_pages

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS = {"tutorial", "how-to", "reference", "explanation"}
# Pages that were right below docs/ once, and where their text is.
EARLIER = {
    "openai": "docs/reference/gateway.md",
    "plan": "docs/reference/memory-plan.md",
    "reference": "docs/reference/reference-executor.md",
}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)


def read_prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCED.sub("", page.read_text("utf-8"))


def find_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", read_prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_generated_page_is_fresh(name: str) -> None:
    page = reference_pages.REFERENCE / name
    assert page.read_text("utf-8") == reference_pages.PAGES[name](), f"run: {reference_pages.WRITE}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(read_prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{target}: no such page"
        assert not anchor or anchor in find_anchors(linked), f"{target}: no such heading"


def test_pages_are_in_four_folders() -> None:
    folders = {page.relative_to(ROOT / "docs").parts[0] for page in (ROOT / "docs").rglob("*.md")}
    assert folders == FOLDERS


def test_pages_that_the_code_names_exist() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    missing = set()
    moved = EARLIER | {page.stem: str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    for name in listed.stdout.splitlines():
        file = ROOT / name
        if file.suffix not in {".py", ".nix", ".sh", ".json", ".md", ".yml"} or not file.is_file():
            continue
        text = file.read_text("utf-8", errors="replace")
        for page in re.findall(r"(?<![\w./-])docs/(?:[\w-]+/)*[\w-]+\.md", text):
            folder = page.split("/")[1]
            # Other projects have a docs/ as well.
            file_stem = Path(page).stem
            ours = folder in FOLDERS or folder.removesuffix(".md") in moved
            if ours and not (ROOT / page).exists():
                missing.add(f"{name}: {page}, now {moved.get(file_stem, 'gone')}")
    assert not missing


def test_every_package_is_on_the_map() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text("utf-8")
    packages = {
        init.parent.relative_to(ROOT / "python/enginix") for init in (ROOT / "python").rglob("__init__.py")
    }
    groups = {str(package.parts[0]) for package in packages if package.parts}
    # A kind and what kinds share has a line of its own.
    kinds = {
        f"kinds/{package.parts[1]}"
        for package in packages
        if package.parts[:1] == ("kinds",) and len(package.parts) > 1
    }
    expected = (groups - {"kinds", "cli", "data"}) | kinds
    assert not {name for name in expected if f"| `{name}/` |" not in page}, "add a line to the table"
    named = set(re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE))
    assert named <= expected | {"cli/GROUP", "data/GROUP"}, "remove a line from the table"


# Generated pages say what their sources say.
WRITTEN = [page for page in PAGES if page.name not in {*reference_pages.PAGES, "nixos-options.md"}]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_have_subjects(page: Path) -> None:
    riddles = re.compile(r"\b([Nn]obody|[Ww]hoever|[Nn]ot a word|is none|are none)\b")
    assert not [line for line in page.read_text("utf-8").splitlines() if riddles.search(line)]


def test_tutorial_has_the_commands_of_the_readme() -> None:
    """The README's block for pip is what tests/debian/run.sh runs."""
    readme = (ROOT / "README.md").read_text("utf-8")
    tutorial = (ROOT / "docs/tutorial/first-model.md").read_text("utf-8")
    block = readme.split("### pip\n")[1].split("```sh\n")[1].split("```")[0]
    assert block.strip()
    assert not [line for line in block.splitlines() if line not in tutorial.splitlines()]


def test_the_fleets_page_shows_its_template() -> None:
    page = (ROOT / "docs/how-to/fleet.md").read_text("utf-8")
    assert (ROOT / "templates/fleet/flake.nix").read_text("utf-8") in page
