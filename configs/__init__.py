"""The configs: each the differences from `jcm.config.base`."""
