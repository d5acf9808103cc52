"""The frozen policies that Sigma is built around: pi0.5 and its parts."""
