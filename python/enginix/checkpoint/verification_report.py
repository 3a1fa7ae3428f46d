"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

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
        findings: what is wrong; empty where nothing is.
        notes: what is allowed but worth knowing.
        bytes, parameters: of all ranks; a packed 4-bit weight counts as one parameter.
        quantized, matrices: matrices that a format applies to, and those that one could apply to.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes: int = 0
    parameters: int = 0
    quantized: int = 0
    matrices: int = 0
