"""What every room of the library shares and what needs no JAX: files of JSON, paths."""
