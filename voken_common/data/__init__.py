"""Image sources, transforms and the Grain pipeline. Imports neither jax nor torch.

Only `pipeline` imports Grain, and Grain imports jax where it is installed (for its tree functions; no device is
touched). Whoever must stay free of jax imports `pipeline` where it is used, not at the top of a module.
"""
