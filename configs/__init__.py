"""The configs. Each one changes some fields of `jcm.config.base`."""
