"""What a method costs beside its error: parameters, arithmetic, windows seen."""
