"""The Glance driver: images in OpenStack's image service."""
