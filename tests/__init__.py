"""Tests of the packages, in folders of their names."""
