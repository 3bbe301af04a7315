"""Settings of the property tests."""

from hypothesis import settings

settings.register_profile("brew", deadline=None)  # a loaded machine is slow, and not wrong
settings.load_profile("brew")
