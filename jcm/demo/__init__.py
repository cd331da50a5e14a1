"""A page to play with a model: `python -m jcm.demo --load=runs/digits_cd`."""
