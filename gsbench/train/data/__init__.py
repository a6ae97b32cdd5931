"""Data sets: readers that stream, CSR matrices that stay on disk, features, and two that need no download service."""
