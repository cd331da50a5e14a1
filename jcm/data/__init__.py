"""Data sets by name, stored as ArrayRecord files, and endless batches of them.

dataset = data.load(config.data)
for batch in data.batches(dataset, 128, seed=0, flip=True): ...
"""

from jcm.data.dataset import Dataset as Dataset
from jcm.data.dataset import load as load
from jcm.data.pipeline import batches as batches
