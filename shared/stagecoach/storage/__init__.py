"""Object stores with one protocol: directory, memory and S3."""
