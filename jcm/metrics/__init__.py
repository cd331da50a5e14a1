"""Scores of samples, perceptual distances, and the published networks they use.

A *score* is what `config.eval.scores` names. It gives one or more numbers, its
*columns*: `precision_recall` gives the columns `precision` and `recall`.
*Features* are what a network computes for each image, *statistics* summarise the
features of many images, and the *reference* is the statistics of the real images.
"""
