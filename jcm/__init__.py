"""Consistency models in JAX: train, sample, edit with and evaluate them."""

from jcm.data.images import to_float as to_float
from jcm.data.images import to_uint8 as to_uint8
from jcm.model.loading import load as load
from jcm.model.model import Model as Model
from jcm.model.save import save as save
from jcm.runtime.errors import JcmError as JcmError
