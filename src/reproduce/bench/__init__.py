"""What it costs: units a second against a reference of the same shape, padding, waiting, memory."""
