"""What a model costs to run, before and after: prices, capacity, bills, and whether it is worth it. Pure, but for reading files."""
