"""The paper's networks and simpler ones, as Flax NNX modules and as pure functions."""

from dbjax.models.fully_connected import Linear as Linear
from dbjax.models.fully_connected import LinearConfig as LinearConfig
from dbjax.models.fully_connected import Mlp as Mlp
from dbjax.models.fully_connected import MlpConfig as MlpConfig
from dbjax.models.model import Model as Model
from dbjax.models.model import argument_hints as argument_hints
from dbjax.models.model import build as build
from dbjax.models.model import model as model
from dbjax.models.model import require_arguments as require_arguments
from dbjax.models.speech import DEMO as DEMO
from dbjax.models.speech import PAPER as PAPER
from dbjax.models.speech import Speech as Speech
from dbjax.models.speech import SpeechConfig as SpeechConfig
from dbjax.models.vision import Vision as Vision
from dbjax.models.vision import VisionConfig as VisionConfig
