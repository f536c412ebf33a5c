"""What of a run outlives it: the shards' state on disk, and how another run takes it up."""

from dbjax.checkpoint.content import Content as Content
from dbjax.checkpoint.content import NotRestored as NotRestored
from dbjax.checkpoint.content import described as described
from dbjax.checkpoint.exact import Exact as Exact
from dbjax.checkpoint.exact import Exactly as Exactly
from dbjax.checkpoint.files import Checkpoints as Checkpoints
from dbjax.checkpoint.taking import Every as Every
from dbjax.checkpoint.taking import Taking as Taking
