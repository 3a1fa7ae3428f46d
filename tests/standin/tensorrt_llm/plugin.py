"""Stand-in."""

from .standin import contract


class PluginConfig:
    """Fields of the contract; others are refused here, dropped in silence by the real one."""

    def __init__(self):
        for row in contract("plugin_config_fields")["fields"]:
            object.__setattr__(self, row["name"], row.get("default"))

    def __setattr__(self, name, value):
        if name not in self.__dict__:
            raise ValueError(f"PluginConfig has no field {name}")
        object.__setattr__(self, name, value)
