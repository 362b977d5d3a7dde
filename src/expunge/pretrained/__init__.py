"""Networks that others trained, opened with their weights; and the testbed's own in the same shape."""
