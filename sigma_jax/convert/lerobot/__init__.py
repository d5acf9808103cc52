"""LeRobot's files beside a pi0.5: config.json and both processor pipelines, read and written."""
