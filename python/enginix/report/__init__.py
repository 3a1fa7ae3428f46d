"""Evidence for people: ``report.html``, one file without network, from ``gates.json``."""
