"""What comes out: the manifest, the loaded bundle, the report and the card."""

from lowbit.bundle.bundle import Bundle, BundleSession

__all__ = ["Bundle", "BundleSession"]
