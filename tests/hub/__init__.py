"""A small Hub for tests and the demo: it serves directories as the Hugging Face Hub serves repositories.

It speaks the part of the Hub's HTTP interface that huggingface_hub uses to read models, and the part of
git's and git-lfs's that a clone needs. Standard library only.
"""

from .faults import Fault
from .repository import Repository
from .server import Hub

__all__ = ["Fault", "Hub", "Repository"]
