"""A plan to look at: tables, JSON and drawings."""
