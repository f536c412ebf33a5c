"""Networks, in flax NNX, and as pure functions of their parameters."""

from dbjax.models.classifier import Classifier as Classifier
from dbjax.models.classifier import build as build
from dbjax.models.speech import DEMO as DEMO
from dbjax.models.speech import PAPER as PAPER
from dbjax.models.speech import Speech as Speech
from dbjax.models.speech import SpeechConfig as SpeechConfig
