"""Frame-exact video: opened safely, decoded by time, checked against its clock, encoded."""
