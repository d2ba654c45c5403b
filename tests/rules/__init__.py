"""One file of tests for each family of rules, in one shape: what is equal, what declines, what else it promises."""
