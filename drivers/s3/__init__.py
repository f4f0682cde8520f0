"""The S3 driver: images in a bucket of Amazon S3, or of any server that speaks its protocol."""
