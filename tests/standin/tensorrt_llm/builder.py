"""Stand-in."""

from .standin import contract


class BuildConfig:
    """Takes the contract's fields and no other."""

    def __init__(self, **fields):
        rows = {row["name"]: row.get("default") for row in contract("build_config_fields")["fields"]}
        if unknown := set(fields) - set(rows):
            raise TypeError(f"BuildConfig got unexpected keyword arguments {sorted(unknown)}")
        self.__dict__.update(rows, **fields)
