"""Consistency models in JAX: train, sample and evaluate one-step image generators."""

from jcm.errors import JcmError as JcmError
from jcm.images import to_float as to_float
from jcm.images import to_uint8 as to_uint8
from jcm.model import Model as Model
from jcm.model import load as load
from jcm.share import save as save
