"""The report of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        where: file, and tensor or key in it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class VerificationReport:
    """The outcome of a verification.

    Attributes:
        findings: the faults; empty for a sound checkpoint.
        notes: observations that are not faults.
        bytes, parameters: of all ranks; a packed 4-bit weight counts as one parameter.
        quantized, matrices: numbers of quantized and of quantizable matrices.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes: int = 0
    parameters: int = 0
    quantized: int = 0
    matrices: int = 0

    def add(self, where: str, what: str) -> None:
        self.findings.append(Finding(where, what))
