"""What can go wrong on the way from a hub, on demand.

A fault is written ``KIND[,path=GLOB][,times=N][,at=BYTE][,seconds=S][,code=N][,text=S][,on=REQUEST]``:

=============  ================================================================================
cut            the connection is closed after byte ``at`` of the body
truncate       the body ends at byte ``at``, with a Content-Length that agrees
stall          the body pauses for ``seconds`` after byte ``at``
flip           one bit of byte ``at`` of the file is flipped, in whatever range is asked for
status         ``code`` instead of an answer; Retry-After: ``seconds`` when that is given
no-range       a range request is answered with the whole file
other-host     large files are redirected to another host name of this server
expired        the signed address of a large file is expired when it is used
wrong-oid      the listing shows another LFS oid (``text``, or the right one with its first digit changed)
wrong-pointer  like wrong-oid, and the listing's git oid agrees with it
extra-path     the listing has one more file, named ``text``
twin           the listing has each matching file a second time, its name in upper case
no-commit      X-Repo-Commit is missing, as behind a captive portal
garbage        the listing is not what a hub would send: ``text`` as its body
not-accepted   the token is known, and the licence is not accepted
=============  ================================================================================

``on`` is the kind of request that it happens to: ``info``, ``tree``, ``resolve`` or ``blob`` (the address
that a resolve redirects to). Byte faults happen to ``blob`` and to bodies of ``resolve``; ``status`` to all.
"""

from __future__ import annotations

import fnmatch
import threading
from dataclasses import dataclass, field

KINDS = {
    line.split()[0]
    for line in (__doc__ or "").splitlines()
    if line[:1].isalpha() and "  " in line and not line.startswith("A fault")
}


@dataclass
class Fault:
    """One thing that goes wrong; ``times`` counts down, and nothing goes wrong after it (None: always)."""

    kind: str
    path: str = "*"
    times: int | None = None
    at: int = 0
    seconds: float = 0.0
    code: int = 500
    text: str = ""
    on: str = "*"
    happened: int = field(default=0, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; there are: {', '.join(sorted(KINDS))}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Reads the notation above.

        Raises:
            ValueError: unknown kind or option.
        """
        kind, *words = text.split(",")
        readers = {
            "path": str,
            "times": int,
            "at": int,
            "seconds": float,
            "code": int,
            "text": str,
            "on": str,
        }
        options = {}
        for word in words:
            name, equals, value = word.partition("=")
            if name not in readers or not equals:
                raise ValueError(f"unknown option {word!r} of fault {kind!r}")
            options[name] = readers[name](value)
        return cls(kind, **options)

    def strikes(self, on: str, path: str) -> bool:
        """Whether it happens to this request; counts when it does."""
        if not fnmatch.fnmatchcase(path, self.path) or (self.on != "*" and self.on != on):
            return False
        with self._lock:
            if self.times is not None and self.happened >= self.times:
                return False
            self.happened += 1
            return True
