"""The compiler: what is known of every value, the laws that hold, the plan for a machine, and the graphs it becomes."""
