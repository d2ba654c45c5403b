"""Algebra: values as blocks of sums of products ("forms"), and the intermediate graph they are computed in."""
