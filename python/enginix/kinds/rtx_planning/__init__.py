"""The memory plan of kind ``rtx``."""
