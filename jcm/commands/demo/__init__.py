"""A page to play with a model: `python -m jcm.commands.demo --load=runs/digits_cd`."""
