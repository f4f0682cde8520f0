"""The OCI driver: images as artifacts in a registry that speaks the distribution API."""
