"""What finished measurements say together: rows, intervals, differences, claims, costs, tables. Reads, and runs nothing."""
