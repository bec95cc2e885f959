"""The driver: starts the competitors, takes samples in turn, compares and reports. See bench/README.md."""
