"""What of a run outlives it: the shards' state on disk, and how another run takes it up."""

from dbjax.checkpoint.exact import ExactResume as ExactResume
from dbjax.checkpoint.exact import ExactState as ExactState
from dbjax.checkpoint.files import Checkpoints as Checkpoints
from dbjax.checkpoint.manager import CheckpointManager as CheckpointManager
from dbjax.checkpoint.manager import Every as Every
from dbjax.checkpoint.state import CannotRestore as CannotRestore
from dbjax.checkpoint.state import CheckpointState as CheckpointState
from dbjax.checkpoint.state import run_signature as run_signature
