"""The graph that a plan is: what is computed, how often, and what every operator in it is."""
