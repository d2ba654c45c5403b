"""The workshop: data sets, training, the demonstration and load tests, which show how well the rest works.

The compiler and what runs its result never import it.
"""
