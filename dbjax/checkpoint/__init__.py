"""Checkpoints: saves the state of a run on disk, and resumes another run from it."""

from dbjax.checkpoint.exact import ExactResume as ExactResume
from dbjax.checkpoint.exact import ExactState as ExactState
from dbjax.checkpoint.files import Checkpoints as Checkpoints
from dbjax.checkpoint.manager import CheckpointManager as CheckpointManager
from dbjax.checkpoint.manager import Every as Every
from dbjax.checkpoint.manager import checkpointer as checkpointer
from dbjax.checkpoint.state import CannotRestore as CannotRestore
from dbjax.checkpoint.state import CheckpointState as CheckpointState
from dbjax.checkpoint.state import RunSignature as RunSignature
from dbjax.checkpoint.state import run_signature as run_signature
