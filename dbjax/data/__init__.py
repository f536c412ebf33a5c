"""In-memory data sets: `load` a data set by name; `Stream` shards it over the replicas."""

from dbjax.data.examples import ArrayExamples as ArrayExamples
from dbjax.data.examples import Examples as Examples
from dbjax.data.examples import Frames as Frames
from dbjax.data.examples import Labelled as Labelled
from dbjax.data.most_frequent import MostFrequent as MostFrequent
from dbjax.data.registry import IN_MEMORY as IN_MEMORY
from dbjax.data.registry import load as load
from dbjax.data.registry import option_hints as option_hints
from dbjax.data.registry import require_options as require_options
from dbjax.data.splits import Splits as Splits
from dbjax.data.stream import Stream as Stream
