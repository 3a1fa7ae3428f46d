"""The text above a command's options, fitted to a narrow terminal."""

from __future__ import annotations

import re
import textwrap

# A word of a shell: quoted parts stay whole.
_SHELL_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")
_PROGRAMS = ("enginix ", "nix ")
# Fewest columns of a text beside its label.
_NARROWEST_TEXT = 30


def fit_description(text: str, width: int) -> str:
    """Fill paragraphs to a width; lay examples and lists, which are indented, out in it.

    A block that fits stays as it is written. In another one the explanation of a command stands below it,
    and a long command goes over lines as a shell takes it.
    """
    return "\n\n".join(_fit_block(part, width) for part in text.split("\n\n"))


def _fit_block(part: str, width: int) -> str:
    if not part.startswith(" ") and "\n " not in part:
        return textwrap.fill(" ".join(part.split()), width, break_long_words=False, break_on_hyphens=False)
    lines = part.splitlines()
    if all(len(line) <= width for line in lines):
        return part
    rows = _join_rows(lines)
    column = max((len(label) for label, text in rows if text), default=0) + 4
    fitted: list[str] = []
    for label, text in rows:
        if label.startswith(_PROGRAMS):
            fitted += _break_command(label, width)
            fitted += _fill(text, width, "      ", "      ") if text else []
        elif text and column + _NARROWEST_TEXT <= width:
            fitted += _fill(text, width, f"  {label}".ljust(column), " " * column)
        else:
            fitted += _fill(f"{label} {text}".strip(), width, "  ", "      ")
    return "\n".join(fitted)


def _join_rows(lines: list[str]) -> list[tuple[str, str]]:
    """Return label, or command, and text of each row of a block; further lines are joined to their row."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    rows: list[tuple[str, str]] = []
    for line in lines:
        label, _, text = re.sub(r"^(\S.*?) {2,}(?=\S)", "\\1\n", line.strip()).partition("\n")
        is_further = rows and len(line) - len(line.lstrip()) > indent
        if is_further and rows[-1][0].endswith("\\"):
            rows[-1] = (f"{rows[-1][0][:-1].rstrip()} {label}", text)
        elif is_further and rows[-1][1]:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
        else:
            rows.append((label, text))
    return rows


def _break_command(command: str, width: int) -> list[str]:
    """Return the lines of a command, all but the last of which end with a backslash."""
    lines, line = [], " "
    for word in _list_units(command):
        if len(line) + len(word) + 3 > width and line.strip():
            lines.append(f"{line} \\")
            line = " " * 5
        line += f" {word}"
    return [*lines, line]


def _list_units(command: str) -> list[str]:
    """Return the words of a command, each option together with its value."""
    units: list[str] = []
    for word in _SHELL_WORD.findall(command):
        if units and re.fullmatch(r"--?[a-z-]+", units[-1]) and not word.startswith("-"):
            units[-1] += f" {word}"
        else:
            units.append(word)
    return units


def _fill(text: str, width: int, first: str, further: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )
